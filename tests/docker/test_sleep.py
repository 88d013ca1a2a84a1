# SPDX-License-Identifier: Apache-2.0
"""Sleepers on a real Docker engine: they outlive the gateway, are woken by the next one, and missed when they die."""

from pathlib import Path
from typing import Any

from tests.docker.hand_over import SLOW, while_b_waits
from tests.docker.test_gateway import FAST, config, containers, kill, model
from tests.gateway import running_gateway
from tests.integration.test_take_over import ended
from tests.lab.lab import Lab

KEPT_MIB = 384  # what the simulated engine keeps asleep


def sleeper(name: str, **more: Any) -> dict[str, Any]:
    return model(name, sleep="level_1", **more)


async def test_a_new_gateway_adopts_sleepers_and_wakes_them(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=sleeper("a"), b=sleeper("b")) | {"host_memory_mib": 100_000}
    async with running_gateway(tmp_path, settings, lab.environment) as first:
        for name in "aba":
            assert (await first.chat(name))[0] == 200
        assert [line["asleep_mib"] for line in first.events("instance_asleep")] == [KEPT_MIB] * 2
        assert len(first.events("instance_waking")) == 1
    async with running_gateway(tmp_path, settings, lab.environment) as second:
        page = await second.until(lambda page: page["models"]["b"]["sleeping"] == 1)
        assert page["models"]["a"]["running"] == 1
        assert page["gpus"][0]["reserved_mib"] == 30_000 + KEPT_MIB
        for name in "ba":
            assert (await second.chat(name))[0] == 200
        assert len(second.events("instance_waking")) == 2
        assert not second.events("instance_starting")
        await kill(lab, "vllm_server_b_instance_1")
        await second.event("instance_failed", model="b")
        await second.event("instance_stopped", model="b")
        assert await containers(lab) == ["vllm_server_a_instance_1"]
        assert (await second.chat("b"))[0] == 200


async def test_what_the_old_one_waits_for_is_woken_by_the_new_one(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    a, b = sleeper("a", environment={**FAST, **SLOW}), sleeper("b")
    settings = config(lab, a=a, b=b) | {"host_memory_mib": 100_000}
    async with while_b_waits(lab, tmp_path, settings, before="ba") as hand_over:
        text = await hand_over.stream.content.read()
        assert text.rstrip().endswith(b"data: [DONE]"), "nothing was stopped under it"
        assert (await hand_over.waiting)[0] == 200
        assert len(hand_over.new.events("instance_waking", model="b")) == 1
        assert not hand_over.new.events("instance_falling_asleep"), "the old one would not know"
        await ended(hand_over.old)
        assert (await hand_over.new.chat("b"))[0] == 200
