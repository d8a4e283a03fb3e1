"""What each correction does to a run whose sampler is eight versions behind.

  tis study --config=study:headline --workdir=runs/study
  tis study --config=study:arms --workdir=runs/study --arms none icepop --seeds 0 1

All runs are the quickstart's (the policy, the task, GRPO on 64 prompts a step) with
150 steps at a constant learning rate of 2e-4 and rollouts of a bfloat16 sampler that
are 8 versions old. Only what an arm or an axis names differs. Parts:

  headline       no correction, token TIS, sequence TIS                     15 runs
  long           the same, 300 steps                                         9 runs
  arms           every correction                                           48 runs
  staleness      0, 1, 4, 8 and 16 versions, without and with token TIS     30 runs
  precision      fp32, bf16, int8 and int4 params in a sampler that is not
                 behind, without and with token TIS                         24 runs
  learning_rate  1e-4 to 5e-4, without and with token TIS                   24 runs
  top_p          rollouts from the nucleus of 0.9, with the kept sets in
                 the record and without, beside the whole distribution       9 runs
  smollm2        a real language model, a version behind: the runs that
                 `make smollm2` and `make smollm2 ARM=none` leave in runs/   2 runs
  q4             the same model and task, shorter, with llama.cpp's four-bit
                 matrices for a sampler (`configs/llama_cpp_smollm2.py`)     2 runs

Seeds 5 to 9 in the headline, 5 to 7 in the rest: docs/study/protocol.md says what they
were to show before they were run, and that seeds 0 to 4 were for looking around. Parts
that share a workdir share the runs that they have in common. Expected: a table, a
figure and a CSV a part, and a run in about a minute and a half on two CPU cores;
`--jobs` says how many at once.
"""

from tis_jax.runner.study import Study

HEADLINE_SEEDS, SEEDS = range(5, 10), range(5, 8)

BASE = {
  "train.steps": 150,
  "store.max_staleness": 8,
  "sampler.precision": "bfloat16",
  "optimizer.learning_rate": 2e-4,
  "optimizer.schedule": "constant",
  "eval.every": 50,
  "log.tensorboard": False,
}


def _stages(*stages, **algorithm):
  """Settings of a chain, each stage as (name, its settings), and of the algorithm."""
  settings = {"algorithm.correction.stages": tuple(name for name, _ in stages)}
  for stage, values in stages:
    path = f"algorithm.correction.{stage}"
    settings |= {f"{path}.{name}": value for name, value in values.items()}
  return settings | {f"algorithm.{name}": value for name, value in algorithm.items()}


_TOKEN_TIS = ("truncate", {"high": 2.0, "level": "token"})
_FOUR = {"mini_batches": 4, "micro_batches": 2}
_CENTERED = {"score_centering": True}
_WHOLE_LAW = {"sampler.top_logprobs": 17}

ARMS = {
  "none": _stages(),
  # Weights: the ratio itself, or up to a cap.
  "token_is": _stages(("importance", {"level": "token"})),
  "sequence_is": _stages(("importance", {"level": "sequence"})),
  "token_tis": _stages(_TOKEN_TIS),
  "sequence_tis": _stages(("truncate", {"high": 2.0, "level": "sequence"})),
  "prefix_tis": _stages(("truncate", {"high": 2.0, "level": "prefix"})),
  # The cap is chosen for the batch, so the correction is made before it is split.
  "adaptive_cap": _stages(
    ("adaptive_truncate", {"level": "sequence", "ess_floor": 0.3}),
    old_logp="recompute",
  ),
  # What is out of band counts for nothing, or leaves the batch.
  "icepop": _stages(("zero_outside", {"high": 5.0, "low": 0.5, "level": "token"})),
  "geometric_mask": _stages(
    ("veto", {"low": 1e-4}),
    ("reject", {"high": 1.01, "low": 0.99, "level": "geometric"}),
  ),
  "kpop": _stages(
    ("reject_binary_kl", {"high": 0.1, "reduce": "token"}),
    ("importance", {"level": "token"}),
  ),
  "length_aware_mask": _stages(("reject", {"high": 1.5, "low": None, "level": "root"})),
  # What the sampler expects of the score is taken out; of the whole vocabulary.
  "centering": _stages(**_CENTERED) | _WHOLE_LAW,
  "centering_tis": _stages(_TOKEN_TIS, **_CENTERED) | _WHOLE_LAW,
  # PPO on the sampler's own log-probs: two policies, the clip for a correction.
  "bypass_ppo": _stages(old_logp="sampler"),
  # Four updates a batch, so a larger step than the others': three policies, and two.
  "decoupled_ppo_4": _stages(_TOKEN_TIS, old_logp="recompute", **_FOUR),
  "bypass_ppo_4": _stages(old_logp="sampler", **_FOUR),
}

_TOP_P = ARMS["token_tis"] | {"sampler.top_p": 0.9}

TOP_P_ARMS = {
  "token_tis": ARMS["token_tis"],
  "top_p_recorded": _TOP_P,
  "top_p_unrecorded": _TOP_P | {"sampler.kept_tokens": 0, "algorithm.inexact": "train"},
}

# part -> the recipe of its runs, and their seeds.
LANGUAGE_MODEL = {"smollm2": ("smollm2_steps", ()), "q4": ("llama_cpp_smollm2", (5,))}


def get_config(part: str = "headline") -> Study:
  pair = _arms("none", "token_tis")
  three = _arms("none", "token_tis", "sequence_tis")
  if part in LANGUAGE_MODEL:
    recipe, seeds = LANGUAGE_MODEL[part]
    stages = {f"{part}_none": (), f"{part}_tis": ("truncate",)}
    arms = {n: {"algorithm.correction.stages": x} for n, x in stages.items()}
    return Study(recipe, {}, arms, seeds=seeds)
  parts = {
    "headline": (BASE, three, {}),
    "long": (BASE, three, {"train.steps": (300,)}),
    "arms": (BASE, ARMS, {}),
    "staleness": (BASE, pair, {"store.max_staleness": (0, 1, 4, 8, 16)}),
    "precision": (
      BASE,
      pair,
      {
        "store.max_staleness": (0,),
        "sampler.precision": ("float32", "bfloat16", "int8", "int4"),
      },
    ),
    "learning_rate": (
      BASE,
      pair,
      {"optimizer.learning_rate": (1e-4, 2e-4, 3e-4, 5e-4)},
    ),
    "top_p": (BASE, TOP_P_ARMS, {}),
  }
  if part not in parts:
    raise ValueError(f"no part {part!r}; there are {', '.join(parts)}")
  common, arms, axes = parts[part]
  seeds = HEADLINE_SEEDS if part == "headline" else SEEDS
  return Study("quickstart", common, arms, axes, seeds)


def _arms(*names):
  return {name: ARMS[name] for name in names}
