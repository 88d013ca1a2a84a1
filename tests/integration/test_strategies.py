# SPDX-License-Identifier: Apache-2.0
"""Strategies on real processes: four simulated engines, which have a prefix cache each, and counters to prove it."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.engines import metrics
from tests.gateway import CHAT, GatewayProcess, running_gateway
from vllm_gateway.fleet.engines import vllm_metrics

FAST = {"SIM_LOAD_S": "0.2", "SIM_WEIGHTS_MIB": "2000", "SIM_TOKENS_PER_S": "500"}
CONVERSATIONS, TURNS = 13, 4


def config(strategy: Any, **more: Any) -> dict[str, Any]:
    model = {"repository": "test/m", "environment": FAST, "footprint_mib": 6000, "instances": 4, "strategy": strategy}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {
            "source": "simulated",
            "devices": [{"name": "Simulated GPU", "memory_mib": 8000}] * 4,
            "margin_mib": 0,
        },
        "models": {"m": model},
        **more,
    }


async def four_ready(gateway: GatewayProcess) -> list[str]:
    """The engines' addresses."""
    await gateway.chat("m")
    page = await gateway.until(lambda page: page["models"]["m"]["running"] == 4)
    return [one["address"] for one in page["active_containers_by_name"].values()]


async def converse(gateway: GatewayProcess) -> None:
    """Chats side by side, each with a system prompt of its own; who speaks next is drawn by lot."""
    draw = Random(1)
    chats: list[list[dict[str, str]]] = [
        [{"role": "system", "content": f"Agent {n}. " + draw.randbytes(600).hex()}] for n in range(CONVERSATIONS)
    ]
    for _ in range(TURNS):
        draw.shuffle(chats)
        for chat in chats:
            chat.append({"role": "user", "content": draw.randbytes(300).hex()})
        await asyncio.gather(*(turn(gateway, chat, stream=number % 2 == 0) for number, chat in enumerate(chats)))


async def turn(gateway: GatewayProcess, chat: list[dict[str, str]], *, stream: bool) -> None:
    body = {"model": "m", "messages": chat, "max_tokens": 4, "stream": stream}
    async with gateway.http.post(CHAT, json=body) as reply:
        assert reply.status == 200
        await reply.read()
    chat.append({"role": "assistant", "content": "I see."})


async def hit_rate(addresses: list[str]) -> float:
    pages = [vllm_metrics.parse(await metrics(address), at=0.0) for address in addresses]
    return sum(page.prefix_hits for page in pages) / sum(page.prefix_queries for page in pages)


async def test_conversations_find_their_earlier_turns_cached(tmp_path: Path) -> None:
    rates = {}
    for strategy in ("round_robin", "prefix_aware"):
        folder = tmp_path / strategy
        folder.mkdir()
        async with running_gateway(folder, config(strategy)) as gateway:
            addresses = await four_ready(gateway)
            await converse(gateway)
            rates[strategy] = await hit_rate(addresses)
            page = await gateway.status()
        served = [one["total"] for one in page["active_containers_by_name"].values()]
        assert sum(served) == CONVERSATIONS * TURNS + 1
        assert min(served) >= 5, f"{strategy} leaves an instance out: {served}"
    assert rates["prefix_aware"] > 0.55
    assert rates["prefix_aware"] > 1.4 * rates["round_robin"], rates


async def test_a_decision_can_be_read(tmp_path: Path) -> None:
    settings = config({"name": "prefix_aware", "max_blocks": 1000}, decisions={"keep": 5, "log_every": 2})
    async with running_gateway(tmp_path, settings) as gateway:
        await four_ready(gateway)
        prompt = [{"role": "user", "content": "word " * 1000}]
        for _ in range(8):
            await gateway.chat("m", messages=prompt)
        async with gateway.http.get("/gateway/decisions", params={"model": "m"}) as reply:
            page = await reply.json()
        assert (page["model"], page["strategy"], len(page["decisions"])) == ("m", "prefix_aware", 5)
        latest = page["decisions"][0]
        assert latest["scores"].keys() == latest["in_flight"].keys()
        assert latest["instance"] == min(latest["scores"], key=latest["scores"].__getitem__)
        assert "prompt tokens are cached there" in latest["reason"]
        logged = await gateway.event("routing_decision", count=4)
        assert logged["model"] == "m"
        assert logged["scores"]


@pytest.mark.parametrize(
    ("query", "status", "code"), [({}, 400, "model_missing"), ({"model": "x"}, 404, "model_not_found")]
)
async def test_decisions_of_no_model(tmp_path: Path, query: dict[str, str], status: int, code: str) -> None:
    async with (
        running_gateway(tmp_path, config("prefix_aware")) as gateway,
        gateway.http.get("/gateway/decisions", params=query) as reply,
    ):
        assert reply.status == status
        assert (await reply.json())["error"]["code"] == code


async def test_what_a_strategy_raises_shows_no_secret(tmp_path: Path) -> None:
    token = "hf_0123456789abcdef"
    strategies = tmp_path / "strategies"
    strategies.mkdir()
    (strategies / "chatty.py").write_text(
        "import os\n\n\nclass Chatty:\n    name = 'chatty'\n\n    def choose(self, request, instances):\n"
        "        raise RuntimeError(f'cannot choose: {dict(os.environ)}')\n"
    )
    settings = config("chatty", strategies_dir=str(strategies))
    settings["models"]["m"]["instances"] = 2
    async with running_gateway(tmp_path, settings, {"HF_TOKEN": token}) as gateway:
        assert (await gateway.chat("m"))[0] == 200
        await gateway.until(lambda page: page["models"]["m"]["running"] == 2)
        assert (await gateway.chat("m"))[0] == 200
        assert "'HF_TOKEN': '***'" in (await gateway.event("strategy_failed"))["error"]
    assert token not in str(gateway.lines)
