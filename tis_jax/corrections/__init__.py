"""The heart: log-probs of two policies in, a weight and a mask for every token out."""

from tis_jax.corrections import presets as presets
from tis_jax.corrections.adaptive import adaptive_truncate as adaptive_truncate
from tis_jax.corrections.binary_kl import reject_binary_kl as reject_binary_kl
from tis_jax.corrections.config import STAGES as STAGES
from tis_jax.corrections.config import from_config as from_config
from tis_jax.corrections.config import to_config as to_config
from tis_jax.corrections.corrector import Chain as Chain
from tis_jax.corrections.corrector import chain as chain
from tis_jax.corrections.divergences import reject_divergence as reject_divergence
from tis_jax.corrections.divergences import (
  reject_negative_divergence as reject_negative_divergence,
)
from tis_jax.corrections.divergences import (
  reject_probability_difference as reject_probability_difference,
)
from tis_jax.corrections.incoming import Incoming as Incoming
from tis_jax.corrections.inputs import Inputs as Inputs
from tis_jax.corrections.law import TokenLaw as TokenLaw
from tis_jax.corrections.law import positions as positions
from tis_jax.corrections.law import token_law as token_law
from tis_jax.corrections.normalization import normalize as normalize
from tis_jax.corrections.normalization import scale_by_ess as scale_by_ess
from tis_jax.corrections.rejections import check_present as check_present
from tis_jax.corrections.rejections import reject as reject
from tis_jax.corrections.rejections import reject_missing as reject_missing
from tis_jax.corrections.rejections import veto as veto
from tis_jax.corrections.second_moment import (
  reject_second_moment as reject_second_moment,
)
from tis_jax.corrections.stage import Stage as Stage
from tis_jax.corrections.stage import make_stage as make_stage
from tis_jax.corrections.stage import watch as watch
from tis_jax.corrections.staleness import interpolate_old_logp as interpolate_old_logp
from tis_jax.corrections.staleness import reject_stale as reject_stale
from tis_jax.corrections.staleness import truncate_parts as truncate_parts
from tis_jax.corrections.state import State as State
from tis_jax.corrections.text import from_text as from_text
from tis_jax.corrections.types import Correction as Correction
from tis_jax.corrections.weights import clip as clip
from tis_jax.corrections.weights import importance as importance
from tis_jax.corrections.weights import truncate as truncate
from tis_jax.corrections.weights import zero_outside as zero_outside
