# SPDX-License-Identifier: Apache-2.0
"""A reply that says that the instance gives up never reaches the client; every other one does, byte for byte."""

import pytest

from tests.integration.relay.wire import OK, Peer, Script, a_request, answering, gateway, instance
from vllm_gateway.relay import Limits

GOING = b'{"error": {"message": "cannot schedule new futures after shutdown"}}'
OTHER = b'{"error": {"message": "out of ideas"}}'


def gives_up(status: int, body: bytes) -> bool:
    return status == 503 or b"after shutdown" in body


def reply(status: int, body: bytes, framing: str = "length") -> bytes:
    head = b"HTTP/1.1 %d Whatever\r\nA: b\r\n" % status
    if framing == "chunked":
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    if framing == "close":
        return head + b"Connection: close\r\n\r\n" + body
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def answers(framing: str, *parts: bytes) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(*parts)
            if framing == "close":
                return

    return script


FRAMINGS = ["length", "chunked", "close"]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(("status", "body"), [(500, GOING), (503, OTHER)])
@pytest.mark.parametrize("split", [0, 1, 30, -1])
async def test_an_instance_that_gives_up_has_failed(framing: str, status: int, body: bytes, split: int) -> None:
    whole = reply(status, body, framing)
    at = split if split > 0 else len(whole) + split
    async with (
        instance(answers(framing, *filter(None, (whole[:at], whole[at:])))) as engine,
        gateway(engine.port, has_given_up=gives_up) as between,
    ):
        assert (await (await between.connect()).ask()).body == b"given_up True"


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("split", [0, 1, 30, -1])
@pytest.mark.parametrize("body", [OTHER, OTHER * 500])
async def test_other_errors_pass_unchanged(framing: str, split: int, body: bytes) -> None:
    whole = reply(500, body, framing)
    at = split if split > 0 else len(whole) + split
    script = answers(framing, *filter(None, (whole[:at], whole[at:])))
    async with instance(script) as engine:
        said = []
        for judge in (gives_up, None):
            async with gateway(engine.port, has_given_up=judge) as between:
                client = await between.connect()
                said.append(await client.ask())
                assert (await between.carried()).complete
    assert said[0] == said[1]
    assert said[0].status == 500
    assert body in said[0].body.replace(b"\r\n", b"") or framing == "chunked"


async def test_what_is_no_error_is_not_looked_at() -> None:
    def never(status: int, body: bytes) -> bool:
        raise AssertionError(status)

    async with (
        instance(answering(OK, reply(404, GOING))) as engine,
        gateway(engine.port, has_given_up=never) as between,
    ):
        client = await between.connect()
        assert [(await client.ask()).status for _ in range(2)] == [200, 404]


@pytest.mark.parametrize("cut", [b"HTTP/1.1 500 E\r\nContent-Length: 9\r\n\r\nhalf", reply(500, OTHER, "chunked")[:-9]])
async def test_an_error_that_is_cut_is_no_reply(cut: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(cut)

    async with instance(script) as engine, gateway(engine.port, has_given_up=gives_up) as between:
        assert (await (await between.connect()).ask(a_request())).body == b"closed True"


async def test_an_error_that_stops_coming_is_given_up_in_time() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 500 E\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.message()

    limits = Limits(first_byte_s=0.05)
    async with instance(script) as engine, gateway(engine.port, limits, has_given_up=gives_up) as between:
        assert (await (await between.connect()).ask()).body.startswith(b"first_byte_timeout")


async def test_a_malformed_error_does_not_reach_the_client() -> None:
    broken = b"HTTP/1.1 500 E\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n"
    async with instance(answering(broken)) as engine, gateway(engine.port, has_given_up=gives_up) as between:
        assert (await (await between.connect()).ask()).body == b"bad_reply True"
