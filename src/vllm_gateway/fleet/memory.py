# SPDX-License-Identifier: Apache-2.0
"""What the GPUs show: who holds how much, what an instance took, and when a stopped one's memory is back."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from vllm_gateway.allocator.probe import GpuProbe, GpuReading, ProbeError, as_gpus
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.runtimes import Runtime, RuntimeDown
from vllm_gateway.telemetry import events

MEMORY_BACK_S = 30.0  # how long a stopped engine's memory may take to come back
_POLL_S = 0.1
_MOST = 0.8  # without a list of processes: this part of a reservation must have come back

Used = Mapping[str, int]  # GPU id -> MiB in use by everyone


class GpuMemory:
    """Reads the probe off the event loop. Without a probe there are no GPUs, and nothing to wait for."""

    def __init__(self, probe: GpuProbe | None, runtime: Runtime, emit: Callable[..., None]) -> None:
        self.probe = probe
        self._runtime = runtime
        self._emit: Callable[..., None] = emit
        self._readings: Sequence[GpuReading] = ()

    async def used(self) -> Used:
        return {reading.gpu_id: reading.used_mib for reading in await self._read()}

    async def gpus(self, instances: Iterable[Instance], before: Sequence[Gpu]) -> list[Gpu]:
        """The GPUs, with what others than `instances` hold there. `before`: the result of the last call.

        Raises RuntimeDown: nobody can say whose the memory is.
        """
        instances = list(instances)
        readings = await self._read()
        pids: frozenset[int] = frozenset()
        for one in instances:
            pids |= await self._pids(one)
        reserved: dict[str, int] = {}
        restless: set[str] = set()
        for one in instances:
            for gpu_id in one.gpu_ids if one.launched else ():
                reserved[gpu_id] = reserved.get(gpu_id, 0) + one.reserved_mib
                if one.state not in (State.READY, State.DRAINING):
                    restless.add(gpu_id)
        quiet = {reading.gpu_id for reading in readings} - restless
        return as_gpus(readings, reserved, pids, quiet, {gpu.gpu_id: gpu.foreign_mib for gpu in before})

    async def pids(self, one: Instance) -> frozenset[int]:
        """None are known while the runtime is away."""
        try:
            return await self._pids(one)
        except RuntimeDown:
            return frozenset()

    async def _pids(self, one: Instance) -> frozenset[int]:
        if self.probe is None or one.running is None or one.external:
            return frozenset()
        return await self._runtime.pids(one.running.handle)

    async def measure(self, one: Instance, before: Used) -> int | None:
        """MiB on its fullest GPU: by NVML's list of processes, else by the difference to before its start."""
        pids = await self.pids(one)
        taken = []
        for reading in await self._read():
            if reading.gpu_id in one.gpu_ids:
                by_process = sum(mib for pid, mib in (reading.processes or {}).items() if pid in pids)
                taken.append(by_process or reading.used_mib - before.get(reading.gpu_id, reading.used_mib))
        measured = max(taken, default=0)
        return measured if measured > 0 else None

    async def back(self, one: Instance, pids: frozenset[int], before: Used) -> None:
        """Waits until a stopped instance's memory shows as free. `pids` and `before` are from before the stop."""
        if self.probe is None or not one.gpu_ids:
            return
        try:
            async with asyncio.timeout(MEMORY_BACK_S):
                while not all(  # noqa: ASYNC110 - GPUs tell nothing of themselves
                    _is_back(r, one, pids, before) for r in await self._read() if r.gpu_id in one.gpu_ids
                ):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            self._emit(events.MEMORY_NOT_RETURNED, instance=one.name, gpus=list(one.gpu_ids), seconds=MEMORY_BACK_S)

    async def _read(self) -> Sequence[GpuReading]:
        """The last ones, as unusable, if the probe fails: what is reserved stays so, and nothing is placed there.

        A GPU that is not listed any more stays too: instances may still hold it.
        """
        if self.probe is None:
            return self._readings
        try:
            readings = await asyncio.to_thread(self.probe.read, frozenset())
            here = {reading.gpu_id for reading in readings}
            lost = [replace(one, problem="it is gone") for one in self._readings if one.gpu_id not in here]
            readings = [*readings, *lost]
        except ProbeError as error:
            if not self._readings:
                raise
            readings = [replace(one, problem=str(error)) for one in self._readings]
        self._tell_problems(readings)
        self._readings = readings
        return readings

    def _tell_problems(self, readings: Sequence[GpuReading]) -> None:
        known = {one.gpu_id: one.problem for one in self._readings}
        for one in readings:
            if one.problem and one.problem != known.get(one.gpu_id):
                self._emit(events.GPU_PROBLEM, gpu=one.gpu_id, problem=one.problem)


def _is_back(reading: GpuReading, one: Instance, pids: frozenset[int], before: Used) -> bool:
    if reading.processes is not None and pids:
        return not pids.intersection(reading.processes)
    if reading.gpu_id in before:
        return reading.used_mib <= before[reading.gpu_id] - one.reserved_mib * _MOST
    return True
