"""What a run of thousands of chips would need and do, on paper; checked on small runs.

  python benchmarks/scaling.py [--check regimes.json]

Memory and bandwidth a chip for an 8B policy on 64 chips and a 70B one on 512, learner
and samplers together; the division of the chips between the two at which neither waits;
steps an hour by regime, from a simulation of the run's own rules of permission. With
--check, the simulation against what benchmarks/regimes.py measured instead.

Chips are TPU v5p, as Google publishes it: 95 GB, 2,765 GB/s to it, 459 TFLOP/s in bf16,
600 GB/s between chips. Shares of these that are reached (40% of the FLOP/s in training,
60% of the memory bandwidth in decoding) and 12.5 GB/s a host to the store are assumed.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from regimes import REGIMES, WARM

from tis_jax.models import DecoderConfig

GB = 1e9
HBM, HBM_RATE, FLOPS, LINK = 95 * GB, 2_765 * GB, 459e12, 600 * GB
CHIPS_A_HOST, STORE_LINK = 4, 12.5 * GB
TRAIN_SHARE, DECODE_SHARE = 0.4, 0.6

# Published architectures of Llama 3.1.
LLAMA_8B = DecoderConfig(
  vocab_size=128_256,
  hidden_size=4_096,
  intermediate_size=14_336,
  num_layers=32,
  num_heads=32,
  num_kv_heads=8,
  head_dim=128,
  tie_embeddings=False,
)
LLAMA_70B = dataclasses.replace(
  LLAMA_8B,
  hidden_size=8_192,
  intermediate_size=28_672,
  num_layers=80,
  num_heads=64,
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run, as far as its size matters.

  Attributes:
    model: the policy.
    data, fsdp, tensor: chips that train, as config.mesh has them.
    samplers: chips that sample.
    sampler_tensor: of them a replica.
    rows: responses a step.
    prompt: tokens.
    response: tokens, on average.
    micro_batches: passes a step.
    slots: responses that a replica decodes at once.
  """

  model: DecoderConfig
  data: int
  fsdp: int
  tensor: int
  samplers: int
  sampler_tensor: int
  rows: int
  prompt: int = 512
  response: int = 4_096
  micro_batches: int = 4
  slots: int = 96

  @property
  def learner(self) -> int:
    return self.data * self.fsdp * self.tensor

  @property
  def tokens(self) -> int:
    return self.rows * (self.prompt + self.response)

  @property
  def params(self) -> int:
    return self.model.num_parameters


def learner_memory(plan: Plan) -> dict[str, float]:
  """Bytes a learner chip, by what for."""
  model, params = plan.model, plan.params
  mine = params / (plan.fsdp * plan.tensor)
  rows = plan.rows / plan.micro_batches / (plan.data * plan.fsdp)
  length = plan.prompt + plan.response
  layer = (params - 2 * model.vocab_size * model.hidden_size) / model.num_layers
  return {
    "params, fp32": 4 * mine,
    "Adam's moments, fp32": 8 * mine,
    "gradients, fp32": 4 * mine,
    "copy to publish, bf16": 2 * mine,
    # Two layers at once, one computing and one on its way, and the head.
    "gathered params, fp32": 4
    * (2 * layer + model.vocab_size * model.hidden_size)
    / plan.tensor,
    # What remat keeps: the residual stream before each layer.
    "activations kept, bf16": 2 * rows * length * model.hidden_size * model.num_layers,
    "activations of a layer, bf16": 2
    * rows
    * length
    * (4 * model.hidden_size + 3 * model.intermediate_size)
    / plan.tensor,
  }


def sampler_memory(plan: Plan) -> dict[str, float]:
  """Bytes a sampler chip: params in bf16, and keys and values of all slots."""
  return {
    "params, bf16": 2 * plan.params / plan.sampler_tensor,
    "keys and values, bf16": plan.slots
    * (plan.prompt + plan.response)
    * _kept_bytes(plan)
    / plan.sampler_tensor,
  }


def seconds(plan: Plan) -> dict[str, float]:
  """Of a step: computing, moving and publishing it, and sampling its rows."""
  # Forward, backward and remat's forward; and old_logp.
  work = (6 + 2 + 2) * plan.params * plan.tokens
  train = work / (plan.learner * FLOPS * TRAIN_SHARE)
  # Gathered for the forward, remat's and the backward pass, gradients scattered once;
  # and gathered for old_logp. By every chip of a tensor group its part, in fp32.
  moved = 5 * 4 * plan.params / plan.tensor * plan.micro_batches
  # Once a step the replicas add up their shards of the gradients.
  if plan.data > 1:
    moved += 2 * 4 * plan.params / (plan.fsdp * plan.tensor)
  hosts = plan.learner / CHIPS_A_HOST
  publish = 2 * plan.params / (hosts * STORE_LINK)
  receive = 2 * plan.params / STORE_LINK
  replicas = plan.samplers / plan.sampler_tensor
  # A token of each slot reads all params and half of what is kept at the end.
  read = 2 * plan.params + plan.slots * plan.response / 2 * _kept_bytes(plan)
  decode = read / (plan.sampler_tensor * HBM_RATE * DECODE_SHARE)
  sample = plan.rows * plan.response / (replicas * plan.slots / decode)
  return {
    "train": max(train, moved / LINK),
    "of it on the links": moved / LINK,
    "publish": publish,
    "receive": receive,
    "sample": sample,
  }


