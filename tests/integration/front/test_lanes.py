# SPDX-License-Identifier: Apache-2.0
"""Both lanes answer alike: the same reply, the same errors, the same access line, whoever read the request's head."""

import asyncio

import orjson
import pytest

from tests.integration.front.house import BODY, LANES, MAX_BODY, House, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, answering, instance
from tests.waiting import until
from vllm_gateway.api.visitor import Visitor
from vllm_gateway.configuration.api_keys import NamedKey
from vllm_gateway.relay import Limits
from vllm_gateway.relay.loops import via

EXACT = pytest.mark.parametrize("lane", LANES)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@EXACT
async def test_a_request_goes_through_and_connections_are_kept(lane: str) -> None:
    seen: list[Message] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.message())
            await peer.send(OK)

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        headers = b"X-Request-Id: r1\r\nCookie: secret\r\nAuthorization: Bearer secret\r\nX-A:  b \r\nTE: trailers\r\n"
        for count in range(3):
            reply = await client.ask(a_request(lane=lane, headers=headers, target="/v1/chat/completions?a=b%20c"))
            assert (reply.status, reply.body, reply.header("x-request-id")) == (200, b"ok", [b"r1"])
            line = await gateway.line(count)
            assert {key: line[key] for key in ("request_id", "method", "path", "model", "status", "outcome")} == {
                "request_id": "r1",
                "method": "POST",
                "path": "/v1/chat/completions",
                "model": "m",
                "status": 200,
                "outcome": "ok",
            }
            assert line["bytes_out"] == len(reply.head) + 2
        assert engine.accepted == 1
        assert {request.head for request in seen} == {
            f"POST /v1/chat/completions?a=b%20c HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\n".encode()
            + via()
            + LANES[lane]
            + b"X-A: b\r\nX-Request-Id: r1\r\nContent-Length: 13\r\n\r\n"
        }
        assert {request.body for request in seen} == {BODY}


@EXACT
@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        (b'{"model":"nope"}', 404, b"model_not_found"),
        (b"{}", 400, b"model_missing"),
        (b"[]", 400, b"bad_request"),
        (b"x" * (MAX_BODY + 1), 413, b"body_too_large"),
    ],
)
async def test_errors(lane: str, request_body: bytes, status: int, code: bytes) -> None:
    async with house() as gateway:
        client = await gateway.connect()
        reply = await client.ask(a_request(request_body, lane=lane, headers=b"X-Request-Id: r1\r\n"))
        assert reply.status == status
        assert b'"code":"%b"' % code in reply.body
        assert reply.header("x-request-id") == [b"r1"]
        assert reply.header("content-type") == [b"application/json; charset=utf-8"]
        assert len(reply.header("date")) == 1
        line = await gateway.line()
        assert (line["status"], line["outcome"]) == (status, code.decode())
        if status != 413:
            assert (await client.ask(a_request(request_body, lane=lane))).status == status


@EXACT
async def test_a_body_over_the_limit_is_refused_before_it_comes(lane: str) -> None:
    async with house() as gateway:
        client = await gateway.connect()
        await client.send(a_request(b"x" * (MAX_BODY + 1), lane=lane)[:-MAX_BODY])
        assert (await client.message()).status == 413


@EXACT
async def test_a_caller_without_a_key_is_refused_before_the_body_comes(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, keys=["k"]) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane)[: -len(BODY)])
        refused = await client.message()
        assert refused.status == 401
        assert refused.header("www-authenticate") == [b"Bearer"]
        for key in (b"Authorization: Bearer k\r\n", b"X-Api-Key: k\r\n"):
            assert (await gateway.ask(a_request(lane=lane, headers=key))).body == b"ok"
            assert len(gateway.door.visitors if lane == "fast" else gateway.door.connections) > 0
        assert (await gateway.ask(a_request(lane=lane, headers=b"X-Api-Key: x\r\n"))).status == 401


