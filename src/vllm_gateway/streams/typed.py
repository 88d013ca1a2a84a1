# SPDX-License-Identifier: Apache-2.0
"""Streams whose events have types: Anthropic's messages and OpenAI's responses.

What is said in them is not kept, so none is continued once it has begun to say something. Engines send events before
that, when they have the request and no token yet. As long as the client has only these, another instance can begin
anew: what it repeats of them is left out, and the rest follows as if one instance had sent it all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from vllm_gateway.bodies.payload import Payload
from vllm_gateway.streams.asked import with_end
from vllm_gateway.streams.event_stream import EventStream
from vllm_gateway.streams.large import LARGE_EVENT_BYTES
from vllm_gateway.streams.sse import MAX_EVENT_BYTES, EventReader, data_of, event_of
from vllm_gateway.streams.steps import Ask, Finish, GiveUp, Step
from vllm_gateway.streams.tracker import is_one_chunk

_NAME = re.compile(rb"event: ?([a-z_.]{1,64})\n")
_STOP_REASON = re.compile(rb'"stop_reason"\s*+:\s*+("|null)')
_SERVER_ERROR = re.compile(rb'"code"\s*+:\s*+"server_error"')
_RESPONSE_ID = re.compile(rb'"response"\s*+:\s*+\{\s*+"id"\s*+:\s*+"([^"\\]{1,200})"')
_NUMBER = re.compile(rb'(?<!\\)"sequence_number"\s*+:\s*+([0-9]{1,18})')
_MOST_HELD = 16  # events; engines begin the first part of a reply with two
_MAX_SIZE_LINE = 10  # of a chunk with one event

_OF_CLIENTS = frozenset(
    {
        "invalid_request_error",
        "not_found_error",
        "permission_error",
        "request_too_large",
        "BadRequestError",
        "NotFoundError",
    }
)
"""Types of errors that another instance would find as well."""
_CODE_IN_WORDS = re.compile(r"'code': 4\d\d\b")
"""vLLM makes messages out of a chat's events. An error is none: its code stands in the complaint about that."""


@dataclass(frozen=True, slots=True)
class Types:
    """The types of one API's events, by what they are to us."""

    path: str
    greetings: frozenset[bytes]
    """Sent before there is anything of the reply."""
    openings: frozenset[bytes]
    """Open a part of the reply, of which something follows at once."""
    usual: tuple[bytes, ...]
    """How the events begin that come for nearly every token."""
    last: frozenset[bytes]
    end: bytes = b""
    """The last event, if it says nothing of its own."""


MESSAGES = Types(
    "/v1/messages",
    frozenset({b"message_start"}),
    frozenset({b"content_block_start"}),
    (b"event: content_block_delta\n",),
    frozenset({b"message_stop"}),
    event_of(b'{"type":"message_stop"}', "message_stop"),
)
RESPONSES = Types(
    "/v1/responses",
    frozenset({b"response.created", b"response.in_progress", b"response.queued"}),
    frozenset({b"response.output_item.added", b"response.content_part.added", b"response.reasoning_part.added"}),
    (b"event: response.output_text.delta\n", b"event: response.reasoning_text.delta\n"),
    frozenset({b"response.completed", b"response.incomplete", b"response.failed", b"response.cancelled"}),
)
TYPED = {types.path: types for types in (MESSAGES, RESPONSES)}


