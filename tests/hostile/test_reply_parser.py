# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the relay's reading of replies, beside h11: what it passes on is what any strict reader would have read.

It may refuse more than h11 does. What it passes on must be one sound reply, the same whatever the reads' edges, and the
one that h11 reads in the engine's bytes, where h11 reads one at all.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile import replies
from vllm_gateway.relay.client import Client
from vllm_gateway.relay.exchange import TURN_BYTES, Exchange
from vllm_gateway.relay.types import Instructions, Limits
from vllm_gateway.relay.upstream import Connection

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
LIMITS = Limits(max_head_bytes=4096)


class Wire:
    """Both transports: keeps what is written to the client."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Asking:
    """A client that waits for the reply to a POST."""

    method = "POST"
    http_1_1 = True
    keep_alive = True
    writing_paused = False


class Upstream:
    """The connection to the instance."""

    def __init__(self) -> None:
        self.transport = Wire()
        self.clean: bool | None = None

    def release(self, *, clean: bool) -> None:
        self.clean = clean


@dataclass(frozen=True)
class Read:
    """How a reader took a reply."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Relayed:
    """What the relay made of it."""

    outcome: str
    """`whole`, or why not."""
    written: bytes
    reusable: bool


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def relay(reads: list[bytes], loop: asyncio.AbstractEventLoop) -> Relayed:
    """Of a reply that comes in these reads, after which the instance closes its connection."""
    upstream, client = Upstream(), Wire()
    exchange = Exchange(
        cast(Client, Asking()),
        cast(asyncio.Transport, client),
        Instructions(LIMITS),
        loop,
        cast(Connection, upstream),
    )
    for data in reads:
        if upstream.clean is None and data:
            exchange.received(data)
        while exchange._rest and upstream.clean is None:
            loop.run_until_complete(asyncio.sleep(0))
    if upstream.clean is None:
        exchange.lost(None)
    assert upstream.clean is not None, "it is over"
    if exchange.failure is not None:
        assert not client.written, "a failure is the gateway's to answer"
        return Relayed(exchange.failure.reason, b"", upstream.clean)
    return Relayed(exchange.broken or "whole", client.written, upstream.clean)


def read_by_h11(wire: bytes) -> Read | None:
    """None: it reads no whole reply there."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(wire)
    if wire:
        connection.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            event: Any = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Read(status, body)
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 404 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 304 x", b"HTTP/1.1 100 x"]
)
LINES = st.sampled_from(
    [
        b"Content-Length: 5",
        b"content-length:5",
        b"Content-Length: 11",
        b"Content-Length: 0",
        b"Content-Length: 5, 5",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: Chunked",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive, X-A",
        b"X-A: b",
        b"X-A:",
        b"X-A : b",
        b" folded",
        b"Location: http://127.0.0.1/",
        b"Set-Cookie: a",
        b"Content-Type: text/event-stream",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"hello world",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        b"%x\r\n%b\r\n0\r\n\r\n" % (2 * TURN_BYTES, b"x" * 2 * TURN_BYTES),
    ]
)
HURTS = st.tuples(
    st.integers(0, 400),
    st.sampled_from(["cut", "put", "double", "turn"]),
    st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b"0", b"f", b",", b"\xff", b"-", b"+"]),
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """A reply, perhaps after interim ones; perhaps hurt in a few places."""
    wire = b""
    for _ in range(draw(st.integers(1, 2))):
        lines = [draw(STATUS_LINES), *draw(st.lists(LINES, max_size=3))]
        wire += b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    wire += draw(BODIES)
    for place, how, what in draw(st.lists(HURTS, max_size=2)):
        at = place % (len(wire) + 1)
        if how == "cut":
            wire = wire[:at] + wire[at + 1 :]
        elif how == "put":
            wire = wire[:at] + what + wire[at:]
        elif how == "double":
            wire = wire[:at] + wire[at : at + 8] + wire[at:]
        else:
            wire = wire[:at] + what + wire[at + 1 :]
    return wire


def with_examples(test: Any) -> Any:
    for reply in replies.ALL.values():
        test = example(reply.wire[:100_000], [7, 30, 31])(test)
    return test


@with_examples
@given(wires(), st.lists(st.integers(0), max_size=6))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzz_of_replies(loop: asyncio.AbstractEventLoop, wire: bytes, cuts: list[int]) -> None:
    seen = relay(split(wire, cuts), loop)
    at_once = relay([wire], loop)
    if seen.outcome == "whole" or at_once.outcome == "whole":
        assert (seen.outcome, seen.written) == (at_once.outcome, at_once.written), "the reads' edges mean nothing"
    if seen.outcome != "whole":
        assert not seen.reusable
        return
    passed = read_by_h11(seen.written)
    assert passed is not None, "one sound reply"
    said = read_by_h11(wire)
    assert said is None or said == passed
    head = seen.written[: seen.written.index(b"\r\n\r\n")].lower()
    for line in (b"location: http", b"set-cookie:", b"keep-alive:", b"trailer:", b"connection: keep"):
        assert b"\n" + line not in head
    if b"\ntransfer-encoding: chunked" in head:
        sizes, _, rest = seen.written.partition(b"\r\n\r\n")[2].rpartition(b"0\r\n\r\n")
        assert not rest and b";" not in sizes.replace(passed.body, b"")