@EXACT
async def test_a_key_whose_role_is_too_small_is_refused_before_the_body_comes(lane: str) -> None:
    keys = [
        NamedKey(name="chat", key="c"),
        NamedKey(name="prometheus", role="metrics", key="p"),
        NamedKey(name="ops", role="admin", key="o"),
    ]
    async with instance(answering(OK)) as engine, house(engine.port, keys=keys) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane, headers=b"Authorization: Bearer p\r\n")[: -len(BODY)])
        refused = await client.message()
        error = orjson.loads(refused.body)["error"]
        assert (refused.status, error["code"], error["type"]) == (403, "role_not_allowed", "permission_error")
        assert "inference or viewer or admin" in error["message"]
        for key in (b"c", b"o"):
            headers = b"Authorization: Bearer %b\r\nX-Api-Key: p\r\n" % key
            assert (await gateway.ask(a_request(lane=lane, headers=headers))).body == b"ok"
            assert len(gateway.door.visitors if lane == "fast" else gateway.door.connections) > 0
        messages = a_request(lane=lane, target="/v1/messages", headers=b"X-Api-Key: p\r\n")
        error = orjson.loads((await gateway.ask(messages)).body)
        assert (error["type"], error["error"]["type"]) == ("error", "permission_error")


async def test_a_page_in_a_browser_may_ask_without_a_key_whether_it_may_ask() -> None:
    asks = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nOrigin: http://page\r\n"
    names = b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,content-type\r\n\r\n"
    async with house(keys=["k"], server={"allowed_origins": ("*",)}) as gateway:
        reply = await gateway.ask(asks + names)
        assert (reply.status, reply.header("access-control-allow-origin")) == (204, [b"*"])
        assert reply.header("access-control-allow-headers") == [b"authorization,content-type"]
        refused = await gateway.ask(a_request(headers=b"Origin: http://page\r\n"))
        assert (refused.status, refused.header("access-control-allow-origin")) == (401, [b"*"])
        assert (await gateway.ask(asks + b"\r\n")).status == 401, "no preflight: an ordinary request"


@EXACT
async def test_the_queue_is_full(lane: str) -> None:
    async with house() as gateway:
        clients = [await gateway.connect() for _ in range(11)]
        for client in clients[:10]:
            await client.send(a_request(lane=lane))
        await until(lambda: gateway.queues.waiting("m") == 10)
        reply = await clients[10].ask(a_request(lane=lane))
        assert (reply.status, reply.header("retry-after")) == (429, [b"1"])


@EXACT
async def test_a_failed_instance_is_replaced_and_said_if_there_is_none(lane: str) -> None:
    async def dead(peer: Peer) -> None:
        await peer.message()

    async with instance(dead) as bad, instance(answering(OK)) as good, house(bad.port, good.port) as gateway:
        client = await gateway.connect()
        assert (await client.ask(a_request(lane=lane))).body == b"ok"
        assert gateway.fleet.heard == [f"suspect i{bad.port} closed"]
        assert (await gateway.line())["attempts"] == 2
        gateway.publish([bad.port])
        reply = await client.ask(a_request(lane=lane))
        assert (reply.status, (await gateway.line(1))["outcome"]) == (502, "instance_failed")


@EXACT
async def test_a_connection_ends_when_the_client_says_so(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        for body in (BODY, b"{}"):
            client = await gateway.connect()
            reply = await client.ask(a_request(body, lane=lane, headers=b"Connection: close\r\n"))
            assert reply.header("connection") == [b"close"]
            assert await client.ended() == b""


@EXACT
async def test_a_large_body_arrives_whole(lane: str) -> None:
    bodies = []

    async def script(peer: Peer) -> None:
        while True:
            bodies.append((await peer.message()).body)
            await peer.send(OK)

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        body = b'{"model":"m","prompt":"%b"}' % (b"x" * (MAX_BODY - 100))
        for _ in range(2):
            request = a_request(body, lane=lane)
            assert (await client.ask(request)).body == b"ok"
            await client.send(*(request[start : start + 100_000] for start in range(0, len(request), 100_000)))
            assert (await client.message()).body == b"ok"
        assert bodies == [body] * 4


# --- Clients that leave, that are slow, that hurry


@EXACT
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_the_queue(lane: str, reset: bool) -> None:
    async with instance(answering(OK)) as engine, house() as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane))
        await until(lambda: gateway.queues.waiting("m") == 1)
        client.reset() if reset else client.writer.close()
        assert (await gateway.line())["outcome"] == "client_gone"
        assert gateway.fleet.heard == ["wanted m", "unwanted m"]
        gateway.publish([engine.port])
        assert engine.accepted == 0
        await until(lambda: len(gateway.connections) == 0)


