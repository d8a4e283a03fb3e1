"""The heart: log-probs of two policies in, a weight and a mask for every token out."""

from tis_jax.corrections import presets as presets
from tis_jax.corrections import ratios as ratios
from tis_jax.corrections.chain import Chain as Chain
from tis_jax.corrections.chain import chain as chain
from tis_jax.corrections.rejections import reject as reject
from tis_jax.corrections.rejections import reject_missing as reject_missing
from tis_jax.corrections.rejections import veto as veto
from tis_jax.corrections.types import Correction as Correction
from tis_jax.corrections.weights import clip as clip
from tis_jax.corrections.weights import importance as importance
from tis_jax.corrections.weights import truncate as truncate
from tis_jax.corrections.weights import zero_outside as zero_outside
