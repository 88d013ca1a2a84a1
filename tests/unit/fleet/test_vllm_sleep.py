# SPDX-License-Identifier: Apache-2.0
"""Sleep mode: what an engine is started with for it, and what its answers mean."""

import pytest

from tests.unit.simulator.in_process import engine_in_process
from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.fleet.engines import vllm, vllm_sleep
from vllm_gateway.routing import Address

SLEEPY = Model(repository="test/m", sleep="level_1")


def test_an_engine_that_may_sleep_is_started_for_it() -> None:
    settings = Settings(models={"m": SLEEPY})
    assert "--enable-sleep-mode" in vllm.arguments("m", SLEEPY, share=0.5)
    assert vllm.environment(SLEEPY, settings)["VLLM_SERVER_DEV_MODE"] == "1"
    plain = Model(repository="test/m")
    assert "--enable-sleep-mode" not in vllm.arguments("m", plain, share=0.5)
    assert "VLLM_SERVER_DEV_MODE" not in vllm.environment(plain, settings)
    assert vllm.spec_hash("m", plain, settings) != vllm.spec_hash("m", SLEEPY, settings)
    twice = SLEEPY.model_copy(update={"engine_arguments": ("--enable-sleep-mode",)})
    assert vllm.arguments("m", twice, share=0.5).count("--enable-sleep-mode") == 1


async def test_an_engine_sleeps_and_wakes() -> None:
    async with engine_in_process(["m", "--enable-sleep-mode"]) as engine:
        there = Address("127.0.0.1", engine.port)
        assert await vllm_sleep.is_sleeping(there) is False
        await vllm_sleep.fall_asleep(there)
        assert await vllm_sleep.is_sleeping(there) is True
        await vllm_sleep.wake_up(there)
        assert await vllm_sleep.is_sleeping(there) is False


async def test_an_engine_that_cannot_says_why() -> None:
    async with engine_in_process(["m"]) as engine:
        with pytest.raises(vllm_sleep.NotMovedError, match=r"500 .*Sleep mode is not enabled"):
            await vllm_sleep.fall_asleep(Address("127.0.0.1", engine.port))


async def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sleep, "LIMIT_S", 0.05)
    async with engine_in_process(["m", "--enable-sleep-mode"]) as engine:
        async with engine.client.post("/sim/faults", json=["sleep_hangs"]):
            pass
        with pytest.raises(vllm_sleep.NotMovedError, match="no answer"):
            await vllm_sleep.fall_asleep(Address("127.0.0.1", engine.port))


async def test_nobody_there_is_no_answer() -> None:
    nowhere = Address("127.0.0.1", 9)
    assert await vllm_sleep.is_sleeping(nowhere) is None
    with pytest.raises(vllm_sleep.NotMovedError):
        await vllm_sleep.wake_up(nowhere)
