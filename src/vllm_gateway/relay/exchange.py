# SPDX-License-Identifier: Apache-2.0
"""One request on one connection, and its reply's way to the client: the states, in the order in which bytes flow.

Runs in the read callback of the instance's connection, where a long read is taken apart in turns of the loop. The
handler's task sleeps meanwhile and is woken for two things only: the exchange is over, or the client reads too slowly
and has to be waited for.
"""

import asyncio
import enum
import sys

from vllm_gateway.bodies.payload import Payload
from vllm_gateway.relay.client import Client, ClientStalled, drain
from vllm_gateway.relay.framing import BadFraming, Chunked, Framing
from vllm_gateway.relay.heads import BadHead, ReplyHead, parse_reply_head, reply_head
from vllm_gateway.relay.types import Carried, Instructions, UpstreamFailed
from vllm_gateway.relay.upstream import Connection
from vllm_gateway.relay.withheld import Withheld
from vllm_gateway.routing import Address

SMALL_BODY_BYTES = 16 * 1024
"""Up to here a copy is cheaper than a second buffer on the wire."""

TURN_BYTES = 16 * 1024
"""What is taken apart in one turn of the loop. A read may bring much more, in parts of a few bytes each."""


class Phase(enum.Enum):
    """Where the exchange is."""

    HEAD = "waiting for the reply's head; nothing has reached the client"
    BODY = "passing the body on"
    OVER = "ended, well or not"


_HEAD, _BODY, _OVER = Phase  # looked up at each read: as attributes of the class they cost ten times as much


