# SPDX-License-Identifier: Apache-2.0
"""Work that goes on whatever befalls it, and errors that are told and not lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.waiting import LIMIT_S
from vllm_gateway.fleet.tasks import Tasks

Told = list[dict[str, str]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
async def tasks(told: Told) -> AsyncIterator[Tasks]:
    tasks = Tasks(lambda event, **fields: told.append({"event": event.name, **fields}))
    yield tasks
    await tasks.end()


async def test_a_round_that_fails_is_told_and_the_next_one_comes(tasks: Tasks, told: Told) -> None:
    enough = asyncio.Event()
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            enough.set()
        raise TypeError(f"odd {rounds % 2}")

    tasks.repeat(work, 0)
    async with asyncio.timeout(LIMIT_S):
        await enough.wait()
    assert [line["event"] for line in told[:2]] == ["unhandled_error"] * 2
    assert [line["error"] for line in told] == ["TypeError('odd 1')", "TypeError('odd 0')"], "each once"
    assert "in work" in told[0]["traceback"]


async def test_a_task_that_fails_is_told(tasks: Tasks, told: Told) -> None:
    async def work() -> None:
        raise ValueError("no")

    await asyncio.wait([tasks.spawn(work())])
    assert [line["error"] for line in told] == ["ValueError('no')"]


async def test_what_is_cancelled_is_no_error(tasks: Tasks, told: Told) -> None:
    repeated = tasks.repeat(asyncio.Event().wait, 0)  # type: ignore[arg-type]
    await asyncio.wait([repeated], timeout=0)
    await tasks.end()
    assert repeated.cancelled()
    assert not told


async def test_an_error_that_is_contained_goes_no_further(tasks: Tasks, told: Told) -> None:
    with tasks.contain("here"):
        int("x")
    assert (told[0]["error"], told[0]["where"]) == (
        "ValueError(\"invalid literal for int() with base 10: 'x'\")",
        "here",
    )
