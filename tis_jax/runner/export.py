"""What a run has trained, as files that other programs load."""

import shutil
from pathlib import Path

from tis_jax import models
from tis_jax.numerics.checks import check_choice
from tis_jax.runner.restore import newest_state
from tis_jax.runner.settings import read_config
from tis_jax.runner.setup import build
from tis_jax.runner.workdir import load_config

DTYPES = ("float32", "bfloat16", "float16")
_TOKENIZER = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
)


def export_run(
  workdir: Path, directory: Path, *, adapter: bool = False, dtype: str = "float32"
) -> str:
  """Writes the policy of a run's newest checkpoint as safetensors.

  Args:
    workdir: of the run.
    directory: made if need be: `config.json` and `model.safetensors` as
      `save_pretrained` lays them out, with the tokenizer's files where the run's model
      has them; or PEFT's two files.
    adapter: the adapter alone, in fp32; else all params, an adapter merged into them in
      fp32 and the sum rounded to `dtype` once.
    dtype: of the params, one of `DTYPES`.

  Returns:
    A sentence that says what was written.

  Raises:
    FileNotFoundError: no run there, or none that has a checkpoint.
    ValueError: another dtype, or an adapter of a run that trains none.
  """
  check_choice("dtype", dtype, DTYPES)
  settings = read_config(load_config(workdir))
  lora, source = settings.model.lora, str(settings.model.source)
  if adapter and not lora.rank:
    raise ValueError(f"{workdir} trains all params (model.lora.rank is 0): no adapter")
  parts = build(settings)
  state = newest_state(parts, settings, workdir)
  what = f"step {int(state.step)} of {workdir}"
  if adapter:
    models.write_peft(directory, parts.decoder, state.params, lora, base_model=source)
    return f"{directory} has the adapter of {what}, to stand beside {source}"
  params = state.params
  if lora.rank:
    # Those that the learner holds may be rounded.
    params = models.merge(models.load(source)[1], params, lora)
  models.write_hugging_face(directory, parts.decoder, models.cast(params, dtype))
  for name in _TOKENIZER:
    if (file := Path(source).expanduser() / name).is_file():
      shutil.copyfile(file, directory / name)
  merged = ", its adapter merged" if lora.rank else ""
  return f"{directory} has {what}{merged}, in {dtype}"
