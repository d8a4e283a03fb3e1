"""Token log-probs that can be trusted: fp32, one definition, fused, on one support.

Lazy, so that the contract can be had without jax; the contents are `__init__.pyi`.
"""

from tis_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, __file__)
