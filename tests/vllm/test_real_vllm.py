# SPDX-License-Identifier: Apache-2.0
"""The main job with real vLLM engines on the CPU and a tiny random model: `make test-vllm`."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from tests.engines import metrics, session
from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.waiting import until

PYTHON = os.environ.get("VLLM_PYTHON", "")
COMPLETIONS = "/v1/completions"
JSON = "application/json"
FLAGS = ("1", "1.0", "0", '"true"', '"Yes"', '"off"', "2", '""', '" true"', "[]", "null")
TYPES = (
    "text/plain",
    "application/JSON; charset=utf-8",
    "application/problem+json",
    "application/x-www-form-urlencoded",
)
MANY = 120_000  # tokens: minutes of work, since on few cores a reply of /metrics may take ten seconds
START_S = 600  # two busy cores, and two engines of three processes each that import one after another
ENGINE = {
    "engine_arguments": ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "131072"],
    "environment": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    },
    "footprint_mib": 4000,
}

pytestmark = [
    pytest.mark.may_skip,
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no environment with vLLM; `make test-vllm` makes one"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(2 * START_S),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    script = Path(__file__).with_name("make_model.py")
    subprocess.run([PYTHON, str(script), str(folder)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return str(folder)


def config(tiny: str, **model: Any) -> dict[str, Any]:
    return {
        "runtime": "process",
        "process": {"command": [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]},
        "gpus": {"source": "static", "margin_mib": 0, "devices": [{"name": "CPU", "memory_mib": 16_000}]},
        "models": {"tiny": {"repository": tiny, **ENGINE, **model}},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    async with serving(tmp_path_factory.mktemp("gateway"), config(tiny, instances=2, aliases=["alias"])) as running:
        assert (await running.chat("tiny"))[0] == 200
        await running.until(lambda page: page["models"]["tiny"]["running"] == 2, START_S)
        yield running


def serving(folder: Path, settings: dict[str, Any]) -> AbstractAsyncContextManager[GatewayProcess]:
    """Whose client waits for as long as a vLLM may take to start."""
    return running_gateway(folder, settings, reply_limit_s=START_S)


async def totals(gateway: GatewayProcess) -> list[int]:
    return [one["total"] for one in (await gateway.status())["active_containers_by_name"].values()]


async def test_both_instances_answer_in_turn(gateway: GatewayProcess) -> None:
    before = await totals(gateway)
    answers = [await gateway.chat("tiny") for _ in range(4)]
    assert [status for status, _, _ in answers] == [200] * 4
    after = await totals(gateway)
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 2]


async def test_the_official_client_chats_and_streams(gateway: GatewayProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8, temperature=0, stream=True
        )
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
        assert text == answer.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(model="tiny", messages=messages, temperature=-3)


BODIES: dict[str, tuple[bytes, str]] = {
    **{f"stream {flag}": (b'{"prompt":"x","max_tokens":1,"stream":%b}' % flag.encode(), JSON) for flag in FLAGS},
    "byte order mark": (b'\xef\xbb\xbf{"prompt":"x","max_tokens":1}', JSON),
    **{code: ('{"prompt":"x\u00e9","max_tokens":1}'.encode(code), JSON) for code in ("utf-16", "utf-16-le", "utf-32")},
    **{f"type {given}": (b'{"prompt":"x","max_tokens":1}', given) for given in TYPES},
}


@pytest.mark.parametrize("case", BODIES)
async def test_what_the_engine_takes_passes_and_nothing_else(gateway: GatewayProcess, case: str) -> None:
    """Asked by itself it answers with the same status."""
    body, content_type = BODIES[case]
    encoding = case if case.startswith("utf") else "utf-8"
    named = body.decode(encoding).replace("{", '{"model":"tiny",', 1).encode(encoding)
    headers = {"Content-Type": content_type}
    one = next(iter((await gateway.status())["active_containers_by_name"].values()))
    async with session(one["address"]) as engine, engine.post(COMPLETIONS, data=named, headers=headers) as itself:
        expected = itself.status, itself.content_type
    async with gateway.http.post(COMPLETIONS, data=named, headers=headers) as reply:
        assert (reply.status, reply.content_type) == expected


async def test_models_are_listed_as_the_engine_lists_its_own(gateway: GatewayProcess) -> None:
    one = next(iter((await gateway.status())["active_containers_by_name"].values()))
    async with session(one["address"]) as engine, engine.get("/v1/models") as reply:
        (own,) = (await reply.json())["data"]
    async with gateway.http.get("/v1/models") as reply:
        listed = {card["id"]: card for card in (await reply.json())["data"]}
    assert listed.keys() == {"tiny", "alias"}
    for card in listed.values():
        assert card.keys() > own.keys()
        assert (card["root"], card["max_model_len"]) == (own["root"], own["max_model_len"])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False])
async def test_who_asks_by_an_alias_is_answered_by_it(gateway: GatewayProcess, path: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "alias", "stream": stream, "max_tokens": 16, "max_output_tokens": 16}
    asked |= {"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}], "input": "x"}
    async with gateway.http.post(path, json=asked) as reply:
        text = await reply.text()
        assert reply.status == 200, text
    assert set(re.findall(r'"model": ?"([^"]*)"', text)) == {"alias"}


async def test_a_request_id_becomes_the_replys_id(gateway: GatewayProcess) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    async with gateway.http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine-1"}) as reply:
        assert reply.headers["X-Request-Id"] == "mine-1"
        assert (await reply.json())["id"] == "cmpl-mine-1"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_ends_the_engines_work(gateway: GatewayProcess, stream: bool) -> None:
    addresses = [one["address"] for one in (await gateway.status())["active_containers_by_name"].values()]
    body = {"model": "tiny", "prompt": "x", "max_tokens": MANY, "ignore_eos": True, "stream": stream}
    before = await generated(addresses)
    request = asyncio.create_task(ask(gateway.http, body))

    async def goes_on() -> bool:
        return await generated(addresses) >= before + 10

    await until(goes_on, 180)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    async with asyncio.timeout(180):
        last = -1.0
        while last != (last := await generated(addresses)):
            await asyncio.sleep(0.5)
    assert last < before + MANY - 10_000


async def test_a_killed_engine_is_replaced_and_requests_go_on(gateway: GatewayProcess) -> None:
    engines = await gateway.status()
    address = next(iter(engines["active_containers_by_name"].values()))["address"]
    os.kill(process_listening_at(address), signal.SIGKILL)
    answers = await asyncio.gather(*(gateway.chat("tiny") for _ in range(4)))
    assert [status for status, _, _ in answers] == [200] * 4
    await gateway.event("instance_failed", model="tiny")
    await gateway.until(lambda page: page["models"]["tiny"]["running"] == 2, START_S)


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_a_stream_outlives_its_engine_to_the_letter(gateway: GatewayProcess, kind: str) -> None:
    await gateway.until(lambda page: page["models"]["tiny"]["running"] == 2, START_S)
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 6000, "temperature": 0, "ignore_eos": True, "stream": True}
    ask |= {"prompt": "Once"} if kind == "completion" else {"messages": [{"role": "user", "content": "Hello"}]}
    path = COMPLETIONS if kind == "completion" else CHAT
    whole = "".join([text async for text in texts(gateway, path, ask)])
    assert await said_by_two(gateway, path, ask) == whole
    assert (await gateway.event("stream_continued"))["how"] == "ids"


async def test_a_stop_character_stops_whoever_goes_on(gateway: GatewayProcess) -> None:
    await gateway.until(lambda page: page["models"]["tiny"]["running"] == 2, START_S)
    before = len(gateway.events("stream_continued"))
    ask: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 6000, "temperature": 0, "stream": True}
    ask |= {"ignore_eos": True, "repetition_penalty": 1.5}  # so that it does not say the same again and again
    whole = "".join([text async for text in texts(gateway, COMPLETIONS, ask)])
    late = max(set(whole), key=whole.index)
    said = await said_by_two(gateway, COMPLETIONS, {**ask, "stop": late}, ends_with="stop")
    assert said == whole[: whole.index(late)]
    assert (await gateway.event("stream_continued", count=before + 1))["how"] == "ids"


async def said_by_two(gateway: GatewayProcess, path: str, ask: dict[str, Any], ends_with: str = "length") -> str:
    """The text of a stream whose engine is killed in the middle."""
    parts = []
    async for text in texts(gateway, path, ask, ends_with):
        parts.append(text)
        if len(parts) == 20:
            page = await gateway.status()
            (busy,) = [one for one in page["active_containers_by_name"].values() if one["in_flight"]]
            os.kill(process_listening_at(busy["address"]), signal.SIGKILL)
    return "".join(parts)


async def test_an_idle_engine_is_stopped_with_all_its_processes(tiny: str, tmp_path: Path) -> None:
    async with serving(tmp_path, config(tiny, idle_timeout_s=2)) as gateway:
        assert (await gateway.chat("tiny"))[0] == 200
        (one,) = (await gateway.status())["active_containers_by_name"].values()
        group = os.getpgid(process_listening_at(one["address"]))
        await gateway.event("instance_stopped", limit_s=60, model="tiny")
        await until(lambda: not members(group))


def members(group: int) -> list[str]:
    """Of the processes in it those that live: whoever has to wait for the others may take a while."""
    lines = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, check=True, text=True).stdout
    words = [line.split(maxsplit=2) for line in lines.splitlines()]
    return [" ".join(more) for pgid, *more in words if int(pgid) == group and not more[0].startswith("Z")]


async def ask(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    async with http.post("/v1/completions", json=body) as reply:
        await reply.read()


async def texts(
    gateway: GatewayProcess, path: str, ask: dict[str, Any], ends_with: str = "length"
) -> AsyncIterator[str]:
    """The parts of a stream that ends as it should."""
    reason = None
    async with gateway.http.post(path, json=ask) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                reason = choice["finish_reason"] or reason
                yield choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    assert (reason, line) == (ends_with, b"\n")


async def generated(addresses: list[str]) -> float:
    """Tokens that the engines have generated together, by their own count."""
    total = 0.0
    for address in addresses:
        page = (await metrics(address)).decode()
        total += sum(map(float, re.findall(r"^vllm:generation_tokens_total{[^}]*} (\S+)$", page, re.MULTILINE)))
    return total


def process_listening_at(address: str) -> int:
    """The process that was started with it: the leader of an engine."""
    option, value = ("--uds", address) if address.startswith("/") else ("--port", address.rpartition(":")[2])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:
                continue
            if option in words and words[words.index(option) + 1] == value:
                return int(entry.name)
    raise LookupError(address)
