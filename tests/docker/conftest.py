# SPDX-License-Identifier: Apache-2.0
"""The tests in this folder find the lab clean, each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiodocker
import pytest

from tests.lab.lab import Lab
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.docker)


@pytest.fixture(autouse=True)
def _nothing_left(lab: Lab) -> Iterator[None]:
    with lab.nothing_left():
        yield


@pytest.fixture(autouse=True)
def gpus(lab: Lab) -> SimulatedGpus:
    """For every test 2 x 81920 MiB, free and healthy; `lab.reset_gpus(count, total_mib)` makes others."""
    return lab.reset_gpus()


@pytest.fixture
async def docker(lab: Lab) -> AsyncIterator[aiodocker.Docker]:
    async with aiodocker.Docker(url=lab.docker_host) as client:
        yield client
