# SPDX-License-Identifier: Apache-2.0
"""The events of a continued stream: what another instance says, in the form of the client's stream."""

from typing import Any

import orjson

from vllm_gateway.streams.asked import Kind
from vllm_gateway.streams.large import LARGE_EVENT_BYTES, without_prompt_ids
from vllm_gateway.streams.sse import LEAST_EVENT_BYTES, EventReader, EventTooLong, data_of, event_of
from vllm_gateway.streams.tracker import Tracker, is_failure, is_refusal


class Continued:
    """Follows the reply of the instance that goes on; its events get the head and the form of the client's stream."""

    def __init__(self, tracker: Tracker, kind: Kind) -> None:
        self._tracker = tracker
        self._kind = kind
        self._before = tracker.tokens
        self._reader = EventReader(tracker.max_event_bytes)

    @property
    def done(self) -> bool:
        return self._tracker.done

    @property
    def failed(self) -> str | None:
        return self._tracker.failed

    @property
    def is_between_events(self) -> bool:
        return False  # what is not taken as a whole need not be told

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        return None

    def feed(self, payload: bytes) -> bytes:
        try:
            return b"".join([self._event(event) for event in self._reader.feed(payload)])
        except EventTooLong:
            self._tracker.failed = "event_too_long"
            return b""

    def _event(self, event: bytes) -> bytes:
        tracker = self._tracker
        if tracker.ended:
            return b""
        if len(event) > LARGE_EVENT_BYTES:
            event, prompt_ids = without_prompt_ids(event)
            if len(event) > LARGE_EVENT_BYTES:
                tracker.failed = "event_too_long"
                return b""
            if not self._before:
                tracker.prompt_ids = tracker.prompt_ids or prompt_ids
        data = data_of(event) if len(event) >= LEAST_EVENT_BYTES else None
        if data is None:
            return event
        if data == b"[DONE]":
            return tracker.end(event)
        try:
            chunk = orjson.loads(data)
            if not is_failure(chunk):
                return self._chunk(chunk, event)
            if is_refusal(chunk):
                tracker.failed = "refused"
                return b""
        except (ValueError, LookupError, TypeError, AttributeError):
            pass  # not what an engine sends
        tracker.failed = "engine_error"
        return b""

    def _chunk(self, chunk: dict[str, Any], event: bytes) -> bytes:
        """Raises what indexing raises for a chunk of another form."""
        tracker = self._tracker
        if not self._before:
            tracker.take_prompt_ids(event)
        more = {"system_fingerprint": chunk["system_fingerprint"]} if "system_fingerprint" in chunk else {}
        choices = chunk["choices"]
        if not choices:
            tracker.usage_sent = True
            usage = chunk["usage"]
            said = self._before + usage["completion_tokens"]
            asked = tracker.prompt_tokens or usage["prompt_tokens"] - self._before
            return _usage_event(tracker, {**usage, **_counts(asked, said)}, **more)
        (choice,) = choices
        if self._kind is Kind.CHAT:
            delta = choice["delta"]
            text = delta.get("content") or ""
            tracker.look_for_obstacles(delta, choice)
        else:
            text = choice["text"]
        ids = choice.get("token_ids")
        reason = choice["finish_reason"]
        if not (text or ids or reason):
            return b""  # it tells the role, which the client knows
        tracker.say(text, ids)
        if reason is not None:
            tracker.finished += 1
        return piece(tracker, text, ids, reason, stop_reason=choice.get("stop_reason"), **more)


def piece(
    tracker: Tracker,
    text: str,
    ids: list[int] | None,
    reason: str | None,
    *,
    stop_reason: int | str | None = None,
    **more: str,
) -> bytes:
    """A part of the reply, or its end, as an event of the client's stream."""
    asked = tracker.asked
    choice: dict[str, Any]
    if asked.kind is Kind.CHAT:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": reason}
        if reason is not None:
            choice["stop_reason"] = stop_reason
    else:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": stop_reason}
        choice["prompt_token_ids"] = None
    choice["token_ids"] = ids if asked.token_ids else None
    chunk = {**tracker.head, "choices": [choice], **more}
    if asked.continuous_usage:
        chunk["usage"] = {**_counts(tracker.prompt_tokens or 0, tracker.tokens), "completion_tokens_details": None}
    return event_of(orjson.dumps(chunk))


def totals(tracker: Tracker) -> bytes:
    """The event with the usage, if the client asked for it and has not got it."""
    prompt = tracker.prompt_tokens
    if not tracker.asked.include_usage or tracker.usage_sent or tracker.refused or prompt is None:
        return b""
    return _usage_event(tracker, _counts(prompt, tracker.tokens))


def _usage_event(tracker: Tracker, usage: dict[str, Any], **more: str) -> bytes:
    return event_of(orjson.dumps({**tracker.head, "choices": [], "usage": usage, **more}))


def _counts(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
