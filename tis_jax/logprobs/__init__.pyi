# The table of contents. A name imports what it needs when it is first asked for.

from tis_jax.logprobs.api import token_logprobs as token_logprobs
from tis_jax.logprobs.comparison import Comparable as Comparable
from tis_jax.logprobs.comparison import comparable as comparable
from tis_jax.logprobs.comparison import comparable_top as comparable_top
from tis_jax.logprobs.contract import Agreement as Agreement
from tis_jax.logprobs.contract import Sampling as Sampling
from tis_jax.logprobs.contract import agree as agree
from tis_jax.logprobs.contract import truncates as truncates
from tis_jax.logprobs.kept import kept_mass as kept_mass
from tis_jax.logprobs.kept import kept_tokens as kept_tokens
from tis_jax.logprobs.kept import support as support
from tis_jax.logprobs.reference import logprobs_from_logits as logprobs_from_logits
from tis_jax.logprobs.types import TokenLogprobs as TokenLogprobs
from tis_jax.logprobs.types import TopK as TopK
