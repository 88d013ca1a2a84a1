# SPDX-License-Identifier: Apache-2.0
"""Lives that go wrong in ways that nobody foresaw: each instance comes to its end, and out of the books."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.unit.fleet.broken_runtime import NOBODY, BrokenRuntime
from tests.waiting import LIMIT_S, until
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import health
from vllm_gateway.fleet import lives as lives_module
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.lives import Lives
from vllm_gateway.fleet.memory import GpuMemory
from vllm_gateway.fleet.runtimes import Launch, RuntimeDown
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.routing import Address


class House:
    def __init__(self) -> None:
        self.runtime = BrokenRuntime()
        self.heard: asyncio.Queue[e.Event] = asyncio.Queue()
        self.told: list[dict[str, Any]] = []
        self.tasks = Tasks(self._emit)
        self.lives = Lives(
            runtime=self.runtime,
            memory=GpuMemory(None, self.runtime, self.tasks, self._emit),
            tasks=self.tasks,
            hear=self.heard.put_nowait,
            learned=lambda one, listed: None,
        )

    def _emit(self, event: Any, **fields: object) -> None:
        self.told.append({"event": event.name, **fields})

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.told if line["event"] == name]

    async def hears(self) -> e.Event:
        async with asyncio.timeout(LIMIT_S):
            return await self.heard.get()


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(lives_module, "RUNTIME_POLL_S", 0.001)
    monkeypatch.setattr(lives_module, "ERROR_PAUSE_S", 0.001)
    house = House()
    yield house
    await house.tasks.end()


def instance(**changes: Any) -> Instance:
    return Instance("i1", "vllm_server_m_instance_1", "m", 1, "hash", max_in_flight=4, launched=True, **changes)


def launch_of(one: Instance) -> Launch:
    return Launch(one.name, one.model, one.number, "image", (), {}, (), 0, one.spec_hash)


def refuses(one: Instance) -> Launch:
    raise KeyError("a model that is not there")


@pytest.mark.parametrize(
    ("errors", "launch"),
    [({"start": [OSError("disk")]}, launch_of), ({}, refuses), ({"wait": [TypeError("null")]}, launch_of)],
)
async def test_a_life_that_ends_in_an_unforeseen_error_is_heard_as_a_death(
    house: House, errors: dict[str, list[Exception]], launch: Callable[[Instance], Launch]
) -> None:
    house.runtime.errors = errors
    house.lives.start(instance(), launch)
    heard = await house.hears()
    if isinstance(heard, e.Launched):
        heard = await house.hears()
    assert isinstance(heard, e.Died)
    assert "an error of the gateway" in heard.reason
    await asyncio.sleep(0)
    assert len(house.events("unhandled_error")) == 1


async def test_a_health_check_that_ends_in_an_unforeseen_error_is_heard_as_a_death(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ailment(address: Address) -> health.Ailment | None:
        raise ValueError("no such address")

    monkeypatch.setattr(health, "ailment", ailment)
    house.lives.check(instance(state=State.READY, running=NOBODY))
    assert isinstance(await house.hears(), e.Died)


async def test_a_suspect_has_some_time_yet_when_the_runtime_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to it comes back a little later."""
    monkeypatch.setattr(lives_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(lives_module, "POLL_S", 0.0)
    house.runtime.errors = {"pids": [RuntimeDown("away")] * 2}
    house.lives.check(instance(state=State.READY, running=NOBODY))
    assert isinstance(await house.hears(), e.Died)
    assert house.runtime.done == ["pids", "pids"], "asked once more than it took to be back"


async def test_a_suspect_has_some_time_yet_when_the_runtime_was_away_for_a_moment(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(lives_module, "POLL_S", 0.0)

    async def ailment(address: Address) -> health.Ailment:
        house.runtime.problem = None if house.runtime.done else "no answer"
        return health.Ailment("refused")

    monkeypatch.setattr(health, "ailment", ailment)
    house.lives.check(instance(state=State.READY, running=NOBODY))
    assert isinstance(await house.hears(), e.Died)
    assert house.runtime.done == ["pids", "pids"]


async def test_a_suspect_that_is_silent_is_left_to_whoever_watches_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may only be paused."""

    async def ailment(address: Address) -> health.Ailment:
        return health.Ailment("no answer", silent=True)

    monkeypatch.setattr(lives_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(health, "ailment", ailment)
    house.lives.check(instance(state=State.READY, running=NOBODY))
    assert await house.hears() == e.Missed("i1", "no answer")
    await until(lambda: not house.tasks._running)
    assert house.heard.empty()


async def test_what_cannot_be_ended_is_tried_until_it_is_gone(house: House) -> None:
    busy = "driver failed to remove root filesystem: device or resource busy"
    house.runtime.errors = {"stop": [RuntimeDown(busy)] * 3, "remove": [RuntimeDown(busy), ZeroDivisionError()]}
    house.lives.stop(instance(running=NOBODY), 1)
    assert [await house.hears() for _ in range(4)] == [*[e.Stuck("i1", busy)] * 3, e.Gone("i1")]
    house.lives.remove(instance(running=NOBODY))
    assert [await house.hears() for _ in range(3)] == [
        e.Stuck("i1", busy),
        e.Stuck("i1", "ZeroDivisionError()"),
        e.Gone("i1"),
    ]
    assert house.runtime.done == ["stop", "remove"]
    assert len(house.events("unhandled_error")) == 1, "the unforeseen one"


async def test_what_cannot_be_ended_is_left_to_the_gateway_that_takes_over(house: House) -> None:
    house.runtime.errors = {"stop": [RuntimeDown("busy")] * 2}
    house.lives.stop(instance(running=NOBODY), 1)
    assert await house.hears() == e.Stuck("i1", "busy")
    async with asyncio.timeout(LIMIT_S):
        await house.lives.hand_over()
    await asyncio.sleep(0.02)  # many pauses between two attempts
    assert house.heard.empty()
    house.lives.take_back()
    assert [await house.hears() for _ in range(2)] == [e.Stuck("i1", "busy"), e.Gone("i1")]
    assert house.runtime.done == ["stop"]


async def test_an_end_that_takes_too_long_keeps_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives_module, "LATE_S", 0.01)
    monkeypatch.setattr(lives_module, "MARGIN_S", 0.0)
    house.runtime.holds = {"stop": asyncio.Event()}
    house.lives.stop(instance(running=NOBODY), 0)
    stuck = await house.hears()
    assert isinstance(stuck, e.Stuck)
    assert "has not answered" in stuck.problem
    async with asyncio.timeout(LIMIT_S):
        await house.lives.hand_over()
    house.runtime.holds["stop"].set()
    assert await house.hears() == e.Gone("i1")


async def test_while_the_runtime_is_away_nothing_is_stuck(house: House) -> None:
    house.runtime.problem = "the daemon is away"
    house.runtime.errors = {"stop": [RuntimeDown("no answer")] * 3}
    house.lives.stop(instance(running=NOBODY), 1)
    assert await house.hears() == e.Gone("i1")
