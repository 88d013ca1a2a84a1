# SPDX-License-Identifier: Apache-2.0
"""One simulated vLLM: continuous batching with chunked prefill, preemption, and a prefix cache, in simulated time.

A step takes the next piece of a prefill, if there is one, and makes one token for each decoding sequence. Where
nothing can come between, many steps are made as one: their times are an arithmetic series, so that a request costs a
few events, however long its reply.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, sqrt

from vllm_gateway.replay.cache import BlockCache
from vllm_gateway.replay.timing import Timing
from vllm_gateway.replay.trace import TracedRequest


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """As vLLM's own arguments: --max-num-seqs, --max-num-batched-tokens, and the KV memory in blocks of the trace."""

    cache_blocks: int = 800  # 410,000 tokens of 128 KiB: what a GPU with 80 GB has left beside an 8B model
    block_tokens: int = 512
    max_sequences: int = 256
    step_tokens: int = 8192  # vLLM's default on an H100
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        assert self.step_tokens > self.max_sequences, "a step must have room for prefill beside all decoding sequences"


class Sequence:
    """One request in the engine."""

    __slots__ = ("cached_tokens", "ends_at_step", "first_token_s", "made", "prefilled", "request", "target")

    def __init__(self, request: TracedRequest) -> None:
        self.request = request
        self.made = 0  # tokens of the reply
        self.prefilled = 0
        self.target = 0  # of the prefill: the prompt, and after a preemption what was made of the reply
        self.cached_tokens = 0  # when it was first admitted
        self.first_token_s: float | None = None
        self.ends_at_step = -1

    @property
    def reply_tokens(self) -> int:
        return max(1, self.request.output_tokens)