@EXACT
@pytest.mark.parametrize("sent", [b"", CHUNKED + b"1\r\nx\r\n"])
async def test_a_client_that_leaves_frees_the_instance(lane: str, sent: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(sent)
        await peer.ended()

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane))
        await until(lambda: engine.open == 1)
        if sent:
            await client.reader.readuntil(b"x\r\n")
        client.reset()
        line = await gateway.line()
        assert (line["outcome"], line["status"]) == ("client_gone", 200 if sent else 499)
        await until(lambda: engine.open == 0 and gateway.queues.in_flight(f"i{engine.port}") == 0)
        await until(lambda: len(gateway.connections) == 0)


@EXACT
async def test_a_client_that_leaves_while_it_sends_the_body(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane)[:-3])
        await until(lambda: len(gateway.connections) == 1)
        client.reset()
        line = await gateway.line()
        assert (line["outcome"], line["status"], line["model"]) == ("client_gone", 499, None)
        await until(lambda: len(gateway.connections) == 0)
        assert engine.accepted == 0


SLOW_BODIES = {
    "plain": a_request()[:-3],
    "not plain": a_request(lane="aiohttp")[:-3],
    "chunked": b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{",
    "form": b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 99\r\n\r\n--b\r\n",
}


@pytest.mark.parametrize("sent", SLOW_BODIES.values(), ids=SLOW_BODIES.keys())
async def test_a_body_that_does_not_come_is_given_up(sent: bytes) -> None:
    async with house(stall_s=0.1) as gateway:
        client = await gateway.connect()
        await client.send(sent)
        reply = await client.message()
        assert (reply.status, reply.header("connection")) == (408, [b"close"])
        assert b'"code":"body_timeout"' in reply.body
        assert (await gateway.line())["outcome"] == "body_timeout"
        client.reset()
        await until(lambda: len(gateway.connections) == 0)


async def drip(client: Peer, data: bytes, reply: "asyncio.Task[object]") -> None:
    """A byte now and then, never long after the last one, as long as there is no reply."""
    for byte in data:
        await client.send(bytes([byte]))
        if (await asyncio.wait([reply], timeout=0.05))[0]:
            return
    raise AssertionError("it was read to its end")


@EXACT
async def test_a_body_that_drips_is_refused(lane: str) -> None:
    async with house(stall_s=0.3) as gateway:
        client = await gateway.connect()
        head, _, body = a_request(b'{"model":"m","x":"%s"}' % (b"y" * 500), lane=lane).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        asked = asyncio.create_task(client.message())
        await drip(client, body, asked)
        assert (await asked).status == 408
        assert (await gateway.line())["outcome"] == "body_timeout"


@EXACT
async def test_a_body_that_comes_slowly_but_steadily_is_read(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, stall_s=0.2) as gateway:
        client = await gateway.connect()
        request = a_request(b'{"model":"m","x":"%s"}' % (b"y" * 10_000), lane=lane)
        for start in range(0, len(request), 1000):
            await client.send(request[start : start + 1000])
            await asyncio.sleep(0.05)  # as the network would have it
        assert (await client.message()).status == 200


@EXACT
async def test_pipelined_requests_are_answered_in_order_one_at_a_time(lane: str) -> None:
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(5)]
    async with instance(answering(*replies)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane) * 5)
        assert [(await client.message()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert engine.accepted == 1


async def test_a_connection_goes_over_to_aiohttp_in_the_middle() -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.send(a_request() + a_request() + health + a_request())
        bodies = [(await client.message()).body for _ in range(4)]
        assert bodies == [b"ok", b"ok", b'{"status":"ok"}', b"ok"]
        assert [line["path"] for line in gateway.lines].count("/health") == 1


def visitors(gateway: House) -> list[Visitor]:
    return [guest for guest in gateway.door.visitors if isinstance(guest, Visitor)]


async def test_a_client_that_sends_far_ahead_is_not_read() -> None:
    answer = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            await answer.wait()
            await peer.send(OK)

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        request = a_request(b'{"model":"m","prompt":"%b"}' % (b"x" * 30_000))
        count = 500  # 15 MB: more than the sockets on the way can hold
        sending = asyncio.create_task(client.send(request * count))
        await until(lambda: any(visitor.reads_no_more for visitor in visitors(gateway)))
        answer.set()
        for _ in range(count):
            assert (await client.message()).body == b"ok"
            assert all(len(visitor.ahead) <= 64 * 1024 + 256 * 1024 for visitor in visitors(gateway))
        await sending


@EXACT
async def test_two_hundred_clients_that_do_not_read_cost_bounded_memory(lane: str) -> None:
    block = b"x" * 65_536

    async def flood(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(block) * 100))
        for _ in range(100):
            peer.writer.write(block)
            await peer.writer.drain()
        await peer.ended()

    limits = Limits(client_buffer_bytes=16_384)
    async with instance(flood) as engine, house(engine.port, limits=limits, max_in_flight=300) as gateway:
        clients = [await gateway.connect(receive_buffer=4096) for _ in range(200)]
        for client in clients:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(a_request(lane=lane))
        await until(lambda: [one.writing_paused for one in gateway.connections].count(True) == 200)
        transports = [one.transport for one in gateway.connections]
        held = [transport.get_write_buffer_size() for transport in transports if transport is not None]
        assert len(held) == 200
        assert max(held) <= 16_384 + 256 * 1024 + 1024
        other = await gateway.connect()
        await other.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await other.message()).status == 200, "the others are served meanwhile"
        for client in clients:
            client.reset()
        await until(lambda: gateway.queues.in_flight(f"i{engine.port}") == 0)


