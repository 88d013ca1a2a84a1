# SPDX-License-Identifier: Apache-2.0
"""The replies of /v1/chat/completions and /v1/completions: fields and events in the order in which vLLM writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Protocol

from vllm_gateway.simulator.api_errors import stream_error_event
from vllm_gateway.simulator.engine import Generation
from vllm_gateway.simulator.validation import Wish

FINGERPRINT = "vllm-0.32.0-simulated"
DONE = b"data: [DONE]\n\n"

_TEXT_MARK = "\x00text\x00"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ReplyShape(Protocol):
    """How one API words a generation. `opening` comes with the first token, `closing` after the last one."""

    opens_early: bool
    """Its opening comes before the first token."""

    def opening(self, generation: Generation) -> bytes: ...

    def tokens(self, generation: Generation, new: list[int]) -> bytes: ...

    def closing(self, generation: Generation) -> bytes: ...

    def unfinished(self) -> bytes:
        """An end without a reason."""

    def failure(self, message: str) -> bytes | None:
        """None: the connection ends, and nothing is said."""

    def whole(self, generation: Generation) -> dict[str, Any]: ...


def to_json(value: Any) -> bytes:
    return _encode(value).encode("utf-8", "replace")


def event(value: Any, name: str | None = None) -> bytes:
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + to_json(value) + b"\n\n"


class OpenAiShape:
    """What chat and text completions have in common."""

    streamed_object = ""
    whole_object = ""
    opens_early = False

    def __init__(self, wish: Wish, *, reply_id: str, model: str, prompt_details: bool) -> None:
        self._wish = wish
        self._id = reply_id
        self._model = model
        self._prompt_details = prompt_details
        self._created = int(time.time())
        # Most events differ in their text alone: the rest is written once. 200 streams feel the difference.
        self._plain = wish.choices == 1 and not wish.continuous_usage and not wish.return_token_ids
        self._around_text: list[bytes] = []

    def tokens(self, generation: Generation, new: list[int]) -> bytes:
        first = len(generation.tokens) == len(new)
        text = self._wish.text(new, from_start=first)
        if not self._plain or generation.finish_reason is not None:
            return b"".join(self._chunks(generation, text, new, first=first))
        if not self._around_text:
            (sample,) = self._chunks(generation, _TEXT_MARK, new, first=first)
            self._around_text = sample.split(to_json(_TEXT_MARK))
        before, after = self._around_text
        return before + to_json(text) + after

    def _chunks(self, generation: Generation, text: str, new: list[int], *, first: bool) -> Iterator[bytes]:
        """One event for each choice."""
        raise NotImplementedError

    def closing(self, generation: Generation) -> bytes:
        if not self._wish.include_usage:
            return DONE
        last = {**self._head(self.streamed_object), "choices": [], "usage": self._usage(generation)}
        return event({**last, "system_fingerprint": FINGERPRINT}) + DONE

    def unfinished(self) -> bytes:
        return DONE

    def failure(self, message: str) -> bytes | None:
        return stream_error_event(message) + DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self, generation: Generation) -> dict[str, Any]:
        prompt, completion = len(generation.prompt), len(generation.tokens) * self._wish.choices
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _whole_usage(self, generation: Generation) -> dict[str, Any]:
        details = None
        if self._prompt_details:
            cached = generation.cached_tokens
            details = {"cached_tokens": cached, "created_cache_tokens": len(generation.prompt) - cached,
                       "multimodal_tokens": None}  # fmt: skip
        return {**self._usage(generation), "prompt_tokens_details": details, "completion_tokens_details": None}

    def _finish(self, chunk: dict[str, Any], generation: Generation) -> dict[str, Any]:
        """What is added to each chunk: running usage if asked for, and the fingerprint on the last one."""
        if self._wish.continuous_usage:
            chunk["usage"] = {**self._usage(generation), "completion_tokens_details": None}
        if generation.finish_reason is not None and not self._wish.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return chunk

    def _ids(self, ids: list[int]) -> list[int] | None:
        return list(ids) if self._wish.return_token_ids else None


class ChatShape(OpenAiShape):
    streamed_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def opening(self, generation: Generation) -> bytes:
        usage: dict[str, Any] = {}
        if self._wish.continuous_usage:
            counts = {**self._usage(generation), "completion_tokens": 0, "total_tokens": len(generation.prompt)}
            usage = {"usage": {**counts, "completion_tokens_details": None}}
        events = b""
        for index in range(self._wish.choices):
            delta = {"role": self._wish.role, "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            prompt = {"prompt_token_ids": self._ids(list(generation.prompt)), "prompt_text": None}
            events += event({**self._head(self.streamed_object), "choices": [choice], **usage, **prompt})
        return events

    def _chunks(self, generation: Generation, text: str, new: list[int], *, first: bool) -> Iterator[bytes]:
        reason = generation.finish_reason
        stop = {} if reason is None else {"stop_reason": None}
        for index in range(self._wish.choices):
            choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": reason, **stop,
                      "token_ids": self._ids(new)}  # fmt: skip
            chunk = {**self._head(self.streamed_object), "choices": [choice]}
            yield event(self._finish(chunk, generation))

    def whole(self, generation: Generation) -> dict[str, Any]:
        message = {"role": self._wish.role, "content": self._wish.text(generation.tokens), "refusal": None,
                   "annotations": None, "audio": None, "function_call": None, "reasoning": None}  # fmt: skip
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": generation.finish_reason,
             "stop_reason": None, "token_ids": self._ids(generation.tokens), "routed_experts": None}
            for index in range(self._wish.choices)
        ]  # fmt: skip
        return {
            **self._head(self.whole_object),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._whole_usage(generation),
            "prompt_logprobs": None,
            "prompt_token_ids": self._ids(list(generation.prompt)),
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }


class CompletionShape(OpenAiShape):
    streamed_object = whole_object = "text_completion"

    def opening(self, generation: Generation) -> bytes:
        return b""

    def _chunks(self, generation: Generation, text: str, new: list[int], *, first: bool) -> Iterator[bytes]:
        for index in range(self._wish.choices):
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": generation.finish_reason,
                      "stop_reason": None, "prompt_token_ids": self._ids(list(generation.prompt)) if first else None,
                      "token_ids": self._ids(new)}  # fmt: skip
            chunk = {**self._head(self.streamed_object), "choices": [choice]}
            yield event(self._finish(chunk, generation))

    def _finish(self, chunk: dict[str, Any], generation: Generation) -> dict[str, Any]:
        if self._wish.continuous_usage:
            chunk["usage"] = {**self._usage(generation), "completion_tokens_details": None}
        return chunk

    def whole(self, generation: Generation) -> dict[str, Any]:
        choices = [
            {"index": index, "text": self._wish.text(generation.tokens, from_start=True), "logprobs": None,
             "finish_reason": generation.finish_reason, "stop_reason": None,
             "token_ids": self._ids(generation.tokens), "prompt_logprobs": None,
             "prompt_token_ids": self._ids(list(generation.prompt)), "routed_experts": None}
            for index in range(self._wish.choices)
        ]  # fmt: skip
        return {
            **self._head(self.whole_object),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._whole_usage(generation),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
