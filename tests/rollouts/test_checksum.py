"""The sum of a long record is zlib's, however it is cut."""

import zlib

import numpy as np
import pytest

from tis_jax.rollouts.checksum import checksum


@pytest.mark.parametrize(
  "sizes", [(), (0,), (5, 0, 7), (3 << 20,), (9 << 20, 1, 0, 5 << 20), (4_194_305, 3)]
)
def test_it_is_that_of_the_parts_behind_each_other(sizes):
  rng = np.random.default_rng(0)
  parts = [rng.bytes(size) for size in sizes]
  assert checksum(parts) == zlib.crc32(b"".join(parts))
  assert checksum([memoryview(part) for part in parts]) == checksum(parts)
