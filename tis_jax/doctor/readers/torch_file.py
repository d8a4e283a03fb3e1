"""What `torch.save` wrote, read without torch and without unpickling.

A `.pt` file is a zip archive: `data.pkl`, a pickle that says which storages make which
tensors, and `data/0`, `data/1`, ... with their bytes. A pickle is a program, and
`pickle.load` runs whatever it names. Here its instructions are walked through one by
one, and those below build numbers, text, lists, dicts and tensors; any other
instruction, and any other name, is refused before anything comes of it.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tis_jax.doctor.errors import DumpError

PICKLE_LIMIT = 1 << 30
"""Bytes of the pickle in a file."""
STORAGE_LIMIT = 8 << 30
"""Bytes of all of its tensors."""

_STORAGES = {
  "DoubleStorage": "f8",
  "FloatStorage": "f4",
  "HalfStorage": "f2",
  "BFloat16Storage": "bf16",
  "LongStorage": "i8",
  "IntStorage": "i4",
  "ShortStorage": "i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}
_MARK = object()


class _Name(NamedTuple):
  """A name that the pickle mentions; it is never imported."""

  module: str
  name: str


class _Storage(NamedTuple):
  kind: str
  key: str
  size: int


_TENSOR = _Name("torch._utils", "_rebuild_tensor_v2")
_ORDERED = _Name("collections", "OrderedDict")
_KNOWN = {_TENSOR, _ORDERED, *(_Name("torch", name) for name in _STORAGES)}


def read_torch(path: str | Path) -> Any:
  """Numbers, text, lists, dicts, and tensors as numpy arrays; bfloat16 as float32.

  Raises:
    DumpError: the file is no such archive, is larger than the limits, names what is not
      allowed, or says of itself what is not true.
  """
  path = Path(path)
  try:
    archive = zipfile.ZipFile(path)
  except zipfile.BadZipFile as error:
    raise DumpError(
      f"{path} is not what torch.save writes since torch 1.6 (a zip archive): {error}"
    ) from error
  with archive:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise DumpError(f"{path} holds {len(pickles)} data.pkl, a torch file holds one")
    root = pickles[0].removesuffix("data.pkl")
    if entries[pickles[0]].file_size > PICKLE_LIMIT:
      raise DumpError(f"the pickle in {path} has more than {PICKLE_LIMIT:,} bytes")
    if sum(info.file_size for info in entries.values()) > STORAGE_LIMIT:
      raise DumpError(f"{path} unpacks to more than {STORAGE_LIMIT:,} bytes")
    try:
      order = b"little"
      if f"{root}byteorder" in entries:
        order = archive.read(f"{root}byteorder")
      program = archive.read(pickles[0])
      storages = _Storages(archive, entries, f"{root}data/", order != b"big")
      return _Machine(storages).run(program)
    except DumpError as error:
      raise DumpError(f"{path}: {error}") from None
    except Exception as error:  # A damaged program fails in any way that it likes.
      raise DumpError(
        f"{path} is damaged: {type(error).__name__} {str(error)[:80]}"
      ) from error


class _Storages:
  """The bytes of tensors, read when a tensor is made of them."""

  def __init__(self, archive, entries, folder: str, little: bool):
    self._archive, self._entries = archive, entries
    self._folder, self._little = folder, little
    self._left = STORAGE_LIMIT

  def tensor(self, storage, offset, shape, stride) -> np.ndarray:
    """The view that a pickle asks for, if it lies inside of its storage."""
    sizes = (offset, *shape, *stride)
    if not all(type(n) is int and n >= 0 for n in sizes) or len(shape) != len(stride):
      raise DumpError(f"a tensor of shape {shape!r:.60} and stride {stride!r:.60}")
    if not isinstance(storage, _Storage):
      raise DumpError("a tensor without a storage")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if count and last >= storage.size:
      raise DumpError("a tensor reaches beyond its storage")
    dtype = _STORAGES[storage.kind]
    kind = np.dtype("u2" if dtype == "bf16" else dtype).newbyteorder(
      "<" if self._little else ">"
    )
    self._left -= count * max(kind.itemsize, 4)
    if self._left < 0:
      raise DumpError(f"its tensors have more than {STORAGE_LIMIT:,} bytes")
    name = self._folder + storage.key
    if name not in self._entries:
      raise DumpError(f"the storage {storage.key!r:.20} is not in the file")
    if self._entries[name].file_size < storage.size * kind.itemsize:
      raise DumpError(f"the storage {storage.key!r:.20} is shorter than it says")
    flat = np.frombuffer(self._archive.read(name), kind)[: storage.size]
    if dtype == "bf16":
      flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if not count:
      return np.zeros(shape, flat.dtype)
    steps = [s * flat.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()


class _Machine:
  """Walks through a pickle; knows the instructions that `torch.save` needs."""

  def __init__(self, storages: _Storages):
    self._storages = storages
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}

  def run(self, program: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(program):
      if opcode.name == "STOP":
        return self._stack.pop()
      self._step(opcode.name, argument)
    raise DumpError("the pickle has no end")

  def _step(self, name: str, argument: Any) -> None:
    stack = self._stack
    if name in ("PROTO", "FRAME"):
      return
    if name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _VALUES:
      stack.append(argument)
    elif name in _NEW:
      stack.append(_NEW[name]())
    elif name == "MARK":
      stack.append(_MARK)
    elif name in ("BINPUT", "LONG_BINPUT"):
      self._memo[argument] = stack[-1]
    elif name == "MEMOIZE":
      self._memo[len(self._memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
      stack.append(self._memo[argument])
    elif name == "TUPLE":
      stack.append(tuple(self._above_mark()))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
      count = int(name[-1])
      items = tuple(stack[-count:])
      del stack[-count:]
      stack.append(items)
    elif name in ("APPEND", "APPENDS"):
      items = [stack.pop()] if name == "APPEND" else self._above_mark()
      self._top(list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._above_mark()
      self._top(dict).update(zip(items[::2], items[1::2], strict=True))
    elif name == "GLOBAL":
      stack.append(_known(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
      word = stack.pop()
      stack.append(_known(stack.pop(), word))
    elif name == "BINPERSID":
      stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
      arguments = stack.pop()
      stack.append(self._made(stack.pop(), arguments))
    else:
      raise DumpError(f"its pickle has the instruction {name}, which is not allowed")

  def _made(self, what, arguments) -> Any:
    if what == _ORDERED and arguments == ():
      return {}
    if what == _TENSOR and isinstance(arguments, tuple) and len(arguments) >= 4:
      return self._storages.tensor(*arguments[:4])
    raise DumpError(f"its pickle calls {what!r:.80}, which is not allowed")

  def _above_mark(self) -> list[Any]:
    stack = self._stack
    at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items

  def _top(self, kind: type) -> Any:
    if type(self._stack[-1]) is not kind:
      raise DumpError(f"its pickle fills what is no {kind.__name__}")
    return self._stack[-1]


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = {
  *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


def _known(module, name) -> _Name:
  found = _Name(module, name)
  if found not in _KNOWN:
    raise DumpError(
      f"its pickle names {module!s:.40}.{name!s:.40}, which is not allowed: only "
      "numbers, text, lists, dicts and tensors are read, and nothing is run"
    )
  return found


def _storage(said) -> _Storage:
  """Of torch's persistent id: ("storage", kind, key, device, elements)."""
  if not (isinstance(said, tuple) and len(said) == 5 and said[0] == "storage"):
    raise DumpError(f"its pickle refers to {said!r:.60}, which is no storage")
  _, kind, key, _, size = said
  if (
    not isinstance(kind, _Name)
    or kind.name not in _STORAGES
    or not (isinstance(key, str) and type(size) is int and size >= 0)
  ):
    raise DumpError(f"its pickle refers to {said!r:.60}, which is no storage")
  return _Storage(kind.name, key, size)
