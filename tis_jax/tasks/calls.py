"""Many calls at once, sync or async, none of them longer than a limit."""

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

_AT_ONCE = 64


def call_all(calls: Sequence[Callable[[], Any]], seconds: float) -> list[Any]:
  """What each call returns, or the exception that it ended with.

  Plain functions run in threads, at most 64 at once; what they return may be awaitable.
  Coroutine functions all run in the process's one event loop for such calls, so that a
  session opened in one call is still good in the next. The limit counts from when a
  call begins. A thread that outlives it is left behind, and does not keep the process
  alive; a coroutine is cancelled.

  Args:
    calls: without arguments; bind them with `functools.partial`.
    seconds: that each may take.

  Returns:
    In order; a `TimeoutError` for one that took too long.

  >>> import time
  >>> async def late():
  ...   await asyncio.sleep(9)
  >>> call_all([lambda: 24, lambda: 1 / 0, late], seconds=0.1)
  [24, ZeroDivisionError('division by zero'), TimeoutError('more than 0.1 seconds')]
  """

  async def together():
    free = asyncio.Semaphore(_AT_ONCE)
    return await asyncio.gather(*(_outcome(call, seconds, free) for call in calls))

  return asyncio.run_coroutine_threadsafe(together(), _loop()).result()


async def _outcome(call, seconds, free):
  try:
    if inspect.iscoroutinefunction(call):
      return await asyncio.wait_for(call(), seconds)
    async with free:
      found = await asyncio.wait_for(_in_thread(call), seconds)
    if inspect.isawaitable(found):
      found = await asyncio.wait_for(found, seconds)
    return found
  except TimeoutError as error:
    return error if str(error) else TimeoutError(f"more than {seconds:g} seconds")
  except Exception as error:
    return error


def _in_thread(call) -> asyncio.Future:
  """The future of what a thread returns; the thread is nobody's to wait for."""
  loop = asyncio.get_running_loop()
  future = loop.create_future()

  def settle(found, error):
    if future.done():
      return  # It took too long.
    if error is None:
      future.set_result(found)
    else:
      future.set_exception(error)

  def run():
    found = error = None
    try:
      found = call()
    except Exception as raised:
      error = raised
    except BaseException as raised:  # an exit is one conversation's, not the sampler's
      error = RuntimeError(f"{type(raised).__name__}: {raised}")
    with contextlib.suppress(RuntimeError):  # the process ends, and its loop with it
      loop.call_soon_threadsafe(settle, found, error)

  threading.Thread(target=run, daemon=True).start()
  return future


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
  loop = asyncio.new_event_loop()
  threading.Thread(target=loop.run_forever, daemon=True).start()
  return loop
