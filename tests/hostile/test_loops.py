# SPDX-License-Identifier: Apache-2.0
"""A request that comes back to the gateway that sent it ends there: an endpoint was the gateway, or led to it."""

import contextlib

import orjson
import pytest

from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import Peer, instance
from vllm_gateway.relay.loops import via

THEIRS = b"Via: 1.0 theirs, 1.1 vllm-gateway-0123456789abcdef\r\n"
EACH_LANE = pytest.mark.parametrize("lane", LANES)


@EACH_LANE
async def test_a_gateway_that_is_its_own_engine(lane: str) -> None:
    async with house() as gateway:
        gateway.publish([gateway.port])
        reply = await gateway.ask(a_request(lane=lane, headers=THEIRS))
        assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (508, "loop_detected")
        assert [(line["status"], line["attempts"]) for line in gateway.lines] == [(508, 0), (508, 1)]


@EACH_LANE
async def test_two_gateways_that_are_each_others_engines(lane: str) -> None:
    heads = []

    async def another_gateway(peer: Peer) -> None:
        while True:
            message = await peer.message()
            heads.append(message.head)
            own = message.head.replace(b"\r\n\r\n", b"\r\nVia: 1.1 vllm-gateway-0123456789abcdef\r\n\r\n")
            with contextlib.closing((back := await Peer.connect(gateway.port)).writer):
                reply = await back.ask(own + message.body)
                await peer.send(reply.head + reply.body)

    async with instance(another_gateway) as other, house(other.port) as gateway:
        for _ in range(2):
            reply = await gateway.ask(a_request(lane=lane, headers=THEIRS))
            assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (508, "loop_detected")
        assert len(heads) == 2
        assert all(via() in head and THEIRS in head for head in heads), "each says its own"


async def test_a_gateway_finds_itself_not_healthy() -> None:
    async with house() as gateway:
        reply = await gateway.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n" + via() + b"\r\n")
        assert reply.status == 508
        assert (await gateway.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n" + THEIRS + b"\r\n")).status == 200
