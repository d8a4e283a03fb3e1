"""Written numbers and the answer of a completion."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tis_jax.tasks import final_number, leading_number, parse_number


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("18", 18),
    (" 18. ", 18),
    ("$18", 18),
    ("-$18", -18),
    ("$-18", -18),
    ("\u221218", -18),
    ("+3", 3),
    ("1,234,567", 1234567),
    ("1,234.50", Fraction(2469, 2)),
    (".5", Fraction(1, 2)),
    ("10%", 10),
    ("007", 7),
    ("12345678901234567890", 12345678901234567890),
    ("", None),
    (".", None),
    ("-", None),
    ("$", None),
    ("1,23", None),
    ("1,2345", None),
    ("1.2.3", None),
    ("--3", None),
    ("3-", None),
    ("nan", None),
    ("inf", None),
    ("1e3", None),
    ("1/2", None),
    ("\u0663", None),  # a digit to Unicode, not to us
    ("12 eggs", None),
  ],
)
def test_parse_number(text, value):
  assert parse_number(text) == value


@pytest.mark.parametrize(
  ("completion", "strict", "lenient"),
  [
    ("9*2=<<9*2=18>>18\n#### 18", 18, 18),
    ("#### $70,000.", 70000, 70000),
    ("####-5", -5, -5),
    ("#### 5 or maybe #### 6", 6, 6),
    ("#### 5\n#### none", None, None),
    ("#### five, that is 5", None, None),
    ("#### ", None, None),
    ("10-3=7", None, 7),
    ("from 10-3", None, 3),
    ("it was -3 degrees", None, -3),
    ("pay $1,200.50, then stop.", None, Fraction(2401, 2)),
    ("options: 1,2,3", None, 3),
    ("no idea", None, None),
    ("", None, None),
  ],
)
def test_final_number(completion, strict, lenient):
  assert final_number(completion) == strict
  assert final_number(completion, last_number=True) == lenient


@pytest.mark.parametrize(
  ("text", "value"),
  [
    (" $1,260 a day", 1260),
    ("** 3 6", 3),
    (":\t-.5", Fraction(-1, 2)),
    ("1,23", 1),
    ("3-1", 3),
    ("", None),
    ("so 3", None),
    ("\n3", None),
    ("#### 3", None),
  ],
)
def test_leading_number(text, value):
  assert leading_number(text) == value


@given(st.integers(-(10**15), 10**15), st.integers(0, 4))
def test_every_written_number_reads_back(number, places):
  value = Fraction(number, 10**places)
  for form in (f"{float(value):.{places}f}", f"{float(value):,.{places}f}"):
    if Fraction(form.replace(",", "")) == value:
      assert parse_number(form) == value
      assert final_number(f"so #### {form}\n") == value


@pytest.mark.parametrize("digits", [4_301, 100_000])
def test_more_digits_than_python_reads_are_no_answer(digits):
  long = "7" * digits
  for text in (long, f"-{long}", f"1.{long}", f"{long}.5"):
    assert parse_number(text) is None
    assert leading_number(f": {text} a day") is None
    assert final_number(f"so #### {text}") is None
    assert final_number(text, last_number=True) is None
  # As long as it is, it is counted as one number: nothing of it is taken for another.
  assert parse_number("7" * 4_300) == Fraction(int("7" * 4_300))


@given(st.text())
def test_no_text_raises(text):
  parse_number(text)
  final_number(text, last_number=True)
