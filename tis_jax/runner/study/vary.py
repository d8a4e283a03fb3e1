"""A study from the command line: `--vary SETTING VALUE VALUE ...`."""

from collections.abc import Sequence

from tis_jax.runner.study.plan import Study


def varied(config: str, vary: Sequence[Sequence[str]]) -> Study:
  """The study of all combinations of the settings that are varied.

  Args:
    config: recipe of every run.
    vary: for each setting its name and its values. Values are separated by spaces; a
      comma is a part of its value.

  Raises:
    ValueError: values that are not separated by spaces; a setting given twice.

  >>> study = varied("quickstart", [["seed", "0", "1"], ["train.steps", "5"]])
  >>> dict(study.axes)
  {'seed': ('0', '1'), 'train.steps': ('5',)}
  """
  axes: dict[str, Sequence[str]] = {}
  for name, *values in vary:
    if "=" in name:
      name, _, first = name.partition("=")
      meant = " ".join([name, *first.split(","), *values])
      raise ValueError(f"values are separated by spaces: --vary {meant}")
    if not values or (len(values) == 1 and "," in values[0]):
      raise ValueError(
        f"--vary {' '.join([name, *values])}: values are separated by spaces, and a "
        "comma is a part of its value; what does not vary belongs in the config"
      )
    if name in axes:
      raise ValueError(f"--vary {name} is given twice; name all its values in one")
    axes[name] = tuple(values)
  return Study(config, axes=axes)
