# SPDX-License-Identifier: Apache-2.0
"""One generation and its reply: tokens go out as they come, faults strike in between, a client that leaves aborts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from vllm_gateway.simulator import log
from vllm_gateway.simulator.api_errors import internal_error
from vllm_gateway.simulator.engine import DEAD_MESSAGE, Engine, EngineDeadError, Generation
from vllm_gateway.simulator.faults import Faults
from vllm_gateway.simulator.http_server import Header, Reply
from vllm_gateway.simulator.replies import ReplyShape, to_json
from vllm_gateway.simulator.validation import Wish

JSON_HEADERS: list[Header] = [("content-type", "application/json"), ("vary", "Origin")]
STREAM_HEADERS: list[Header] = [("content-type", "text/event-stream; charset=utf-8"), ("vary", "Origin")]
DEATH_S = 0.3
"""How long a process with a dead engine core still answers (/health with 503) before it exits."""


class Exchange:
    def __init__(self, engine: Engine, reply: Reply, shape: ReplyShape, wish: Wish, faults: Faults) -> None:
        self._engine = engine
        self._reply = reply
        self._shape = shape
        self._wish = wish
        self._faults = faults
        self._fault = faults.use_stream_fault()
        self._sent = 0
        self._opened = False
        self._struck = False

    async def run(self) -> Generation:
        """What was generated. Raises ApiError while nothing of the reply has been sent."""
        wish = self._wish
        generation = Generation(
            wish.prompt,
            max_tokens=wish.max_tokens,
            stop_at_end=wish.stop_at_end,
            salt=wish.salt,
            on_token=self._deliver,
            is_held=self._is_held,
        )
        try:
            self._engine.submit(generation)
        except EngineDeadError as error:
            raise internal_error(str(error)) from None
        if wish.stream:
            self._reply.start_stream(STREAM_HEADERS)
            if self._shape.opens_early or self._faults.is_set("opens_early"):
                self._reply.write(self._opening(generation))
        try:
            await generation.done
        except asyncio.CancelledError:
            self._engine.abort(generation)
            raise
        except EngineDeadError as error:
            self._fail(str(error))
            return generation
        if self._is_held(generation):
            await self._faults.until_lifted("hold_after_tokens")
        if self._struck:
            await self._after_fault()
        elif wish.stream:
            closing = self._shape.closing(generation)
            if self._faults.use("cut_before_the_end"):
                self._reply.write(closing[: closing[:-2].rindex(b"\n\n") + 2])
                self._reply.cut()
            else:
                self._reply.write(closing)
                self._reply.end()
        else:
            self._reply.send(200, to_json(self._shape.whole(generation)), JSON_HEADERS)
        return generation

    def _is_held(self, generation: Generation) -> bool:
        tokens = self._faults.value("hold_after_tokens")
        return tokens is not None and len(generation.tokens) >= tokens

    def _deliver(self, generation: Generation) -> None:
        """Called by the engine's step, for each token and at the end."""
        if self._struck:
            return
        if self._fault is not None and len(generation.tokens) > self._fault[1]:
            self._struck = True
            _STRIKES[self._fault[0]](self, generation)
            return
        if not self._wish.stream:
            return
        opening = self._opening(generation)
        new = generation.tokens[self._sent :]
        self._sent = len(generation.tokens)
        self._reply.write(opening + self._shape.tokens(generation, new))

    def _opening(self, generation: Generation) -> bytes:
        """Once."""
        if self._opened:
            return b""
        self._opened = True
        return self._shape.opening(generation)

    def _fail(self, message: str) -> None:
        if self._struck and self._reply.ended:
            return
        if not self._reply.started:
            raise internal_error(message)
        self._say_failure(message)

    def _say_failure(self, message: str) -> None:
        failure = self._shape.failure(message)
        if failure is None:
            self._reply.cut()
            return
        self._reply.write(failure)
        self._reply.end()

    async def _after_fault(self) -> None:
        """The generation is over; the client hears nothing more unless the fault has ended the reply."""
        if not self._reply.ended:
            await asyncio.get_running_loop().create_future()

    def _exit(self, generation: Generation) -> None:
        log.error("Fatal Python error: Segmentation fault (simulated)")
        os._exit(1)

    def _be_silent(self, generation: Generation) -> None:
        """Nothing to do: `_struck` mutes the rest, while the engine goes on."""

    def _end_without_reason(self, generation: Generation) -> None:
        self._engine.abort(generation)
        if self._wish.stream:
            self._reply.write(self._shape.unfinished())
            self._reply.end()
        else:
            self._refuse()

    def _end_with_error(self, generation: Generation) -> None:
        self._engine.abort(generation)
        if self._wish.stream:
            self._say_failure(DEAD_MESSAGE)
        else:
            self._refuse()

    def _close(self, generation: Generation) -> None:
        self._engine.abort(generation)
        self._reply.cut()

    def _reset(self, generation: Generation) -> None:
        self._engine.abort(generation)
        self._reply.cut(reset=True)

    def _run_out_of_memory(self, generation: Generation) -> None:
        self._struck = False
        log.error("EngineCore encountered a fatal error.\ntorch.OutOfMemoryError: CUDA out of memory. Tried to "
                  "allocate 128.00 MiB.")  # fmt: skip
        self._engine.fail(EngineDeadError())
        asyncio.get_running_loop().call_later(DEATH_S, os._exit, 1)

    def _refuse(self) -> None:
        error = internal_error(DEAD_MESSAGE)
        self._reply.send(error.status, to_json(error.body), JSON_HEADERS)


_STRIKES: dict[str, Callable[[Exchange, Generation], None]] = {
    "exit_after_tokens": Exchange._exit,
    "silent_after_tokens": Exchange._be_silent,
    "done_after_tokens": Exchange._end_without_reason,
    "error_after_tokens": Exchange._end_with_error,
    "close_after_tokens": Exchange._close,
    "reset_after_tokens": Exchange._reset,
    "out_of_memory_after_tokens": Exchange._run_out_of_memory,
}
