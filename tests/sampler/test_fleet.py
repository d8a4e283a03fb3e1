"""A fleet gives up on a sampler that cannot live, and says why."""

import time

import pytest

from tis_jax.sampler import Fleet, SamplerFailedError


def test_a_sampler_that_keeps_dying_is_given_up_on_with_its_last_words(tmp_path):
  url = f"{tmp_path.as_uri()}/empty/"
  events = []
  fleet = Fleet(url, 1, tmp_path / "logs", deaths=2, on_event=events.append)
  fleet.start()
  deadline = time.monotonic() + 240
  with pytest.raises(SamplerFailedError) as raised:
    while time.monotonic() < deadline:
      fleet.check()
      time.sleep(0.05)
  fleet.stop()
  message = str(raised.value)
  assert "died 2 times" in message
  assert f"WrongRunError: store {url} holds no run" in message
  assert str(tmp_path / "logs" / "local0.log") in message
  assert events[0].startswith("sampler local0 died with exit code 1")
  assert events[1:] == ["sampler local0 started again"]
