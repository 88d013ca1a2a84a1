# SPDX-License-Identifier: Apache-2.0
"""GPUs that fail: nothing is placed on them, and the reason is told once."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests.unit.fleet.broken_runtime import NOBODY, BrokenRuntime
from tests.waiting import LIMIT_S
from vllm_gateway.allocator.probe import GpuReading, ProbeError, StaticProbe
from vllm_gateway.configuration.settings import Device
from vllm_gateway.fleet import memory as memory_module
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.memory import GpuMemory
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.fleet.tasks import Tasks

CARD = GpuReading("g0", 0, "card", 24576, 1000)


class Probe:
    def __init__(self) -> None:
        self.answer: Sequence[GpuReading] | Exception = [CARD, replace(CARD, gpu_id="g1", index=1)]
        self.hangs: threading.Event | None = None
        self.asked = 0

    def read(self) -> list[GpuReading]:
        self.asked += 1
        if self.hangs is not None:
            self.hangs.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return list(self.answer)


class House:
    def __init__(self) -> None:
        self.probe, self.runtime = Probe(), BrokenRuntime()
        self.told: list[object] = []
        self.errors: list[object] = []
        self.memory = GpuMemory(
            self.probe,
            self.runtime,
            Tasks(lambda _, **fields: self.errors.append(fields["error"])),
            lambda _, **fields: self.told.append(fields["problem"]),
        )

    async def problems(self) -> list[str | None]:
        return [gpu.problem for gpu in await self.memory.gpus([], [])]


async def test_a_driver_that_is_reloaded_takes_all_gpus_out_until_it_is_back() -> None:
    house = House()
    assert await house.problems() == [None, None]
    good, house.probe.answer = house.probe.answer, ProbeError("the driver is gone")
    assert await house.problems() == ["the driver is gone"] * 2
    assert await house.problems() == ["the driver is gone"] * 2
    house.probe.answer = good
    assert await house.problems() == [None, None]
    assert house.told == ["the driver is gone"] * 2, "once for each GPU"


async def test_a_gpu_that_is_not_listed_any_more_is_gone() -> None:
    house = House()
    await house.problems()
    house.probe.answer = [replace(CARD, gpu_id="g1", index=0)]
    assert sorted(map(str, await house.problems())) == ["None", "it is gone"]


async def test_a_gateway_that_has_never_seen_a_gpu_says_so() -> None:
    house = House()
    house.probe.answer = ProbeError("no driver")
    with pytest.raises(ProbeError):
        await house.problems()


async def test_whatever_a_driver_in_trouble_raises_takes_the_gpus_out() -> None:
    house = House()
    await house.problems()
    house.probe.answer = UnicodeDecodeError("utf-8", b"", 0, 1, "garbage")
    (first, _) = await house.problems()
    assert first is not None
    assert "garbage" in first


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Probe], threading.Event]]:
    monkeypatch.setattr(memory_module, "READ_LIMIT_S", 0.01)
    hanging: list[threading.Event] = []

    def hang(probe: Probe) -> threading.Event:
        probe.hangs = threading.Event()
        hanging.append(probe.hangs)
        return probe.hangs

    yield hang
    for one in hanging:
        one.set()


async def test_a_driver_that_hangs_is_asked_once_and_keeps_nobody(
    hang: Callable[[Probe], threading.Event],
) -> None:
    house = House()
    await house.problems()
    woken = hang(house.probe)
    for _ in range(3):
        assert await house.problems() == ["the driver has not answered for 0.01 s"] * 2
    assert house.probe.asked == 2
    house.probe.hangs = None
    woken.set()
    async with asyncio.timeout(LIMIT_S):
        while await house.problems() != [None, None]:
            pass


@pytest.mark.parametrize("error", [RuntimeDown("Docker is away"), TypeError("Processes: null")])
async def test_while_nobody_tells_whose_the_memory_is_what_was_seen_last_counts(error: Exception) -> None:
    house = House()
    one = Instance("i1", "a_1", "a", 1, "hash", 4, gpu_ids=("g0",), reserved_mib=500, launched=True, running=NOBODY)
    one.state = State.READY
    house.probe.answer = [replace(CARD, processes={7: 600, 8: 400})]
    assert [gpu.foreign_mib for gpu in await house.memory.gpus([one], [])] == [400]
    house.runtime.errors = {"pids": [error]}
    house.probe.answer = [replace(CARD, used_mib=1200, processes={7: 600, 8: 600})]
    assert [gpu.foreign_mib for gpu in await house.memory.gpus([one], [])] == [600]
    assert len(house.errors) == isinstance(error, TypeError)


async def test_one_that_ended_before_it_was_stopped_is_not_waited_for() -> None:
    """Its processes are gone when they are asked for, and so may its memory be: what was in use then says nothing."""
    house = House()
    one = Instance("i1", "a_1", "a", 1, "hash", 4, gpu_ids=("g0",), reserved_mib=500, launched=True, running=NOBODY)
    one.state = State.READY
    house.runtime.processes = frozenset({7})
    house.probe.answer = [replace(CARD, used_mib=500, processes={7: 500})]
    await house.memory.gpus([one], [])
    house.runtime.processes = frozenset()
    house.probe.answer = [replace(CARD, used_mib=0, processes={})]
    pids, before = await house.memory.pids(one), await house.memory.used()
    async with asyncio.timeout(LIMIT_S):
        await house.memory.back(one, pids, before)


ASLEEP = Instance(
    "i1", "a_1", "a", 1, "h", 8, gpu_ids=("g0",), reserved_mib=10_000, launched=True, state=State.FALLING_ASLEEP
)


async def test_what_a_sleeper_keeps_is_what_it_does_not_give_back() -> None:
    house = House()
    house.probe.answer = [replace(CARD, used_mib=2000)]
    assert await house.memory.kept_asleep(ASLEEP, {"g0": 11_000}) == 1000


async def test_where_nothing_tells_what_a_sleeper_keeps_it_is_not_known() -> None:
    house = House()
    house.probe.answer = [replace(CARD, used_mib=0)]
    assert await house.memory.kept_asleep(ASLEEP, {"g0": 0}) is None


async def test_a_figure_that_lags_behind_is_not_believed_at_once() -> None:
    house = House()
    readings = iter([10_900, 10_900, 4000, 1500, 1500, 1500])
    house.memory.probe = Lagging(readings)
    assert await house.memory.kept_asleep(ASLEEP, {"g0": 11_000}) == 500


class Lagging:
    def __init__(self, used_mib: Iterator[int]) -> None:
        self._used_mib = used_mib

    def read(self) -> list[GpuReading]:
        return [replace(CARD, used_mib=next(self._used_mib))]


async def test_memory_is_nobody_elses_while_a_sleeper_moves() -> None:
    """Its own figure is wrong then, one way or the other."""
    house = House()
    moving = replace(ASLEEP, moving=True)
    house.probe.answer = [replace(CARD, used_mib=11_000)]
    (before,) = await house.memory.gpus([replace(ASLEEP, moving=False)], [])
    asleep = replace(ASLEEP, state=State.SLEEPING, asleep=True, asleep_mib=500)
    (during,) = await house.memory.gpus([moving], [before])
    house.probe.answer = [replace(CARD, used_mib=1500)]
    (after,) = await house.memory.gpus([asleep], [during])
    assert [gpu.foreign_mib for gpu in (before, during, after)] == [1000, 1000, 1000]


async def test_what_nobody_measures_is_not_waited_for() -> None:
    one = Instance("i1", "a_1", "a", 1, "hash", 4, gpu_ids=("0",), reserved_mib=500, launched=True, running=NOBODY)
    told: list[object] = []
    tasks = Tasks(lambda _, **fields: told.append(fields))
    probe = StaticProbe([Device(name="card", memory_mib=24576)])
    memory = GpuMemory(probe, BrokenRuntime(), tasks, lambda _, **fields: told.append(fields))
    async with asyncio.timeout(LIMIT_S):
        await memory.back(one, await memory.pids(one), await memory.used())
    assert not told


async def test_what_the_processes_of_an_instance_hold_is_told_by_gpu() -> None:
    house, one = House(), Instance("i1", "n", "m", 1, "", 8, gpu_ids=("g0", "g1"), running=NOBODY)
    house.runtime.processes = frozenset({7, 8})
    house.probe.answer = [
        replace(CARD, processes={7: 300, 9: 50}),
        replace(CARD, gpu_id="g1", index=1, processes={7: 1, 8: 2}),
        replace(CARD, gpu_id="g2", index=2),
    ]
    assert not house.memory.holds(one)
    await house.memory.gpus([one], [])
    assert house.memory.holds(one) == "300 MiB on GPU 0, 3 MiB on GPU 1"
