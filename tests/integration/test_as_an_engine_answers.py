# SPDX-License-Identifier: Apache-2.0
"""Clients of a real gateway find what they would find at an engine."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.engines import engines_of_somebody_else
from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model
from tests.waiting import until

RECORDED = Path(__file__).parents[1] / "unit" / "simulator" / "data" / "models.txt"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    models = {
        "-dash": model("-dash"),
        "cold": model("cold"),
        "known": model("known", engine_arguments=["--max-model-len", "2048"], aliases=["other/name"]),
    }
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


async def listed(gateway: GatewayProcess, path: str = "/v1/models") -> dict[str, dict[str, Any]]:
    async with gateway.http.get(path) as reply:
        assert reply.status == 200
        return {one["id"]: one for one in (await reply.json())["data"]}


async def test_models_are_listed_in_vllms_form(gateway: GatewayProcess) -> None:
    (recorded,) = json.loads(RECORDED.read_text(encoding="utf-8").rpartition("\n\n")[2])["data"]
    models = await listed(gateway)
    assert models.keys() == {"-dash", "cold", "known", "other/name"}
    for one in models.values():
        assert one.keys() == recorded.keys() | {"state", "aliases"}
        assert {**one["permission"][0], "id": 0, "created": 0} == {**recorded["permission"][0], "id": 0, "created": 0}
    assert models["known"]["aliases"] == ["other/name"]
    assert models["other/name"]["root"] == models["known"]["root"] == "test/known"
    assert models == await listed(gateway, "/v1/models/")
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        assert {one.id async for one in client.models.list()} == models.keys()
        assert (await client.models.retrieve("other/name")).id == "other/name"
        with pytest.raises(openai.NotFoundError, match="No model named 'nobody'"):
            await client.models.retrieve("nobody")


async def test_what_is_not_known_is_not_said(gateway: GatewayProcess) -> None:
    lengths = {name: one["max_model_len"] for name, one in (await listed(gateway)).items()}
    assert (lengths["cold"], lengths["known"], lengths["other/name"]) == (None, 2048, 2048)
    assert (await gateway.chat("cold"))[0] == 200
    assert (await listed(gateway))["cold"]["max_model_len"] == 8192


async def test_who_asks_by_an_alias_is_answered_by_it(gateway: GatewayProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        messages: list[Any] = [{"role": "user", "content": 'Say "model":"known"'}]
        for name in ("other/name", "known"):
            answer = await client.chat.completions.create(model=name, messages=messages, max_tokens=8, temperature=0)
            stream = await client.chat.completions.create(
                model=name, messages=messages, max_tokens=8, temperature=0, stream=True
            )
            parts = [part async for part in stream]
            assert {answer.model, *(part.model for part in parts)} == {name}
            assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content


async def test_engines_of_somebody_else_say_what_they_are(tmp_path: Path) -> None:
    async with engines_of_somebody_else("m", 1, {}) as urls:
        models = {"m": {"endpoints": urls, "aliases": ["n"]}}
        server = {"list_aliases": False}
        async with running_gateway(tmp_path, {"models": models, "server": server}) as gateway:

            async def known() -> bool:
                return bool((await listed(gateway))["m"]["max_model_len"] == 8192)

            await until(known)
            assert (await listed(gateway)).keys() == {"m"}
