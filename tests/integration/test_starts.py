# SPDX-License-Identifier: Apache-2.0
"""Engines whose start hangs, as real processes: clients wait for no start that nobody wants."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.gateway import running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.integration.test_reload import reload

HANGING = {**FAST, "SIM_LOAD_S": "3600"}


async def test_a_start_whose_client_has_left_keeps_nobody_waiting(tmp_path: Path) -> None:
    models = {
        "hanging": model("hanging", environment=HANGING),
        "beside": model("beside", footprint_mib=3000),
        "instead": model("instead"),
    }
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await gateway.chat("hanging")
        others = asyncio.gather(gateway.chat("beside"), gateway.chat("instead"))
        assert [status for status, _, _ in await others] == [200, 200]
        (evicted,) = gateway.events("eviction", model="hanging")
        assert evicted["for_model"] in ("beside", "instead"), "whoever came first"
        assert (await gateway.status())["models"]["hanging"]["state"] == "stopped"


async def test_clients_go_before_a_replacement(tmp_path: Path) -> None:
    first = {"a": model("a", footprint_mib=3000), "b": model("b", footprint_mib=3000)}
    changed = first | {"a": model("a", footprint_mib=3000, environment=HANGING)}
    async with running_gateway(tmp_path, config(gpus=1, models=first)) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await reload(gateway, tmp_path, config(gpus=1, models=changed))
        await gateway.event("instance_starting", model="a", count=2)
        assert (await gateway.chat("b"))[0] == 200
        assert gateway.events("eviction", model="a", for_model="b")
        await gateway.event("instance_starting", model="a", count=3)
        assert (await gateway.chat("a"))[0] == 200, "what runs serves on"


async def test_the_status_says_which_start_waits_for_which(tmp_path: Path) -> None:
    models = {
        "slow": model("slow", footprint_mib=3000, environment=HANGING),
        "b": model("b", footprint_mib=3000),
    }
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        waiting = [asyncio.create_task(gateway.chat("slow"))]
        await gateway.event("instance_starting", model="slow")
        waiting.append(asyncio.create_task(gateway.chat("b")))
        page = await gateway.until(lambda page: "vllm_server_b_instance_1" in page["active_containers_by_name"])
        shown = page["active_containers_by_name"]["vllm_server_b_instance_1"]
        assert shown["waits_for"] == "vllm_server_slow_instance_1, which starts"
        waiting[0].cancel()
        assert (await waiting[1])[0] == 200
        with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
            await waiting[0]
