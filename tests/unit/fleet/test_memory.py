# SPDX-License-Identifier: Apache-2.0
"""GPUs that fail: nothing is placed on them, and the reason is told once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from vllm_gateway.allocator.probe import GpuReading, ProbeError
from vllm_gateway.fleet.memory import GpuMemory
from vllm_gateway.fleet.runtimes import Runtime

CARD = GpuReading("g0", 0, "card", 24576, 1000)


class Probe:
    def __init__(self) -> None:
        self.answer: Sequence[GpuReading] | ProbeError = [CARD, replace(CARD, gpu_id="g1", index=1)]

    def read(self, our_pids: frozenset[int] | None = None) -> list[GpuReading]:
        if isinstance(self.answer, ProbeError):
            raise self.answer
        return list(self.answer)


class House:
    def __init__(self) -> None:
        self.probe = Probe()
        self.told: list[object] = []
        self.memory = GpuMemory(
            self.probe, cast(Runtime, None), lambda _, **fields: self.told.append(fields["problem"])
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
