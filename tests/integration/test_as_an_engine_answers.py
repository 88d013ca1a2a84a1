# SPDX-License-Identifier: Apache-2.0
"""Clients of a real gateway find what they would find at an engine."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    models = {"-dash": model("-dash"), "cold": model("cold")}
    async with running_gateway(tmp_path_factory.mktemp("gateway"), config(models=models)) as running:
        yield running


async def test_a_model_that_begins_with_a_dash_starts(gateway: GatewayProcess) -> None:
    status, _, reply = await gateway.chat("-dash")
    assert (status, reply["model"]) == (200, "-dash")


async def test_what_the_engine_would_refuse_does_not_start_it(gateway: GatewayProcess) -> None:
    body = b'{"model": "cold", "messages": [{"role": "user", "content": "x"}]}'
    async with gateway.http.post(CHAT, data=body, headers={"Content-Type": "text/plain"}) as reply:
        assert reply.status == 400
        assert "Unsupported Media Type" in (await reply.json())["error"]["message"]
    assert not gateway.events("instance_starting", model="cold")
