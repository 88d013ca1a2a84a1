# SPDX-License-Identifier: Apache-2.0
"""One connection in the fast lane: reads plain requests one after the other and has each answered before the next.

head -> (admitted?) -> body -> answer -> head ...          whatever is not plain: to aiohttp, for good
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from vllm_gateway.api.begun_head import END, BegunHead, Blanks, Fate, too_large, too_slow, unreadable
from vllm_gateway.api.buffers import Pace
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.guests import MAX_AHEAD_BYTES
from vllm_gateway.api.journal import Progress, request_id_of
from vllm_gateway.api.receiving import body_time_s, body_timeout
from vllm_gateway.api.request_head import RequestHead, parse_request_head
from vllm_gateway.bodies.payload import Body

if TYPE_CHECKING:
    from vllm_gateway.api.front_door import FrontDoor

_FIRST_LOOK = 16 * 1024
"""A plain head is there in one read, and smaller than this."""


class Visitor(asyncio.Protocol):
    """A client's connection, and for the relay the `Client` of the request at hand."""

    __slots__ = (
        "_begun",
        "_blanks",
        "_body",
        "_caller",
        "_door",
        "_drained",
        "_head",
        "_heard_at",
        "_is_last",
        "_length",
        "_missing",
        "_peer",
        "_progress",
        "_task",
        "ahead",
        "pace",
        "reads_no_more",
        "transport",
        "writing_paused",
    )

    method = "POST"
    http_1_1 = True
    transport: asyncio.Transport

    def __init__(self, door: "FrontDoor") -> None:
        self._door = door
        self._task: asyncio.Task[None] | None = None  # answers the request at hand
        self._head: RequestHead | None = None  # of the request at hand
        self._progress: Progress | None = None
        self._caller = ""
        self._body = bytearray()  # as far as it has come
        self.pace: Pace | None = None  # of what is here of a head, of a body that is not whole, or of `ahead`
        self._length = 0  # of it, once it is whole
        self._missing = 0  # bytes of it that have not come yet
        self.ahead = bytearray()  # what has come of the next requests
        self._is_last = False  # the request at hand: there was no room for what has come of the next ones
        self._begun: BegunHead | None = None  # of the next request, while none is at hand
        self._blanks: Blanks | None = None
        self._heard_at = 0.0
        self.reads_no_more = False  # for the requests ahead are more than are kept
        self._peer = ""
        self._drained: asyncio.Future[None] | None = None
        self.writing_paused = False

    # --- What the relay asks

    @property
    def target(self) -> str:
        assert self._head is not None
        return self._head.target

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        assert self._head is not None
        return self._head.raw_headers

    @property
    def content_type(self) -> str:
        assert self._head is not None
        return self._head.content_type

    def header_lines(self, dropped: frozenset[bytes]) -> bytes:
        assert self._head is not None
        return self._head.lines(dropped)

    @property
    def keep_alive(self) -> bool:
        assert self._head is not None
        return self._head.keep_alive and not (self._door.closing or self._door.leaving or self._is_last)

    async def drain(self) -> None:
        if self.writing_paused and not self.transport.is_closing():
            self._drained = self._door.loop.create_future()
            await self._drained

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._heard_at = self._door.loop.time()
        self._door.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            self._put_aside(data)
        elif self._missing:
            self._take_body(data)
        else:
            self._take_head(data)

    def _put_aside(self, data: bytes) -> None:
        """It is of the next requests."""
        if self._is_last:
            return
        self.ahead += data
        if len(self.ahead) > MAX_AHEAD_BYTES and not self.reads_no_more:
            self.reads_no_more = True
            self.transport.pause_reading()
        self._door.buffers.keep(self, len(self.ahead))

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.buffers.keep(self, 0)
        self._wake()
        if self._task is not None:
            self._task.cancel()  # the client left: whatever is done for it ends at once
        else:
            self._give_up()
            self._door.leave(self)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- A request comes in

    def _take_head(self, data: bytes) -> None:
        end = -1 if self._begun is not None else data.find(END, 0, _FIRST_LOOK)
        if end < 0:
            self._take_part_of_head(data)
            return
        parsed = parse_request_head(data[:end])
        if parsed is None:
            self._hand_over(data)
            return
        head, length = parsed
        admitted = self._door.admit(head, length, self._peer)
        if admitted is None:
            self._hand_over(data)
            return
        now = self._door.loop.time()
        self._head = head
        self._caller, client, cors = admitted
        self._progress = Progress(request_id_of(head.request_id), "POST", head.path, now, client, cors)
        begins, ends = end + 4, end + 4 + length
        if len(data) >= ends:
            self._answer(data[begins:ends], came_whole=True)
            if len(data) > ends:
                self._put_aside(data[ends:])
        else:
            self._heard_at = now
            self._length, self._missing = length, length
            self.pace = Pace(now)
            if len(data) > begins:
                self._take_body(data[begins:])

    def _take_part_of_head(self, data: bytes) -> None:
        """Of a head that comes in several reads, or is large: then aiohttp's parser reads it."""
        bounds = self._door.bounds
        if self._begun is None:
            data, blanks = data.lstrip(b"\r\n"), data  # what some clients send after a body
            if not data:
                self._blanks = self._blanks or Blanks()
                if self._blanks.are_too_many(len(blanks), self._heard_at):
                    self._refuse(unreadable("line ends and no head"), b"")
                return
            self._begun = BegunHead(bounds.head_bytes, self._door.loop.time())
        fate = self._begun.add(data)
        if fate is Fate.MORE:
            self._door.buffers.keep(self, self._begun.size)
            return
        seen, self._begun = self._begun.data, None
        self._door.buffers.keep(self, 0)
        if fate is Fate.TOO_LARGE:
            self._refuse(too_large(bounds.head_bytes), seen)
        elif fate is Fate.NO_HEAD:
            self._refuse(unreadable(), seen)
        elif seen.find(END, 0, _FIRST_LOOK) >= 0:
            self._take_head(seen)
        else:
            self._hand_over(seen)

    def _take_body(self, data: bytes) -> None:
        ahead = data[self._missing :]
        if ahead:
            data = data[: self._missing]
        self._body += data
        self._missing -= len(data)
        self._heard_at = self._door.loop.time()
        self._door.buffers.came(self, len(data))
        if self.pace is None:
            return  # there was no room, and it is this one that is refused
        if not self._missing:
            body, self._body = self._body, bytearray()
            self._door.buffers.whole(self)
            self.pace = None
            self._answer(body)
            if ahead:
                self._put_aside(ahead)

    def _hand_over(self, data: bytes) -> None:
        """Nothing of this connection is in work, and nothing of it is unsent."""
        self._door.buffers.keep(self, 0)
        self._door.leave(self)
        if self.reads_no_more:
            self.reads_no_more = False
            self.transport.resume_reading()
        protocol = self._door.aiohttp_protocol()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    # --- And is answered

    def _answer(self, body: Body, *, came_whole: bool = False) -> None:
        """`came_whole`: with its head, and is not counted yet."""
        assert self._progress is not None
        self._task = self._door.loop.create_task(self._serve(body, self._progress, came_whole=came_whole))

    async def _serve(self, body: Body, progress: Progress, *, came_whole: bool) -> None:
        door = self._door
        keep = False
        try:
            if came_whole:
                door.buffers.take(len(body))
            carried = await door.inference.serve(self, body, self._caller, progress)
            if self.writing_paused or carried.broken is not None:
                await door.inference.settle(self, carried)
            keep = carried.keeps_client
        except asyncio.CancelledError:
            progress.outcome = "client_gone"
            raise
        except Exception as error:
            keep = self._failed(error, progress)
        finally:
            door.buffers.give(len(body))
            door.journal.finished(progress)
            self._over(keep)

    def _failed(self, error: Exception, progress: Progress) -> bool:
        """Whether the connection can take another request."""
        failed = self._door.journal.failed(error, progress)
        if failed is None:
            return False
        if progress.bytes_out:
            self.transport.abort()  # nothing can be said after a reply that has begun
            return False
        keep = self.keep_alive
        self.transport.write(failed.reply(progress, keep_alive=keep))
        return keep

    def _over(self, keep: bool) -> None:
        self._task = self._head = self._progress = None
        if self.transport.is_closing():
            self._door.leave(self)
        elif keep and not self._is_last:
            self._next()
        elif self.ahead or self._is_last:
            self._say_farewell()
        else:
            self._close()

    def _next(self) -> None:
        self._heard_at = self._door.loop.time()
        if self.ahead:
            data = bytes(self.ahead)
            self.ahead.clear()
            self._door.buffers.keep(self, 0)
            self._take_head(data)
        elif self._door.closing:
            self._close()
        if self.reads_no_more and len(self.ahead) <= MAX_AHEAD_BYTES:
            self.reads_no_more = False
            self.transport.resume_reading()

    # --- The ends

    @property
    def idle_since(self) -> float | None:
        return None if self._task or self._missing or self._begun else self._heard_at

    def check_time(self, now: float) -> None:
        if self._task is not None:
            return
        bounds = self._door.bounds
        quiet_s = now - self._heard_at
        if self.transport.is_closing():
            if quiet_s > bounds.stall_s:
                self.transport.abort()
        elif self._missing:
            if quiet_s > bounds.stall_s or self._body_takes_too_long(now):
                self._refuse_body(body_timeout())
        elif self._begun is not None:
            if now - self._begun.since > bounds.head_s:
                self._refuse(too_slow(bounds.head_s), self._begun.data)
        elif quiet_s > bounds.idle_s:
            self._close()

    def _body_takes_too_long(self, now: float) -> bool:
        assert self._progress is not None
        received = self._length - self._missing
        return now - self._progress.began > body_time_s(received, self._length, self._door.bounds)

    def close_if_idle(self) -> None:
        if self.idle_since is not None:
            self._close()

    def _close(self) -> None:
        """Once all is sent that has been written; the sweep sees to it that this ends."""
        self._heard_at = self._door.loop.time()
        self.transport.close()

    def abort(self) -> None:
        """Ends it now, whatever it does."""
        self.transport.abort()

    def _refuse(self, error: ApiError, seen: bytes) -> None:
        """A head that is none, or for which there is no room or no time."""
        self._door.buffers.keep(self, 0)
        self._door.leave(self)
        self._door.refuse(self.transport, error, seen)

    def make_way(self, error: ApiError) -> None:
        """Of what is on its way: a head, the body of the request at hand, or what comes after that."""
        if self._begun is not None:
            self._refuse(error, self._begun.data)
        elif self._task is None:
            self._refuse_body(error)
        else:  # the client finds its connection closed before they are answered, and asks again
            self._is_last = True
            self.ahead.clear()

    def _refuse_body(self, error: ApiError) -> None:
        assert self._progress is not None
        self._progress.outcome, self._progress.status = error.code, error.status
        self.transport.write(error.reply(self._progress, keep_alive=False))
        self._give_up()
        self._say_farewell()

    def _say_farewell(self) -> None:
        """The last reply has been written, and more may come than it answers."""
        self._door.buffers.keep(self, 0)
        self._door.leave(self)
        self._door.say_farewell(self.transport)

    def _give_up(self) -> None:
        """The body of the request at hand will not be whole."""
        self._body = bytearray()
        self._missing = 0
        self._door.buffers.left(self)
        if self._progress is not None:
            if self._progress.outcome == "ok":
                self._progress.outcome = "client_gone"
            self._door.journal.finished(self._progress)
            self._progress = None
