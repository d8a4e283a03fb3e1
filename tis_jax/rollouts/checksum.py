"""CRC-32 of a long record, by several cores."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

# A piece is some milliseconds' work; a record shorter than two is not worth a thread.
_PIECE_BYTES = 2 << 20
_THREADS = 4
# CRC-32's polynomial, its highest power in the lowest bit.
_POLYNOMIAL = 0xEDB88320


def checksum(parts: Sequence[bytes | memoryview]) -> int:
  """`zlib.crc32` of the parts, one behind the other.

  >>> checksum([b"1234", b"56789"]) == zlib.crc32(b"123456789")
  True
  """
  if sum(map(len, parts)) < 2 * _PIECE_BYTES:
    found = 0
    for part in parts:
      found = zlib.crc32(part, found)
    return found
  pieces = [
    memoryview(part)[start : start + _PIECE_BYTES]
    for part in parts
    for start in range(0, len(part), _PIECE_BYTES)
  ]
  found = 0
  with ThreadPoolExecutor(_THREADS) as threads:
    for piece, crc in zip(pieces, threads.map(zlib.crc32, pieces), strict=True):
      found = _product(_power(8 * len(piece)), found) ^ crc
  return found


def _product(a: int, b: int) -> int:
  """The product of two polynomials over GF(2), modulo CRC-32's."""
  product, bit = 0, 1 << 31
  while a:
    if a & bit:
      product ^= b
      a ^= bit
    bit >>= 1
    b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
  return product


def _power(n: int) -> int:
  """x to the n, modulo CRC-32's polynomial: what n bits behind a message do to it."""
  power, square = 1 << 31, 1 << 30
  while n:
    if n & 1:
      power = _product(square, power)
    square = _product(square, square)
    n >>= 1
  return power
