"""Whose column is what: the names that frameworks give to the same arrays."""

from collections.abc import Collection

COLUMNS: dict[str, tuple[str, ...]] = {
  "sampler_logp": (
    "sampler_logp",
    "sampler_logps",
    "sampler_logprobs",
    "rollout_log_probs",  # verl, slime
    "rollout_logprobs",  # SkyRL
    "rollout_logp",
    "generation_logprobs",  # NeMo-RL
    "inference_logprobs",  # prime-rl
    "sampling_per_token_logps",  # TRL
    "sampling_logprobs",
    "rollout_per_token_logps",  # ms-swift
    "behavior_logprobs",
    "behave_logprobs",
    "infer_logprobs",  # ROLL
    "vllm_logprobs",
    "logprobs",  # AReaL, beside prox_logp
  ),
  "old_logp": (
    "old_logp",
    "old_logps",
    "old_logprobs",
    "old_log_probs",  # verl
    "prev_logprobs",  # NeMo-RL
    "trainer_logprobs",  # prime-rl
    "prox_logp",  # AReaL
    "old_per_token_logps",  # TRL, Tunix
    "action_log_probs",  # SkyRL, OpenRLHF
    "learner_logp",
    "learner_logprobs",
    "train_log_probs",
    "log_probs",  # slime
    "logp",
  ),
  "mask": (
    "mask",
    "response_mask",
    "token_loss_mask",
    "loss_mask",
    "loss_masks",
    "token_mask",
    "completion_mask",
    "action_mask",
  ),
  "tokens": (
    "tokens",
    "token_ids",
    "responses",
    "response_ids",
    "completion_ids",
    "output_ids",
    "input_ids",
  ),
  "sampler_tokens": ("sampler_tokens", "sampled_tokens", "rollout_tokens"),
  "prompts": ("prompts", "prompt_ids", "prompt_token_ids"),
  "prompt_mask": ("prompt_mask",),
  "sample_mask": ("sample_loss_mask", "sample_mask"),
  "versions": ("versions", "weight_versions", "policy_versions"),
  "learner_version": ("learner_version", "policy_version", "trainer_version"),
  "rewards": ("rewards", "reward", "score", "scores", "raw_reward"),
  "advantages": ("advantages", "advantage"),
  "entropy": ("entropy", "entropies", "entropys"),
  "group_ids": ("group_ids", "group_index", "group_id"),
  "present": ("present",),
  "lengths": ("input_lengths", "response_lengths", "response_length"),
  "temperature": ("temperature",),
  "sampler_dtype": ("sampler_dtype",),
}
"""Field of a dump -> the names that it goes by, the surest first."""


def match(names: Collection[str]) -> dict[str, str]:
  """Which of `names` is which field; a name is given once.

  >>> match(["prev_logprobs", "generation_logprobs", "content"])
  {'sampler_logp': 'generation_logprobs', 'old_logp': 'prev_logprobs'}
  """
  found = {}
  for field, known in COLUMNS.items():
    for name in known:
      if name in names and name not in found.values():
        found[field] = name
        break
  return found


def missing(found: Collection[str], names: Collection[str]) -> str:
  """What is missing to compare two policies, as a sentence; "" for nothing.

  >>> missing({"old_logp"}, ["old_logp", "text"])[:48]
  "the sampler's log-probs are missing: none of its"
  """
  said = {"sampler_logp": "the sampler's", "old_logp": "the learner's"}
  for field, whose in said.items():
    if field not in found:
      shown = ", ".join(sorted(map(repr, names))[:12]) or "nothing"
      return (
        f"{whose} log-probs are missing: none of its columns ({shown}) is one of "
        f"{', '.join(COLUMNS[field])}"
      )
  return ""
