# SPDX-License-Identifier: Apache-2.0
"""The gateway's own small request, to engines of every kind: those that work answer it, those that hang do not."""

import pytest
from yarl import URL

from tests.hostile.test_calls import engine as scripted
from tests.hostile.test_calls import whole
from tests.integration.simulator.launcher import Launcher
from vllm_gateway.fleet.engines import vllm_trial
from vllm_gateway.routing import Address

MODEL = "demo/m"


@pytest.mark.parametrize("options", [(), ("--runner", "pooling"), ("--task", "transcription")])
async def test_who_works_answers_and_who_hangs_does_not(launcher: Launcher, options: tuple[str, ...]) -> None:
    engine = await launcher.ready(*options)
    there = URL(engine.url)
    address = Address(there.host or "", there.port or 0)
    assert await vllm_trial.failure(address, MODEL, 30) is None
    await engine.faults("core_hangs")
    async with engine.client.get("/health") as reply:
        assert reply.status == 200
    assert "no answer" in (await vllm_trial.failure(address, MODEL, 0.5) or "")
    await engine.faults()
    assert await vllm_trial.failure(address, MODEL, 30) is None


async def test_an_engine_that_takes_none_of_them_is_not_judged() -> None:
    async with scripted(whole(b"{}", status=b"404 Not Found")) as (_, address):
        with pytest.raises(vllm_trial.CannotTell):
            await vllm_trial.failure(address, MODEL, 5)


async def test_an_error_of_the_engines_is_a_failure() -> None:
    async with scripted(whole(b"{}", status=b"500 Internal Server Error")) as (_, address):
        assert await vllm_trial.failure(address, MODEL, 5) == "/v1/completions: status 500"
