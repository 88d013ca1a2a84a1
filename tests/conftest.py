# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the lab, a real Docker engine with simulated GPUs; and how they run side by side."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import own_network
from tests.lab.errors import LabUnavailableError
from tests.lab.lab import Lab, for_this_run
from tests.lab.place import Place
from tests.never_skipped import pytest_runtest_makereport
from tests.side_by_side import SideBySide
from vllm_gateway.fleet.runtimes.sockets import EngineSockets

__all__ = ["pytest_runtest_makereport"]

_OWN_NETWORK = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SideBySide:
    return SideBySide(config, log)


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    config.stash[_OWN_NETWORK] = is_worker and own_network.enter()


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Up for this test run; afterwards as it was found, up or down."""
    try:
        with for_this_run(Place.from_environment(), own_network=pytestconfig.stash[_OWN_NETWORK]) as running:
            yield running
    except LabUnavailableError as error:
        if os.environ.get("LAB_REQUIRED") == "1":
            pytest.fail(f"the lab cannot run here: {error}", pytrace=False)
        pytest.skip(f"the lab cannot run here: {error}")


@pytest.fixture
def sockets() -> Iterator[EngineSockets]:
    """In a folder with a short path, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        yield EngineSockets(Path(folder))
