"""Tasks: prompts with answers that a program can check."""

from collections.abc import Callable

from tis_jax.tasks import gsm8k, gsm8k_answers, gsm8k_calculator, gsm8k_steps
from tis_jax.tasks.conversation import Conversation, ConversationsFailedError, Turns
from tis_jax.tasks.environment import Environment
from tis_jax.tasks.gsm8k import MissingDatasetError
from tis_jax.tasks.numbers import final_number, leading_number, parse_number
from tis_jax.tasks.order import prompt_order
from tis_jax.tasks.prompts import Prompts, encode_prompts
from tis_jax.tasks.task import Example, Task

__all__ = [
  "TASKS",
  "Conversation",
  "ConversationsFailedError",
  "Environment",
  "Example",
  "MissingDatasetError",
  "Prompts",
  "Task",
  "Turns",
  "encode_prompts",
  "final_number",
  "leading_number",
  "load",
  "parse_number",
  "prompt_order",
]

TASKS: dict[str, Callable[..., Task]] = {
  "gsm8k": gsm8k.load,
  "gsm8k_answers": gsm8k_answers.load,
  "gsm8k_calculator": gsm8k_calculator.load,
  "gsm8k_steps": gsm8k_steps.load,
}


def load(name: str, **options) -> Task:
  """A task by name.

  Args:
    name: "gsm8k_steps" (arithmetic in the package, nothing to download), "gsm8k",
      "gsm8k_answers" (the last line of GSM8K's solutions), or "gsm8k_calculator"
      (conversations with a calculator).
    **options: of the `load` of the module of that name in `tis_jax.tasks`.

  Returns:
    The task.

  Raises:
    ValueError: an unknown name.
    TypeError: an option that the task does not have.
    MissingDatasetError: a dataset that is not on this machine.

  >>> task = load("gsm8k_steps", max_length=5)
  >>> task.train[0].prompt, task.train[0].answer
  ('48/2=', '24')
  """
  if name not in TASKS:
    raise ValueError(f"no task {name!r}; there are: {', '.join(sorted(TASKS))}")
  return TASKS[name](**options)
