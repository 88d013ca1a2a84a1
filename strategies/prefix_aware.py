# SPDX-License-Identifier: Apache-2.0
"""Prefix aware: the least prefill work, by what each prefix cache holds. Right for chats, agents, shared prompts."""

from collections.abc import Callable, Sequence
from typing import Annotated

from msgspec import Meta

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scoring
from vllm_gateway.scheduling.prefill import PrefillBooks, work_of

_Positive = Annotated[int, Meta(gt=0)]
DECODE_SHARE = 1.0  # a token that is still to be generated there delays a newcomer about as much as one to be read


class PrefixAware(Scoring):
    """The score is in seconds of delay, for this request and for others. Until the prompts that were sent there are
    read; then for this one's tokens that are not cached there, once for itself and once for each that will wait behind
    it: as many, on average, as wait now. And a little for each reply that is being generated. So a popular prefix
    stays at its home while that is quick and spreads when another instance could read it sooner; and the longer the
    queues are, the more it counts to read nothing twice."""

    name = "prefix_aware"
    wants_metrics = True

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        cache_tokens: _Positive = 300_000,
        max_blocks: _Positive = 50_000,
        max_age_s: Annotated[float, Meta(gt=0)] = 3600.0,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._books = PrefillBooks(cache_tokens=cache_tokens, max_blocks=max_blocks, max_age_s=max_age_s)
        self._most_cached = 0
        self._numbers = (0, 0, 0, 0.0)

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        now, prompt = self._clock(), request.prompt
        books = [self._books.of(instance, now) for instance in instances]
        behind = sum(len(book.unread) for book in books) / len(books)
        # Of them all: one's own speed says more of the prompts it got than of its GPU, for which there are weights.
        speed = sum(book.tokens_per_s for book in books) / len(books)
        decoding_work = request.output_tokens * DECODE_SHARE
        scores, self._most_cached = [], 0
        for instance, book in zip(instances, books, strict=True):
            cached = book.cached(prompt)
            decoding = max(0, instance.in_flight - len(book.unread))
            work = book.remaining(now) + work_of(prompt, cached) * (1 + behind) + decoding * decoding_work
            scores.append(work / speed / instance.weight)
            self._most_cached = max(self._most_cached, cached)
        return scores

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        now = self._clock()
        book = self._books.of(instance, now)
        ahead = book.remaining(now)
        self._numbers = (book.take(request, now), self._most_cached, request.prompt.tokens, ahead)

    def reason(self) -> str:
        """Of the last choice, for the decision records."""
        cached, most, tokens, ahead = self._numbers
        text = f"about {cached} of {tokens} prompt tokens are cached there, {ahead:.0f} are to be read before them"
        return text if cached == most else f"{text}; {most} are cached elsewhere, where it would take longer"

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self._books.of(instance, self._clock()).read(request, self._clock())

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._books.of(instance, self._clock()).drop(request, self._clock())

    def departed(self, instance_id: str) -> None:
        self._books.forget(instance_id)
