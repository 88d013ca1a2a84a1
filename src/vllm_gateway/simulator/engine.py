# SPDX-License-Identifier: Apache-2.0
"""The simulated engine core: continuous batching, time for prefill and decode, KV cache and prefix cache.

One loop makes one step for all running sequences at once and hands each its token by a plain call: no task and no
timer for each sequence, so that hundreds of streams cost little.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_gateway.simulator.metrics import Gauges, Metrics
from vllm_gateway.simulator.prefix_cache import PrefixCache
from vllm_gateway.simulator.tokenizer import Continuation

DEAD_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class EngineDeadError(Exception):
    """The engine core is gone; vLLM ends every request with this text."""

    def __init__(self, message: str = DEAD_MESSAGE) -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Speed:
    tokens_per_s: float
    batch_slowdown: float
    prefill_tokens_per_s: float
    ttft_s: float

    def step_s(self, sequences: int, prefill_tokens: int) -> float:
        decode = (1 + self.batch_slowdown * max(0, sequences - 1)) / self.tokens_per_s
        return decode + prefill_tokens / self.prefill_tokens_per_s


@dataclass(frozen=True, slots=True)
class Capacity:
    max_sequences: int
    kv_tokens: int
    block_size: int = 16
    prefix_caching: bool = True

    @property
    def kv_blocks(self) -> int:
        return self.kv_tokens // self.block_size


class Generation:
    """One request in the engine: its prompt, what was generated so far, and how it ended."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_at_end: bool,
        salt: str = "",
        on_token: Callable[[Generation], None] | None = None,
        is_held: Callable[[Generation], bool] | None = None,
    ) -> None:
        assert prompt, "an empty prompt cannot be continued"
        assert max_tokens > 0
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.stop_at_end = stop_at_end
        self.salt = salt
        self.on_token = on_token
        self.is_held = is_held
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.cached_tokens = 0
        self.arrived = time.monotonic()
        self.first_token_not_before = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._continuation = Continuation(prompt)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    def advance(self) -> bool:
        """Makes the next token, if the sequence does not end here. False: it ended without one more token."""
        token = self._continuation.next() if self.stop_at_end else self._continuation.next_ignoring_end()
        if token is None:
            self.finish_reason = "stop"
            return False
        self.tokens.append(token)
        if len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
        return True


class Engine:
    """Runs generations. All its methods are called on the event loop; `run()` is the only task."""

    def __init__(self, speed: Speed, capacity: Capacity) -> None:
        self.metrics = Metrics()
        self.prefix_cache = PrefixCache(capacity.kv_blocks, capacity.block_size, enabled=capacity.prefix_caching)
        self.sleep_level = 0
        self.paused = False
        self.hangs = False
        self.dead: EngineDeadError | None = None
        self._speed = speed
        self.capacity = capacity
        self._waiting: deque[Generation] = deque()
        self._running: dict[Generation, None] = {}
        self._prefill_tokens = 0
        self._work = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._waiting)

    def gauges(self) -> Gauges:
        usage = self._used_blocks() / self.capacity.kv_blocks if self.capacity.kv_blocks else 0.0
        return Gauges(len(self._running), len(self._waiting), min(1.0, usage), self.sleep_level)

    def submit(self, generation: Generation) -> None:
        """Queues a generation; `generation.done` is set when it ends. Raises EngineDeadError."""
        if self.dead is not None:
            raise self.dead
        self._waiting.append(generation)
        self._work.set()

    def abort(self, generation: Generation) -> None:
        """Forgets a generation whose client has left. One that ended already stays as it is."""
        if generation in self._running:
            del self._running[generation]
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        self._finish(generation, "abort")

    def fail(self, error: EngineDeadError) -> None:
        """The engine core dies: everything in flight ends with `error`, and so does everything that comes later."""
        self.dead = error
        for generation in [*self._running, *self._waiting]:
            self.metrics.finished["error"] += 1
            if not generation.done.done():
                generation.done.set_exception(error)
                generation.done.exception()  # looked at, also if nobody waits for it
        self._running.clear()
        self._waiting.clear()

    def sleep(self, level: int) -> None:
        """No step is made until `wake()`. The KV cache is lost."""
        self.sleep_level = level
        self.prefix_cache.clear()

    def wake(self) -> None:
        self.sleep_level = 0
        self._work.set()

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._work.set()

    def hang(self, hangs: bool) -> None:
        """No step is made, and nobody is told."""
        self.hangs = hangs
        self._work.set()

    async def run(self) -> None:
        """Makes steps for ever. Each begins when the one before should have ended, so that timers do not add up."""
        due = time.monotonic()
        while True:
            if not self.in_flight or self.sleep_level or self.paused or self.hangs:
                self._work.clear()
                await self._work.wait()
                due = time.monotonic()
                continue
            self._admit()
            due += self._speed.step_s(len(self._running), self._prefill_tokens)
            self._prefill_tokens = 0
            now = time.monotonic()
            due = max(due, now - 0.05)
            await asyncio.sleep(max(0.0, due - now))
            if not (self.sleep_level or self.paused or self.hangs):
                self._step()

    def _admit(self) -> None:
        used = self._used_blocks()
        while self._waiting and len(self._running) < self.capacity.max_sequences:
            generation = self._waiting[0]
            used += self._blocks(generation)
            if used > self.capacity.kv_blocks and self._running:
                break
            self._waiting.popleft()
            self._start(generation)

    def _start(self, generation: Generation) -> None:
        prompt = generation.prompt
        now = time.monotonic()
        generation.cached_tokens = self.prefix_cache.hit_tokens(prompt, generation.salt)
        generation.first_token_not_before = now + self._speed.ttft_s
        self.prefix_cache.insert(prompt, generation.salt)
        self._prefill_tokens += len(prompt) - generation.cached_tokens
        self._running[generation] = None
        self.metrics.queue_time.observe(now - generation.arrived)
        self.metrics.prefix_queries += len(prompt)
        self.metrics.prefix_hits += generation.cached_tokens
        self.metrics.prompt_tokens += len(prompt)

    def _step(self) -> None:
        now = time.monotonic()
        for generation in list(self._running):
            if not generation.tokens and now < generation.first_token_not_before:
                continue
            if generation.is_held is not None and generation.is_held(generation):
                continue
            if generation not in self._running:  # aborted by what an earlier one of this step caused
                continue
            if generation.advance():
                self.metrics.generation_tokens += 1
                if len(generation.tokens) == 1:
                    self.metrics.time_to_first_token.observe(now - generation.arrived)
            if generation.on_token is not None:
                generation.on_token(generation)
            if generation.finish_reason is not None and generation in self._running:
                del self._running[generation]
                self.prefix_cache.insert([*generation.prompt, *generation.tokens], generation.salt)
                self._finish(generation, generation.finish_reason)

    def _finish(self, generation: Generation, reason: str) -> None:
        generation.finish_reason = reason
        self.metrics.finished[reason] += 1
        self.metrics.request_latency.observe(time.monotonic() - generation.arrived)
        if not generation.done.done():
            generation.done.set_result(None)

    def _blocks(self, generation: Generation) -> int:
        return -(-generation.length // self.capacity.block_size)

    def _used_blocks(self) -> int:
        return sum(self._blocks(generation) for generation in self._running)
