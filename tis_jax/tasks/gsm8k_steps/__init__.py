"""GSM8K's calculator steps, `48/2=24`: package data, a TFDS builder and a task.

The builder needs `tensorflow-datasets`, so it is imported by name:
`from tis_jax.tasks.gsm8k_steps.builder import Gsm8kSteps`.
"""

from tis_jax.tasks.gsm8k_steps.steps import load, read_steps

__all__ = ["load", "read_steps"]
