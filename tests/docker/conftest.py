# SPDX-License-Identifier: Apache-2.0
"""Gives the tests in this folder the lab: a real Docker engine with simulated GPUs, clean for each of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiodocker
import pytest

from tests.lab.errors import LabUnavailableError
from tests.lab.lab import Lab, for_this_run
from tests.lab.place import Place
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Up for this test run; afterwards as it was found, up or down."""
    try:
        with for_this_run(Place.from_environment()) as running:
            yield running
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true" or os.environ.get("LAB_REQUIRED") == "1":
            pytest.fail(f"the lab cannot run here: {error}", pytrace=False)
        pytest.skip(f"the lab cannot run here: {error}")


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
