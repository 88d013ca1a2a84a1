# SPDX-License-Identifier: Apache-2.0
"""Follows a stream on its way to the client: what has been said, how it ended, and what another instance must know.

Nearly every event of an engine is a plain one, which is read in one match; all others are parsed. Where nothing has to
be known for a continuation, because there will be none, it is enough to see that the reply goes on.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from vllm_gateway.bodies.payload import Payload
from vllm_gateway.streams.asked import Asked, Kind, Resume, with_token_ids
from vllm_gateway.streams.event_stream import EventStream
from vllm_gateway.streams.large import LARGE_EVENT_BYTES, glance, without_prompt_ids
from vllm_gateway.streams.plain import PLAIN
from vllm_gateway.streams.sse import LEAST_EVENT_BYTES, MAX_EVENT_BYTES, EventReader, data_of

# A quote that no backslash precedes opens or closes a text; one before `token_ids":` can only open a name.
_IDS = re.compile(rb'(?<!\\)"(token_ids|prompt_token_ids)"(\s*+:\s*+)\[([\s\d,]*+)\]')
_HIDDEN = rb'"\1"\2null'
_PROMPT_IDS = re.compile(rb'(?<!\\)"prompt_token_ids"\s*+:\s*+(\[[\s\d,]+\])')

_MAX_SIZE_LINE = 10  # of a chunk with one event

_UNFINISHED = frozenset({"abort", "error"})
"""With these vLLM ends a request that it could not finish."""

_MOST_CHOICES = 1000
_MOST_STRANGE = 100  # events that nobody can read, until nobody tries any more

MAX_KEPT_BYTES = 16 << 20
"""Of what has been said: more tokens than any context holds."""


def is_failure(chunk: Mapping[str, Any]) -> bool:
    """Whether an event says that the engine failed. Raises what indexing raises for a chunk of another form."""
    choices = chunk.get("choices") or ()
    if len(choices) > _MOST_CHOICES:
        raise ValueError("more choices than anybody asks for")
    return bool(chunk.get("error")) or any(one.get("finish_reason") in _UNFINISHED for one in choices)


def is_refusal(chunk: Mapping[str, Any]) -> bool:
    """Whether an error in a stream is the engine's answer to a request that cannot be served, by anybody."""
    error = chunk.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return isinstance(code, int) and 400 <= code < 500


