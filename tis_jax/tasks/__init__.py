"""Tasks: prompts with answers that a program can check."""

from tis_jax.tasks.conversation import Conversation, ConversationsFailedError, Turns
from tis_jax.tasks.environment import Environment
from tis_jax.tasks.gsm8k import MissingDatasetError
from tis_jax.tasks.imported import is_imported
from tis_jax.tasks.loading import TASKS, load, loader, settled
from tis_jax.tasks.numbers import final_number, leading_number, parse_number
from tis_jax.tasks.order import prompt_order
from tis_jax.tasks.pool import RewardPool
from tis_jax.tasks.prompts import Prompts, encode_prompts
from tis_jax.tasks.rewards import REWARDS
from tis_jax.tasks.task import Example, Source, Task, TaskError
from tis_jax.tasks.verdict import CAUSES, Verdict, answer_of, judge

__all__ = [
  "CAUSES",
  "REWARDS",
  "TASKS",
  "Conversation",
  "ConversationsFailedError",
  "Environment",
  "Example",
  "MissingDatasetError",
  "Prompts",
  "RewardPool",
  "Source",
  "Task",
  "TaskError",
  "Turns",
  "Verdict",
  "answer_of",
  "encode_prompts",
  "final_number",
  "is_imported",
  "judge",
  "leading_number",
  "load",
  "loader",
  "parse_number",
  "prompt_order",
  "settled",
]
