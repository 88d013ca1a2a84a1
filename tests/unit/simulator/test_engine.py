# SPDX-License-Identifier: Apache-2.0
"""Batching, queueing, prefix cache, clients that leave, sleep, and sequences that go on where they were cut."""

import asyncio
import json
from typing import Any

import pytest

from tests.unit.simulator.in_process import InProcessEngine, engine_in_process
from tests.waiting import until
from vllm_gateway.simulator.tokenizer import Continuation, decode, encode


def chat(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **options}


async def post(engine: InProcessEngine, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with engine.client.post(path, json=body) as reply:
        assert reply.status == 200, await reply.text()
        answer: dict[str, Any] = await reply.json()
        return answer


@pytest.mark.parametrize("text", ["", "the river", "def main():\n\treturn 1", "Grüße 東京 🙂", "  two  spaces "])
def test_text_survives_the_tokenizer(text: str) -> None:
    assert decode(encode(text)) == text


def test_generated_text_has_the_tokens_it_was_made_of() -> None:
    continuation = Continuation(encode("tell me a story"))
    tokens = [continuation.next_ignoring_end() for _ in range(500)]
    assert encode(decode(tokens)) == tokens


async def test_the_same_prompt_has_the_same_answer_on_every_instance() -> None:
    answers = []
    for _ in range(2):
        async with engine_in_process(["m"]) as engine:
            answers.append((await post(engine, "/v1/chat/completions", chat("hello")))["choices"])
    assert answers[0] == answers[1]
    assert answers[0][0]["finish_reason"] == "stop"
    assert len(answers[0][0]["message"]["content"].split()) >= 12


async def test_a_cut_chat_goes_on_exactly_from_its_token_ids() -> None:
    async with engine_in_process(["m"]) as engine:
        whole = await post(engine, "/v1/chat/completions", chat("hello", return_token_ids=True))
        prompt, tokens = whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
        for cut in (1, 5, 12):
            body = {"prompt": prompt + tokens[:cut], "max_tokens": None, "return_token_ids": True}
            rest = (await post(engine, "/v1/completions", body))["choices"][0]
            assert rest["token_ids"] == tokens[cut:]
            assert rest["finish_reason"] == "stop"


async def test_a_cut_chat_goes_on_exactly_from_its_text() -> None:
    async with engine_in_process(["m"]) as engine:
        whole = (await post(engine, "/v1/chat/completions", chat("hello", max_tokens=40)))["choices"][0]
        text = whole["message"]["content"]
        begun = text[: text.index(" ", 30)]
        body = chat("hello", max_tokens=40 - len(encode(begun)))
        body["messages"].append({"role": "assistant", "content": begun})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
        rest = (await post(engine, "/v1/chat/completions", body))["choices"][0]
        assert begun + rest["message"]["content"] == text


async def test_a_stream_carries_the_same_text_as_a_whole_reply() -> None:
    async with engine_in_process(["m"]) as engine:
        whole = await post(engine, "/v1/completions", {"prompt": "hello", "max_tokens": 30})
        body = {"prompt": "hello", "max_tokens": 30, "stream": True}
        async with engine.client.post("/v1/completions", json=body) as reply:
            lines = [line async for line in reply.content if line.startswith(b"data: {")]
    parts = [json.loads(line[6:])["choices"][0]["text"] for line in lines]
    assert len(parts) == 30
    assert "".join(parts) == whole["choices"][0]["text"]


async def test_a_repeated_prompt_is_found_in_the_prefix_cache() -> None:
    async with engine_in_process(["m", "--enable-prompt-tokens-details"]) as engine:
        body = {"prompt": list(range(1000, 2216)), "max_tokens": 2}
        await post(engine, "/v1/completions", body)
        assert await engine.metric("prefix_cache_hits_total") == 0
        again = await post(engine, "/v1/completions", body)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 1200
        assert await engine.metric("prefix_cache_hits_total") == 1200
        assert await engine.metric("prefix_cache_queries_total") == 2 * 1216
        salted = await post(engine, "/v1/completions", {**body, "cache_salt": "x"})
        assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_prefix_cache_holds_no_more_than_the_kv_cache() -> None:
    async with engine_in_process(["m"], kv_tokens=1024) as engine:
        for start in range(1000, 1010):
            await post(engine, "/v1/completions", {"prompt": [start] * 320, "max_tokens": 1})
        assert len(engine.engine.prefix_cache) == 64


async def test_no_more_than_max_num_seqs_run_at_once() -> None:
    async with engine_in_process(["m", "--max-num-seqs", "2"]) as engine, asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(post(engine, "/v1/completions", {"prompt": f"n {number}", "max_tokens": 300}))
        await until(lambda: engine.engine.gauges().waiting == 3)
        assert await engine.metric("num_requests_running") == 2
        assert await engine.metric("num_requests_waiting{") == 3
        assert 0 < await engine.metric("kv_cache_usage_perc") < 1


async def test_a_client_that_leaves_is_aborted_within_a_tenth_of_a_second() -> None:
    async with engine_in_process(["m"]) as engine:
        loop = asyncio.get_running_loop()
        for stream in (True, False):
            body = {"prompt": "hello", "max_tokens": 8000, "stream": stream}
            task = asyncio.create_task(post(engine, "/v1/completions", body))
            await until(lambda: engine.engine.in_flight == 1)
            left = loop.time()
            task.cancel()
            await until(lambda: engine.engine.in_flight == 0)
            assert loop.time() - left < 0.1
        assert engine.engine.metrics.finished["abort"] == 2


async def test_a_sleeping_engine_answers_once_it_is_woken() -> None:
    async with engine_in_process(["m", "--enable-sleep-mode"]) as engine:
        async with engine.client.post("/sleep?level=1") as reply:
            assert await reply.json() == {"status": "sleeping", "level": 1}
        task = asyncio.create_task(post(engine, "/v1/completions", {"prompt": "hello", "max_tokens": 3}))
        await until(lambda: engine.engine.in_flight == 1)
        async with engine.client.get("/is_sleeping") as reply:
            assert await reply.json() == {"is_sleeping": True}
        assert not task.done()
        async with engine.client.post("/wake_up") as reply:
            assert await reply.json() == {"status": "awake", "tags": None}
        assert (await task)["usage"]["completion_tokens"] == 3


async def test_a_larger_batch_makes_each_sequence_slower() -> None:
    async with engine_in_process(["m"]) as engine:
        speed = engine.engine._speed
    assert speed.step_s(1, 0) == pytest.approx(1 / 2000)
    assert speed.step_s(101, 0) == pytest.approx(3 / 2000)
    assert speed.step_s(1, 20000) > 1


async def test_bodies_may_come_in_chunks_and_connections_are_kept() -> None:
    async def body() -> Any:
        for piece in (b'{"prompt": "hel', b'lo", "max_', b'tokens": 2}'):
            yield piece

    async with engine_in_process(["m"]) as engine:
        for _ in range(3):
            headers = {"content-type": "application/json"}
            async with engine.client.post("/v1/completions", data=body(), headers=headers) as reply:
                assert (await reply.json())["usage"]["completion_tokens"] == 2
        assert len(engine.client.connector._conns) == 1  # type: ignore[union-attr]


async def test_a_body_that_nobody_foresaw_gets_500_and_not_silence(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_in_process(["m"]) as engine:
        body = {"prompt": "x", "stream_options": [1]}
        async with engine.client.post("/v1/completions", json=body) as reply:
            assert (reply.status, await reply.text()) == (500, "Internal Server Error")
    assert "AttributeError" in capsys.readouterr().err


async def test_what_is_not_http_gets_400_and_the_connection_ends() -> None:
    async with engine_in_process(["m"]) as engine:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
