# The table of contents. `tis.NAME` imports what it needs when it is first asked for.

# Namespaces.
from tis_jax import advantages as advantages
from tis_jax import compat as compat
from tis_jax import corrections as corrections
from tis_jax import lab as lab
from tis_jax import logprobs as logprobs
from tis_jax import losses as losses

# Corrections: log-probs of two policies -> weight, mask, metrics.
from tis_jax.corrections import Chain as Chain
from tis_jax.corrections import Correction as Correction
from tis_jax.corrections import Stage as Stage
from tis_jax.corrections import adaptive_truncate as adaptive_truncate
from tis_jax.corrections import chain as chain
from tis_jax.corrections import check_present as check_present
from tis_jax.corrections import clip as clip
from tis_jax.corrections import importance as importance
from tis_jax.corrections import interpolate_old_logp as interpolate_old_logp
from tis_jax.corrections import normalize as normalize
from tis_jax.corrections import presets as presets
from tis_jax.corrections import reject as reject
from tis_jax.corrections import reject_binary_kl as reject_binary_kl
from tis_jax.corrections import reject_divergence as reject_divergence
from tis_jax.corrections import reject_missing as reject_missing
from tis_jax.corrections import reject_negative_divergence as reject_negative_divergence
from tis_jax.corrections import (
  reject_probability_difference as reject_probability_difference,
)
from tis_jax.corrections import reject_second_moment as reject_second_moment
from tis_jax.corrections import reject_stale as reject_stale
from tis_jax.corrections import scale_by_ess as scale_by_ess
from tis_jax.corrections import truncate as truncate
from tis_jax.corrections import truncate_parts as truncate_parts
from tis_jax.corrections import veto as veto
from tis_jax.corrections import watch as watch
from tis_jax.corrections import zero_outside as zero_outside

# Log-probs of tokens, and token losses as one number.
from tis_jax.logprobs import token_logprobs as token_logprobs
from tis_jax.losses import aggregate as aggregate

# Rows of different lengths as one array.
from tis_jax.numerics.arrays import pad_ragged as pad_ragged

# Metrics that pool exactly.
from tis_jax.numerics.metrics import finalize as finalize
from tis_jax.numerics.metrics import merge as merge
from tis_jax.numerics.metrics import merge_stacked as merge_stacked
from tis_jax.numerics.metrics import pool as pool
from tis_jax.version import __version__ as __version__
