"""What a run of LoRA adapters begins with: the params that stay, and the adapters."""

import jax
import numpy as np
from flax import nnx

from tis_jax import models
from tis_jax.learner.state import placed
from tis_jax.models import Base, DecoderConfig, LoRA
from tis_jax.runner.settings import Settings
from tis_jax.store import digest


def frozen_base(params: nnx.State, lora: LoRA, mesh: jax.sharding.Mesh) -> Base:
  """The params that stay under adapters, in their precision and on the mesh.

  Args:
    params: of the decoder, as they were loaded.
    lora: which adapters there are, and the precision.
    mesh: the learner's.
  """
  told = digest(jax.tree.map(np.asarray, models.flatten(params)))
  held = lora.frozen(params)
  return Base(placed(held, models.params_sharding(held, mesh)), lora, told)


def first_adapter(settings: Settings, decoder: DecoderConfig) -> nnx.State:
  """The adapter that a run begins with: fresh, or that of `model.adapter`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file's adapter is not the one that `model.lora` describes.
  """
  lora, path = settings.model.lora, settings.model.adapter
  if not path:
    return models.init_adapter(decoder, lora, jax.random.key(settings.seed))
  found, adapter = models.read_peft(path, decoder)
  for name, has, asked in (
    ("rank", found.rank, lora.rank),
    ("alpha", found.alpha, lora.alpha),
    ("targets", ",".join(sorted(found.targets)), ",".join(sorted(lora.targets))),
  ):
    if has != asked:
      raise ValueError(
        f"the adapter in {path} has {name} {has}: set model.lora.{name} to it "
        f"(it is {asked})"
      )
  return adapter
