"""Arithmetic on text that a policy wrote: exact, bounded, never run as a program."""

import re
from fractions import Fraction

MAX_LENGTH = 100
"""Characters of an expression; with that no number, nor how deep it nests, is large."""

_PIECE = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|([-+*/()]))", re.ASCII)


class CalculatorError(ValueError):
  """An expression that has no value; the message says why, to whoever wrote it."""


def calculate(expression: str) -> Fraction:
  """The exact value of an expression of numbers, `+ - * /` and parentheses.

  Args:
    expression: such as `(48 + 24) * 1.5`; thousands may have commas.

  Raises:
    CalculatorError: it is longer than `MAX_LENGTH`, is no expression, or divides by 0.

  >>> calculate("2 + 48/2"), calculate("-(1,000 - 1) * .5")
  (Fraction(26, 1), Fraction(-999, 2))
  >>> calculate("__import__('os')")
  Traceback (most recent call last):
  tis_jax.tasks.calculator.CalculatorError: '_' is not arithmetic
  """
  if len(expression) > MAX_LENGTH:
    raise CalculatorError(f"more than {MAX_LENGTH} characters")
  pieces = _pieces(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression))
  value = _sum(pieces)
  if pieces:
    raise CalculatorError(f"{pieces[0]!r} is not expected there")
  return value


def written(value: Fraction) -> str:
  """A value in digits: whole, or rounded to at most four decimals.

  >>> written(Fraction(24)), written(Fraction(-5, 2)), written(Fraction(1, 3))
  ('24', '-2.5', '0.3333')
  """
  if value.denominator == 1:
    return str(value.numerator)
  thousandths = round(abs(value) * 10**4)
  digits = f"{thousandths // 10**4}.{thousandths % 10**4:04d}".rstrip("0").rstrip(".")
  return f"-{digits}" if value < 0 and thousandths else digits


def _pieces(text: str) -> list[str]:
  """Numbers and signs, in order; what has been read is taken from the front."""
  pieces, place = [], 0
  text = text.rstrip()
  while place < len(text):
    found = _PIECE.match(text, place)
    if found is None:
      raise CalculatorError(f"{text[place:].lstrip()[0]!r} is not arithmetic")
    pieces.append(found[1] or found[2])
    place = found.end()
  return pieces


def _sum(pieces: list[str]) -> Fraction:
  value = _product(pieces)
  while pieces and pieces[0] in "+-":
    sign = 1 if pieces.pop(0) == "+" else -1
    value += sign * _product(pieces)
  return value


def _product(pieces: list[str]) -> Fraction:
  value = _factor(pieces)
  while pieces and pieces[0] in "*/":
    if pieces.pop(0) == "*":
      value *= _factor(pieces)
      continue
    divisor = _factor(pieces)
    if divisor == 0:
      raise CalculatorError("it divides by zero")
    value /= divisor
  return value


def _factor(pieces: list[str]) -> Fraction:
  if not pieces:
    raise CalculatorError("a number is missing at the end")
  piece = pieces.pop(0)
  if piece in "+-":
    return _factor(pieces) if piece == "+" else -_factor(pieces)
  if piece == "(":
    value = _sum(pieces)
    if not pieces or pieces.pop(0) != ")":
      raise CalculatorError("a parenthesis is not closed")
    return value
  if piece in "*/)":
    raise CalculatorError(f"a number is missing before {piece!r}")
  return Fraction(piece)