class Tracker(EventStream):
    """One stream as the client sees it, from whichever instance its parts come.

    `feed` takes what an instance sent and returns what goes to the client. It holds back what would end the stream
    without a result: an error, and an end without a finish reason. `failed` then says what it was.
    """

    __slots__ = (
        "_before",
        "_hide_ids",
        "_kept",
        "_kind",
        "_plain",
        "_rest",
        "_strange",
        "asked",
        "finished",
        "head",
        "ids",
        "ids_complete",
        "max_event_bytes",
        "obstacle",
        "pieces",
        "prompt_ids",
        "resume",
        "shown",
        "texts",
        "usage_sent",
    )

    def __init__(self, asked: Asked, resume: Resume, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__(max_event_bytes)
        self.asked = asked
        self.resume = resume
        self.max_event_bytes = max_event_bytes
        self.head: dict[str, Any] = {}  # id, object, created and model of the client's stream
        self.obstacle = asked.obstacle_to(resume)  # why another instance cannot go on
        self.prompt_ids: bytes | None = None  # a JSON list
        self.ids = bytearray()  # ids of the reply so far, with commas before each
        self.shown = 0  # how much of `ids` stands in texts that the client has
        self.ids_complete = True
        self.texts: list[bytes] | None = (
            [] if resume is Resume.BEST_EFFORT else None
        )  # of the reply so far, as in JSON, without quotes
        self._kept = 0  # bytes of them
        self.pieces = 0  # events with a part of the reply
        self.finished = 0  # choices with a finish reason
        self.usage_sent = False
        self._hide_ids = self.obstacle is None and not asked.token_ids
        self._kind = asked.kind
        self._before: bytes | None = None  # what plain events begin with, once one has been seen
        self._plain = PLAIN[asked.kind]
        self._rest = self._plain.rest.match
        self._strange = 0  # events of a strange form

    @property
    def body(self) -> Payload:
        """What to ask an instance that begins."""
        return with_token_ids(self.asked.body) if self._hide_ids else self.asked.body

    @property
    def begun(self) -> bool:
        """Whether the client has seen an event."""
        return bool(self.head)

    @property
    def is_between_events(self) -> bool:
        """Whether another event may follow, and nothing of it has come."""
        return not (self._reader.held or self.ended)

    @property
    def tokens(self) -> int:
        """Tokens of the reply so far; where their ids are not all known, a token for each event."""
        return self.ids.count(b",") if self.ids_complete else self.pieces

    @property
    def number(self) -> int:
        return 0  # none is numbered

    @property
    def prompt_tokens(self) -> int | None:
        return None if self.prompt_ids is None else self.prompt_ids.count(b",") + 1

    @property
    def is_finished(self) -> bool:
        """Whether the reply is whole, even if the events after it are missing."""
        return self.refused or self.finished >= self.asked.choices

    def begin_again(self) -> None:
        """Another instance goes on.

        From whole characters: the ids of half of one show nothing, and an engine whose prompt ends in them repeats it.
        """
        self.failed = None
        if self.shown < len(self.ids) and self.asked.token_ids:
            self.obstacle = self.obstacle or "half of a character"
        del self.ids[self.shown :]
        self._reader = EventReader(self.max_event_bytes)

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        """As `feed`, for what is one chunk of HTTP with one event that reads easily; the chunk that goes to the client.

        None if it is not: then nothing has happened. Only for a stream that `is_between_events`.
        """
        start = chunk.find(b"\n", 0, _MAX_SIZE_LINE) + 1
        before = self._before
        if before is not None and chunk.startswith(before, start):
            rest = self._rest(chunk, start + len(before))
            if rest is not None and is_one_chunk(chunk, start, rest.end()):
                self._say_plain(rest)
                if not self._hide_ids:
                    return chunk
                event = chunk[start : rest.end(1)] + self._plain.hidden_rest
                return b"%x\r\n%b\r\n" % (len(event), event)
        end = len(chunk) - 2
        if (
            self.obstacle is None
            or not self._is_mere_text(chunk, start, end)
            or not is_one_chunk(chunk, start, end)
            or (self._hide_ids and _IDS.search(chunk) is not None)
        ):
            return None
        self.pieces += 1
        return chunk

    def _is_mere_text(self, data: bytes, start: int, end: int) -> bool:
        """Whether it is one event of a reply that goes on: enough of a stream that cannot be continued."""
        return (
            data.startswith(b'data: {"', start)
            and b'"error"' not in data
            and data.find(b"\n", start) == end - 2
            and data.startswith(b"\n\n", end - 2)
            and b'"finish_reason":null' in data
            and b'"finish_reason":"' not in data
            and self.begun
        )

    def _say_plain(self, rest: re.Match[bytes]) -> None:
        self.ids += b"," + rest[2]
        if rest[1]:
            self.shown = len(self.ids)
        self.pieces += 1
        if self.texts is not None:
            self.texts.append(rest[1])
            self._kept += len(rest[1])
        if len(self.ids) + self._kept > MAX_KEPT_BYTES:
            self._forget()

    def _forget(self) -> None:
        """Of a reply without end not all can be kept."""
        self.obstacle = self.obstacle or "the reply is too long"
        self.ids_complete = False
        self.ids = bytearray()
        self.shown = self._kept = 0
        self.texts = self._before = None

    def _event(self, event: bytes) -> bytes:
        if self.ended:
            return b""
        before = self._before
        if before is not None and event.startswith(before):
            rest = self._rest(event, len(before))
            if rest is not None and rest.end() == len(event):
                self._say_plain(rest)
                return event[: rest.end(1)] + self._plain.hidden_rest if self._hide_ids else event
        if self.obstacle is not None and self._is_mere_text(event, 0, len(event)):
            self.pieces += 1
            return self._shown(event)
        if len(event) > LARGE_EVENT_BYTES:
            return self._large(event)
        return self._parsed(event)

    def _large(self, event: bytes) -> bytes:
        less, prompt_ids = without_prompt_ids(event)
        self.prompt_ids = self.prompt_ids or prompt_ids
        if len(less) <= LARGE_EVENT_BYTES:
            shown = self._parsed(less)
            return shown if self._hide_ids or not shown else event
        seen = glance(less)
        if seen is None or (seen.has_ids and self._hide_ids):
            self.failed = "event_too_long"
        elif seen.failed:
            self.failed = "engine_error"
        else:
            self.obstacle = self.obstacle or "an event that is too long"
            self.head = self.head or {"id": None}
            self.ids_complete = False
            self.finished += seen.finished
            self.pieces += 1
            return less if self._hide_ids else event
        return b""

    def _parsed(self, event: bytes) -> bytes:
        data = data_of(event) if len(event) >= LEAST_EVENT_BYTES else None
        if data is None:
            return event
        if data == b"[DONE]":
            return self.end(event)
        if self._strange > _MOST_STRANGE:
            return self._shown(event)
        try:
            self._chunk(orjson.loads(data), event)
        except (ValueError, LookupError, TypeError, AttributeError):
            self._strange += 1
            self.obstacle = self.obstacle or "an event of a strange form"
        return b"" if self.failed is not None else self._shown(event)

    def end(self, event: bytes) -> bytes:
        """The instance says that the stream is over."""
        if not self.is_finished:
            self.failed = "stream_incomplete"
            return b""
        self.done = True
        return event

    def _chunk(self, chunk: Mapping[str, Any], event: bytes) -> None:
        if is_failure(chunk):
            if is_refusal(chunk):
                self.refused = True
                self.head = self.head or {"id": None}
            else:
                self.failed = "engine_error"
            return
        if not self.head:
            self.head = {name: chunk.get(name) for name in ("id", "object", "created", "model")}
        self.take_prompt_ids(event)
        choices = chunk.get("choices") or []
        for choice in choices:
            self._choice(choice)
        if not choices and chunk.get("usage"):
            self.usage_sent = True
        if self._before is None and self.asked.choices == 1:
            self._before = self._plain.begin_of(event)

    def take_prompt_ids(self, event: bytes) -> None:
        if (
            self.prompt_ids is None
            and b"prompt_token_ids" in event
            and (found := _PROMPT_IDS.search(event)) is not None
        ):
            self.prompt_ids = found[1]

    def _choice(self, choice: Mapping[str, Any]) -> None:
        if choice.get("finish_reason") is not None:
            self.finished += 1
        delta = choice.get("delta") or {}
        self.look_for_obstacles(delta, choice)
        text = delta.get("content") if self._kind is Kind.CHAT else choice.get("text")
        self.say(text or "", choice.get("token_ids"))

    def look_for_obstacles(self, delta: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """A part of the reply that is not plain text stands for tokens which only the engine's parsers know."""
        other = next((name for name, value in delta.items() if value and name not in ("role", "content")), None)
        if choice.get("logprobs") is not None:
            other = "logprobs"
        if other is not None and self.obstacle is None:
            self.obstacle = other

    def say(self, text: str, ids: list[int] | None) -> None:
        """Counts a part of the reply that the client gets."""
        if ids:
            self.ids += b"".join([b",%d" % one for one in ids])
        elif text:
            self.ids_complete = False
            if self.resume is Resume.EXACT:
                self.obstacle = self.obstacle or "the engine gave no token ids"
                self._hide_ids = False
        if text:
            self.shown = len(self.ids)
        if text and self.texts is not None:
            self.texts.append(orjson.dumps(text)[1:-1])
            self._kept += len(self.texts[-1])
        if ids or text:
            self.pieces += 1
        if len(self.ids) + self._kept > MAX_KEPT_BYTES:
            self._forget()

    def _shown(self, event: bytes) -> bytes:
        return _IDS.sub(_HIDDEN, event) if self._hide_ids else event


def is_one_chunk(data: bytes, start: int, end: int) -> bool:
    """Whether that from `start` to `end` is all there is in it, framed as engines do."""
    return data[:start] == b"%x\r\n" % (end - start) and data[end:] == b"\r\n"
