# SPDX-License-Identifier: Apache-2.0
"""Errors of the gateway have the form of the API that was asked, in both lanes; Anthropic's own client knows them."""

import asyncio
from typing import Any

import anthropic
import orjson
import pytest

from tests.integration.front.house import LANES, MAX_BODY, House, a_request, house
from tests.integration.relay.wire import Message, Peer, answering, instance
from tests.waiting import until
from vllm_gateway.api.errors import KINDS

EXACT = pytest.mark.parametrize("lane", LANES)
MESSAGES = ["/v1/messages", "/v1/messages/count_tokens"]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def anthropic_error(reply: Message) -> tuple[int, str, str]:
    """Status, type and code of an error in Anthropic's form."""
    said = orjson.loads(reply.body)
    assert said["type"] == "error"
    assert said["request_id"].encode() == reply.header("x-request-id")[0] == reply.header("request-id")[0]
    error = said["error"]
    assert set(error) == {"type", "message", "code", "details"}
    assert error["message"]
    assert error["details"] == {"error_code": error["code"]}
    return reply.status, error["type"], error["code"]


@EXACT
@pytest.mark.parametrize("target", [*MESSAGES, "/v1/messages?beta=true"])
async def test_bodies_that_are_refused(lane: str, target: str) -> None:
    refused = {
        b'{"model":"nope"}': (404, "not_found_error", "model_not_found"),
        b"{}": (400, "invalid_request_error", "model_missing"),
        b"[]": (400, "invalid_request_error", "bad_request"),
        b"x" * (MAX_BODY + 1): (413, "request_too_large", "body_too_large"),
    }
    async with house() as gateway:
        for body, error in refused.items():
            assert anthropic_error(await gateway.ask(a_request(body, lane=lane, target=target))) == error


@EXACT
@pytest.mark.parametrize("target", MESSAGES)
async def test_the_gate(lane: str, target: str) -> None:
    async with house(keys=["k"]) as gateway:
        reply = await gateway.ask(a_request(lane=lane, target=target))
        assert anthropic_error(reply) == (401, "authentication_error", "invalid_api_key")
    async with house() as gateway:
        asked = a_request(lane=lane, target=target).replace(b"Host: gateway", b"Host: evil.example")
        assert anthropic_error(await gateway.ask(asked)) == (403, "permission_error", "host_not_allowed")
        asked = a_request(lane=lane, target=target).replace(b"POST", b"DELETE")
        assert anthropic_error(await gateway.ask(asked)) == (405, "invalid_request_error", "method_not_allowed")
        asked = a_request(lane=lane, target="/v1/messages/batches")
        assert anthropic_error(await gateway.ask(asked)) == (404, "not_found_error", "not_found")


@EXACT
async def test_a_full_queue_a_slow_one_and_the_end(lane: str) -> None:
    async with house() as gateway:
        clients = [await gateway.connect() for _ in range(10)]
        for client in clients:
            await client.send(a_request(lane=lane, target=MESSAGES[0]))
        await until(lambda: gateway.queues.waiting("m") == 10)
        reply = await gateway.ask(a_request(lane=lane, target=MESSAGES[0]))
        assert anthropic_error(reply) == (429, "rate_limit_error", "queue_full")
        assert reply.header("retry-after") == [b"1"]
    async with house() as gateway:
        asked = a_request(lane=lane, target=MESSAGES[0], headers=b"X-Request-Timeout: 0\r\n")
        assert anthropic_error(await gateway.ask(asked)) == (504, "timeout_error", "request_timeout")
        gateway.api.inference.return_at = asyncio.get_running_loop().time() + 3
        reply = await gateway.ask(a_request(lane=lane, target=MESSAGES[0]))
        assert anthropic_error(reply) == (503, "overloaded_error", "stopping")


@EXACT
async def test_an_engine_that_fails(lane: str) -> None:
    async def cut(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200")

    async with instance(cut) as engine, house(engine.port, same_after_s=0) as gateway:
        reply = await gateway.ask(a_request(lane=lane, target=MESSAGES[0]))
        assert anthropic_error(reply) == (502, "api_error", "instance_failed")


async def test_heads_whose_path_is_known() -> None:
    async with house() as gateway:
        large = a_request(target=MESSAGES[0], headers=b"X-Large: %b\r\n" % (b"x" * (65 << 10)))
        assert anthropic_error(await gateway.ask(large)) == (431, "invalid_request_error", "head_too_large")
        for wrong in (b"No colon\r\n", b"Content-Length: 3\r\n", b"X-Bad: \x00\r\n"):
            reply = await gateway.ask(a_request(target=MESSAGES[0], headers=wrong))
            assert anthropic_error(reply) == (400, "invalid_request_error", "bad_request")
            assert (await gateway.line(len(gateway.lines) - 1))["path"] == MESSAGES[0]


@EXACT
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/responses", "/v1/messagesx"])
async def test_others_get_openais_form(lane: str, target: str) -> None:
    async with house() as gateway:
        reply = await gateway.ask(a_request(b'{"model":"nope"}', lane=lane, target=target))
        assert set(orjson.loads(reply.body)) == {"error"}
        assert set(orjson.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
        assert reply.header("request-id") == []


CLASSES = {
    "model_not_found": anthropic.NotFoundError,
    "model_missing": anthropic.BadRequestError,
    "body_too_large": anthropic.APIStatusError,
    "invalid_api_key": anthropic.AuthenticationError,
    "request_timeout": anthropic.InternalServerError,
    "stopping": anthropic.InternalServerError,
}


def client_of(gateway: House, key: str = "k") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{gateway.port}", api_key=key, max_retries=0)


async def provoke(gateway: House, code: str) -> anthropic.APIStatusError:
    """What Anthropic's client raises."""
    asks: dict[str, Any] = {"model": "m", "messages": HELLO, "max_tokens": 5}
    match code:
        case "model_not_found":
            asks["model"] = "nope"
        case "model_missing":
            asks["model"] = ""
        case "body_too_large":
            asks["system"] = "x" * (MAX_BODY + 1)
        case "request_timeout":
            asks["extra_headers"] = {"X-Request-Timeout": "0"}
        case "stopping":
            gateway.api.inference.return_at = asyncio.get_running_loop().time() + 3
    async with client_of(gateway, "wrong" if code == "invalid_api_key" else "k") as client:
        with pytest.raises(anthropic.APIStatusError) as raised:
            await client.messages.create(**asks)
        counts = {name: asks[name] for name in asks if name != "max_tokens"}
        with pytest.raises(type(raised.value)):
            await client.messages.count_tokens(**counts)
    return raised.value


@pytest.mark.parametrize("code", CLASSES)
async def test_anthropics_client_raises_the_class_for_it(code: str) -> None:
    async with house(keys=["k"]) as gateway:
        error = await provoke(gateway, code)
        assert isinstance(error, CLASSES[code])
        assert error.status_code == KINDS[code].status
        assert error.type == (KINDS[code].anthropic_type or KINDS[code].type)
        assert error.error_code == code
        assert error.request_id
        assert error.request_id == (await gateway.line())["request_id"]


async def test_anthropics_client_is_answered() -> None:
    """So that the errors above are not of its own making."""
    body = b'{"id":"m1","type":"message","role":"assistant","content":[],"model":"m","stop_reason":"end_turn"}'
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with (
        instance(answering(reply)) as engine,
        house(engine.port, keys=["k"]) as gateway,
        client_of(gateway) as client,
    ):
        assert (await client.messages.create(model="m", messages=HELLO, max_tokens=5)).id == "m1"
