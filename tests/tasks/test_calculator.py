"""The calculator against exact arithmetic, and against those who would abuse it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tis_jax.tasks.calculator import (
  MAX_LENGTH,
  CalculatorError,
  calculate,
  written,
)

NUMBERS = st.integers(0, 999).map(lambda n: (str(n), Fraction(n)))


def joined(parts):
  (left, x), sign, (right, y) = parts
  value = {"+": x + y, "-": x - y, "*": x * y}.get(sign)
  if sign == "/":
    value = x / y if y else None
  return f"({left}{sign}{right})", value


TREES = st.recursive(
  NUMBERS,
  lambda tree: st.tuples(
    tree.filter(lambda t: t[1] is not None),
    st.sampled_from("+-*/"),
    tree.filter(lambda t: t[1] is not None),
  ).map(joined),
  max_leaves=8,
)


@given(TREES)
def test_values_are_exact(tree):
  text, value = tree
  if len(text) > MAX_LENGTH:
    return
  if value is None:
    with pytest.raises(CalculatorError, match="zero"):
      calculate(text)
  else:
    assert calculate(text) == value


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("2+3*4", 14),
    ("16-3-4", 9),
    ("48/2/3", 8),
    ("-3--4", 1),
    ("2*-3", -6),
    (" 1,250 * .10 ", 125),
    ("5. + 1", 6),
  ],
)
def test_signs_bind_as_they_do_on_paper(text, value):
  assert calculate(text) == value


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "a number is missing at the end"),
    ("48/", "a number is missing at the end"),
    ("48/(2-2)", "divides by zero"),
    ("2 3", "'3' is not expected"),
    ("1,23", "',' is not arithmetic"),
    ("(1+2", "not closed"),
    ("*2", "missing before"),
    ("__import__('os').system('x')", "'_' is not arithmetic"),
    ("2**9", "missing before"),
    ("9" * (MAX_LENGTH + 1), "more than 100 characters"),
    ("x", "'x' is not arithmetic"),
    ("٣+1", "is not arithmetic"),
  ],
)
def test_what_is_no_expression_is_said_in_words(text, message):
  with pytest.raises(CalculatorError, match=message):
    calculate(text)


def test_the_longest_and_deepest_expression_has_a_value():
  depth = MAX_LENGTH // 2 - 1
  assert calculate("(" * depth + "1" + ")" * depth) == 1
  assert calculate("-" * (MAX_LENGTH - 1) + "1") == -1
  assert calculate("9" * MAX_LENGTH) == 10**MAX_LENGTH - 1


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (Fraction(-7), "-7"),
    (Fraction(1, 4), "0.25"),
    (Fraction(2, 3), "0.6667"),
    (Fraction(-1, 3), "-0.3333"),
    (Fraction(-1, 10**6), "0"),
    (Fraction(99999, 100000), "1"),
    (Fraction(12345, 100), "123.45"),
  ],
)
def test_values_are_written_in_digits(value, text):
  assert written(value) == text
