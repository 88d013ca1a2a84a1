# SPDX-License-Identifier: Apache-2.0
"""Reads the GPUs: what there is, what is used, by whom. All calls block; callers run them in a thread."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import pynvml

from vllm_gateway.allocator.types import Gpu
from vllm_gateway.configuration.settings import Device
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

MIB = 1 << 20


class ProbeError(Exception):
    """The GPUs cannot be read at all; the text says what the operator can do."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU as its source shows it. `processes`: MiB by pid, None where that is not known."""

    gpu_id: str
    index: int
    name: str
    total_mib: int
    used_mib: int = 0
    processes: Mapping[int, int] | None = None
    problem: str | None = None
    measured: bool = True  # False: nobody can say what is used


class GpuProbe(Protocol):
    def read(self) -> list[GpuReading]:
        """All GPUs, by index. Raises ProbeError."""


class StaticProbe:
    """GPUs that the config declares: nobody can say what is used there."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._readings = [
            GpuReading(device.id or str(index), index, device.name, device.memory_mib, measured=False)
            for index, device in enumerate(devices)
        ]

    def read(self) -> list[GpuReading]:
        return list(self._readings)


class SimulatedProbe:
    """The simulated GPUs of a directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._gpus = SimulatedGpus(Path(directory))

    def read(self) -> list[GpuReading]:
        try:
            gpus = self._gpus.gpus()
        except (OSError, KeyError, ValueError) as error:
            raise ProbeError(f"the simulated GPUs in {self._gpus.directory} cannot be read: {error!r}") from error
        return [
            GpuReading(
                gpu.uuid,
                gpu.index,
                gpu.name,
                gpu.total_mib,
                gpu.reserved_mib + gpu.used_mib,
                _by_pid(gpu.processes),
                f"NVML error {gpu.error}" if gpu.error else None,
            )
            for gpu in gpus
        ]


class NvmlProbe:
    """The NVIDIA GPUs of this machine."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._started = False
        self._known: dict[int, GpuReading] = {}  # a GPU that fell off the bus no longer tells its name

    def read(self) -> list[GpuReading]:
        with self._lock:
            self._start()
            try:
                count = pynvml.nvmlDeviceGetCount()
            except pynvml.NVMLError as error:
                self._stop()  # the driver was reloaded or is gone: start anew at the next reading
                raise ProbeError(f"NVML does not list the GPUs: {error}") from error
            if not count:
                self._stop()
                raise ProbeError("NVML lists no GPU. Let this machine or container see one.")
            readings = [self._read_one(index) for index in range(count)]
            if all(reading.problem for reading in readings):
                self._stop()  # a reloaded driver is found by a new start only
            return readings

    def _start(self) -> None:
        if self._started:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
                raise ProbeError(
                    f"the NVIDIA driver was updated while the old one is still loaded ({error}). Reboot, or end all "
                    "programs that use the GPUs and load the driver anew (`rmmod` and `modprobe` its modules)."
                ) from error
            raise ProbeError(
                f"no NVIDIA driver answers here ({error}). Run the gateway where NVML is (in a container: with "
                "`--gpus all` or the `utility` capability), or declare the GPUs with `gpus.source: static` and "
                "`gpus.devices`."
            ) from error
        self._started = True

    def _stop(self) -> None:
        if self._started:
            self._started = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                return  # there is nothing left to shut down

    def _read_one(self, index: int) -> GpuReading:
        known = self._known.get(index)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)  # `used` of this version counts the driver's share
            reading = GpuReading(
                _text(pynvml.nvmlDeviceGetUUID(handle)),
                index,
                _text(pynvml.nvmlDeviceGetName(handle)),
                int(memory.total) // MIB,
                -(-int(memory.used) // MIB),
                _nvml_processes(handle),
            )
        except pynvml.NVMLError as error:
            name, gpu_id, total = (known.name, known.gpu_id, known.total_mib) if known else ("unknown", str(index), 0)
            return GpuReading(gpu_id, index, name, total, problem=f"NVML: {error}")
        self._known[index] = reading
        return reading


def as_gpus(
    readings: Sequence[GpuReading],
    residents_mib_by_gpu: Mapping[str, int],
    our_processes: frozenset[int],
    quiet: Collection[str],
    previous: Mapping[str, int],
) -> list[Gpu]:
    """The GPUs with the memory that others hold there.

    Which is what is used less what our processes use, where that can be told; else, on a `quiet` GPU (no start or stop
    goes on), what is used less what is reserved; else what it was before (`previous`, by GPU id).
    """
    return [
        Gpu(
            reading.gpu_id,
            reading.index,
            reading.name,
            reading.total_mib,
            reading.used_mib,
            _foreign(reading, residents_mib_by_gpu.get(reading.gpu_id, 0), our_processes, quiet, previous),
            reading.problem,
        )
        for reading in readings
    ]


def _foreign(
    reading: GpuReading,
    reserved_mib: int,
    our_processes: frozenset[int],
    quiet: Collection[str],
    previous: Mapping[str, int],
) -> int:
    before = previous.get(reading.gpu_id)
    if reading.problem is not None:
        return before or 0
    ours = None if reading.processes is None else [reading.processes[p] for p in our_processes & set(reading.processes)]
    # In a container without the host's pids nobody of ours is seen: that is not knowledge where something is reserved.
    if ours or (ours is not None and reserved_mib == 0 and reading.gpu_id in quiet):
        return max(0, reading.used_mib - sum(ours))
    if reading.gpu_id in quiet or before is None:
        return max(0, reading.used_mib - reserved_mib)
    return before


def _by_pid(processes: Sequence[tuple[int, int]]) -> dict[int, int] | None:
    """MiB by pid; None if somebody did not say who he is."""
    found: dict[int, int] = {}
    for pid, mib in processes:
        if pid <= 0:
            return None
        found[pid] = found.get(pid, 0) + mib
    return found


def _nvml_processes(handle: Any) -> dict[int, int] | None:
    """MiB by pid; None where the driver does not tell (WSL, MIG, some virtual GPUs)."""
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    found: dict[int, int] = {}
    for process in processes:
        if process.usedGpuMemory is None:
            return None
        found[process.pid] = found.get(process.pid, 0) + process.usedGpuMemory // MIB
    return found


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