class Typed(EventStream):
    """One stream as the client sees it, from whichever instance its parts come; see `Tracker`."""

    __slots__ = (
        "_again",
        "_body",
        "_greeted",
        "_held",
        "_max_event_bytes",
        "_renamed",
        "_target",
        "_types",
        "is_finished",
        "number",
        "response_id",
        "tokens",
    )

    def __init__(
        self, types: Types, body: Payload, *, target: str = "", max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        """`target`: path and query, as the client asked."""
        super().__init__(max_event_bytes)
        self._types = types
        self._target = target or types.path
        self._body = body
        self._max_event_bytes = max_event_bytes
        self._greeted: set[bytes] = set()  # types of greetings that the client has
        self._held: list[bytes] = []  # of no use unless something follows them
        self._again = False  # this is not the instance that began
        self._renamed: tuple[bytes, bytes] | None = None  # its name for the response, and the client's
        self.is_finished = False
        self.number = 0
        self.tokens = 0  # an event is counted as one
        self.response_id: bytes | None = None

    @property
    def body(self) -> Payload:
        """An engine that begins anew is told the name that the client has heard already."""
        if self.response_id is None:
            return self._body
        return with_end(
            self._body, b',"request_id":' + orjson.dumps(self.response_id.decode("utf-8", "replace")) + b"}"
        )

    @property
    def begun(self) -> bool:
        return bool(self._greeted) or self.tokens > 0

    @property
    def is_between_events(self) -> bool:
        return not (self._reader.held or self._held or self.ended)

    def next_step(self) -> Step:
        """What becomes of it when its instance has failed."""
        if self.is_finished and self._types.end:
            return Finish(self._types.end)
        if self.tokens:
            return GiveUp("streams of this API are not continued once they have said something")
        self._again = True
        self._held = []
        self._renamed = None
        self._reader = EventReader(self._max_event_bytes)
        self.failed = None
        return Ask(self._target, self.body, self)

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        """As `feed`, for what is one chunk of HTTP with one event as nearly all are; None if it is not."""
        if not self.tokens or self._again:
            return None
        start = chunk.find(b"\n", 0, _MAX_SIZE_LINE) + 1
        end = len(chunk) - 2
        if (
            not chunk.startswith(self._types.usual, start)
            or chunk.find(b"\n\n", start) != end - 2
            or not is_one_chunk(chunk, start, end)
        ):
            return None
        self.tokens += 1
        self.number += 1
        return chunk

    def _event(self, event: bytes) -> bytes:
        if self.ended:
            return b""
        name = _name_of(event)
        types = self._types
        if name is None or name == b"ping":
            return event
        if name in types.greetings and not self.tokens:
            return self._greeting(name, event)
        if name == b"error":
            return self._error(event)
        if name == b"[DONE]":
            self.failed = "stream_incomplete"
            return b""
        if name in types.last:
            return self._last(name, event)
        reason = _STOP_REASON.search(event) if name == b"message_delta" else None
        has_none = reason is not None and reason[1] == b"null"  # how vLLM ends what it could not finish
        if has_none or (not self.tokens and name in types.openings):
            if len(self._held) < _MOST_HELD and len(event) < LARGE_EVENT_BYTES:
                self._held.append(event)
                return b""
        elif reason is not None:
            self.is_finished = True
        self.tokens += 1
        return self._with_held(event)

    def _with_held(self, event: bytes) -> bytes:
        held, self._held = self._held, []
        return b"".join([self._sent(one) for one in (*held, event)])

    def _greeting(self, name: bytes, event: bytes) -> bytes:
        found = _RESPONSE_ID.search(event, 0, LARGE_EVENT_BYTES)
        if found is not None and self.response_id is None:
            self.response_id = found[1]
        elif found is not None and found[1] != self.response_id:
            self._renamed = (b'"%b"' % found[1], b'"%b"' % (self.response_id or b""))
        if self._again and name in self._greeted:
            return b""
        self._greeted.add(name)
        return self._sent(event)

    def _last(self, name: bytes, event: bytes) -> bytes:
        if self._types.end and not self.is_finished:
            self.failed = "stream_incomplete"
            return b""
        if name == b"response.failed" and _SERVER_ERROR.search(event):
            self.failed = "engine_error"
            return b""
        self.is_finished = self.done = True
        return self._with_held(event)

    def _error(self, event: bytes) -> bytes:
        data = data_of(event) or b""
        try:
            said = orjson.loads(data) if len(data) <= LARGE_EVENT_BYTES else {}
            self.refused = _is_of_clients(said)
        except (ValueError, TypeError, AttributeError):
            self.refused = False  # not what an engine says to a client
        if not self.refused:
            self.failed = "engine_error"
            return b""
        self.is_finished = self.done = True
        return self._sent(event)

    def _sent(self, event: bytes) -> bytes:
        """As the client's stream has it: with its own name and number."""
        number = self.number
        self.number += 1
        if not self._again:
            return event
        if self._renamed is not None and b'"response"' in event:
            event = event.replace(*self._renamed)
        at = event.rfind(b'"sequence_number"')
        found = _NUMBER.match(event, at) if at >= 0 else None
        if found is None or int(found[1]) == number:
            return event
        return event[: found.start(1)] + b"%d" % number + event[found.end(1) :]


def _name_of(event: bytes) -> bytes | None:
    """The type of an event; None if it is a comment, or nobody knows."""
    found = _NAME.match(event)
    if found is not None:
        return found[1]
    data = data_of(event)
    if not data or data == b"[DONE]" or len(data) > LARGE_EVENT_BYTES:
        return data if data == b"[DONE]" else None
    try:
        said = orjson.loads(data)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    kind = said.get("type")
    if "error" in said and kind is None:
        return b"error"  # as engines put it into all streams
    return kind.encode() if isinstance(kind, str) else None


def _is_of_clients(said: Mapping[str, Any]) -> bool:
    """Whether an error tells of something that is wrong with the request. Raises what indexing raises."""
    error = said.get("error") or said
    code = error.get("code")
    if isinstance(code, int):
        return 400 <= code < 500
    return error.get("type") in _OF_CLIENTS or _CODE_IN_WORDS.search(str(error.get("message"))) is not None
