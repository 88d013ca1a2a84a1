# SPDX-License-Identifier: Apache-2.0
"""Pulls that are shared, fail, are given up, or wait for a runtime: everybody who needs one hears of it once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.fleet.broken_runtime import BrokenRuntime
from tests.waiting import LIMIT_S, until
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import pulls as pulls_module
from vllm_gateway.fleet.pulls import REASON, Pulls
from vllm_gateway.fleet.runtimes import RuntimeDown, StartError
from vllm_gateway.fleet.tasks import Tasks


class House:
    def __init__(self) -> None:
        self.runtime = BrokenRuntime()
        self.heard: asyncio.Queue[e.Event] = asyncio.Queue()
        self.told: list[str] = []
        self.tasks = Tasks(self._emit)
        self.pulls = Pulls(self.runtime, self.tasks, self.heard.put_nowait, lambda text: text.replace("secret", "***"))

    def _emit(self, event: Any, **_: object) -> None:
        self.told.append(event.name)

    async def hears(self, count: int = 1) -> list[e.Event]:
        async with asyncio.timeout(LIMIT_S):
            return [await self.heard.get() for _ in range(count)]


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(pulls_module, "RUNTIME_POLL_S", 0.001)
    house = House()
    yield house
    await house.tasks.end()


async def test_models_of_one_image_share_its_pull(house: House) -> None:
    house.runtime.holds = {"fetch": asyncio.Event()}
    house.pulls.fetch("b", "image")
    house.pulls.fetch("a", "image")
    assert house.pulls.of("image")
    house.runtime.holds["fetch"].set()
    assert await house.hears(2) == [e.ImageFetched("a", "image"), e.ImageFetched("b", "image")]
    assert house.runtime.done == ["fetch"]
    assert house.pulls.of("image") is None


async def test_it_goes_on_until_the_last_has_left(house: House) -> None:
    house.runtime.holds = {"fetch": asyncio.Event()}
    house.pulls.fetch("a", "image")
    house.pulls.fetch("b", "image")
    house.pulls.leave("a", "image")
    house.pulls.leave("a", "another")
    assert house.pulls.of("image")
    house.pulls.leave("b", "image")
    assert house.pulls.of("image") is None
    await until(lambda: not house.tasks._running)
    house.pulls.fetch("b", "image")
    house.runtime.holds["fetch"].set()
    assert await house.hears() == [e.ImageFetched("b", "image")]
    assert house.heard.empty()


async def test_whoever_hands_over_ends_all(house: House) -> None:
    house.runtime.holds = {"fetch": asyncio.Event()}
    house.pulls.fetch("a", "image")
    house.pulls.fetch("b", "another")
    house.pulls.end()
    await until(lambda: not house.tasks._running)
    assert house.heard.empty()


async def test_a_failure_is_told_without_secrets(house: House) -> None:
    house.runtime.errors = {"fetch": [StartError("no access with secret")]}
    house.pulls.fetch("a", "image")
    assert await house.hears() == [e.ImageNotFetched("a", "image", REASON, "no access with ***")]
    assert not house.told


async def test_a_runtime_that_is_restarted_costs_a_delay_and_one_that_stays_away_the_pull(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.runtime.errors = {"fetch": [RuntimeDown("no answer")] * 3}
    house.pulls.fetch("a", "image")
    assert await house.hears() == [e.ImageFetched("a", "image")]
    monkeypatch.setattr(pulls_module, "RUNTIME_BACK_S", 0.01)
    house.runtime.errors = {"fetch": [RuntimeDown("no answer")] * 1000}
    house.pulls.fetch("a", "image")
    assert await house.hears() == [e.ImageNotFetched("a", "image", REASON, "no answer")]


async def test_an_error_that_nobody_foresaw_is_told_to_both(house: House) -> None:
    house.runtime.errors = {"fetch": [ZeroDivisionError("x")]}
    house.pulls.fetch("a", "image")
    assert await house.hears() == [e.ImageNotFetched("a", "image", REASON, "x")]
    await until(lambda: house.told == ["unhandled_error"])
