"""Chains as they are typed: `veto(1e-4) | truncate(2.0)`."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from tis_jax.corrections import presets
from tis_jax.corrections.config import STAGES
from tis_jax.corrections.corrector import Chain, chain
from tis_jax.numerics.names import did_you_mean

_PRESETS: dict[str, Callable[..., Chain]] = {
  name: value
  for name, value in vars(presets).items()
  if inspect.isfunction(value) and value.__module__ == presets.__name__
}


def from_text(text: str) -> Chain:
  """The chain that a line describes. Nothing in the line is executed.

  Stages and presets are called by name with numbers, words, booleans and None, and
  joined by `|`, which reads from left to right. `none` is the empty chain.

  Raises:
    ValueError: a line that is something else, an unknown name (with the nearest that
      exists), or arguments that the stage refuses.

  >>> from_text("veto(1e-4) | truncate(2.0)")
  chain(veto(low=0.0001, high=None), truncate(high=2.0, level='token'))
  >>> from_text("reject(1.01, 0.99, level='geometric') | icepop").stages[1]
  zero_outside(high=5.0, low=0.5, level='token')
  >>> from_text("none")
  chain()
  >>> from_text("trunkate(2)")
  Traceback (most recent call last):
  ValueError: no stage or preset 'trunkate'; did you mean 'truncate'? ...
  """
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise _not_a_chain(text) from error
  return chain(*(_made(part, text) for part in _parts(tree)))


def _parts(node: ast.expr) -> list[ast.expr]:
  """What stands between the bars, from left to right."""
  right: list[ast.expr] = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    right.append(node.right)
    node = node.left
  return [node, *reversed(right)]


def _made(node: ast.expr, text: str):
  if isinstance(node, ast.Name):
    if node.id == "none":
      return chain()
    node = ast.Call(node, [], [])
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
    raise _not_a_chain(text)
  name = node.func.id
  known = STAGES | _PRESETS
  if name not in known:
    hint = did_you_mean(name, known)
    raise ValueError(f"no stage or preset {name!r}{hint} in {text!r}")
  given = [_value(argument, text) for argument in node.args]
  named = {keyword.arg: _value(keyword.value, text) for keyword in node.keywords}
  if None in named:
    raise _not_a_chain(text)
  try:
    return known[name](*given, **named)
  except TypeError as error:
    raise ValueError(f"{error} in {text!r}") from error


def _value(node: ast.expr, text: str) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError) as error:
    raise _not_a_chain(text) from error


def _not_a_chain(text: str) -> ValueError:
  return ValueError(
    f"{text!r} is no chain: write stages and presets with their arguments, joined by "
    "bars, such as veto(1e-4) | truncate(2.0)"
  )
