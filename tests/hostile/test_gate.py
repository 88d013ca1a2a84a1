# SPDX-License-Identifier: Apache-2.0
"""Who is let in: every Host, Origin and key that a stranger or a page in a browser may send, through both lanes."""

import asyncio

import pytest

from tests.integration.front.house import BODY, LANES, a_request, house
from tests.integration.relay.wire import Message, Peer, answering, instance
from tests.waiting import until

EXACT = pytest.mark.parametrize("lane", LANES)
ENGINE = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
    b"Access-Control-Expose-Headers: *\r\nContent-Length: 2\r\n\r\nok"
)

GOOD_HOSTS = [
    *(b"127.0.0.1", b"127.0.0.1:8000", b"192.168.1.7:8000", b"[::1]", b"[::1]:8000", b"[fe80::1]:1", b"8.8.8.8"),
    *(b"localhost", b"LocalHost:8000", b"localhost.", b"localhost.:8000", b"llm.example", b"LLM.example:8000"),
]
BAD_HOSTS = [
    *(b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example", b"llm.example.evil"),
    *(b"evil-localhost", b"a.localhost", b"localhost:8000:8000", b"localhost:", b"2130706433", b"0x7f000001", b"127.1"),
    *(b"::1", b"[::1", b"[evil.example]", b"user@127.0.0.1", b"127.0.0.1, evil.example", b"local host", b"."),
    *(b"localhost..", b"http://localhost", b"localhost/", b"localhost#", b"llm", b"127.0.0.1%00", b"\tevil", b"[]"),
]
BAD_HOSTS.remove(b"localhost:")  # a port may be empty
FOREIGN = [
    *(
        b"http://evil.example",
        b"https://evil.example",
        b"null",
        b"file://",
        b"http://127.0.0.1",
        b"http://localhost:3000",
    ),
    *(b"http://localhost:8000.evil.example", b"https://localhost", b"localhost:8000", b"chrome-extension://abc", b"*"),
    *(b"http://chat.example", b"https://chat.example:444", b"https://chat.example.evil", b"http://user@localhost:8000"),
]
OWN = [b"http://localhost:8000", b"https://localhost:8000", b"HTTP://LOCALHOST:8000"]
ALLOWED = {"allowed_origins": ("https://chat.example",)}


def ask(host: bytes, *headers: bytes, lane: str, target: str = "/v1/chat/completions") -> bytes:
    """A request to that Host."""
    lines = b"".join(line + b"\r\n" for line in headers)
    return a_request(lane=lane, headers=lines, target=target).replace(b"Host: gateway", b"Host: " + host)


def said(reply: Message) -> tuple[int, bytes]:
    code = reply.body.partition(b'"code":"')[2].partition(b'"')[0]
    return reply.status, code


@EXACT
async def test_hosts(lane: str) -> None:
    async with instance(answering(ENGINE)) as engine, house(engine.port, server={"hosts": ("llm.example",)}) as gateway:
        for host in GOOD_HOSTS:
            assert (await gateway.ask(ask(host, lane=lane))).body == b"ok", host
        for host in BAD_HOSTS:
            assert said(await gateway.ask(ask(host, lane=lane))) == (403, b"host_not_allowed"), host
            line = await gateway.line(len(gateway.lines) - 1)
            assert (line["status"], line["outcome"]) == (403, "host_not_allowed")
        assert len(gateway.lines) == len(GOOD_HOSTS) + len(BAD_HOSTS), "each once"


async def test_a_page_that_was_made_to_point_here_reads_nothing_at_all() -> None:
    async with house() as gateway:
        for method, target in (("GET", "/health"), ("GET", "/v1/models"), ("GET", "/gateway/status"), ("POST", "/x")):
            reply = await gateway.ask(f"{method} {target} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
            assert said(reply) == (403, b"host_not_allowed")
            assert not reply.header("access-control-allow-origin")


@EXACT
async def test_pages_of_other_sites(lane: str) -> None:
    async with instance(answering(ENGINE)) as engine, house(engine.port, server=ALLOWED) as gateway:
        for origin in FOREIGN:
            reply = await gateway.ask(ask(b"localhost:8000", b"Origin: " + origin, lane=lane))
            assert said(reply) == (403, b"origin_not_allowed"), origin
            assert not reply.header("access-control-allow-origin"), origin
            assert (await gateway.line(len(gateway.lines) - 1))["outcome"] == "origin_not_allowed"
        for origin in OWN:
            reply = await gateway.ask(ask(b"localhost:8000", b"Origin: " + origin, lane=lane))
            assert (reply.body, reply.header("access-control-allow-origin")) == (b"ok", []), origin
        twice = await gateway.ask(ask(b"localhost:8000", b"Origin: " + OWN[0], b"Origin: http://evil", lane=lane))
        assert said(twice) == (403, b"origin_not_allowed")


@EXACT
@pytest.mark.parametrize("keys", [(), ("k",)], ids=["without keys", "with keys"])
@pytest.mark.parametrize(
    ("server", "origin", "told"),
    [
        (ALLOWED, b"https://chat.example", [b"https://chat.example"]),
        (ALLOWED, b"HTTPS://Chat.Example", [b"https://chat.example"]),
        ({"allowed_origins": ("*",)}, b"http://evil.example", [b"*"]),
        ({"allowed_origins": ("*",)}, b"null", [b"*"]),
    ],
)
async def test_every_reply_to_a_page_says_the_same(
    lane: str, keys: tuple[str, ...], server: dict[str, object], origin: bytes, told: list[bytes]
) -> None:
    key = b"X-Api-Key: k"
    headers = (b"Origin: " + origin, key)
    seen: list[Message] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.message())
            await peer.send(ENGINE)

    async with instance(script) as engine, house(engine.port, keys=keys, server=server) as gateway:
        good = ask(b"gateway", *headers, lane=lane)
        replies = [await gateway.ask(good), await gateway.ask(good.replace(BODY, b'{"modal":"m"}'))]
        replies.append(await gateway.ask(ask(b"gateway", *headers, lane=lane, target="/v1/models")))
        if keys:
            replies.append(await gateway.ask(ask(b"gateway", headers[0], lane=lane)))
        asks = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nOrigin: " + origin + b"\r\n"
        names = b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        replies.append(await gateway.ask(asks + names))
        assert [reply.status for reply in replies] == [200, 400, 405, *([401] if keys else []), 204]
        assert replies[-1].header("access-control-allow-headers") == [b"authorization"]
        for reply in replies:
            assert reply.header("access-control-allow-origin") == told
            assert reply.header("vary") == ([] if told == [b"*"] else [b"Origin"])
            assert not reply.header("access-control-allow-credentials")
        assert not seen[0].header("origin"), "an engine is not asked whose pages it serves"
        other = await gateway.ask(ask(b"gateway", *headers, lane=lane, target="/gateway/status"))
        assert not other.header("access-control-allow-origin"), "what is not for clients is for no page of another site"
        assert other.status == (404 if keys else 403)


@EXACT
async def test_with_keys_no_page_is_refused_and_none_can_read(lane: str) -> None:
    async with instance(answering(ENGINE)) as engine, house(engine.port, keys=["k"]) as gateway:
        reply = await gateway.ask(ask(b"evil.example", b"Origin: http://evil.example", b"X-Api-Key: k", lane=lane))
        assert (reply.body, reply.header("access-control-allow-origin")) == (b"ok", [])
        asks = (
            b"OPTIONS /v1/x HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        )
        assert said(await gateway.ask(asks)) == (403, b"origin_not_allowed")
        assert said(await gateway.ask(asks.replace(b"/v1/x", b"/gateway/status"))) == (401, b"invalid_api_key")


GOOD_KEYS = [
    *([b"Authorization: Bearer k"], [b"authorization: bearer k"], [b"AUTHORIZATION: BEARER   k "], [b"X-API-KEY: k"]),
    *([b"Authorization:", b"x-api-key: k"], [b"x-api-key: k", b"Authorization: Bearer x"], [b"x-api-key:  k\t"]),
    *([b"Authorization: Basic eDp5", b"x-api-key: k"], [b"Authorization: Bearer x", b"Authorization: Bearer k"]),
    [b"x-api-key: x", b"Authorization: Bearer k"],
]
BAD_KEYS = [
    *([], [b"Authorization:"], [b"Authorization: Bearer"], [b"Authorization: k"], [b"Authorization: Bearer K"]),
    *(
        [b"Authorization: Bearerk"],
        [b"Authorization: Basic k"],
        [b"Authorization: Bearer kk"],
        [b"Authorization: Bearer,k"],
    ),
    *(
        [b"x-api-key: Bearer k"],
        [b"x-api-key: "],
        [b"X-Api-Keys: k"],
        [b"Proxy-Authorization: Bearer k"],
        [b"Cookie: k"],
    ),
    *(
        [b"Cookie: k"],
        [b"Authorization: Bearer,k"],
        [b"Authorization: Bearer \xc3\xa9"],
        [b"Authorization: Bearer k\xc2\xa0"],
    ),
]


@EXACT
async def test_keys(lane: str) -> None:
    async with instance(answering(ENGINE)) as engine, house(engine.port, keys=["other", "k"]) as gateway:
        for given in GOOD_KEYS:
            assert (await gateway.ask(ask(b"x", *given, lane=lane))).body == b"ok", given
        for given in BAD_KEYS:
            assert said(await gateway.ask(ask(b"x", *given, lane=lane))) == (401, b"invalid_api_key"), given


@EXACT
async def test_who_comes_through_a_proxy_is_known_by_its_own_address(lane: str) -> None:
    """In the log, and when places are given out: each client has its turn."""
    served: list[bytes] = []
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            served.extend((await peer.message()).header("x-number"))
            await go_on.wait()
            await peer.send(ENGINE)

    def one(number: int, came_from: bytes) -> bytes:
        return ask(b"x", b"X-Forwarded-For: " + came_from, b"X-Number: %d" % number, lane=lane)

    trusted = {"trusted_proxies": ("127.0.0.0/8", "10.0.0.0/8")}
    async with instance(script) as engine, house(engine.port, server=trusted, max_in_flight=1) as gateway:
        clients: list[Peer] = []
        greedy = [b"1.1.1.1", b"9.9.9.9, 1.1.1.1", b"8.8.8.8,1.1.1.1", b"1.1.1.1, 10.0.0.9"]
        for number, came_from in enumerate([*greedy, b"2001:db8::1"]):
            client = await gateway.connect()
            await client.send(one(number, came_from))
            await until(lambda: len(served) + gateway.queues.waiting("m") == len(clients) + 1)
            clients.append(client)
        go_on.set()
        for client in clients:
            assert (await client.message()).body == b"ok"
        assert served == [b"0", b"1", b"4", b"2", b"3"]
        addresses = [(await gateway.line(index))["client"] for index in range(5)]
        assert addresses == ["1.1.1.1", "1.1.1.1", "2001:db8::1", "1.1.1.1", "1.1.1.1"]


@EXACT
async def test_who_is_no_trusted_proxy_speaks_for_nobody_but_itself(lane: str) -> None:
    async with instance(answering(ENGINE)) as engine, house(engine.port) as gateway:
        await gateway.ask(ask(b"x", b"X-Forwarded-For: 1.1.1.1", lane=lane))
        assert (await gateway.line())["client"] == "127.0.0.1"
