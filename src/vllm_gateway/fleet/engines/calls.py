# SPDX-License-Identifier: Apache-2.0
"""The gateway's own calls to engines, over Unix sockets and ports alike; each has a connection of its own.

Engines are not trusted: whatever one sends, a call ends in its time, with an answer of bounded size or with CallFailed,
and the loop has turns for others meanwhile. Replies are read as strictly as those to clients, by the same code.
"""

import asyncio
from dataclasses import dataclass

from vllm_gateway.relay.framing import Chunked
from vllm_gateway.relay.heads import NO_HEADERS, ReplyHead, parse_reply_head, request_head
from vllm_gateway.relay.upstream import Pool
from vllm_gateway.routing import Address
from vllm_gateway.telemetry.shortage import is_shortage

MOST_BYTES = 1 << 20
"""Of a reply, framing included."""

_MOST_HEAD_BYTES = 64 << 10  # interim replies included
_TURN_BYTES = 16 << 10  # looked at before others have their turn
_MOST_WAITING_BYTES = 256 << 10  # then the engine is not read
_HEADERS = b"User-Agent: vllm-gateway\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n"


class CallFailed(Exception):
    """The engine gave no answer, or none that is taken."""


class NoAnswer(CallFailed):
    """It said nothing in time: it may yet."""


class CannotCall(CallFailed):
    """It is this process or its machine that lacks something."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


async def call(
    address: Address,
    path: str,
    *,
    limit_s: float,
    method: str = "GET",
    body: bytes = b"",
    content_type: str = "application/json",
    most_bytes: int = MOST_BYTES,
) -> Answer:
    """What the engine says, from where it stands: redirects are not followed. Raises CallFailed."""
    lines = _HEADERS + (f"Authorization: Bearer {address.key}\r\n".encode() if address.key else b"")
    lines += f"Content-Type: {content_type}\r\n".encode() if body else b""
    head = request_head(method, path, address, lines, own=NO_HEADERS, body_length=len(body))
    pool = Pool(asyncio.get_running_loop(), max_idle=0, max_idle_s=0.0)
    try:
        async with asyncio.timeout(limit_s):
            connection = await pool.open(address)
            coming = _Coming(connection.transport)
            connection.use(coming)
            try:
                connection.transport.write(head + body)
                return await _read(coming, method, most_bytes)
            finally:
                connection.release(clean=False)
    except TimeoutError:
        raise NoAnswer(f"no answer for {limit_s:g} s") from None
    except (OSError, ValueError) as error:  # BadHead and BadFraming are ValueErrors
        kind = CannotCall if is_shortage(error) else CallFailed
        raise kind(f"{type(error).__name__}: {error}") from None


class _Coming:
    """What comes over the connection, as much of it at a time as may be looked at in a turn of the loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self.taken = 0

    def received(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > _MOST_WAITING_BYTES:
            self._transport.pause_reading()
        self._news.set()

    def lost(self, error: Exception | None) -> None:
        self._ended, self._error = True, error
        self._news.set()

    async def some(self) -> bytes:
        """Empty when the engine has closed the connection. Raises OSError if it broke."""
        await asyncio.sleep(0)
        while not (self._waiting or self._ended):
            self._news.clear()
            await self._news.wait()
        data = bytes(self._waiting[:_TURN_BYTES])
        del self._waiting[:_TURN_BYTES]
        if not data and self._error is not None:
            raise ConnectionError(str(self._error))
        if not self._ended and len(self._waiting) <= _TURN_BYTES:
            self._transport.resume_reading()
        self.taken += len(data)
        return data


async def _read(coming: _Coming, method: str, most_bytes: int) -> Answer:
    """Raises CallFailed, OSError, BadHead and BadFraming."""
    head, data = await _read_head(coming)
    if head.is_compressed:
        raise CallFailed("its reply is compressed")
    framing = head.framing(method)
    body = bytearray()
    while not framing.done:
        parts: list[bytes] = []
        if isinstance(framing, Chunked):
            framing.feed(data, parts)
        else:
            parts.append(data[: framing.feed(data)])
        body += b"".join(parts)
        if coming.taken > most_bytes:
            raise CallFailed(f"its reply is over {most_bytes >> 20} MiB")
        if not framing.done:
            data = await coming.some()
            if not data:
                if framing.self_delimiting:
                    raise CallFailed("its reply is cut")
                break
    return Answer(head.status, bytes(body))


async def _read_head(coming: _Coming) -> tuple[ReplyHead, bytes]:
    """The head of the reply itself, after any interim ones, and what has come of its body."""
    data = b""
    while True:
        end = data.find(b"\r\n\r\n") + 4
        if end > 3:
            head = parse_reply_head(data[:end])
            data = data[end:]
            if head.status == 101:
                raise CallFailed("it switches to a protocol nobody asked for")
            if head.status >= 200:
                return head, data
        elif coming.taken > _MOST_HEAD_BYTES:
            raise CallFailed("the head of its reply is too long")
        else:
            more = await coming.some()
            if not more:
                raise CallFailed("it closed the connection")
            data += more
