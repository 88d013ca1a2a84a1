# SPDX-License-Identifier: Apache-2.0
"""Simulated GPUs: memory counts while its holder lives, in this process or another, and is never given out twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_gateway.simulator.gpu_memory import OutOfGpuMemoryError, SimulatedGpus, visible_gpus

HOLD = """
import sys, time
from vllm_gateway.simulator.gpu_memory import SimulatedGpus
held = SimulatedGpus(sys.argv[1]).take("GPU-sim-1", 700, "other")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def gpus(tmp_path: Path) -> SimulatedGpus:
    made = SimulatedGpus(tmp_path / "gpus")
    made.create([("NVIDIA L4", 1000), ("NVIDIA L4", 2000)], reserved_mib=100)
    return made


def test_gpus_are_as_they_were_made(gpus: SimulatedGpus) -> None:
    first, second = gpus.gpus()
    assert (first.index, first.uuid, first.name, first.total_mib) == (0, "GPU-sim-0", "NVIDIA L4", 1000)
    assert (second.index, second.uuid, second.free_mib, second.processes) == (1, "GPU-sim-1", 1900, [])


def test_memory_is_taken_and_given_back(gpus: SimulatedGpus) -> None:
    allocation = gpus.take(gpus.gpus()[0], 600, "mine")
    assert gpus.gpu("GPU-sim-0").processes == [(os.getpid(), 600)]
    assert gpus.gpu("GPU-sim-0").free_mib == 300
    assert gpus.gpu("GPU-sim-1").free_mib == 1900
    allocation.release()
    allocation.release()
    assert gpus.gpu("GPU-sim-0").free_mib == 900


def test_more_than_is_free_is_refused_and_takes_nothing(gpus: SimulatedGpus) -> None:
    kept = gpus.take("GPU-sim-0", 600)
    with pytest.raises(OutOfGpuMemoryError, match="wanted 301 MiB, 300 MiB free of 1000 MiB"):
        gpus.take("GPU-sim-0", 301)
    assert gpus.gpu("GPU-sim-0").used_mib == kept.mib == 600
    kept.release()


def test_the_memory_of_a_killed_process_is_free_again(gpus: SimulatedGpus) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(gpus.directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert gpus.gpu("GPU-sim-1").processes == [(process.pid, 700)]
        finally:
            process.send_signal(signal.SIGKILL)
    assert gpus.gpu("GPU-sim-1").processes == []
    assert list((gpus.directory / "alloc").iterdir()) == []


def test_a_gpu_can_be_broken_at_run_time(gpus: SimulatedGpus) -> None:
    gpus.update(1, error=15)
    assert [gpu.error for gpu in gpus.gpus()] == [0, 15]
    assert gpus.gpu("GPU-sim-1").total_mib == 2000


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [0, 1]),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, [0, 1]),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-sim-1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [1, 0]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, [1]),
    ],
)
def test_visible_gpus(gpus: SimulatedGpus, environment: dict[str, str], expected: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(gpus.gpus(), environment)] == expected
