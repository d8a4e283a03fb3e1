"""An error on a name that does not exist says which was meant."""

import pytest

from tis_jax.numerics.names import did_you_mean

_MANY = [f"option_{i}" for i in range(100)]


@pytest.mark.parametrize(
  ("name", "known", "hint"),
  [
    ("lambda", ["gamma", "lambd"], "; did you mean 'lambd'?"),
    ("option", _MANY, "; did you mean 'option_"),
    ("xyz", ["gamma", "lambd"], "; there are 'gamma', 'lambd'"),
    ("not", _MANY, "; did you mean 'option_"),  # a hundred names would help nobody
    (3, ["three"], "; there are 'three'"),
    ("gamma", (), ""),
  ],
)
def test_the_hint(name, known, hint):
  assert did_you_mean(name, known).startswith(hint)
  assert bool(hint) == bool(did_you_mean(name, known))
