"""Which processes can make up a learner, and what one that is alone need not know."""

import jax
import pytest

from tis_jax.runner import ConfigError, ProcessSettings
from tis_jax.runner.team import Alone, joined


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"count": 2}, "set processes.coordinator to HOST:PORT"),
    ({"count": 2, "coordinator": "host0"}, "(it is 'host0')"),
    ({"count": 2, "index": 2, "coordinator": "host0:1"}, "of 2 processes it is 0 to 1"),
    ({"count": -1}, "count"),
    ({"seconds": 1.0}, "seconds"),
  ],
)
def test_processes_that_cannot_find_each_other_are_refused(settings, says):
  with pytest.raises(ValueError) as raised:
    ProcessSettings(**settings)
  assert says in str(raised.value)


def test_one_process_joins_nobody():
  with joined(ProcessSettings(index=3, coordinator="nowhere:1")) as team:
    assert isinstance(team, Alone) and team.leads


def test_a_process_that_has_computed_joins_nobody_any_more():
  assert jax.devices()
  settings = ProcessSettings(count=2, coordinator="localhost:1234")
  with pytest.raises(ConfigError, match=r"processes\.count=2"), joined(settings):
    pass
