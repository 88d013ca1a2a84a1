# SPDX-License-Identifier: Apache-2.0
"""How a stream goes on after its instance failed: it is complete, another instance is asked, or it cannot go on."""

import re

import msgspec
import orjson

from vllm_gateway.streams.asked import CARRIED_OVER, Fields, Kind, Resume, fields_of
from vllm_gateway.streams.continued import Continued, piece, totals
from vllm_gateway.streams.sse import DONE
from vllm_gateway.streams.steps import Ask, Finish, GiveUp, Step, Told
from vllm_gateway.streams.tracker import Tracker
from vllm_gateway.streams.typed import Typed

COMPLETION_DEFAULT_MAX_TOKENS = 16
"""The engine's, where a request for a completion names no limit."""


_PART = re.compile(rb'(?<!\\)"type"\s*+:\s*+"(\w+)"')


def next_step(told: Told) -> Step:
    """What becomes of a stream whose instance failed."""
    if isinstance(told, Typed):
        return told.next_step()
    assert isinstance(told, Tracker)
    return _next_step(told)


def _next_step(tracker: Tracker) -> Step:
    asked = tracker.asked
    if tracker.is_finished:
        return Finish(totals(tracker) + DONE)
    tracker.begin_again()
    if not tracker.begun:
        return Ask(asked.kind.value, tracker.body, tracker)
    if tracker.obstacle is not None:
        return GiveUp(tracker.obstacle)
    if not tracker.pieces:
        return Ask(asked.kind.value, tracker.body, Continued(tracker, asked.kind))
    fields = fields_of(asked)
    obstacle = asked.obstacle_for_ids or _obstacle_in(fields)
    if obstacle is None and not (tracker.ids_complete and tracker.prompt_ids is not None):
        obstacle = "the engine gave no token ids"
    if obstacle is None:
        return _by_ids(tracker, fields)
    return GiveUp(obstacle) if tracker.resume is Resume.EXACT else _by_text(tracker, fields)


def _obstacle_in(fields: Fields) -> str | None:
    """A part of the prompt that its token ids only stand for. Looked for when it matters: prompts are long."""
    kinds = _PART.finditer(memoryview(fields.get("messages", b"[]")))
    other = next((found[1] for found in kinds if found[1] != b"text"), None)
    return None if other is None else f"{other.decode()} in messages"


def _by_ids(tracker: Tracker, fields: Fields) -> Finish | Ask:
    """The prompt and what was generated, as ids, are the new prompt."""
    asked = tracker.asked
    assert tracker.prompt_ids is not None
    limit = _limit(asked.kind, fields)
    if limit is not None and limit <= tracker.tokens:
        return Finish(_length_reached(tracker))
    body = {name: value for name, value in fields.items() if name in CARRIED_OVER}
    body["prompt"] = msgspec.Raw(tracker.prompt_ids.rstrip()[:-1] + tracker.ids + b"]")
    body["max_tokens"] = _raw(None if limit is None else limit - tracker.tokens)
    body["return_token_ids"] = _raw(True)
    _carry_on(body, tracker, fields)
    return Ask(Kind.COMPLETION.value, msgspec.json.encode(body), Continued(tracker, Kind.COMPLETION), "ids")


def _by_text(tracker: Tracker, fields: Fields) -> Finish | Ask | GiveUp:
    """What was sent stands at the end of the new prompt, as text: it may fall into other tokens."""
    asked = tracker.asked
    assert tracker.texts is not None
    said = b"".join(tracker.texts)
    body = dict(fields)
    limit = _limit(asked.kind, fields)
    if limit is not None and limit <= tracker.tokens:
        return Finish(_length_reached(tracker))
    body.pop("max_completion_tokens", None)
    body["max_tokens"] = _raw(None if limit is None else limit - tracker.tokens)
    if asked.kind is Kind.CHAT:
        messages = bytes(fields["messages"]).rstrip()[:-1]
        if bytes(fields.get("continue_final_message", b"null")) == b"true":
            return GiveUp("continue_final_message")
        message = b'{"role":"assistant","content":"' + said + b'"}'
        body["messages"] = msgspec.Raw(messages + b"," + message + b"]")
        body["continue_final_message"] = _raw(True)
        body["add_generation_prompt"] = _raw(False)
    else:
        prompt = bytes(fields.get("prompt", b"null")).strip()
        if not prompt.startswith(b'"'):
            return GiveUp("a prompt that is no text")
        body["prompt"] = msgspec.Raw(prompt[:-1] + said + b'"')
    body["return_token_ids"] = _raw(True)
    _carry_on(body, tracker, fields)
    return Ask(asked.kind.value, msgspec.json.encode(body), Continued(tracker, asked.kind), "text")


def _length_reached(tracker: Tracker) -> bytes:
    return piece(tracker, "", None, "length") + totals(tracker) + DONE


def _carry_on(body: dict[str, msgspec.Raw], tracker: Tracker, fields: Fields) -> None:
    """What a continuation has in common, however it begins."""
    body["stream"] = _raw(True)
    if "stream_options" in fields:
        body["stream_options"] = fields["stream_options"]
    at_least = msgspec.json.decode(fields.get("min_tokens", b"null"), type=int | None)
    if at_least:
        body["min_tokens"] = _raw(max(0, at_least - tracker.tokens))


def _limit(kind: Kind, fields: Fields) -> int | None:
    """The most tokens that the client wants; None if the context alone is the limit."""
    names = ("max_completion_tokens", "max_tokens") if kind is Kind.CHAT else ("max_tokens",)
    for name in names:
        limit = msgspec.json.decode(fields.get(name, b"null"), type=int | None)
        if limit is not None:
            return limit
    if kind is Kind.COMPLETION and "max_tokens" not in fields:
        return COMPLETION_DEFAULT_MAX_TOKENS
    return None


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(orjson.dumps(value))
