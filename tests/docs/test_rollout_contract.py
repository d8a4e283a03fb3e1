"""The page of the rollout contract: its table is the record, and its example runs."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tis_jax.rollouts.record import ARRAYS
from tis_jax.store import RolloutReader, Store

_PAGE = (Path(__file__).parents[2] / "docs" / "rollout_contract.md").read_text()


def test_the_table_lists_every_array_with_its_dtype_and_axes():
  listed = {}
  for names, dtypes, axes in re.findall(
    r"^\| (`[^|]+`) \| ([^|]+) \| (`[^|]+`) \|", _PAGE, re.MULTILINE
  ):
    names, axes = (re.findall(r"`(\w+)`", text) for text in (names, axes))
    dtypes = dtypes.split(", ")
    for i, name in enumerate(names):
      listed[name] = dtypes[i % len(dtypes)], axes[i % len(axes)]
  wanted = {
    name: (np.dtype(dtype).name, axes) for name, (dtype, axes) in ARRAYS.items()
  }
  assert listed == wanted


class _Engine:
  """Two answers to one prompt, by whatever it holds."""

  def load(self, params):
    self.logp = float(params["w"][0])

  def answer(self):
    return SimpleNamespace(
      prompts=np.array([[-1, 5, 6]] * 2, np.int32),
      tokens=np.array([[7, 1], [1, -1]], np.int32),
      logp=np.full((2, 2), self.logp, np.float32),
      rewards=np.array([1, 0], np.float32),
      groups=np.zeros(2, np.int32),
    )


def test_the_example_serves_a_run(tmp_path):
  (code,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
  page = {}
  exec(code, page)
  config = {"capacity": 1}
  store = Store.open(tmp_path.as_uri(), run="r", create=True, config=config)
  store.publish(0, {"w": np.float32([-0.5])}, {"cursor": {}})
  ended = []
  serve = lambda: ended.append(page["sample_for"](store.url, _Engine()))
  thread = threading.Thread(target=serve)
  thread.start()
  reader = RolloutReader(store)
  (first,) = reader.take(1, 0, timeout=60)
  store.publish(1, {"w": np.float32([-0.25])}, {"cursor": reader.cursor})
  (second,) = reader.take(1, 1, timeout=60)
  store.stop("enough")
  thread.join(60)
  assert ended == ["enough"]
  assert first.sampler_logp[0, 0] == -0.5 and second.sampler_logp[0, 0] == -0.25
  assert second.versions[0].tolist() == [1, 1]
  assert not reader.quarantined
