# SPDX-License-Identifier: Apache-2.0
"""What a request may ask an engine for: the paths of clients' tasks, in origin form, and nothing else of the engine."""

import re
from pathlib import Path

import orjson
import pytest

from tests.gateway import running_gateway
from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, Script, instance
from tests.integration.test_gateway import config
from tests.integration.test_reload import reload
from vllm_gateway.api.paths import CarriedPaths
from vllm_gateway.fleet.engines.vllm_paths import CLIENT_PATHS

EXACT = pytest.mark.parametrize("lane", LANES)
CHAT = "/v1/chat/completions"

# Method and target as sent; the target that the engine gets.
CARRIED = {
    ("POST", CHAT): CHAT,
    ("POST", f"{CHAT}?a=%20b&c"): f"{CHAT}?a=%20b&c",
    ("POST", f"{CHAT}#fragment"): CHAT,
    ("POST", f"{CHAT}?a=b#fragment"): f"{CHAT}?a=b",
    ("POST", f"{CHAT}/"): CHAT,
    ("POST", f"http://evil{CHAT}"): CHAT,
    ("POST", f"http://evil:80{CHAT}?a=b#fragment"): f"{CHAT}?a=b",
    ("POST", f"ftp://user:secret@evil{CHAT}"): CHAT,
    ("POST", "/v1/responses/resp_1-2.3/cancel"): "/v1/responses/resp_1-2.3/cancel",
    ("GET", "/v1/responses/resp_1"): "/v1/responses/resp_1",
    ("POST", "/v2/embed"): "/v2/embed",
    ("POST", "/score"): "/score",
    ("POST", "/v1/audio/speech"): "/v1/audio/speech",
    ("PUT", "/v1/own/7"): "/v1/own/7",
}
UNKNOWN = [
    "/v1/line%0aend%1b[2J",
    # Of the engine, and not for clients.
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/invocations",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
    "/scale_elastic_ep",
    "/pause",
    "/reset_prefix_cache",
    "/server_info",
    "/load",
    "/ping",
    "/version",
    "/docs",
    "/openapi.json",
    # Nearly a path that is carried.
    f"/{CHAT}",
    f"{CHAT}//",
    "/v1//chat/completions",
    "/v1/./chat/completions",
    "/v1/%2e%2e/sleep",
    "/v1/../sleep",
    "/v1/chat%2fcompletions",
    "/v1/chat/completions%00",
    "/v1/chat/completions;x",
    "/V1/chat/completions",
    "/v1/chat",
    "/v1/",
    "/v1",
    "/v1/responses/a/b/cancel",
    "/v1/responses/../cancel",
    "/v1/responses/%2e%2e/cancel",
    f"/v1/responses/{'x' * 200}/cancel",
    "http://evil/sleep",
    "http://evil",
    "/v1/own/7/8",
    f"/v1/{'x' * 5000}",
]
OTHER_METHODS = [
    ("GET", CHAT, "POST"),
    ("HEAD", CHAT, "POST"),
    ("DELETE", CHAT, "POST"),
    ("TRACE", CHAT, "POST"),
    ("PUT", "/v1/embeddings", "POST"),
    ("POST", "/v1/responses/resp_1", "GET"),
    ("DELETE", "/v1/responses/resp_1", "GET"),
    ("POST", "/v1/realtime", "GET"),
    ("POST", "/v1/own/7", "PUT"),
    ("POST", "/v1/models", "GET, HEAD"),
    ("DELETE", "/v1/models/m", "GET, HEAD"),
    ("POST", "/health", "GET, HEAD"),
]


def keeping(seen: list[Message]) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.message())
            await peer.send(OK)

    return script


def request_of(method: str, target: str, lane: str) -> bytes:
    return a_request(target=target, lane=lane).replace(b"POST", method.encode(), 1)


