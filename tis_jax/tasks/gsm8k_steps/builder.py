"""The calculator steps as a TensorFlow Datasets builder, without TensorFlow."""

import tensorflow_datasets as tfds

from tis_jax.tasks.gsm8k_steps.steps import read_steps


class Gsm8kSteps(tfds.core.GeneratorBasedBuilder):
  """Builder `gsm8k_steps`: every step, `{"expression": b"48/2", "result": b"24"}`.

  Importing this module is what makes `tfds.data_source("gsm8k_steps")` find it. Records
  are stored as array_record, the format that random access without TensorFlow needs.
  The task itself reads the package data: nothing to prepare, and no folder that
  sampler processes would race to write.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "11,021 train and 1,434 unseen test steps."}  # noqa: RUF012

  def __init__(self, *, file_format="array_record", **kwargs):
    super().__init__(file_format=file_format, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Distinct calculator annotations of GSM8K's solutions.",
      features=tfds.features.FeaturesDict(
        {"expression": tfds.features.Text(), "result": tfds.features.Text()}
      ),
      homepage="https://github.com/openai/grade-school-math",
      license="MIT",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # package data: nothing to download
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split: str):
    for key, step in enumerate(read_steps(split)):
      expression, _, result = step.partition("=")
      yield key, {"expression": expression, "result": result}