class Exchange:
    """Carries one request over one connection. Made for one use; the connection is given back or closed at its end."""

    __slots__ = (
        "_began",
        "_client",
        "_client_transport",
        "_connection",
        "_framing",
        "_heard",
        "_held",
        "_instructions",
        "_interim_bytes",
        "_loop",
        "_paused",
        "_quiet_until",
        "_rest",
        "_reusable",
        "_sent_at",
        "_unframe",
        "_waits_for_body",
        "_wake",
        "_withheld",
        "broken",
        "bytes_sent",
        "failure",
        "first_byte_s",
        "keeps_client",
        "phase",
        "stale",
        "status",
    )

    def __init__(
        self,
        client: Client,
        client_transport: asyncio.Transport,
        instructions: Instructions,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
    ) -> None:
        self._client = client
        self._client_transport = client_transport
        self._connection = connection
        self._instructions = instructions
        self._loop = loop

        self.phase = _HEAD
        self.failure: UpstreamFailed | None = None  # ended in HEAD
        self.stale = False  # ... with not a byte received
        self.status = 0
        self.first_byte_s = 0.0
        self.bytes_sent = 0
        self.broken: str | None = None  # ended in BODY, before the body did
        self.keeps_client = False  # the client's connection can take another request

        self._began = instructions.began  # until it is called
        self._held = b""  # of a head that is not complete
        self._interim_bytes = 0
        self._rest = b""  # of a read that is taken apart in turns
        self._waits_for_body = True
        self._withheld: Withheld | None = None
        self._framing: Framing
        self._unframe = False
        self._reusable = False
        self._paused = False
        self._heard = False
        self._sent_at = 0.0
        self._quiet_until: float | None = None
        self._wake: asyncio.Future[None] = loop.create_future()

    @property
    def address(self) -> Address:
        return self._connection.address

    @property
    def owns_client(self) -> bool:
        """Whether nobody else has anything to say to the client."""
        return True

    @property
    def self_delimiting(self) -> bool:
        """Whether the client can tell a cut reply from a complete one by its framing alone."""
        return self._framing.self_delimiting and not self._unframe

    @property
    def carried(self) -> Carried:
        return Carried(
            self.status,
            self.bytes_sent,
            self.first_byte_s,
            self.broken is None,
            self.broken,
            self.keeps_client,
            self.self_delimiting,
        )

    # --- The request goes out

    def send(self, head: bytes, body: Payload) -> None:
        upstream = self._connection.transport
        self._connection.use(self)
        if isinstance(body, tuple):
            upstream.writelines((head, *body))
        elif len(body) <= SMALL_BODY_BYTES:
            upstream.write(head + body)
        else:
            upstream.writelines((head, body))
        self._sent_at = self._loop.time()
        first_byte_s = self._instructions.limits.first_byte_s
        if first_byte_s is not None:
            self._quiet_until = self._sent_at + first_byte_s

    async def reply(self) -> None:
        """Returns when the reply is with the client, whole or cut. Raises UpstreamFailed if it never began."""
        while True:
            await self._wake
            if self.phase is not _OVER:
                await self._wait_for_client()
            if self.phase is _OVER:
                break
        if self.failure is not None:
            raise self.failure

    # --- The reply comes in

    def received(self, data: bytes) -> None:
        self._heard = True
        if len(data) > TURN_BYTES and len(data) > self._turn_bytes():
            self._rest = data
            self._connection.transport.pause_reading()
            self._next_turn()
        elif self.phase is _BODY:
            self._pass_on(data)
        else:
            self._take(data)

    def _turn_bytes(self) -> int:
        """How much to take in this turn: what is passed on as it is makes no work, however long."""
        if self.phase is not _BODY:
            return TURN_BYTES
        framing = self._framing
        return max(TURN_BYTES, framing.left) if isinstance(framing, Chunked) else sys.maxsize

    def _next_turn(self) -> None:
        if self.phase is _OVER:
            return
        self._heard = True
        end = self._turn_bytes()
        data, self._rest = self._rest[:end], self._rest[end:]
        if not self._rest:
            self._connection.transport.resume_reading()
        self._take(data)
        if self._rest and not self._paused:
            self._loop.call_soon(self._next_turn)

    def _take(self, data: bytes) -> None:
        if self.phase is _BODY:
            self._pass_on(data)
        elif self._withheld is None:
            self._take_head(data)
        else:
            self._weigh(self._withheld, data)

    def _take_head(self, data: bytes) -> None:
        instructions = self._instructions
        while True:
            searched = 0
            if self._held:
                searched = max(0, len(self._held) - 3)
                data, self._held = self._held + data, b""
            end = data.find(b"\r\n\r\n", searched) + 4
            if end <= 3:
                self._hold_head(data, searched)
                return
            if end > instructions.limits.max_head_bytes:
                self._fail("bad_reply", retryable=True, detail="head over the limit")
                return
            try:
                head = parse_reply_head(data[:end])
            except BadHead as error:
                self._fail("bad_reply", retryable=True, detail=str(error))
                return
            data = data[end:]
            if head.status >= 300 and head.is_redirect:
                self._fail("redirected", retryable=False, detail=f"status {head.status}")
                return
            if head.status >= 500 and instructions.has_given_up is not None:
                self._withheld = Withheld(head, head.framing(self._client.method), instructions.has_given_up)
                self._weigh(self._withheld, data)
                return
            if head.status >= 200:
                self._begin(head, data)
                return
            if head.status == 101:
                self._fail("bad_reply", retryable=True, detail="switches to a protocol nobody asked for")
                return
            self._interim_bytes += end  # an interim reply: for us alone
            if self._interim_bytes > instructions.limits.max_head_bytes:
                self._fail("bad_reply", retryable=True, detail="too many interim replies")
                return
            if not data:
                return

    def _hold_head(self, data: bytes, searched: int) -> None:
        """Keeps a head that is not complete; refuses one that can no longer become a good one."""
        self._held = data
        if len(data) > self._instructions.limits.max_head_bytes:
            self._fail("bad_reply", retryable=True, detail="head over the limit")
        elif data.count(b"\n", searched) != data.count(b"\r\n", max(0, searched - 1)):
            self._fail("bad_reply", retryable=True, detail="line ends without a carriage return")

    def _weigh(self, withheld: Withheld, data: bytes) -> None:
        """Keeps a reply back until it can be told whether it is for the client."""
        try:
            if withheld.feed(data):
                self._judge(withheld)
        except BadFraming:
            self._fail("bad_reply", retryable=True, detail="malformed chunk")

    def _judge(self, withheld: Withheld) -> None:
        self._withheld = None
        if withheld.has_given_up():
            detail = f"{withheld.head.status} {withheld.body[:200].decode(errors='replace')}"
            self._fail("given_up", retryable=True, detail=detail)
        else:
            self._begin(withheld.head, withheld.body)

    def _begin(self, head: ReplyHead, body: bytes) -> None:
        client = self._client
        http_1_1 = client.http_1_1
        framing = self._framing = head.framing(client.method)
        chunked = isinstance(framing, Chunked)
        self._unframe = chunked and not http_1_1
        self._reusable = head.keep_alive and framing.self_delimiting
        self.keeps_client = client.keep_alive and self.self_delimiting
        self._start_body(head, body)
        persistence = (b"" if http_1_1 else b"keep-alive") if self.keeps_client else b"close"
        out = reply_head(head, own=self._instructions.own, chunked=chunked and http_1_1, connection=persistence)
        self._pass_on(body, out)

    def _start_body(self, head: ReplyHead, body: bytes) -> None:
        self.phase = _BODY
        self.status = head.status
        if head.status >= 400:
            self._began = None
        self.first_byte_s = self._loop.time() - self._sent_at
        self._heard = bool(body)  # engines send a stream's head before they have read the prompt

    def _pass_on(self, data: bytes, head: bytes = b"") -> None:
        """Writes what has been read to the client; the reply's head goes out in one write with what follows it."""
        framing = self._framing
        out = data
        try:
            if not self._unframe:
                used = framing.feed(data)
            else:
                out, used = self._unframed(data)
        except BadFraming:
            if head:
                self._fail("bad_reply", retryable=True, detail="malformed chunk")
            else:
                self._end("bad_reply")
            return
        surplus = used != len(data)
        if framing.instead is not None and not self._unframe:
            out = framing.instead
        elif surplus and not self._unframe:
            out = data[:used]
        if head:
            out = head + out

        transport = self._client_transport
        if transport.is_closing():
            self._end("client_gone")
            return
        if out:
            transport.write(out)
            self.bytes_sent += len(out)
            if self._began is not None and data:
                self._tell_began()
            if self._instructions.watch is not None:
                self._instructions.watch(data)
        if framing.done:
            self._reusable = self._reusable and not surplus
            self._end(None)
        elif self._client.writing_paused and not self._paused:
            self._pause()

    def _unframed(self, data: bytes) -> tuple[bytes, int]:
        """What has been read, free of framing, and how much of the read that was. Raises BadFraming."""
        framing = self._framing
        if isinstance(framing, Chunked):
            parts: list[bytes] = []
            used = framing.feed(data, parts)
            return parts[0] if len(parts) == 1 else b"".join(parts), used
        used = framing.feed(data)
        return data[:used], used

    def _tell_began(self) -> None:
        began, self._began = self._began, None
        if began is not None:
            began()

    # --- The client is slow

    def _pause(self) -> None:
        self._paused = True
        self._connection.transport.pause_reading()
        if not self._wake.done():
            self._wake.set_result(None)

    async def _wait_for_client(self) -> None:
        try:
            await drain(self._client, self._client_transport, self._instructions.limits.client_stall_s)
        except ClientStalled:
            self._end("client_stalled")
            return
        if self.phase is _OVER:
            return
        if self._client_transport.is_closing():
            self._end("client_gone")
            return
        self._wake = self._loop.create_future()
        self._heard = True  # the time in which we did not read does not count against the instance
        self._paused = False
        if self._rest:
            self._next_turn()
        else:
            self._connection.transport.resume_reading()

    # --- The ends

    def lost(self, error: Exception | None) -> None:
        """The instance closed the connection, or it broke."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._take(rest)
        if self._withheld is not None and error is None and self._withheld.ends_with_connection:
            self._judge(self._withheld)
        if self.phase is _HEAD:
            self.stale = not self._heard
            self._fail("closed" if error is None else "reset", retryable=True, detail=str(error or ""))
        elif self.phase is _BODY and error is None and not self._framing.self_delimiting:
            self._end(None)
        elif self.phase is _BODY:
            self._end("upstream_closed" if error is None else "upstream_reset")

    def cut(self, reason: str) -> None:
        """Ends it from our side, wherever it is: the instance's connection is closed at once."""
        if self.phase is _HEAD:
            self._fail(reason, retryable=reason in ("first_byte_timeout", "instance_silent", "instance_hung"))
        elif self.phase is _BODY:
            self._end(reason)

    def abandon(self, reason: str, *, begun: bool) -> None:
        """Ends it if another instance can begin the reply anew, or, if it has `begun`, can go on with it."""
        waits = self._waits_for_body and not (self._heard or self._instructions.only_here)
        if (begun or waits) and (self.phase is _HEAD or not self.owns_client):
            self.cut(reason)

    def check_time(self, now: float) -> bool:
        """Called by the sweep. Whether more of the reply's body has come since."""
        deadline = self._instructions.deadline
        if self._client_transport.is_closing():
            self.cut("client_gone")
        elif deadline is not None and now >= deadline:
            self.cut("request_timeout")
        elif self._paused:
            return False
        elif self._heard and self.phase is _BODY:
            self._heard = self._waits_for_body = False
            idle_s = self._instructions.limits.idle_s
            self._quiet_until = None if idle_s is None else now + idle_s
            return True
        elif self._quiet_until is not None and now >= self._quiet_until:
            self.cut("first_byte_timeout" if self._waits_for_body else "idle_timeout")
        return False

    def _fail(self, reason: str, *, retryable: bool, detail: str = "") -> None:
        if self._client_transport.is_closing():
            reason, retryable = "client_gone", False
        self.failure = UpstreamFailed(reason, retryable=retryable, detail=detail)
        self._over(clean=False)

    def _end(self, broken: str | None) -> None:
        if broken is not None and broken != "client_stalled" and self._client_transport.is_closing():
            broken = "client_gone"  # whatever else was seen: nobody was there for the rest
        self.broken = broken
        if broken is not None:
            self.keeps_client = False
        self._over(clean=broken is None and self._reusable)

    def _over(self, *, clean: bool) -> None:
        self.phase = _OVER
        self._connection.release(clean=clean and not self._rest)
        if not self._wake.done():
            self._wake.set_result(None)
