"""Times transformers, in whatever environment has it: a part of sampler.py.

python sampler_transformers.py FOLDER DTYPE

Reads FOLDER/model and FOLDER/asked.json, writes FOLDER/seconds.json: one a round.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, dtype: str) -> None:
  asked = json.loads((Path(folder) / "asked.json").read_text())
  model = AutoModelForCausalLM.from_pretrained(
    f"{folder}/model", dtype=getattr(torch, dtype)
  ).eval()
  seconds = []
  for seed, prompts in enumerate(map(torch.tensor, asked["prompts"])):
    torch.manual_seed(seed)
    began = time.perf_counter()
    with torch.inference_mode():
      out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=asked["length"],
        max_new_tokens=asked["length"],
        pad_token_id=asked["pad"],
      )
    seconds.append(time.perf_counter() - began)
    assert out.shape[1] == prompts.shape[1] + asked["length"]
  # The first round warms up.
  (Path(folder) / "seconds.json").write_text(json.dumps(seconds[1:]))


main(*sys.argv[1:])
