"""Times TRL's GRPOTrainer, in an environment that has it: a part of step.py.

python step_trl.py FOLDER

Reads FOLDER/model and FOLDER/asked.json, writes FOLDER/trl.json.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

MINI_BATCHES = 2


def distinct(completion_ids, **_):
  """Share of an answer's tokens that are distinct."""
  return [len(set(ids)) / len(ids) for ids in completion_ids]


def tokenizer_of(asked: dict, size: int) -> PreTrainedTokenizerFast:
  """Whose text is ids: a prompt goes through it unchanged."""
  vocabulary = {str(token): token for token in range(size)}
  tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="0"))
  tokenizer.pre_tokenizer = WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token=str(asked["pad"]),
    eos_token=str(asked["eos"]),
    padding_side="left",
  )


class Ends(TrainerCallback):
  """When the optimizer's updates were done."""

  def __init__(self):
    self.at = []

  def on_step_end(self, args, state, control, **kwargs):
    self.at.append(time.perf_counter())


class Timed(GRPOTrainer):
  """Says how long its phases took, of every batch that it generated."""

  def __init__(self, *args, **kwargs):
    self.seconds = {name: [] for name in ("generate", "log_probs")}
    self.began = []
    super().__init__(*args, **kwargs)

  def _generate(self, *args, **kwargs):
    self.began.append(time.perf_counter())
    out = super()._generate(*args, **kwargs)
    self.seconds["generate"].append(time.perf_counter() - self.began[-1])
    return out

  def _get_per_token_logps_and_entropies(self, *args, **kwargs):
    began = time.perf_counter()
    out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
    if not torch.is_grad_enabled():
      self.seconds["log_probs"].append(time.perf_counter() - began)
    return out


def main(folder: str) -> None:
  asked = json.loads((Path(folder) / "asked.json").read_text())
  size = AutoConfig.from_pretrained(f"{folder}/model").vocab_size
  texts = [" ".join(map(str, ids)) for step in asked["prompts"] for ids in step]
  steps, group = len(asked["prompts"]), asked["group"]
  answers = len(asked["prompts"][0]) * group
  config = GRPOConfig(
    output_dir=f"{folder}/out",
    model_init_kwargs={"dtype": "float32"},
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    num_generations=group,
    per_device_train_batch_size=answers // MINI_BATCHES,
    steps_per_generation=MINI_BATCHES,
    max_steps=MINI_BATCHES * steps,
    max_completion_length=asked["length"],
    generation_kwargs={"min_new_tokens": asked["length"]},
    learning_rate=asked["learning_rate"],
    lr_scheduler_type="constant",
    shuffle_dataset=False,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
  )
  ends = Ends()
  trainer = Timed(
    f"{folder}/model",
    distinct,
    config,
    train_dataset=Dataset.from_dict({"prompt": texts}),
    processing_class=tokenizer_of(asked, size),
    callbacks=[ends],
  )
  trainer.train()
  last = ends.at[MINI_BATCHES - 1 :: MINI_BATCHES]
  found = trainer.seconds | {
    "step": [end - began for began, end in zip(trainer.began, last, strict=True)]
  }
  found["update"] = [
    step - generate - log_probs
    for step, generate, log_probs in zip(
      found["step"], found["generate"], found["log_probs"], strict=True
    )
  ]
  assert len(found["step"]) == steps
  logs = trainer.state.log_history
  assert all(log["completions/mean_length"] == asked["length"] for log in logs[:-1])
  found["peak_memory_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  (Path(folder) / "trl.json").write_text(json.dumps(found))


main(*sys.argv[1:])
