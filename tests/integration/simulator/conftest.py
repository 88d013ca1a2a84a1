# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a launcher of engine processes, and simulated GPUs for them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.simulator.launcher import Launcher
from vllm_gateway.simulator.gpu_memory import SimulatedGpus


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Launcher]:
    started = Launcher(tmp_path)
    try:
        yield started
    finally:
        await started.end()


@pytest.fixture
def gpus(tmp_path: Path) -> SimulatedGpus:
    """Two GPUs of 10 GiB where the launcher's engines look for them."""
    made = SimulatedGpus(tmp_path / "gpus")
    made.create([("NVIDIA Test", 10240), ("NVIDIA Test", 10240)])
    return made
