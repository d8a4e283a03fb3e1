"""Token log-probs that can be trusted: fp32, one definition, fused."""

from tis_jax.logprobs.api import token_logprobs as token_logprobs
from tis_jax.logprobs.reference import logprobs_from_logits as logprobs_from_logits
from tis_jax.logprobs.types import TokenLogprobs as TokenLogprobs
from tis_jax.logprobs.types import TopK as TopK
