# SPDX-License-Identifier: Apache-2.0
"""Files that do not answer hold up nobody but who asked for them, and him for a while."""

import asyncio
import subprocess
import sys
import threading

import pytest

from vllm_gateway.files import aside as module
from vllm_gateway.files.aside import aside

_HANGS_FOR_EVER = """
import asyncio, threading
from vllm_gateway.files.aside import aside
async def main():
    try:
        await aside(threading.Event().wait, 0.01)
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""


async def test_what_comes_back_and_what_is_raised() -> None:
    assert await aside(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)


async def test_others_are_served_while_some_hang_until_too_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_threads", threading.BoundedSemaphore(2))
    answers = threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        await aside(answers.wait, 0.01)
    assert await aside(lambda: 5) == 5
    hanging = asyncio.create_task(aside(answers.wait, None))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="attempts hang"):
        await aside(lambda: 5)
    answers.set()
    assert await hanging


def test_the_end_of_the_process_does_not_wait() -> None:
    ended = subprocess.run([sys.executable, "-c", _HANGS_FOR_EVER], capture_output=True, timeout=30, check=True)
    assert ended.stdout == b"given up\n"
