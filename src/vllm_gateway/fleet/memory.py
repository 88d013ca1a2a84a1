# SPDX-License-Identifier: Apache-2.0
"""What the GPUs show: who holds how much, what an instance took, and when a stopped one's memory is back."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Thread

from vllm_gateway.allocator.probe import GpuProbe, GpuReading, ProbeError, as_gpus
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.runtimes import Runtime, RuntimeDown
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.telemetry import events

MEMORY_BACK_S = 30.0  # how long a stopped engine's memory may take to come back
READ_LIMIT_S = 10.0
_POLL_S = 0.1
_SETTLED_S = 2.0  # how long the figure of one that fell asleep may take to become right
_MOST = 0.8  # without a list of processes: this part of a reservation must have come back

Used = Mapping[str, int]  # GPU id -> MiB in use by everyone


class GpuMemory:
    """Reads the probe off the event loop. Without a probe there are no GPUs, and nothing to wait for.

    A driver in trouble answers with any error, or not at all: the last readings then stand, as unusable.
    """

    def __init__(self, probe: GpuProbe | None, runtime: Runtime, tasks: Tasks, emit: Callable[..., None]) -> None:
        self.probe = probe
        self._runtime = runtime
        self._tasks = tasks
        self._emit: Callable[..., None] = emit
        self._readings: Sequence[GpuReading] = ()
        self._reading: asyncio.Future[list[GpuReading]] | None = None
        self._last_pids: Mapping[str, frozenset[int]] = {}  # by instance

    def assume(self, instances: Iterable[Instance]) -> None:
        """The GPUs that they hold are there, although the probe cannot be read yet."""
        held: dict[str, int] = {}
        for one in instances:
            for gpu_id in one.gpu_ids:
                held[gpu_id] = held.get(gpu_id, 0) + one.reserved_mib
        known = enumerate(held.items())
        self._readings = [GpuReading(gpu_id, index, "unknown", mib, measured=False) for index, (gpu_id, mib) in known]

    async def used(self) -> Used:
        return {reading.gpu_id: reading.used_mib for reading in await self._read()}

    async def gpus(self, instances: Iterable[Instance], before: Sequence[Gpu]) -> list[Gpu]:
        """The GPUs, with what others than `instances` hold there. `before`: the result of the last call."""
        instances = list(instances)
        restless = _restless(instances)
        readings = await self._read()
        found = await asyncio.gather(*map(self.pids, instances))
        self._last_pids = {one.instance_id: pids for one, pids in zip(instances, found, strict=True)}
        pids = frozenset[int]().union(*found)
        held: dict[str, int] = {}
        for one in instances:
            for gpu_id in one.gpu_ids:
                held[gpu_id] = held.get(gpu_id, 0) + one.held_mib
        quiet = {reading.gpu_id for reading in readings} - restless - _restless(instances)
        return as_gpus(readings, held, pids, quiet, {gpu.gpu_id: gpu.foreign_mib for gpu in before})

    async def pids(self, one: Instance) -> frozenset[int]:
        """Those that were seen last, if the runtime does not tell, or it has just ended.

        What was read after its end could not tell whether its memory is back.
        """
        if self.probe is None or one.running is None or one.external:
            return frozenset()
        with self._tasks.contain(f"asking for the processes of {one.name}"), suppress(RuntimeDown, TimeoutError):
            async with asyncio.timeout(READ_LIMIT_S):
                if found := await self._runtime.pids(one.running.handle):
                    return found
        return self._last_pids.get(one.instance_id, frozenset())

    def holds(self, one: Instance) -> str:
        """What its processes hold, in words; empty: nobody sees any."""
        pids = self._last_pids.get(one.instance_id, frozenset())
        held = {
            reading.index: sum(mib for pid, mib in (reading.processes or {}).items() if pid in pids)
            for reading in self._readings
        }
        return ", ".join(f"{mib} MiB on GPU {index}" for index, mib in held.items() if mib)

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

    async def kept_asleep(self, one: Instance, before: Used) -> int | None:
        """MiB that it still holds on its fullest GPU, as soon as that can be right. `before`: it fell asleep."""
        pids, last = await self.pids(one), None
        ends = asyncio.get_running_loop().time() + _SETTLED_S
        while True:
            seen = _kept(await self._read(), one, pids, before)
            still = seen == last and (seen is None or seen <= one.reserved_mib / 2)
            if still or (seen or 0) <= one.asleep_mib or asyncio.get_running_loop().time() > ends:
                return seen
            last = seen
            await asyncio.sleep(_POLL_S)

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

        A GPU that is not listed any more stays too: instances may still hold it. Raises ProbeError if none is known.
        """
        if self.probe is None:
            return self._readings
        try:
            readings = await self._shared_reading(self.probe)
        except Exception as error:
            problem = str(error) if isinstance(error, ProbeError) else f"it cannot be read: {error!r}"
            if not self._readings:
                raise ProbeError(problem) from error
            readings = [replace(one, problem=problem) for one in self._readings]
        else:
            here = {reading.gpu_id for reading in readings}
            readings += [replace(one, problem="it is gone") for one in self._readings if one.gpu_id not in here]
        self._tell_problems(readings)
        self._tell_shared(readings)
        self._readings = readings
        return readings

    async def _shared_reading(self, probe: GpuProbe) -> list[GpuReading]:
        """All who ask meanwhile share it: a driver that hangs holds one thread, and nobody for long."""
        if self._reading is None or self._reading.done():
            self._reading = _in_thread_of_its_own(probe.read)
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                return list(await asyncio.shield(self._reading))
        except TimeoutError:
            raise ProbeError(f"the driver has not answered for {READ_LIMIT_S:g} s") from None

    def _tell_problems(self, readings: Sequence[GpuReading]) -> None:
        known = {one.gpu_id: one.problem for one in self._readings}
        for one in readings:
            if one.problem and one.problem != known.get(one.gpu_id):
                self._emit(events.GPU_PROBLEM, gpu=one.gpu_id, problem=one.problem)

    def _tell_shared(self, readings: Sequence[GpuReading]) -> None:
        known = {one.gpu_id for one in self._readings}
        for one in readings:
            if one.shared and one.gpu_id not in known:
                self._emit(events.GPU_MEMORY_SHARED, gpu=one.gpu_id, name=one.name, total_mib=one.total_mib)


