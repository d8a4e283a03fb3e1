"""Calls at once: in order, in time, and none of them a burden to the others."""

import asyncio
import functools
import subprocess
import sys
import threading
import time

from tis_jax.tasks.calls import call_all


def test_outcomes_come_in_order_whatever_order_they_are_made_in():
  def after(seconds, value):
    time.sleep(seconds)
    return value

  calls = [functools.partial(after, 0.05 * (5 - i), i) for i in range(5)]
  began = time.monotonic()
  assert call_all(calls, seconds=10) == list(range(5))
  assert time.monotonic() - began < 0.7  # one after the other: 0.75


def test_what_raises_and_what_hangs_leave_the_others_alone():
  held = threading.Event()

  async def never():
    await asyncio.sleep(60)

  async def fine():
    return "async"

  def wrong():
    raise KeyError("no")

  def leave():
    raise SystemExit(3)

  found = call_all([held.wait, never, wrong, leave, fine, lambda: "sync"], seconds=0.2)
  held.set()
  assert [type(x) for x in found[:2]] == [TimeoutError] * 2
  assert "more than 0.2 seconds" in str(found[0])
  assert isinstance(found[2], KeyError)
  assert "SystemExit: 3" in str(found[3])
  assert found[4:] == ["async", "sync"]


def test_threads_that_hang_do_not_keep_the_next_calls_waiting():
  held = threading.Event()
  call_all([held.wait] * 80, seconds=0.05)
  assert call_all([lambda: 1] * 80, seconds=5) == [1] * 80
  held.set()


def test_a_coroutine_that_a_plain_function_returns_is_awaited():
  async def later():
    return 3

  assert call_all([lambda: later()], seconds=5) == [3]


def test_one_event_loop_serves_all_calls_also_inside_another():
  async def loop():
    return asyncio.get_running_loop()

  async def notebook():
    return call_all([loop, loop], seconds=5)

  first = call_all([loop], seconds=5)
  assert first * 2 == asyncio.run(notebook())


def test_a_call_that_hangs_does_not_keep_the_process_alive():
  script = (
    "import threading\n"
    "from tis_jax.tasks.calls import call_all\n"
    "print(call_all([threading.Event().wait], seconds=0.1))"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], timeout=120, capture_output=True, text=True
  )
  assert "TimeoutError" in done.stdout
