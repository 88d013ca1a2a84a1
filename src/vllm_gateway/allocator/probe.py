# SPDX-License-Identifier: Apache-2.0
"""Who knows the GPUs: what there is, what is used, by whom. All calls block; callers run them in a thread."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllm_gateway.allocator.types import Gpu
from vllm_gateway.configuration.settings import Device
from vllm_gateway.simulator.gpu_memory import SimulatedGpus


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
    shared: bool = False  # its memory is the machine's
    part: bool = False  # a MIG device


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
            reading.shared,
            reading.part,
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
