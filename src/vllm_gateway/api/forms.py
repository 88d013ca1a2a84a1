# SPDX-License-Identifier: Apache-2.0
"""The forms in which clients expect errors: each API has its own, for whole replies and for the ends of streams."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from vllm_gateway.streams import event_of

_MESSAGES = "/v1/messages"
_RESPONSES = "/v1/responses"


class Form(enum.Enum):
    OPENAI = "OpenAI's"
    RESPONSES = "as OpenAI's, but for streams: their events have types and numbers"
    ANTHROPIC = "Anthropic's"


def form_of(path: str) -> Form:
    """What those expect who ask for this path, whether there is such a path or not."""
    if _is_of_messages(path):
        return Form.ANTHROPIC
    return Form.RESPONSES if path.rstrip("/") == _RESPONSES else Form.OPENAI


def _is_of_messages(path: str) -> bool:
    return path.startswith(_MESSAGES) and path[len(_MESSAGES) :][:1] in ("", "/")


@dataclass(frozen=True, slots=True)
class Said:
    """What there is to say, in the words of both."""

    code: str
    message: str
    openai_type: str
    anthropic_type: str
    param: str | None = None


def body_of(said: Said, form: Form, request_id: str) -> bytes:
    """Of a reply that is an error."""
    if form is Form.ANTHROPIC:
        return orjson.dumps(_anthropic(said, request_id))
    return orjson.dumps({"error": _openai(said)})


def last_event(said: Said, form: Form, request_id: str, number: int) -> bytes:
    """The same for a stream that has begun. `number`: of the events before it."""
    if form is Form.ANTHROPIC:
        return event_of(orjson.dumps(_anthropic(said, request_id)), "error")
    if form is Form.OPENAI:
        return event_of(orjson.dumps({"error": _openai(said)}))
    # The types of OpenAI's clients have the fields flat; what makes the clients raise it is the object beside them.
    flat = {"type": "error", "code": said.code, "message": said.message, "param": said.param}
    return event_of(orjson.dumps({**flat, "sequence_number": number, "error": _openai(said)}), "error")


def engines_event(body: Mapping[str, Any], form: Form) -> bytes:
    """An engine's own error, as the only event of a stream. Raises what indexing raises for an error of no form."""
    if form is Form.OPENAI:
        return event_of(orjson.dumps(body))
    error = body["error"]
    if form is Form.ANTHROPIC:
        return event_of(orjson.dumps({"type": "error", "error": error}), "error")
    flat = {"type": "error", "code": str(error.get("code")), "message": error["message"], "param": error.get("param")}
    return event_of(orjson.dumps({**flat, "sequence_number": 0, "error": error}), "error")


def id_headers(path: str, request_id: str) -> tuple[tuple[str, str], ...]:
    """What says the request's id: Anthropic's clients look for it under a name of their own."""
    if _is_of_messages(path):
        return (("X-Request-Id", request_id), ("request-id", request_id))
    return (("X-Request-Id", request_id),)


def _openai(said: Said) -> dict[str, object]:
    return {"message": said.message, "type": said.openai_type, "param": said.param, "code": said.code}


def _anthropic(said: Said, request_id: str) -> dict[str, object]:
    """The code stands twice: where OpenAI's errors have it, and where Anthropic's clients look for one."""
    error = {"type": said.anthropic_type, "message": said.message, "code": said.code}
    return {"type": "error", "error": {**error, "details": {"error_code": said.code}}, "request_id": request_id}
