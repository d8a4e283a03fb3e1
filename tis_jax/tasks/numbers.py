"""Numeric answers: finding the one a completion gives, and comparing it exactly."""

import re
from fractions import Fraction

# 1,234.50 · .5 · -3 · $18 · -$2 · $-2. A comma counts only where it groups thousands,
# and a minus that follows a digit or a letter is an operator.
_SIGN = r"(?:(?<!\w)[-+\u2212])?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:\$[-+\u2212]|{_SIGN}\$?)(?:{_DIGITS})", re.ASCII)
_MARK = "####"


def parse_number(text: str) -> Fraction | None:
  """The number that `text` is, or None when it is anything else.

  The value is exact, so `.10` equals `0.1` and large answers lose no digits.
  Surrounding space, thousands commas, a dollar sign, a trailing percent sign and a
  trailing full stop are not part of the number. One of more digits than Python reads
  (4,300, `sys.set_int_max_str_digits`) is none.

  Args:
    text: a written number, such as `$1,234.50`.

  Returns:
    Its exact value, or None.

  >>> parse_number("$1,234.50.")
  Fraction(2469, 2)
  >>> parse_number("-7"), parse_number("12 eggs"), parse_number("1,23")
  (Fraction(-7, 1), None, None)
  """
  text = text.strip().removesuffix(".").removesuffix("%")
  if not _NUMBER.fullmatch(text):
    return None
  try:
    value = Fraction(text.lstrip("$+-\u2212").replace(",", ""))
  except ValueError:
    # So many digits that Python refuses to read them; no answer, and no reason to stop.
    return None
  return -value if "-" in text or "\u2212" in text else value


def final_number(completion: str, *, last_number: bool = False) -> Fraction | None:
  """The number a completion gives as its answer, as GSM8K writes it: `#### 18`.

  The last `####` counts, so a completion cannot collect reward by guessing several
  times. What follows the number is ignored: `#### $18 a day` is 18.

  Args:
    completion: generated text.
    last_number: with no `####` anywhere, take the last number in the text. Right for
      measuring a model that was never told the format; as a training reward it
      also pays for numbers that were not meant as the answer.

  Returns:
    The exact value, or None when no answer is given.

  >>> final_number("4 * 9 = 36 eggs, so $36. #### $36 a day")
  Fraction(36, 1)
  >>> final_number("So 36."), final_number("So 36.", last_number=True)
  (None, Fraction(36, 1))

  Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (the answer format).
  """
  _, mark, tail = completion.rpartition(_MARK)
  if mark:
    return leading_number(tail)
  numbers = _NUMBER.findall(completion) if last_number else []
  return parse_number(numbers[-1]) if numbers else None


def leading_number(text: str) -> Fraction | None:
  """The number that `text` begins with, or None when it begins otherwise.

  Spaces, tabs and `:=*` before the number, and whatever follows it, are ignored.

  Args:
    text: what continues "Final answer:", say.

  Returns:
    The exact value, or None.

  >>> leading_number(" **$36** a day"), leading_number(" 3 6"), leading_number("So 36")
  (Fraction(36, 1), Fraction(3, 1), None)
  """
  number = _NUMBER.match(text.lstrip(" \t:=*"))
  return parse_number(number[0]) if number else None
