"""Samples with transformers, in whatever environment has it: a part of atlas.py.

python atlas_transformers.py FOLDER DTYPE TEMPERATURE

Reads FOLDER/model and FOLDER/asked.json, writes FOLDER/sampled.json: a pair of ids and
log-probs an answer. Log-probs are of the logits as the model gives them, softmaxed in
fp32.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, dtype: str, temperature: str) -> None:
  # Two threads wait for each other in a loop, after each of its many small products.
  torch.set_num_threads(1)
  asked = json.loads((Path(folder) / "asked.json").read_text())
  model = AutoModelForCausalLM.from_pretrained(
    f"{folder}/model", dtype=getattr(torch, dtype)
  ).eval()
  torch.manual_seed(0)
  samples = range(asked["samples"])
  width = max(map(len, asked["prompts"]))
  spare = [width - len(prompt) for prompt in asked["prompts"] for _ in samples]
  prompts = [prompt for prompt in asked["prompts"] for _ in samples]
  out = model.generate(
    torch.tensor([[0] * n + x for n, x in zip(spare, prompts, strict=True)]),
    attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in spare]),
    do_sample=True,
    temperature=float(temperature),
    top_k=0,
    top_p=1.0,
    max_new_tokens=asked["length"],
    eos_token_id=asked["eos"],
    pad_token_id=asked["eos"][0],
    return_dict_in_generate=True,
    output_logits=True,
  )
  answers = out.sequences[:, width:]
  columns = [
    torch.log_softmax(logits.float() / float(temperature), -1).gather(1, ids[:, None])
    for logits, ids in zip(out.logits, answers.T, strict=True)
  ]
  rows = []
  for ids, logp in zip(answers.tolist(), torch.cat(columns, 1).tolist(), strict=True):
    ends = [place for place, token in enumerate(ids) if token in asked["eos"]]
    length = ends[0] + 1 if ends else len(ids)
    rows.append((ids[:length], logp[:length]))
  (Path(folder) / "sampled.json").write_text(json.dumps(rows))


main(*sys.argv[1:])