class SimulatedEngine:
    """Call `submit` as requests come and `advance` when `next_s` is reached; both never in the past."""

    def __init__(self, options: EngineOptions, first_token: Callable[[Sequence], None]) -> None:
        self.cache = BlockCache(options.cache_blocks, options.block_tokens)
        self.busy_s = 0.0
        self.preemptions = 0
        self.prompt_tokens = 0  # of admitted prompts
        self.cached_tokens = 0  # of those, found in the cache
        self.next_s: float | None = None  # the end of the step, or steps, under way
        self.waiting: deque[Sequence] = deque()
        self._options = options
        self.timing = options.timing
        self._first_token = first_token
        self._running: dict[Sequence, None] = {}  # in order of admission
        self._prefilling: Sequence | None = None  # the one whose prefill is not complete: never more than one
        self._completed: list[Sequence] = []  # prefills that the step under way completes
        self._decoding = 0
        self._context_tokens = 0  # of the decoding sequences
        self._steps = 0  # decode steps so far
        self._ends: list[tuple[int, int, Sequence]] = []  # heap: when decoding sequences have made all their tokens
        self._order = 0
        self._began_s = 0.0
        self._planned = 0  # pure decode steps under way; 0: one step with prefill

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def decoding(self) -> int:
        return self._decoding

    @property
    def prefilling_s(self) -> float:
        """What the prefill under way still has to compute in steps to come."""
        under_way = self._prefilling
        return 0.0 if under_way is None else self.timing.prefill_s(under_way.prefilled, under_way.target)

    def fits(self, request: TracedRequest) -> bool:
        """Whether it could ever be served; vLLM refuses what is longer than the model's context."""
        return self._prompt_tokens(request) + max(1, request.output_tokens) <= self.cache.capacity_tokens

    def submit(self, request: TracedRequest, now: float) -> Sequence:
        assert self.fits(request)
        sequence = Sequence(request)
        self.waiting.append(sequence)
        if self.next_s is None:
            self._plan(now)
        elif self._planned and len(self.waiting) == 1:
            self._cut(now)
        return sequence

    def advance(self) -> list[Sequence]:
        """The step under way is over; returns the sequences that ended with it."""
        assert self.next_s is not None
        now = self.next_s
        self.busy_s += now - self._began_s
        steps = self._planned or 1
        self._steps += steps
        self._context_tokens += steps * self._decoding
        self.cache.grow(steps * self._decoding + len(self._completed))  # before anybody leaves
        ended = self._due()
        for sequence in self._completed:
            if self._prefill_is_complete(sequence, now):
                ended.append(sequence)
        self._completed.clear()
        self._plan(now)
        return ended

    def _due(self) -> list[Sequence]:
        ended: list[Sequence] = []
        while self._ends and self._ends[0][0] <= self._steps:
            at, _, sequence = heapq.heappop(self._ends)
            if sequence.ends_at_step == at:  # else it was preempted meanwhile
                self._stop_decoding(sequence)
                self._leave(sequence)
                ended.append(sequence)
        return ended

    def _prefill_is_complete(self, sequence: Sequence, now: float) -> bool:
        """Its next token is made in the same step. True: that was all."""
        sequence.made += 1
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            self._first_token(sequence)
        if sequence.made >= sequence.reply_tokens:
            self._leave(sequence)
            return True
        sequence.ends_at_step = self._steps + sequence.reply_tokens - sequence.made
        self._order += 1
        heapq.heappush(self._ends, (sequence.ends_at_step, self._order, sequence))
        self._decoding += 1
        self._context_tokens += sequence.request.input_tokens + sequence.made
        return False

    def _stop_decoding(self, sequence: Sequence) -> None:
        left = sequence.ends_at_step - self._steps
        sequence.made = sequence.reply_tokens - left
        sequence.ends_at_step = -1
        self._decoding -= 1
        self._context_tokens -= sequence.request.input_tokens + sequence.made

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence]
        request = sequence.request
        self.cache.grow(-(self._tail_tokens(request) + sequence.made))
        self.cache.release(request.blocks)

    # --- What the next step does

    def _plan(self, now: float) -> None:
        self._make_room()
        budget = self._options.step_tokens - self._decoding
        duration = 0.0
        while budget > 0 and (sequence := self._prefilling or self._admit()) is not None:
            begin = sequence.prefilled
            end = min(sequence.target, begin + budget)
            duration += self.timing.prefill_s(begin, end)
            budget -= end - begin
            sequence.prefilled = end
            if end < sequence.target:
                self._prefilling = sequence
            else:
                self._prefilling = None
                self._completed.append(sequence)
        self._began_s = now
        self._planned = 0
        if duration:
            self.next_s = now + duration + self.timing.decode_s(self._decoding, self._context_tokens)
        elif self._decoding:
            self._planned = self._steps_without_event()
            self.next_s = now + self._steps_s(self._planned)
        else:
            assert not self.waiting
            self.next_s = None

    def _make_room(self) -> None:
        """Preempts the latest until each of the others can make a token: as vLLM does, to compute it anew later."""
        # a prefill under way makes its first token when it is complete
        while self.cache.free_tokens < self._decoding + (self._prefilling is not None):
            sequence, _ = self._running.popitem()
            self._running[sequence] = None
            if sequence is self._prefilling:
                self._prefilling = None
            else:
                self._stop_decoding(sequence)
            self._leave(sequence)
            self.waiting.appendleft(sequence)
            self.preemptions += 1

    def _admit(self) -> Sequence | None:
        """The head of the queue, if its whole prompt has room beside a token for everyone."""
        if not self.waiting or len(self._running) >= self._options.max_sequences:
            return None
        sequence = self.waiting[0]
        request, cache = sequence.request, self.cache
        private = self._tail_tokens(request) + sequence.made
        reserve = self._decoding + len(self._completed) + 1
        if cache.need_tokens(request.blocks) + private + reserve > cache.free_tokens and self._running:
            return None
        self.waiting.popleft()
        sequence.target = request.input_tokens + sequence.made
        sequence.prefilled = sequence.target - self._uncached(sequence)
        if sequence.first_token_s is None:
            sequence.cached_tokens = sequence.prefilled
            self.prompt_tokens += request.input_tokens
            self.cached_tokens += sequence.cached_tokens
        cache.hold(request.blocks)
        cache.grow(private)
        self._running[sequence] = None
        return sequence

    def _uncached(self, sequence: Sequence) -> int:
        """At least one: the last token of a prompt is always computed, to make the next one."""
        request = sequence.request
        hit = self.cache.leading(request.blocks) * self._options.block_tokens
        return max(1, request.input_tokens - hit) + sequence.made

    def _prompt_tokens(self, request: TracedRequest) -> int:
        return max(request.input_tokens, len(request.blocks) * self._options.block_tokens)

    def _tail_tokens(self, request: TracedRequest) -> int:
        """Of the prompt, beyond its hashed blocks."""
        return self._prompt_tokens(request) - len(request.blocks) * self._options.block_tokens

    # --- Many decode steps as one

    def _steps_without_event(self) -> int:
        while self._ends[0][2].ends_at_step != self._ends[0][0]:
            heapq.heappop(self._ends)  # preempted meanwhile
        until_end = self._ends[0][0] - self._steps
        return min(until_end, self.cache.free_tokens // self._decoding)

    def _steps_s(self, steps: int) -> float:
        """The context grows by a token for each sequence with each step."""
        first = self.timing.decode_s(self._decoding, self._context_tokens)
        return steps * first + self.timing.context_token_s * self._decoding * steps * (steps - 1) / 2

    def _cut(self, now: float) -> None:
        """A newcomer is looked at after the step that is under way at `now`, not after all that were planned."""
        passed = now - self._began_s
        first = self.timing.decode_s(self._decoding, self._context_tokens)
        growth = self.timing.context_token_s * self._decoding / 2
        linear = first - growth  # steps_s(k) = linear x k + growth x k^2
        root = (sqrt(linear * linear + 4 * growth * passed) - linear) / (2 * growth) if growth else passed / linear
        self._planned = min(self._planned, max(1, ceil(root - 1e-9)))
        self.next_s = max(now, self._began_s + self._steps_s(self._planned))
