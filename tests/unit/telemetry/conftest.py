# SPDX-License-Identifier: Apache-2.0
"""What other tests have said before is not read by these."""

import io

import pytest

from vllm_gateway.configuration.settings import Log
from vllm_gateway.telemetry import log


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    log.configure(Log(format="json"), io.StringIO())
    log.shutdown()