def _restless(instances: Iterable[Instance]) -> set[str]:
    """The GPUs where somebody's memory is on the move."""
    restless = (State.STARTING, State.STOPPING, State.FAILED)
    those = [one for one in instances if one.moving or (one.launched and one.state in restless)]
    return {gpu_id for one in those for gpu_id in one.gpu_ids}


def _kept(readings: Sequence[GpuReading], one: Instance, pids: frozenset[int], before: Used) -> int | None:
    """By NVML's list of processes, else what was reserved less what has come back; None if nothing tells."""
    kept = []
    for reading in readings:
        if reading.gpu_id in one.gpu_ids:
            by_process = sum(mib for pid, mib in (reading.processes or {}).items() if pid in pids)
            come_back = before.get(reading.gpu_id, 0) - reading.used_mib
            if by_process or come_back > 0:
                kept.append(by_process or max(one.reserved_mib - come_back, 0))
    return max(kept, default=None)


def _is_back(reading: GpuReading, one: Instance, pids: frozenset[int], before: Used) -> bool:
    if not reading.measured:
        return True
    if reading.processes is not None and pids:
        return not pids.intersection(reading.processes)
    if reading.gpu_id in before:
        return reading.used_mib <= before[reading.gpu_id] - one.held_mib * _MOST
    return True


def _in_thread_of_its_own(read: Callable[[], list[GpuReading]]) -> asyncio.Future[list[GpuReading]]:
    """Not one of the loop's pool, for which the process would wait at its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[GpuReading]] = loop.create_future()

    def work() -> None:
        try:
            result, error = read(), None
        except Exception as raised:
            result, error = [], raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    def settle(result: list[GpuReading], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    Thread(target=work, name="GPU reading", daemon=True).start()
    return future
