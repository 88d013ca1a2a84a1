# SPDX-License-Identifier: Apache-2.0
"""Who looks at instances: out of step, and told of nothing that a late gateway could have caused itself."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from tests.unit.fleet.simulation import SimulatedActivity
from tests.waiting import until
from vllm_gateway.configuration.settings import Health
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import health
from vllm_gateway.fleet import watch as watch_module
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.fleet.watch import Watch
from vllm_gateway.routing import Address

SILENT = health.Ailment("no answer", silent=True)


class House:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: float) -> None:
        self.registry = ContainerRegistry("test")
        self.activity = SimulatedActivity()
        self.heard: list[e.Event] = []
        self.asked: list[tuple[str, float]] = []
        self.answers: dict[str, health.Ailment | None] = {}
        self.takes_s = 0.0
        self.tasks = Tasks(lambda *_, **__: None)
        self.watch = Watch(
            self.registry, self.activity, self.tasks, self.heard.append, settings=Health(**settings), mask=str
        )
        monkeypatch.setattr(health, "ailment", self._ailment)

    async def _ailment(self, address: Address, limit_s: float) -> health.Ailment | None:
        self.asked.append((address.path, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.takes_s)
        return self.answers.get(address.path)

    def instance(self, number: int, **more: object) -> Instance:
        name = f"i{number}"
        running = Running(name, Address(path=name))
        return self.registry.add(
            Instance(name, name, "m", number, "hash", 4, state=State.READY, running=running, **more)  # type: ignore[arg-type]
        )

    async def rounds(self, count: int) -> None:
        """So many looks at somebody."""
        before = len(self.asked)
        await until(lambda: len(self.asked) >= before + count)
        await asyncio.sleep(0)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(watch_module, "ROUND_S", 0.001)
    monkeypatch.setattr(watch_module, "SECOND_LOOK_S", 0.001)
    house = House(monkeypatch, every_s=0.2, timeout_s=0.05)
    house.watch.open()
    yield house
    await house.tasks.end()


async def test_those_who_are_well_are_looked_at_out_of_step_and_never_told_of(house: House) -> None:
    for number in range(1, 11):
        house.instance(number)
    await house.watch._round()
    due = sorted(looks.due for looks in house.watch._looks.values())
    assert max(later - sooner for sooner, later in pairwise(due)) < 0.05, "of a pace of 0.2 s"
    assert due[-1] - due[0] > 0.1
    await house.rounds(30)
    assert len({name for name, _ in house.asked[:10]}) == 10, "each once, before any of them again"
    assert not house.heard


async def test_one_that_is_silent_is_told_of_and_one_that_was_heard_meanwhile_is_not(house: House) -> None:
    house.instance(1)
    house.instance(2)
    house.answers = {"i1": SILENT, "i2": SILENT}
    house.activity.heard["i2"] = asyncio.get_running_loop().time() + 60
    await until(lambda: len(house.heard) >= 2)
    assert set(house.heard) == {e.Missed("i1", "no answer")}
    looks = Counter(name for name, _ in house.asked)
    assert looks["i1"] >= looks["i2"] >= 1, "the next look comes sooner"


async def test_a_limit_that_is_noticed_late_says_nothing_of_the_engine(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_LATE_S", 0.0)
    house.instance(1)
    house.takes_s, house.answers = 0.1, {"i1": SILENT}
    await house.rounds(3)
    assert not house.heard
    house.answers = {"i1": health.Ailment("status 503")}
    await until(lambda: house.heard)


async def test_one_that_was_sick_is_told_of_when_it_passes_and_one_that_moves_is_left_alone(house: House) -> None:
    house.instance(1, suspect=True)
    house.instance(2, moving=True)
    await until(lambda: house.heard)
    assert house.heard[0] == e.Cleared("i1")
    assert {name for name, _ in house.asked} == {"i1"}
