# SPDX-License-Identifier: Apache-2.0
"""Requests of all kinds, and what came back for each: the parts of a reply that a promise can be about."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.gateway import CHAT
from tests.waiting import LIMIT_S

COMPLETIONS = "/v1/completions"
TOKENS = 60
_MESSAGES = [{"role": "user", "content": "Tell me about reliability."}]


@dataclass(frozen=True, slots=True)
class Kind:
    path: str
    body: Mapping[str, Any]

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
KINDS = {
    "chat": Kind(CHAT, {"messages": _MESSAGES}),
    "chat stream": Kind(CHAT, {"messages": _MESSAGES, **_USAGE}),
    "completion": Kind(COMPLETIONS, {"prompt": "Reliability is"}),
    "completion stream": Kind(COMPLETIONS, {"prompt": "Reliability is", **_USAGE}),
}
STREAMS = tuple(name for name, kind in KINDS.items() if kind.stream)
TWO_CHOICES = "completion stream of two choices"
"""Cannot be continued."""
SENSELESS = ("chat that makes no sense", "chat stream that makes no sense")
"""Engines answer with status 400."""
_COLD = {"messages": _MESSAGES, "temperature": -1}
_MORE_KINDS = {
    TWO_CHOICES: Kind(COMPLETIONS, {"prompt": "Reliability is", "n": 2, "stream": True}),
    SENSELESS[0]: Kind(CHAT, _COLD),
    SENSELESS[1]: Kind(CHAT, {**_COLD, "stream": True}),
}


@dataclass(slots=True)
class Said:
    """What the client was told so far. `cut`: how the connection ended before the reply did."""

    status: int | None = None
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    error: Mapping[str, Any] | None = None
    done: bool = False
    cut: str | None = None
    instance: str | None = None
    retry_after_s: float = 0.0

    @property
    def answer(self) -> tuple[object, ...]:
        """What must be the same whichever instances gave it."""
        usage = self.usage or {}
        counts = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
        return self.status, self.text, self.finish_reason, counts, self.error, self.done, self.cut

    def hear(self, chunk: Mapping[str, Any]) -> None:
        """One event of a stream, or a whole reply."""
        if error := chunk.get("error"):
            self.error = error if isinstance(error, dict) else {"message": error}
        if usage := chunk.get("usage"):
            self.usage = usage
        for choice in chunk.get("choices", ()):
            words = choice.get("delta") or choice.get("message") or {}
            text = choice.get("text") or words.get("content") or ""
            self.text += text
            self.tokens += bool(text) and not choice["index"]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


class Request:
    """One request under way; `said` grows while its reply comes."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        model: str,
        kind: str,
        *,
        tokens: int = TOKENS,
        headers: Mapping[str, str] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """`pause_s`: after each event of a stream, of a client that reads slowly."""
        self.kind = kind
        self.said = Said()
        self._heard = asyncio.Event()
        self._pause_s = pause_s
        self._headers = headers or {}
        asked = (KINDS | _MORE_KINDS)[kind]
        body = {"model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **asked.body}
        self.task = asyncio.create_task(self._run(http, asked, body))

    async def until(self, tokens: int) -> None:
        """Waits until so many were said; a reply that ends before that is a failure."""
        async with asyncio.timeout(LIMIT_S):
            while self.said.tokens < tokens:
                assert not self.task.done(), f"{self.kind} ended: {self.said}"
                self._heard.clear()
                await self._heard.wait()

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def _run(self, http: aiohttp.ClientSession, kind: Kind, body: Mapping[str, Any]) -> None:
        try:
            async with http.post(kind.path, json=body, headers=self._headers) as reply:
                self.said.status = reply.status
                self.said.instance = reply.headers.get("x-simulated-instance")
                self.said.retry_after_s = float(reply.headers.get("Retry-After", 0))
                if reply.content_type == "text/event-stream":
                    await self._read_events(reply)
                else:
                    self.said.hear(await reply.json())
                    self.said.done = True
        except aiohttp.ClientError as error:
            self.said.cut = type(error).__name__
        finally:
            self._heard.set()

    async def _read_events(self, reply: aiohttp.ClientResponse) -> None:
        async for line in reply.content:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:"):
                assert not self.said.done, "something after [DONE]"
                if data == b"[DONE]":
                    self.said.done = True
                else:
                    self.said.hear(json.loads(data))
                self._heard.set()
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
