"""What each verdict usually comes from, what to do, and where the field met it."""

from typing import NamedTuple


class Cause(NamedTuple):
  """Of a verdict.

  Attributes:
    means: the verdict in a sentence.
    usual: what it usually comes from.
    do: the next step.
    link: a report of the same from the field, or the page that measured it.
  """

  means: str
  usual: str
  do: str
  link: str


_GITHUB = "https://github.com/"
_PAGES = f"{_GITHUB}tis-jax/tis_jax/blob/main/docs/"

CAUSES: dict[str, Cause] = {
  "healthy": Cause(
    "Both sides say the same, up to the rounding of fp32.",
    "The same params on both sides, at the same moment, in fp32.",
    "Nothing.",
    f"{_PAGES}atlas.md",
  ),
  "numerics": Cause(
    "The gap has the size and the shape of low precision, and points nowhere.",
    "A sampler in bf16, fp8 or int8 beside a learner in fp32, other kernels, another "
    "order of sums.",
    "No bug to find. Token TIS costs nothing; keep products over long answers out.",
    f"{_GITHUB}PrimeIntellect-ai/prime-rl/issues/2671",
  ),
  "staleness": Cause(
    "The tokens were sampled by older params than those that score them.",
    "Asynchronous sampling, several updates a batch, a slow weight sync.",
    "Correct it (below), and bound how old a rollout may be.",
    f"{_PAGES}study/results.md",
  ),
  "shifted_tokens": Cause(
    "Each log-prob is that of a neighbouring token.",
    "Logits and labels off by one (`logits[:, :-1]` against `ids[:, 1:]`), a begin or "
    "end token that one side has and the other has not.",
    "Print ids, both log-probs and the mask of one row side by side, and shift one.",
    f"{_GITHUB}marin-community/marin/issues/6335",
  ),
  "missing_end": Cause(
    "The log-prob of each row's last token is missing or wrong.",
    "An end token that the engine strips, or that the trainer appends by itself.",
    "Have the engine return the stop token with its log-prob (`include_stop_str_in_"
    "output`, ids out), or leave that token out of the mask.",
    f"{_GITHUB}allenai/open-instruct/pull/1041",
  ),
  "temperature": Cause(
    "The two sides divide their logits by different temperatures.",
    "A forward pass of the learner that leaves the sampling temperature out, or takes "
    "another one.",
    "Divide the learner's logits by the temperature that was sampled at, in fp32, "
    "everywhere that log-probs of the batch are taken.",
    f"{_GITHUB}huggingface/trl/issues/4159",
  ),
  "unprocessed": Cause(
    "The sampler's numbers are not the log-probs of the law that it drew from.",
    "An engine that reports log-probs from before temperature and penalties (vLLM's "
    "default, raw_logprobs), or probabilities in place of log-probs.",
    "vLLM: --logprobs-mode processed_logprobs. Probabilities: take their logarithm.",
    f"{_GITHUB}verl-project/verl/issues/4162",
  ),
  "support": Cause(
    "The sampler's log-probs are renormalised over the tokens that top-p, top-k or "
    "min-p kept, and the learner's are over all.",
    "Sampling with top-p or top-k, and processed log-probs.",
    "Sample with top_p=1, top_k=-1; or record the kept sets and score over them.",
    f"{_GITHUB}huggingface/trl/issues/6789",
  ),
  "zero_filled": Cause(
    "Missing log-probs were written down as a number.",
    "Padding or dropping of log-probs with zeros, a response without log-probs.",
    "Write NaN, or say by a mask which are missing; 0 is the log-prob of a certain "
    "token.",
    f"{_GITHUB}NovaSky-AI/SkyRL/pull/1070",
  ),
  "padding_counted": Cause(
    "The mask counts tokens behind the end of the answers.",
    "A mask made of the padded length, or a pad id that is also a token.",
    "Make the mask of the sampled tokens' number, not of ids.",
    f"{_GITHUB}verl-project/verl/pull/4930",
  ),
  "retokenised": Cause(
    "The two sides score different ids for the same text.",
    "Text out, text in: the trainer tokenises what the engine has detokenised.",
    "Pass ids from the engine to the trainer, never text.",
    f"{_GITHUB}NovaSky-AI/SkyRL/issues/410",
  ),
  "stale_weights": Cause(
    "The sampler is said to be fresh, and is further off than rounding: it holds other "
    "params than it says.",
    "A weight sync that failed or reached some workers or layers only, a tied head or "
    "a cache of keys and values kept from before.",
    "Compare a checksum of the engine's params, or score a fixed prompt, after each "
    "sync; restart one engine and look again.",
    f"{_GITHUB}huggingface/trl/issues/5312",
  ),
  "other_model": Cause(
    "The two sides do not follow the same model.",
    "Another checkpoint, tokenizer, chat template or adapter on one side; or a "
    "quantisation that has broken the model.",
    "Compare names and checksums of the params, and the ids of one prompt.",
    f"{_GITHUB}NovaSky-AI/SkyRL/issues/1680",
  ),
  "prompt_in_mask": Cause(
    "The mask counts tokens at the start that the sampler did not draw.",
    "A mask that begins too early: prompt, chat template or forced tokens are in it.",
    "Begin the mask at the first sampled token.",
    f"{_GITHUB}allenai/open-instruct/pull/1041",
  ),
  "unclear": Cause(
    "No test tells.",
    "Too few tokens, or a gap of a shape that no test knows.",
    "Give more rows, ids and versions, and look at the rows below.",
    f"{_PAGES}choosing.md",
  ),
  "few_rows": Cause(
    "A few rows carry nearly all of the gap.",
    "One engine of several that was not updated, one prompt with another template.",
    "Look at those rows: their prompt, worker and version.",
    f"{_GITHUB}NVIDIA-NeMo/RL/issues/2100",
  ),
  "few_positions": Cause(
    "A few tokens carry nearly all of the gap.",
    "Tokens that were forced, replaced or retokenised; a template's seam.",
    "Look at those tokens as text; veto(1e-4) until the reason is found.",
    f"{_GITHUB}NVIDIA-NeMo/RL/issues/906",
  ),
}
"""By verdict, and by remark."""

REMARKS = ("few_rows", "few_positions")
"""Findings that are no verdict by themselves."""

VERDICTS = tuple(name for name in CAUSES if name not in REMARKS)
"""What a diagnosis can come to: exactly one of these."""
