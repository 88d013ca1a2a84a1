# SPDX-License-Identifier: Apache-2.0
"""Whatever an engine sends: its client gets a sound reply or a clear error, the next client its own, in both lanes."""

import orjson
import pytest

from tests.hostile import replies
from tests.hostile.replies import Cut, Passed, Refused, Reply
from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import Message, Peer, Script, instance
from vllm_gateway.relay.framing import Chunked

STREAMING = b'{"model":"m","stream":true,"messages":[]}'


def evil(reply: Reply) -> Script:
    """Sends it, whatever it is asked; but for the next request, which gets a good one."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.message()
            if b"/v1/completions" in asked.head:
                await peer.send(replies.OK)
                continue
            peer.writer.write(reply.wire)
            if reply.closes:
                await peer.writer.drain()
                return
            await peer.writer.drain()

    return script


def data_of(message: Message) -> bytes:
    if message.header("transfer-encoding") != [b"chunked"]:
        return message.body
    parts: list[bytes] = []
    framing = Chunked()
    assert framing.feed(message.body, parts) == len(message.body)
    assert framing.done and framing.instead is None, "chunks, and nothing else"
    return b"".join(parts)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("reply", replies.ALL.values(), ids=replies.ALL.keys())
async def test_a_reply(reply: Reply, lane: str) -> None:
    async with instance(evil(reply)) as engine, house(engine.port, same_after_s=0.0) as gateway:
        client = await gateway.connect()
        body = STREAMING if reply.stream else b'{"model":"m"}'
        seen = await client.ask(a_request(body, lane=lane))
        match reply.outcome:
            case Passed(expected, status, has, lacks):
                assert (seen.status, data_of(seen), seen.cut) == (status, expected, False)
                for line in has:
                    assert b"\r\n" + line + b"\r\n" in seen.head
                for name in (*lacks, b"server"):
                    assert not seen.header(name.decode())
                assert len(seen.header("x-request-id")) == 1 and seen.header("x-request-id") != [b"theirs"]
            case Refused(code, status):
                error = orjson.loads(data_of(seen))["error"]
                assert (seen.status, error["code"], seen.cut) == (status, code, False)
                assert seen.header("server") in ([b"vllm-gateway"], [])
                assert b"127.0.0.1" not in seen.head + seen.body and b"evil" not in seen.head + seen.body
            case Cut():
                assert seen.cut
        answered = isinstance(reply.outcome, Passed) or reply.outcome == Refused("engine_redirect")
        if answered:
            assert (await gateway.line())["attempts"] == 1
            assert not [what for what in gateway.fleet.heard if what.startswith("suspect")], "nobody is to blame"
        other = await gateway.connect()
        after = await other.ask(a_request(target="/v1/completions", lane=lane))
        assert (after.status, after.body) == (200, b"ok")
