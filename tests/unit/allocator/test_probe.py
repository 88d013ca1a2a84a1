# SPDX-License-Identifier: Apache-2.0
"""What the probes read, and whose memory it is held to be."""

from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from vllm_gateway.allocator.nvml import NvmlProbe
from vllm_gateway.allocator.probe import GpuReading, ProbeError, SimulatedProbe, StaticProbe, as_gpus
from vllm_gateway.configuration.settings import Device
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

OURS = frozenset({7})


def foreign(
    processes: dict[int, int] | None,
    *,
    reserved: int,
    quiet: bool,
    before: int | None = None,
    problem: str | None = None,
) -> int:
    reading = GpuReading("g0", 0, "card", 24576, 10000, processes, problem)
    previous = {} if before is None else {"g0": before}
    (gpu,) = as_gpus([reading], {"g0": reserved}, OURS, {"g0"} if quiet else set(), previous)
    assert (gpu.used_mib, gpu.problem) == (10000, problem)
    return gpu.foreign_mib


def test_known_processes_tell_what_is_foreign() -> None:
    assert foreign({7: 9000, 8: 500}, reserved=5000, quiet=False, before=77) == 1000
    assert foreign({8: 500}, reserved=0, quiet=True, before=77) == 10000


def test_a_quiet_gpu_tells_what_is_foreign() -> None:
    assert foreign(None, reserved=9500, quiet=True, before=77) == 500
    assert foreign(None, reserved=12000, quiet=True, before=77) == 0


def test_pids_that_cannot_be_seen_are_no_knowledge() -> None:
    assert foreign({}, reserved=9500, quiet=True) == 500
    assert foreign({1: 9500}, reserved=9500, quiet=False, before=77) == 77


def test_while_something_starts_the_last_figure_holds() -> None:
    assert foreign(None, reserved=9500, quiet=False, before=77) == 77
    assert foreign(None, reserved=9500, quiet=False) == 500
    assert foreign(None, reserved=9500, quiet=True, before=77, problem="gone") == 77


def test_declared_gpus_are_empty() -> None:
    readings = StaticProbe(
        [Device(name="L4", memory_mib=24576), Device(name="L4", memory_mib=24576, id="GPU-x")]
    ).read()
    assert [(r.gpu_id, r.index, r.total_mib, r.used_mib) for r in readings] == [
        ("0", 0, 24576, 0),
        ("GPU-x", 1, 24576, 0),
    ]
    assert [gpu.foreign_mib for gpu in as_gpus(readings, {"0": 9000}, frozenset(), {"0"}, {})] == [0, 0]


def test_simulated_gpus_are_read(tmp_path: Path) -> None:
    gpus = SimulatedGpus(tmp_path)
    gpus.create([("NVIDIA L4", 24576), ("NVIDIA L4", 24576)], reserved_mib=300)
    gpus.update(1, error=15)
    allocation = gpus.take("GPU-sim-0", 1000)
    try:
        first, second = SimulatedProbe(tmp_path).read()
    finally:
        allocation.release()
    assert (first.gpu_id, first.used_mib, first.problem) == ("GPU-sim-0", 1300, None)
    assert first.processes is not None
    assert sum(first.processes.values()) == 1000
    assert second.problem == "NVML error 15"
    with pytest.raises(ProbeError, match="cannot be read"):
        SimulatedProbe(tmp_path / "nowhere").read()


def test_without_a_driver_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    with pytest.raises(ProbeError, match=r"gpus\.source: static"):
        NvmlProbe().read()


def test_after_an_update_of_the_driver_a_reboot_is_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    with pytest.raises(ProbeError, match="Reboot"):
        NvmlProbe().read()


def test_one_broken_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[int] = set()

    def handle(index: int) -> int:
        if index in broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    memory = SimpleNamespace(total=24576 << 20, used=(1000 << 20) + 1)
    processes = [SimpleNamespace(pid=7, usedGpuMemory=600 << 20), SimpleNamespace(pid=8, usedGpuMemory=100 << 20)]
    started: list[None] = []
    for name, answer in {
        "nvmlInit": lambda: started.append(None),
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetMemoryInfo": lambda _: memory,
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}",
        "nvmlDeviceGetName": lambda _: b"NVIDIA L4",
        "nvmlDeviceGetComputeRunningProcesses": lambda _: processes,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    probe = NvmlProbe()
    assert probe.read()[1] == GpuReading("GPU-1", 1, "NVIDIA L4", 24576, 1001, {7: 600, 8: 100})
    broken.add(1)
    first, second = probe.read()
    assert first.problem is None
    assert (second.gpu_id, second.name) == ("GPU-1", "NVIDIA L4")
    assert second.problem is not None
    processes[0].usedGpuMemory = None
    assert probe.read()[0].processes is None
    assert len(started) == 1
    broken.add(0)
    assert all(reading.problem for reading in probe.read())
    broken.clear()
    assert not any(reading.problem for reading in probe.read())
    assert len(started) == 2, "a reloaded driver is found by a new start only"
