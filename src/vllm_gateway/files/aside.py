# SPDX-License-Identifier: Apache-2.0
"""Work with files, in threads that nobody has to wait for: a network drive that is gone may never answer."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")

LIMIT_S = 20.0
_MOST = 16  # that hang, or work
_threads = threading.BoundedSemaphore(_MOST)


async def aside(work: Callable[[], Result], limit_s: float | None = LIMIT_S) -> Result:
    """What `work` returns. The end of the process does not wait for it, unlike for `asyncio.to_thread`.

    Raises TimeoutError, whose text says so, when it takes longer, and when too many others hang.
    """
    loop, threads = asyncio.get_running_loop(), _threads
    done: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # no error: a result

    def run() -> None:
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as met:
            error = met
        finally:
            threads.release()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    if not threads.acquire(blocking=False):
        raise TimeoutError(f"files do not answer: {_MOST} attempts hang")
    try:
        threading.Thread(target=run, name="files", daemon=True).start()
    except RuntimeError:  # there can be no more threads
        threads.release()
        raise
    try:
        async with asyncio.timeout(limit_s):
            return await done
    except TimeoutError:
        if done.done() and not done.cancelled():
            raise  # of the work itself
        raise TimeoutError(f"files do not answer within {limit_s:g} s (a network drive that is gone?)") from None
