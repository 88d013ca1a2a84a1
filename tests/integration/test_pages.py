# SPDX-License-Identifier: Apache-2.0
"""What a gateway answers to clients, browsers and operators: SDK, errors, status, metrics."""

import asyncio
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from yarl import URL

from tests.gateway import CHAT, running_gateway
from tests.integration.test_gateway import config, model
from tests.waiting import LIMIT_S
from vllm_gateway.control.status import Status


async def test_the_status_page_has_its_documented_shape(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await gateway.chat("gemma3-4B")
        async with gateway.http.get("/gateway/status") as reply:
            TypeAdapter(Status).validate_json(await reply.read(), strict=True)
            page = await reply.json()
        assert set(page) == {field.name for field in dataclasses.fields(Status)}
        assert page["parallel_model_config"] == {"gemma3-4B": 2, "qwen2.5": 1}
        assert page["active_models_by_id"]["gemma3-4B"][0] == "vllm_server_gemma3-4B_instance_1"


async def test_an_adapter_is_served_by_the_instances_of_its_model(tmp_path: Path) -> None:
    arguments = ["--enable-lora", "--lora-modules", "sql=/adapters/sql"]
    models = {"a": model("a", aliases=["b"], adapters=["sql"], engine_arguments=arguments)}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        for asked, answering in (("a", "a"), ("b", "b"), ("sql", "sql")):
            status, _, answer = await gateway.chat(asked)
            assert (status, answer["model"]) == (200, answering)
        assert len(gateway.events("instance_starting")) == 1
        async with gateway.http.get("/v1/models") as reply:
            listed = {one["id"]: (one["parent"], one["aliases"]) for one in (await reply.json())["data"]}
        assert listed == {"a": (None, ["b"]), "b": (None, []), "sql": ("a", [])}
        async with gateway.http.get("/v1/models/sql") as reply:
            assert (await reply.json())["id"] == "sql"


async def test_a_browser_is_sent_to_the_status(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway, gateway.http.get("/") as reply:
        assert (reply.status, reply.url.path) == (200, "/gateway/status")


async def test_tokens_are_counted_by_the_engine_of_the_model(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        async with gateway.http.post("/tokenize", json={"model": "qwen2.5", "prompt": "one two"}) as reply:
            tokens = (await reply.json())["tokens"]
        async with gateway.http.post("/detokenize", json={"model": "qwen2.5", "tokens": tokens}) as reply:
            assert await reply.json() == {"prompt": "one two"}


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        url = URL(gateway.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            "Content-Type: application/json\r\nContent-Length: 17\r\n\r\n".encode()
        )
        async with asyncio.timeout(LIMIT_S):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b'{"model": "nope"}')
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()
        await writer.wait_closed()


async def test_prometheus_reads_requests_and_memory(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await gateway.chat("qwen2.5")
        await gateway.chat("nope")
        async with gateway.http.get("/metrics") as reply:
            assert reply.content_type == "text/plain"
            families = {family.name: family for family in text_string_to_metric_families(await reply.text())}
        requests = [(one.labels, one.value) for one in families["vllm_gateway_requests"].samples]
        assert ({"model": "qwen2.5", "status": "200", "outcome": "ok"}, 1) in requests
        assert ({"model": "", "status": "404", "outcome": "model_not_found"}, 1) in requests
        memory = families["vllm_gateway_gpu_memory_mib"].samples
        assert sorted(one.value for one in memory if one.labels["kind"] == "reserved") == [0, 6000]
        durations = families["vllm_gateway_request_duration_seconds"].samples
        assert [one.value for one in durations if one.labels.get("le") == "+Inf"] == [1]


async def test_the_official_openai_client(tmp_path: Path) -> None:
    async with (
        running_gateway(tmp_path, config(server={"api_keys": ["sk-test"]})) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-test") as client,
    ):
        assert [one.id async for one in client.models.list()] == ["gemma3-4B", "qwen2.5"]
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(model="gemma3-4B", messages=messages, max_tokens=5)
        assert answer.choices[0].finish_reason == "length"
        stream = await client.chat.completions.create(model="gemma3-4B", messages=messages, max_tokens=5, stream=True)
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
        assert text == answer.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match=r"gemma3-4B, qwen2\.5"):
            await client.chat.completions.create(model="nope", messages=messages)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
        message = {"model": "gemma3-4B", "messages": messages, "max_tokens": 5}
        for key, status in (("sk-test", 200), ("wrong", 401)):  # as Anthropic's clients send it
            async with gateway.http.post("/v1/messages", json=message, headers={"x-api-key": key}) as reply:
                assert reply.status == status


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (CHAT, b'{"model": "nope"}', 404, "model_not_found"),
        (CHAT, b'{"messages": []}', 400, "model_missing"),
        (CHAT, b"not json", 400, "bad_request"),
        (CHAT, b"[1]", 400, "bad_request"),
        (CHAT, b" " * (2 << 20), 413, "body_too_large"),
        ("/sleep", b"{}", 404, "not_found"),
        ("/v1/models", b"{}", 405, "method_not_allowed"),
        ("/gateway/status", b"", 405, "method_not_allowed"),
        ("/v1/%2e%2e/sleep", b'{"model": "gemma3-4B"}', 404, "not_found"),
    ],
)
async def test_bad_requests_get_openai_errors(path: str, body: bytes, status: int, code: str, tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(server={"max_body_mib": 1})) as gateway:
        url = URL(f"{gateway.url}{path}", encoded=True)
        async with aiohttp.ClientSession() as http, http.post(url, data=io.BytesIO(body)) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["code"]) == (status, code)
            assert set(error) == {"message", "type", "param", "code"}
            assert reply.headers["X-Request-Id"]
        assert not gateway.events("instance_starting")


async def test_commands_reach_a_gateway_on_a_unix_socket(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = config(models={"bad": model("bad", engine_arguments=["--no-such-option"])})
        settings["server"] = {"socket": f"{folder}/http.sock", "api_keys": ["the-key"]}

        async def said(*words: str, url: str = f"unix:{folder}/http.sock") -> tuple[int, str]:
            command = [sys.executable, "-m", "vllm_gateway.cli", *words, "--url", url, "--api-key", "the-key"]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
            return done.returncode, done.stdout + done.stderr

        async with running_gateway(tmp_path, settings) as gateway:
            assert gateway.url == f"unix:{folder}/http.sock"
            status, page = await said("status", "--json")
            assert (status, json.loads(page)["models"]["bad"]["state"]) == (0, "stopped")
            assert (await said("status", url=f"unix://{folder}/http.sock"))[0] == 0
            status, text = await said("retry", "bad")
            assert (status, text.startswith("bad: ")) == (0, True)
        status, text = await said("status")
        assert (status, f"No gateway answers at unix:{folder}/http.sock" in text) == (1, True)
