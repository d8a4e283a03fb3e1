"""The types that signatures share."""

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""On the device or on the host: what numpy made is taken as it is."""
