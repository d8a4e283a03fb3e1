"""What a CPU multiplies fastest in."""

import functools
from pathlib import Path

import jax.numpy as jnp

# Flags of processors that multiply numbers of a dtype, on x86 and on ARM.
_UNITS = {
  "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
  "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
# Beyond it the memory of fp32 is dearer than the time of 16 bits.
_MOST_PARAMS = 2**30


def multiplied_in(dtype, num_params: int, flags: frozenset[str] | None = None):
  """The dtype that a CPU had better hold matrices of `dtype` in.

  Without units for 16 bits XLA converts a matrix at every product, to fp32, in which
  the products are exact either way: held in fp32, only memory is lost. On two cores
  with AVX2, 16 rows of SmolLM2's matrices take 0.75 of the time in bf16, and 0.16 in
  fp16.

  Args:
    dtype: of the activations.
    num_params: of the decoder: above 2^30 the dtype stays.
    flags: of the processor; None reads those of this machine, where Linux tells them.

  >>> for flags in ({"avx2"}, {"avx2", "avx512_bf16"}, set()):
  ...   print(multiplied_in(jnp.bfloat16, 10**8, frozenset(flags)))
  float32
  bfloat16
  bfloat16
  >>> print(multiplied_in(jnp.bfloat16, 8 * 10**9, frozenset({"avx2"})))
  bfloat16
  """
  dtype = jnp.dtype(dtype)
  flags = _flags() if flags is None else flags
  units = _UNITS.get(dtype.name, flags)
  if not flags or units & flags or num_params > _MOST_PARAMS:
    return dtype
  return jnp.dtype(jnp.float32)


@functools.cache
def _flags() -> frozenset[str]:
  """Of the first processor; none where nothing tells them."""
  told = Path("/proc/cpuinfo")
  if not told.exists():
    return frozenset()
  for line in told.read_text().splitlines():
    name, _, value = line.partition(":")
    if name.strip() in ("flags", "Features"):
      return frozenset(value.split())
  return frozenset()