# --- The beginning and the end


@EXACT
async def test_until_the_fleet_is_known_a_request_waits_and_health_does_not(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, opened=False) as gateway:
        client = await gateway.connect()
        await client.send(a_request(lane=lane))
        assert (await gateway.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
        assert engine.accepted == 0
        gateway.api.opened.set()
        assert (await client.message()).body == b"ok"


@EXACT
async def test_shutdown_closes_what_is_idle_and_lets_the_rest_finish(lane: str) -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await finish.wait()
        await peer.send(b"0\r\n\r\n")

    async with instance(script) as engine, house(engine.port, drain_s=5.0) as gateway:
        idle, busy = await gateway.connect(), await gateway.connect()
        await busy.send(a_request(lane=lane))
        await busy.reader.readuntil(b"x\r\n")
        await until(lambda: len(gateway.connections) == 2)
        stopping = asyncio.create_task(gateway.runner.cleanup())
        assert await idle.ended() == b""
        assert not stopping.done()
        finish.set()
        assert await busy.ended() == b"0\r\n\r\n"
        await stopping
        assert (await gateway.line())["outcome"] == "ok"


@EXACT
async def test_shutdown_ends_what_does_not_finish_in_time(lane: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await peer.ended()

    async with instance(script) as engine, house(engine.port, drain_s=0.1) as gateway:
        busy, sends = await gateway.connect(), await gateway.connect()
        await busy.send(a_request(lane=lane))
        await busy.reader.readuntil(b"x\r\n")
        await sends.send(a_request(lane=lane)[:-1])
        await until(lambda: len(gateway.connections) == 2)
        await gateway.runner.cleanup()
        assert await busy.ended() == b""
        assert await sends.ended() == b""
        await until(lambda: engine.open == 0)


@EXACT
async def test_a_gateway_that_stops_takes_no_new_request(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        assert (await client.ask(a_request(lane=lane))).status == 200
        gateway.door.inference.return_at = asyncio.get_running_loop().time() + 30
        reply = await client.ask(a_request(lane=lane))
        assert (reply.status, reply.header("retry-after")) == (503, [b"30"])
