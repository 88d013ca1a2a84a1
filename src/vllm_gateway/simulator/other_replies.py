# SPDX-License-Identifier: Apache-2.0
"""The replies of Anthropic's /v1/messages and OpenAI's /v1/responses: fields and events in vLLM's order."""

from __future__ import annotations

import time
from typing import Any

from vllm_gateway.simulator.engine import Generation
from vllm_gateway.simulator.replies import event
from vllm_gateway.simulator.tokenizer import decode
from vllm_gateway.simulator.validation import Body

_ANTHROPIC_REASONS = {"length": "max_tokens", "stop": "end_turn"}


def _no_chunk(message: str) -> str:
    """vLLM makes messages out of the events of a chat, and takes an error there for an event of the wrong form."""
    given = f"{{'error': {{'message': '{message[:2]}...am': None, 'code': 500}}}}"
    complaint = f"  Field required [type=missing, input_value={given}, input_type=dict]\n"
    more = "    For further information visit https://errors.pydantic.dev/2.14/v/missing"
    fields = "\n".join(f"{name}\n{complaint}{more}" for name in ("model", "choices"))
    return f"2 validation errors for ChatCompletionStreamResponse\n{fields}"


class MessagesShape:
    opens_early = False

    def __init__(self, *, reply_id: str, model: str) -> None:
        self._id = reply_id
        self._model = model
        self._has_block = False

    def opening(self, generation: Generation) -> bytes:
        message = {**self._head(), "content": [], "model": self._model, "stop_reason": None, "stop_sequence": None,
                   "usage": {"input_tokens": len(generation.prompt), "output_tokens": 0}}  # fmt: skip
        return event({"type": "message_start", "message": message}, "message_start")

    def tokens(self, generation: Generation, new: list[int]) -> bytes:
        if not new:
            return b""
        delta = {"type": "text_delta", "text": decode(new)}
        return self._block() + event({"type": "content_block_delta", "delta": delta, "index": 0}, "content_block_delta")

    def _block(self) -> bytes:
        """Its begin, once."""
        if self._has_block:
            return b""
        self._has_block = True
        block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
        return event(block, "content_block_start")

    def closing(self, generation: Generation) -> bytes:
        delta = {"stop_reason": _ANTHROPIC_REASONS.get(generation.finish_reason or ""), "stop_sequence": None}
        return (
            event({"type": "content_block_stop", "index": 0}, "content_block_stop")
            + event({"type": "message_delta", "delta": delta, "usage": self._usage(generation)}, "message_delta")
            + event({"type": "message_stop"}, "message_stop")
        )

    def unfinished(self) -> bytes:
        return event({"type": "message_stop"}, "message_stop")

    def failure(self, message: str) -> bytes | None:
        error = {"type": "internal_error", "message": _no_chunk(message)}
        return event({"type": "error", "error": error}, "error")

    def whole(self, generation: Generation) -> dict[str, Any]:
        return {
            **self._head(),
            "content": [{"type": "text", "text": decode(generation.tokens)}],
            "model": self._model,
            "stop_reason": _ANTHROPIC_REASONS.get(generation.finish_reason or ""),
            "usage": self._usage(generation),
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant"}

    def _usage(self, generation: Generation) -> dict[str, int]:
        return {"input_tokens": len(generation.prompt), "output_tokens": len(generation.tokens)}


class ResponsesShape:
    opens_early = True

    def __init__(self, body: Body, *, reply_id: str, item_id: str, model: str) -> None:
        self._body = body
        self._id = reply_id
        self._item_id = item_id
        self._model = model
        self._created = int(time.time())
        self._sent = 0
        self._has_item = False

    def opening(self, generation: Generation) -> bytes:
        response = self._response(None)
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def _item_begins(self) -> bytes:
        """Once."""
        if self._has_item:
            return b""
        self._has_item = True
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return self._event(
            "response.output_item.added", {"item": self._item("in_progress"), "output_index": 0}
        ) + self._event(
            "response.content_part.added",
            {"content_index": 0, "item_id": self._item_id, "output_index": 0, "part": part},
        )

    def tokens(self, generation: Generation, new: list[int]) -> bytes:
        if not new:
            return b""
        delta = {"content_index": 0, "delta": decode(new), "item_id": self._item_id, "logprobs": [], "output_index": 0}
        return self._item_begins() + self._event("response.output_text.delta", delta)

    def closing(self, generation: Generation) -> bytes:
        text = decode(generation.tokens)
        place = {"content_index": 0, "item_id": self._item_id}
        return (
            self._event(
                "response.output_text.done",
                {**place, "logprobs": [], "output_index": 0},
                after={"text": text},
            )
            + self._event("response.content_part.done", {**place, "output_index": 0, "part": self._part(text)})
            + self._event("response.output_item.done", {"item": self._item("completed", text), "output_index": 0})
            + self._event("response.completed", {"response": self._response(generation)})
        )

    def unfinished(self) -> bytes:
        return b""

    def failure(self, message: str) -> bytes | None:
        """vLLM finds no event for it, and fails at that."""
        return None

    def whole(self, generation: Generation) -> dict[str, Any]:
        return self._response(generation)

    def _event(self, name: str, fields: dict[str, Any], after: dict[str, Any] | None = None) -> bytes:
        numbered = {**fields, "sequence_number": self._sent, **(after or {}), "type": name}
        self._sent += 1
        return event(numbered, name)

    def _part(self, text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}

    def _item(self, status: str, text: str | None = None) -> dict[str, Any]:
        content = [] if text is None else [self._part(text)]
        return {"id": self._item_id, "content": content, "role": "assistant", "status": status, "type": "message",
                "phase": None}  # fmt: skip

    def _response(self, generation: Generation | None) -> dict[str, Any]:
        """The response object; before the end (no generation) it is in progress and empty."""
        cut = generation is not None and generation.finish_reason == "length"
        status = "in_progress" if generation is None else "incomplete" if cut else "completed"
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self._body.get("instructions"),
            "metadata": self._body.get("metadata"),
            "model": self._model,
            "object": "response",
            "output": [] if generation is None else [self._item("completed", decode(generation.tokens))],
            "parallel_tool_calls": True,
            "temperature": self._body.get("temperature", 1.0),
            "tool_choice": "none",
            "tools": [],
            "top_p": self._body.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": self._body.get("max_output_tokens"),
            "max_tool_calls": None,
            "previous_response_id": self._body.get("previous_response_id"),
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": None if generation is None else self._usage(generation),
            "user": self._body.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _usage(self, generation: Generation) -> dict[str, Any]:
        prompt, output = len(generation.prompt), len(generation.tokens)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": generation.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": output,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + output,
        }
