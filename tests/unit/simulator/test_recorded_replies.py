# SPDX-License-Identifier: Apache-2.0
"""Every exchange recorded from a real vLLM, replayed: status, headers, fields, their order and the order of events."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.unit.simulator.in_process import InProcessEngine, engine_in_process

RECORDINGS = sorted((Path(__file__).parent / "data").glob("*.txt"))
OUR_OWN_HEADERS = {"x-simulated-instance", "Date"}


@pytest.fixture
async def engine() -> AsyncIterator[InProcessEngine]:
    arguments = ["models/tiny-gemma3", "--served-model-name", "tiny-gemma3", "--max-model-len", "2048"]
    async with engine_in_process(arguments) as running:
        yield running


def shape(value: Any) -> Any:
    """A JSON value with everything but its structure taken away; the order of keys counts."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def stream_shape(text: str) -> list[Any]:
    """The events of a stream; how many tokens a delta carries is chance, so equal neighbours count once."""
    shapes: list[Any] = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        data = lines[-1].removeprefix("data: ")
        now = [*lines[:-1], data if data == "[DONE]" else shape(json.loads(data))]
        if not shapes or shapes[-1] != now:
            shapes.append(now)
    return shapes


class Recording:
    def __init__(self, path: Path) -> None:
        asked, answered = path.read_text(encoding="utf-8").removeprefix("### REQUEST\n").split("\n### RESPONSE\n")
        head, _, self.body = asked.partition("\n\n")
        first, *lines = head.strip().split("\n")
        self.method, url = first.split(" ")
        self.path = "/" + url.split("/", 3)[3]
        self.headers = dict(line.split(": ", 1) for line in lines)
        head, _, self.reply = answered.partition("\n\n")
        first, *lines = head.strip().split("\n")
        self.status = int(first.split(" ")[1])
        self.reply_headers = [line.split(": ", 1) for line in lines]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
async def test_answers_as_vllm_did(path: Path, engine: InProcessEngine) -> None:
    recorded = Recording(path)
    headers = {"content-type": "application/json"} | recorded.headers
    request = engine.client.request(recorded.method, recorded.path, data=recorded.body.strip(), headers=headers)
    async with request as reply:
        text = await reply.text()
        assert reply.status == recorded.status
        ours = {name.lower(): value for name, value in reply.headers.items() if name not in OUR_OWN_HEADERS}
    theirs = {name.lower(): value for name, value in recorded.reply_headers if name != "date"}
    assert ours.keys() == theirs.keys()
    assert ours.get("content-type") == theirs.get("content-type")
    if "text/event-stream" in theirs.get("content-type", ""):
        assert stream_shape(text) == stream_shape(recorded.reply)
    elif recorded.status != 200:
        assert text.strip() == recorded.reply.strip()
    elif recorded.reply.strip():
        assert shape(json.loads(text)) == shape(json.loads(recorded.reply))
    else:
        assert text == ""


async def test_a_request_id_becomes_the_replys_id(engine: InProcessEngine) -> None:
    headers = {"X-Request-Id": "my-req-123"}
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    async with engine.client.post("/v1/chat/completions", json=body, headers=headers) as reply:
        assert (await reply.json())["id"] == "chatcmpl-my-req-123"


async def test_only_json_is_taken(engine: InProcessEngine) -> None:
    headers = {"content-type": "text/plain"}
    async with engine.client.post("/v1/chat/completions", data=b"{}", headers=headers) as reply:
        error = (await reply.json())["error"]
    assert reply.status == 400
    assert error["message"] == "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"


async def test_the_key_guards_v1_alone() -> None:
    async with engine_in_process(["m", "--api-key", "sk-1"]) as engine:
        for path, headers, status in (
            ("/health", {}, 200),
            ("/metrics", {}, 200),
            ("/v1/models", {}, 401),
            ("/v1/models", {"Authorization": "Bearer nope"}, 401),
            ("/v1/models", {"x-api-key": "sk-1"}, 401),
            ("/v1/models", {"Authorization": "Bearer sk-1"}, 200),
        ):
            async with engine.client.get(path, headers=headers) as reply:
                assert reply.status == status, path
                if status == 401:
                    assert await reply.text() == '{"error":"Unauthorized"}'


async def test_an_embedding_model_embeds_and_does_not_chat() -> None:
    async with engine_in_process(["demo/embed-small"]) as engine:
        async with engine.client.post("/v1/embeddings", json={"input": ["hello", "world"]}) as reply:
            first, second = (await reply.json())["data"]
        assert sum(value**2 for value in first["embedding"]) == pytest.approx(1)
        assert first["embedding"] != second["embedding"]
        async with engine.client.post("/v1/chat/completions", json={"messages": []}) as reply:
            assert reply.status == 404


async def test_a_speech_model_transcribes() -> None:
    async with engine_in_process(["demo/whisper-small", "--served-model-name", "whisper"]) as engine:
        form = aiohttp.FormData({"model": "whisper"})
        form.add_field("file", b"\x01\x02" * 40000, filename="a.wav")
        async with engine.client.post("/v1/audio/transcriptions", data=form) as reply:
            answer = await reply.json()
    assert answer["usage"] == {"type": "duration", "seconds": 3}
    assert answer["text"]


async def test_errors_of_messages_are_anthropics_but_for_bodies_that_are_none(engine: InProcessEngine) -> None:
    asked = {"model": "nope", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for path in "/v1/messages", "/v1/messages/count_tokens":
        async with engine.client.post(path, json=asked) as reply:
            answer = await reply.json()
        assert (reply.status, answer["type"], answer["error"]["type"]) == (404, "error", "NotFoundError")
        async with engine.client.post(path, json={"model": "nope"}) as reply:
            assert set(await reply.json()) == {"error"}


async def test_responses_are_kept_if_the_engine_is_told_to(engine: InProcessEngine) -> None:
    asked = {"model": "tiny-gemma3", "input": "x", "max_output_tokens": 2, "request_id": "resp_mine"}
    kept = {"resp_mine": 200, "resp_other": 404}
    engine.context.settings = replace(engine.context.settings, keeps_responses=True)
    async with engine.client.post("/v1/responses", json=asked) as reply:
        made = await reply.json()
    assert made["id"] == "resp_mine"
    for one, status in kept.items():
        async with engine.client.get(f"/v1/responses/{one}") as reply:
            assert reply.status == status
            assert status != 200 or await reply.json() == made
        async with engine.client.post("/v1/responses", json={**asked, "previous_response_id": one}) as reply:
            assert reply.status == status
