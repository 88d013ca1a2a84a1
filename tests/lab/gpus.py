# SPDX-License-Identifier: Apache-2.0
"""The simulated GPUs of a lab as a test wants to find them: so many, so large, all free and healthy."""

from __future__ import annotations

from pathlib import Path

from vllm_gateway.simulator.gpu_memory import SimulatedGpus

DEFAULT_COUNT = 2
DEFAULT_MIB = 81920
_NAME = "Simulated H100 80GB"
_RESERVED_MIB = 600
"""What a driver keeps for itself on a card of this kind."""


def reset(
    directory: Path, count: int = DEFAULT_COUNT, total_mib: int = DEFAULT_MIB, *, reserved_mib: int = _RESERVED_MIB
) -> SimulatedGpus:
    """`count` GPUs, GPU-sim-0 and on, whatever was there before."""
    gpus = SimulatedGpus(directory)
    gpus.create([(_NAME, total_mib)] * count, reserved_mib=reserved_mib)
    for path in directory.joinpath("gpus").iterdir():
        if not (path.name.isdigit() and int(path.name) < count):
            path.unlink()
    for path in directory.joinpath("alloc").iterdir():
        path.unlink()
    for name in ("init_error", "driver_version", "cuda_version"):
        directory.joinpath(name).unlink(missing_ok=True)
    return gpus


def table(directory: Path) -> str:
    lines = ["gpu        total MiB   used MiB   free MiB"]
    lines += [
        f"{gpu.uuid:<10}{gpu.total_mib:>10}{gpu.used_mib:>11}{gpu.free_mib:>11}"
        + (f"   error {gpu.error}" if gpu.error else "")
        for gpu in SimulatedGpus(directory).gpus()
    ]
    return "\n".join(lines)