@EXACT
async def test_a_task_is_carried_in_origin_form(lane: str) -> None:
    seen: list[Message] = []
    async with instance(keeping(seen)) as engine, house(engine.port, extra_paths=[("PUT", "/v1/own/{id}")]) as gateway:
        client = await gateway.connect()
        for (method, target), goes_on in CARRIED.items():
            assert (await client.ask(request_of(method, target, lane))).status == 200, target
            assert seen[-1].head.startswith(f"{method} {goes_on} HTTP/1.1\r\nHost: 127.0.0.1:".encode()), target
            assert b"evil" not in seen[-1].head + seen[-1].body
        assert len(seen) == len(CARRIED)


@EXACT
async def test_any_other_path_is_unknown(lane: str) -> None:
    seen: list[Message] = []
    async with instance(keeping(seen)) as engine, house(engine.port, extra_paths=[("PUT", "/v1/own/{id}")]) as gateway:
        client = await gateway.connect()
        for count, target in enumerate(UNKNOWN):
            reply = await client.ask(request_of("POST", target, lane))
            error = orjson.loads(reply.body)["error"]
            assert (reply.status, error["code"]) == (404, "not_found"), target
            assert len(error["message"]) < 300
            assert error["message"].isprintable(), target
            line = await gateway.line(count)
            assert (line["status"], line["outcome"]) == (404, "not_found")
            assert len(str(line["path"])) <= 100
        assert not seen


@EXACT
async def test_any_other_method_is_refused_with_those_that_there_are(lane: str) -> None:
    seen: list[Message] = []
    async with instance(keeping(seen)) as engine, house(engine.port, extra_paths=[("PUT", "/v1/own/{id}")]) as gateway:
        client = await gateway.connect()
        for method, target, allowed in OTHER_METHODS:
            await client.send(request_of(method, target, lane))
            reply = await client.message(bodiless=method == "HEAD")
            assert (reply.status, reply.header("allow")) == (405, [allowed.encode()]), (method, target)
        assert not seen


async def test_what_names_no_model_is_told_so() -> None:
    async with house(extra_paths=[("GET", "/v1/own")]) as gateway:
        for target, headers, expected in (
            ("/v1/realtime?model=m", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", (501, "websocket_not_carried")),
            ("/v1/realtime", b"", (501, "websocket_not_carried")),
            ("/v1/own", b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n", (501, "websocket_not_carried")),
            ("/v1/own", b"", (400, "model_missing")),
        ):
            reply = await gateway.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n".encode() + headers + b"\r\n")
            assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == expected


def test_a_parameter_is_one_segment() -> None:
    paths = CarriedPaths([("GET", "/a/{b_c}/d"), ("POST", "/a/{b_c}/d"), ("POST", "/a.b")])
    assert paths.methods("/a/x~y.z-1_2/d") == {"GET", "POST"}
    for path in ("/a/x/y/d", "/a//d", "/a/x/d/", "/a/x/d\n", "/a/%2f/d", "/aXb"):
        assert not paths.methods(path), path
    assert paths.posts == {"/a.b"}


def test_what_steers_an_engine_is_not_for_clients() -> None:
    steering = re.compile(r"lora|sleep|wake|pause|resume|rpc|scale|abort|invocations|inference/|metrics|ping|docs|load")
    assert not [path for _, path in CLIENT_PATHS if steering.search(path)]


async def test_a_running_gateway_carries_extra_paths_until_told_otherwise(tmp_path: Path) -> None:
    """The simulated engine sets its own faults by such a path: no client must ever reach it unasked."""
    settings = config(server={"extra_paths": ["GET /v1/own", "/sim/faults"]})
    async with running_gateway(tmp_path, settings) as gateway:
        async with gateway.http.post("/sim/faults", json={"model": "qwen2.5"}) as reply:
            assert reply.status == 400, "the engine's own answer: there is no fault named model"
            assert "model" in await reply.text()
        await reload(gateway, tmp_path, config())
        async with gateway.http.post("/sim/faults", json={"model": "qwen2.5"}) as reply:
            assert reply.status == 404
