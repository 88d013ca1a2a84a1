# SPDX-License-Identifier: Apache-2.0
"""Reads NVIDIA's GPUs by the driver's own library. All calls block; callers run them in a thread."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pynvml

from vllm_gateway.allocator.probe import GpuReading, ProbeError

MIB = 1 << 20


class NvmlProbe:
    """The NVIDIA GPUs of this machine. Of one in MIG mode, its MIG devices are the GPUs.

    Where GPU and processors share the machine's memory (GB10, Jetson), NVML cannot tell how much there is: then it is
    as much as the configuration says, else all that the machine has.
    """

    def __init__(self, memory_mib: Mapping[str, int] | None = None) -> None:
        """`memory_mib`: of GPUs that do not tell, by index or UUID."""
        self._memory_mib = memory_mib or {}
        self._lock = Lock()
        self._started = False
        self._known: dict[int, list[GpuReading]] = {}  # a GPU that fell off the bus no longer tells its name

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
            readings = [reading for index in range(count) for reading in self._read_one(index)]
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

    def _read_one(self, index: int) -> list[GpuReading]:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            readings = self._parts(handle, index) if _is_split(handle) else [self._reading(handle, index)]
        except pynvml.NVMLError as error:
            known = self._known.get(index) or [GpuReading(str(index), index, "unknown", 0)]
            return [replace(one, processes=None, problem=f"NVML: {error}") for one in known]
        self._known[index] = readings
        return readings

    def _reading(self, handle: Any, index: int) -> GpuReading:
        gpu_id = _text(pynvml.nvmlDeviceGetUUID(handle))
        memory = _memory_mib(handle)
        shared = memory is None
        if memory is None:
            total, used = machine_memory_mib()
            memory = self._memory_mib.get(gpu_id, self._memory_mib.get(str(index), total)), used
        name = _text(pynvml.nvmlDeviceGetName(handle))
        return GpuReading(gpu_id, index, name, *memory, _processes(handle), shared=shared)

    def _parts(self, handle: Any, index: int) -> list[GpuReading]:
        """CUDA cannot use the whole while it is split."""
        parts = []
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
                continue
            parts.append(replace(self._reading(part, index), part=True))
        if parts:
            return parts
        gpu_id, name = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
        problem = (
            "it is in MIG mode and has no MIG devices: create some (`nvidia-smi mig -cgi PROFILE -C`), end the mode "
            f"(`nvidia-smi -i {index} -mig 0`), or leave it out (`gpus.except`)"
        )
        return [GpuReading(gpu_id, index, name, 0, problem=problem)]


def machine_memory_mib() -> tuple[int, int]:
    """All that the machine has, and what is in use: what the kernel could give back at once is not."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines}
    return kib["MemTotal:"] >> 10, (kib["MemTotal:"] - kib["MemAvailable:"]) >> 10


def _is_split(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:
        return False  # most cannot be


def _memory_mib(handle: Any) -> tuple[int, int] | None:
    """In all, and in use, the driver's share included; None: it is the machine's, of which NVML knows nothing."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        return None
    return (int(memory.total) // MIB, -(-int(memory.used) // MIB)) if memory.total else None


def _processes(handle: Any) -> dict[int, int] | None:
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
