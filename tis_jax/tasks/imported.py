"""Functions by name: "package.module:function", or "path/to/file.py:function"."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tis_jax.numerics.names import did_you_mean
from tis_jax.tasks.task import TaskError


def is_imported(name: str) -> bool:
  """Whether a name is that of a function in a module or a file.

  >>> is_imported("my.py"), is_imported("my.module:load"), is_imported("gsm8k")
  (True, True, False)
  """
  return ":" in name or name.endswith(".py")


def absolute(name: str) -> str:
  """The name with an absolute path, where it is a file's: the same for any process.

  >>> absolute("my.module:load")
  'my.module:load'
  >>> absolute("my.py:load") == f"{Path('my.py').resolve()}:load"
  True
  """
  file, colon, function = _parts(name)
  if not file.endswith(".py"):
    return name
  return f"{Path(file).expanduser().resolve()}{colon}{function}"


def imported(name: str, function: str = "load") -> Callable:
  """The function of a name.

  A module is looked for where Python looks, and in the working directory. A file is
  run, whatever package it lies in; what lies beside it can be imported by it.

  Args:
    name: `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
    function: which, where the name has none.

  Raises:
    TaskError: there is no such module, file or function, or importing it raised; says
      what, and the line.

  >>> imported("json:loads")("[1]")
  [1]
  >>> imported("json:lodas")
  Traceback (most recent call last):
    ...
  tis_jax.tasks.task.TaskError: json has no function 'lodas'; did you mean 'loads'?
  """
  where, _, named = _parts(name)
  with_path = where.endswith(".py")
  try:
    module = _from_file(where) if with_path else _module(where)
  except TaskError:
    raise
  except (Exception, SystemExit) as error:
    raise TaskError(f"{where} cannot be imported: {in_words(error)}") from error
  wanted = named or function
  found = getattr(module, wanted, None)
  if not callable(found):
    known = [x for x, value in vars(module).items() if x[0] != "_" and callable(value)]
    raise TaskError(f"{where} has no function {wanted!r}{did_you_mean(wanted, known)}")
  return found


def in_words(error: BaseException) -> str:
  """An exception as one line: its kind, what it says, and where it was raised.

  >>> try:
  ...   int("x")
  ... except ValueError as error:
  ...   print(in_words(error))
  ValueError: invalid literal for int() with base 10: 'x' (line 2 of <doctest ...>)
  """
  frames = traceback.extract_tb(error.__traceback__)
  own = [x for x in frames if "importlib" not in x.filename]
  where = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
  said = " ".join(str(error).split())
  return f"{type(error).__name__}{': ' if said else ''}{said:.500}{where}"


def _parts(name: str) -> tuple[str, str, str]:
  where, colon, function = name.rpartition(":")
  return (where, colon, function) if colon else (name, "", "")


def _module(name: str) -> ModuleType:
  here = os.getcwd()
  if here not in sys.path and "" not in sys.path:
    sys.path.append(here)
  return importlib.import_module(name)


def _from_file(file: str) -> ModuleType:
  path = Path(file).expanduser().resolve()
  if not path.is_file():
    raise TaskError(f"there is no file {path}")
  if (folder := str(path.parent)) not in sys.path:
    sys.path.append(folder)
  name = f"tis_jax_task_{path.stem}"
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None, "a path that ends in .py"
  module = importlib.util.module_from_spec(spec)
  # Dataclasses and pickle look a module up by its name.
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module
