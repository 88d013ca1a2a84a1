# SPDX-License-Identifier: Apache-2.0
"""The engine of the replay once more, step by step and sequence by sequence: slow, and plain enough to be believed."""

from dataclasses import dataclass, field

from vllm_gateway.replay.engine import EngineOptions
from vllm_gateway.replay.trace import TracedRequest


@dataclass(eq=False)
class One:
    request: TracedRequest
    number: int
    made: int = 0
    to_prefill: int = 0
    prefilled: int = 0
    ttft_s: float = -1.0
    end_s: float = -1.0
    private: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.request.input_tokens

    @property
    def reply_tokens(self) -> int:
        return max(1, self.request.output_tokens)


@dataclass
class ReferenceEngine:
    options: EngineOptions
    running: list[One] = field(default_factory=list)
    waiting: list[One] = field(default_factory=list)
    cache: list[int] = field(default_factory=list)  # idle blocks, least recently used first
    now: float = -1.0
    preemptions: int = 0

    def run(self, requests: list[TracedRequest]) -> list[One]:
        ones = [One(request, number) for number, request in enumerate(requests)]
        coming = list(ones)
        while coming or self.waiting or self.running:
            while coming and coming[0].request.arrival_s <= self.now:
                self.waiting.append(coming.pop(0))
            if not self.waiting and not self.running:
                self.now = coming[0].request.arrival_s
                self.waiting.append(coming.pop(0))  # an idle engine does not wait for a second
            self._step()
        return ones

    def _held(self) -> set[int]:
        return {block for one in self.running for block in one.request.blocks}

    def _free(self) -> int:
        used = len(self._held()) * self.options.block_tokens + sum(one.private for one in self.running)
        return self.options.cache_blocks * self.options.block_tokens - used

    def _evict(self) -> None:
        self.cache = [block for block in self.cache if block not in self._held()]
        while len(self.cache) > self._free() // self.options.block_tokens:
            self.cache.pop(0)

    def _remove(self, one: One) -> None:
        self.running.remove(one)
        self.cache += [block for block in reversed(one.request.blocks) if block not in self._held()]
        one.private = 0
        self._evict()

    def _prefilling(self, one: One) -> bool:
        return one.prefilled < one.to_prefill

    def _step(self) -> None:
        while self._free() < len(self.running):
            last = self.running[-1]
            self._remove(last)
            self.waiting.insert(0, last)
            self.preemptions += 1
        timing = self.options.timing
        decoding = [one for one in self.running if not self._prefilling(one)]
        budget = self.options.step_tokens - len(decoding)
        seconds = timing.decode_s(len(decoding), sum(one.prompt_tokens + one.made for one in decoding))
        making = list(decoding)
        for one in [one for one in self.running if self._prefilling(one)]:
            seconds, budget = self._prefill(one, seconds, budget, making)
        while budget > 0 and self.waiting and (newcomer := self._admitted(len(making))) is not None:
            seconds, budget = self._prefill(newcomer, seconds, budget, making)
        self.now += seconds
        for one in making:
            one.made += 1
            one.private += 1
            one.ttft_s = self.now - one.request.arrival_s if one.ttft_s < 0 else one.ttft_s
        self._evict()
        for one in making:
            if one.made == one.reply_tokens:
                one.end_s = self.now
                self._remove(one)

    def _prefill(self, one: One, seconds: float, budget: int, making: list[One]) -> tuple[float, int]:
        end = min(one.to_prefill, one.prefilled + budget)
        seconds += self.options.timing.prefill_s(one.prefilled, end)
        budget -= end - one.prefilled
        one.prefilled = end
        if not self._prefilling(one):
            making.append(one)
        return seconds, budget

    def _admitted(self, making: int) -> One | None:
        one = self.waiting[0]
        held, block_tokens = self._held(), self.options.block_tokens
        tail = max(0, one.prompt_tokens - len(one.request.blocks) * block_tokens)
        private = tail + one.made
        need = len(set(one.request.blocks) - held) * block_tokens + private
        if self.running and (len(self.running) >= self.options.max_sequences or need + making + 1 > self._free()):
            return None
        hit = 0
        for block in one.request.blocks:
            if block not in held and block not in self.cache:
                break
            hit += block_tokens
        self.waiting.pop(0)
        one.to_prefill = one.prompt_tokens + one.made
        one.prefilled = one.to_prefill - max(1, one.prompt_tokens - hit) - one.made
        one.private = private
        self.running.append(one)
        self._evict()
        return one