def _kept_bytes(plan: Plan) -> float:
  """Keys and values of one token, bf16."""
  model = plan.model
  return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim


def simulate(
  sample: np.ndarray, learn: float, bound: int, publish: float = 0.0, writers: int = 1
) -> np.ndarray:
  """When each step ends, by the rules of a run.

  A step takes as many records as `sample` has columns. A record goes to the writers in
  turn; it may be begun when the params of `bound` steps before its own are published
  (`Allowance`). A step begins when the one before has ended and its records are there.

  Args:
    sample: `[steps, records]`, seconds of each record.
    learn: seconds of a step.
    bound: store.max_staleness.
    publish: seconds from the end of a step until samplers have its params.
    writers: how many sample side by side.

  Returns:
    `[steps]` seconds.

  >>> simulate(np.ones((3, 1)), 1.0, bound=0).tolist()
  [2.0, 4.0, 6.0]
  >>> simulate(np.ones((3, 1)), 1.0, bound=1).tolist()
  [2.0, 3.0, 4.0]
  """
  free, ends = np.zeros(writers), np.zeros(len(sample))
  for step, records in enumerate(sample):
    before = step - bound
    permitted = ends[before - 1] + publish if before > 0 else 0.0
    ready = 0.0
    for index, took in enumerate(records):
      writer = (step * len(records) + index) % writers
      free[writer] = max(free[writer], permitted) + took
      ready = max(ready, free[writer])
    ends[step] = max(ready, ends[step - 1] if step else 0.0) + learn
  return ends


def rate(ends: np.ndarray, warm: int) -> float:
  """Steps a second behind the first `warm`."""
  return (len(ends) - warm) / (ends[-1] - ends[warm - 1])


def shown(title: str, plan: Plan) -> None:
  print(
    f"{title}: {plan.params / 1e9:.1f}B params\n"
    f"  {plan.learner} learner chips (mesh: data {plan.data}, fsdp {plan.fsdp}, tensor "
    f"{plan.tensor}), {plan.samplers} sampler chips in replicas of "
    f"{plan.sampler_tensor}\n  {plan.rows:,} responses of {plan.response:,} tokens a "
    f"step to prompts of {plan.prompt}, {plan.micro_batches} micro-batches"
  )
  for side, memory in (
    ("learner", learner_memory(plan)),
    ("sampler", sampler_memory(plan)),
  ):
    print(f"  bytes a {side} chip")
    for name, size in memory.items():
      print(f"    {name:<30} {size / GB:7.2f} GB")
    total = sum(memory.values())
    print(f"    {'together':<30} {total / GB:7.2f} GB, {total / HBM:.0%} of a chip's")
  took = seconds(plan)
  print("  seconds a step")
  for name, value in took.items():
    print(f"    {name:<30} {value:7.2f}")
  sample = np.full((60, 1), took["sample"])
  for regime, bound in REGIMES.items():
    ends = simulate(sample, took["train"], bound, took["publish"] + took["receive"])
    print(f"    {regime:<30} {3600 * rate(ends, 20):7.1f} steps/h")
  print()


def check(path: Path) -> None:
  """The simulation against what was measured."""
  numbers = json.loads(path.read_text())
  delay, steps = numbers["seconds"], int(numbers["steps"])
  rng = np.random.default_rng(0)
  # The very delays that the sampler had.
  uneven = delay * np.array([[rng.choice([0.25, 1.75])] for _ in range(steps + WARM)])
  print("steps/s of benchmarks/regimes.py      predicted  measured")
  for kind, sample in (("even", np.full_like(uneven, delay)), ("uneven", uneven)):
    for regime, bound in REGIMES.items():
      predicted = rate(simulate(sample, delay, bound), WARM)
      measured = numbers[f"{kind}/{regime}/steps_per_s"]
      off = measured / predicted - 1
      print(f"  {kind:<7} {regime:<26} {predicted:9.2f} {measured:9.2f}  {off:+.0%}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", type=Path, help="numbers of benchmarks/regimes.py")
  asked = parser.parse_args()
  if asked.check:
    return check(asked.check)
  shown("8B on 64 chips", Plan(LLAMA_8B, 5, 8, 1, 24, 1, rows=1_280))
  shown("70B on 512 chips", Plan(LLAMA_70B, 3, 32, 4, 128, 4, rows=2_304))


if __name__ == "__main__":
  main()
