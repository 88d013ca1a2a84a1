# SPDX-License-Identifier: Apache-2.0
"""Prefix aware: the least prefill work, by what each prefix cache holds. Right for chats, agents, shared prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scoring
from vllm_gateway.scheduling.prefill import STEP_TOKENS, Book, PrefillBooks, work_of
from vllm_gateway.scheduling.regrets import Regrets

_Positive = Annotated[int, Meta(gt=0)]
ASSUMED_REPLY_S = 2.0  # until one has ended
REPLY_STEPS = 0.25  # that a reply under way costs a newcomer: so that as many go everywhere where nothing else differs
# Of a reply's time, for each other one and for each token of their contexts; for models from 7B to 70B.
STRAIN_SHARE = 0.01
STRAIN_OF_TOKEN = 1e-5


@dataclass(frozen=True, slots=True)
class _Cost:
    """In seconds. `common`: what it costs even if the instance had cached all that another one has; `more`: to read
    what it has not; `strain`: by how much replies slow each other there."""

    book: Book
    cached: int
    ahead: float  # work, not seconds
    common: float
    more: float
    strain: float


class PrefixAware(Scoring):
    """The score is in seconds of delay, for this request and for others.

    Until the prompts that were sent there are read, then for this one's tokens that no instance has cached. A step of
    an engine for each that waits to be read, as whoever shares a step waits for all of it: short prompts cost by their
    number rather than by their length; and a part of a step for each request in flight. Then for what others have
    cached and this one has not: for the request itself, and for each that is in flight there and stands still
    meanwhile. Less what requests have lost already because it was not cached there: so a popular prefix is read on a
    second instance as soon as its lack has cost as much as that, and a conversation, which has its cache to itself,
    stays at its home while that is quick.
    No home is so good that others queue there while an instance has nothing to do.

    By how much replies slow each other counts only in what has been lost: it hardly delays a first token, and to mind
    it in each choice would send conversations away from their caches.
    """

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
        self._regrets = Regrets()
        self._costs: Sequence[_Cost] = ()  # of the last scores
        self._shared: int | None = None  # the longest beginning of the prompt that is cached anywhere
        self._reason = ""

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        now, prompt = self._clock(), request.prompt
        self._costs = costs = self._weigh(request, instances, now)
        held = max(one.cached for one in costs) // prompt.block_tokens
        self._shared = prompt.blocks[min(held, len(prompt.blocks)) - 1] if held and prompt.blocks else None
        lost = self._regrets.of(self._shared)
        scores = [one.common + max(0.0, one.more - lost) for one in costs]
        idle = [score for score, instance in zip(scores, instances, strict=True) if not instance.in_flight]
        if idle:
            least = min(idle)
            for at, (one, instance) in enumerate(zip(costs, instances, strict=True)):
                if _queues(instance, one.book, now):
                    scores[at] += least
        return scores

    def _weigh(self, request: RequestInfo, instances: Sequence[InstanceView], now: float) -> list[_Cost]:
        prompt = request.prompt
        books = [self._books.of(instance, now) for instance in instances]
        in_flight_s = sum(book.in_flight_s for book in books)
        unread_share = 1 - sum(book.replying_s for book in books) / in_flight_s if in_flight_s else 1.0
        left = [book.remaining(now, unread_share) for book in books]
        cached = [book.cached(prompt) for book in books]
        # Of them all: one's own speed says more of the prompts it got than of its GPU, for which there are weights.
        speed = sum(book.tokens_per_s for book in books) / len(books)
        replies = [book.reply_s for book in books if book.reply_s is not None]
        reply_s = sum(replies) / len(replies) if replies else ASSUMED_REPLY_S
        least = work_of(prompt, max(cached))
        costs = []
        for instance, book, (ahead, unread), known in zip(instances, books, left, cached, strict=True):
            there = instance.in_flight
            common = (ahead + least + STEP_TOKENS * (unread + REPLY_STEPS * there)) / speed
            more = (work_of(prompt, known) - least) / speed * (1 + there)
            strain = (STRAIN_SHARE * there + STRAIN_OF_TOKEN * book.context_tokens) * reply_s
            costs.append(_Cost(book, known, ahead, *(one / instance.weight for one in (common, more, strain))))
        return costs

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        now = self._clock()
        book = self._books.of(instance, now)
        costs, self._costs = self._costs, ()
        chosen = next(one for one in costs if one.book is book)
        self._reason = self._told(request, chosen, costs)
        if self._shared is not None:
            if chosen.more:
                self._regrets.settle(self._shared)
            else:
                lost_s = chosen.common - min(one.common for one in costs)
                lost_s += chosen.strain - min(one.strain for one in costs)
                if lost_s > 0:
                    self._regrets.add(self._shared, lost_s)
        book.take(request, now)

    def _told(self, request: RequestInfo, chosen: _Cost, costs: Sequence[_Cost]) -> str:
        tokens, most = request.prompt.tokens, max(one.cached for one in costs)
        ahead = f"{chosen.ahead:.0f} are to be read before them"
        text = f"about {chosen.cached} of {tokens} prompt tokens are cached there, {ahead}"
        if not chosen.more:
            return text
        if chosen.common + chosen.more <= min(one.common + one.more for one in costs):
            return f"{text}; {most} are cached elsewhere, where it would take longer"
        if self._regrets.of(self._shared) >= chosen.more:
            return (
                f"{text}; {most} are cached elsewhere, and to wait for that has cost as much as to read them here, too"
            )
        return f"{text}; {most} are cached elsewhere, where requests queue"

    def reason(self) -> str:
        """Of the last choice, for the decision records."""
        return self._reason

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self._books.of(instance, self._clock()).read(request, self._clock())

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._books.of(instance, self._clock()).drop(request, self._clock())

    def departed(self, instance_id: str) -> None:
        self._books.forget(instance_id)


def _queues(instance: InstanceView, book: Book, now: float) -> bool:
    """Whether somebody waits there already: for another's prompt to be read; or for one of the engine's places, if it
    says that more wait than could be waiting to be read."""
    if len(book.unread) > 1:
        return True
    metrics = instance.fresh_metrics(now)
    return metrics is not None and metrics.waiting >= max(1, len(book.unread)) and instance.in_flight > metrics.running
