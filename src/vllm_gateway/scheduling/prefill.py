# SPDX-License-Identifier: Apache-2.0
"""The books of each engine: what it has still to read, how fast it reads, what it has cached, how long replies take."""

from collections import OrderedDict
from dataclasses import dataclass

from vllm_gateway.routing import EngineMetrics
from vllm_gateway.scheduling.prefix_mirror import PrefixMirror
from vllm_gateway.scheduling.prompt import Prompt
from vllm_gateway.scheduling.types import InstanceView, RequestInfo

_FORGETS = 0.98  # of the counts behind a hit rate, at each new sample
_SPEED_FORGETS = 0.998  # an engine keeps its speed; what differs from minute to minute is the traffic
_SHARE_FORGETS = 0.99  # of the time that requests take, at each that ends
_SHARE_GAIN = 0.01  # half of an error within a window of samples: slower than the noise in it
_ASSUMED_TOKENS_PER_S = 8000.0
_SLOWEST, _FASTEST = 100.0, 1_000_000.0
_ASSUMED_FOR_S = 2.0  # how much measured time outweighs the assumption
_STEP = 0.05  # of the speed, at each reading of the metrics, while no stream tells it
_REPLY_STEP = 0.01  # of the speed, at each reply that is there before its prompt is believed to be read
_REPLIES = 100  # whose times are averaged
STEP_TOKENS = 200.0  # a step reads the weights once, whatever else it does: as long as an H100 takes to read so many
_LEAST_SHARE = 0.02
_ATTENTION = 3e-5  # a token looks back on all before it: behind 33,000 it is twice the work, in models from 7B to 70B


@dataclass(frozen=True, slots=True)
class Limits:
    cache_tokens: int  # of an engine that does not tell
    max_blocks: int
    max_age_s: float


def work_of(prompt: Prompt, cached: int) -> float:
    """To read what is not cached of it; in tokens at the beginning of a prompt."""
    return (prompt.tokens - cached) * (1 + _ATTENTION * (prompt.tokens + cached) / 2)


class Book:
    """One engine's. It reads prompts in the order in which they come, short ones together: the first byte of a reply
    says how far it is. Where no reply is streamed, only the time from a prompt's coming to the end of its reply is
    known, so that its being read is a guess."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.unread: OrderedDict[RequestInfo, float] = OrderedDict()  # in order, with the work that is left
        self.reply_s: float | None = None  # from the first byte to the end, on average; None: none has ended
        self.context_tokens = 0  # of the prompts that are in flight there
        self._taken: dict[RequestInfo, tuple[float, float]] = {}  # all in flight: when they came, and their work
        self._work = 0.0  # sum over `_taken`
        self._ended = now  # the last of them; or when the first one came
        self._replying: dict[RequestInfo, float] = {}  # read, and since when
        self._replies = 0
        self.in_flight_s = self.replying_s = 0.0  # of those that have ended: all their time, and that since read
        self._expected: dict[RequestInfo, int] = {}  # of `unread`: the tokens that should be cached
        self._limits = limits
        self.metrics: EngineMetrics | None = None
        self._timed = False  # by streams
        self._queued = 0.0  # sum over `unread`
        self._since = now  # when it began with the first of them
        self._begun = 0.0  # what there was to read then
        self._mirror = PrefixMirror()
        self._cache = _CacheSize(limits.cache_tokens)
        self._read_tokens = _ASSUMED_TOKENS_PER_S * _ASSUMED_FOR_S
        self._read_s = _ASSUMED_FOR_S
        self.tokens_per_s = _ASSUMED_TOKENS_PER_S

    def cached(self, prompt: Prompt) -> int:
        """Tokens of the prompt that need not be read. The last one always is."""
        return min(self._mirror.leading(prompt.blocks) * prompt.block_tokens, prompt.tokens - 1)

    def remaining(self, now: float, unread_share: float = 1.0) -> tuple[float, float]:
        """The work before a newcomer's turn, and of how many. Afterwards `unread` holds none that must be read by now.

        Where nothing is streamed: of all that is in flight, `unread_share`, which is the same for all instances. To
        follow each one's queue by time alone, errors would add up for as long as it does not run empty.
        """
        self._expire(now)
        if not self._timed:
            return (self._work - self._read_of_oldest(now)) * unread_share, len(self._taken) * unread_share
        return self._queued - min(self._begun, (now - self._since) * self.tokens_per_s), len(self.unread)

    def _read_of_oldest(self, now: float) -> float:
        """Since the one before it ended. Until one has, nothing is known of the speed."""
        if not self._taken or not self.in_flight_s:
            return 0.0
        _, work = next(iter(self._taken.values()))
        return min(work, (now - self._ended) * self.tokens_per_s)

    def take(self, request: RequestInfo, now: float) -> int:
        """The request is sent there; returns how many of its tokens are cached."""
        self._expire(now)
        prompt = request.prompt
        cached = self._expected[request] = self.cached(prompt)
        work = self.unread[request] = work_of(prompt, cached)
        self._queued += work
        if not self._taken:
            self._ended = now
        self._taken[request] = now, work
        self._work += work
        if len(self.unread) == 1:
            self._since, self._begun = now, work
        self.context_tokens += prompt.tokens
        self._mirror.use(prompt.blocks, now)
        blocks = int(self._cache.tokens / prompt.block_tokens)
        self._mirror.trim(min(blocks, self._limits.max_blocks), now - self._limits.max_age_s)
        return cached

    def read(self, request: RequestInfo, now: float) -> None:
        """Its reply has begun: it and those before it have been read."""
        self._expire(now)
        if request not in self.unread:
            return
        if not request.stream and not self._timed:
            self._believe(self.tokens_per_s * (1 + _REPLY_STEP))
        work = 0.0
        for before in list(self.unread):
            if before is request or not before.stream:
                work += self._was_read(before, now)
            if before is request:
                break
        if (now - self._since) * self.tokens_per_s > STEP_TOKENS / 2:  # else it was read in the same step as the last
            work += STEP_TOKENS
        if request.stream:
            self._timed = True
            self._read_tokens = self._read_tokens * _SPEED_FORGETS + work
            self._read_s = self._read_s * _SPEED_FORGETS + now - self._since
            self.tokens_per_s = self._read_tokens / self._read_s
        self._since, self._begun = now, self._queued

    def drop(self, request: RequestInfo, now: float) -> None:
        """It has ended, perhaps before it was read."""
        if request not in self._taken:
            return
        came, work = self._taken.pop(request)
        self._ended = now
        self._work = self._work - work if self._taken else 0.0
        self.context_tokens -= request.prompt.tokens
        since = self._replying.pop(request, now)
        self.in_flight_s = self.in_flight_s * _SHARE_FORGETS + now - came
        self.replying_s = self.replying_s * _SHARE_FORGETS + now - since
        if request in self.unread:
            if next(iter(self.unread)) is request:
                self._since = now
            self._pop(request)
        else:
            self._replies = min(_REPLIES, self._replies + 1)
            mean = self.reply_s or 0.0
            self.reply_s = mean + (now - since - mean) / self._replies

    def heard(self, metrics: EngineMetrics) -> None:
        """Where no stream tells the speed: it is too high if more wait than should by now, and too low if fewer do."""
        last, self.metrics = self.metrics, metrics
        if last is None or metrics.prefix_queries < last.prefix_queries:  # it was started anew
            self._cache.begin(metrics.cache_tokens)
            return
        queried, hit = metrics.prefix_queries - last.prefix_queries, metrics.prefix_hits - last.prefix_hits
        self._cache.compare(queried, hit)
        if not self._timed:
            self._expire(metrics.at)
            should_wait = max(0, len(self.unread) - 1)  # one is being read
            if metrics.waiting != should_wait:
                self._believe(self.tokens_per_s * (1 - _STEP if metrics.waiting > should_wait else 1 + _STEP))

    def _believe(self, tokens_per_s: float) -> None:
        self.tokens_per_s = min(_FASTEST, max(_SLOWEST, tokens_per_s))
        self._read_s = self._read_tokens / self.tokens_per_s

    def _expire(self, now: float) -> None:
        """A reply that is not streamed does not say when its prompt had been read: the speed of the others does."""
        while self.unread:
            first, work = next(iter(self.unread.items()))
            done = self._since + work / self.tokens_per_s
            if first.stream or done > now:
                return
            self._was_read(first, done)
            self._since, self._begun = done, self._queued

    def _was_read(self, request: RequestInfo, at: float) -> float:
        """Only now is it in the engine's counters too: it may have waited there for long."""
        self._replying[request] = at
        self._cache.read(request.prompt.tokens, self._expected[request])
        return self._pop(request)

    def _pop(self, request: RequestInfo) -> float:
        work = self.unread.pop(request)
        del self._expected[request]
        self._queued = self._queued - work if self.unread else 0.0
        self._begun = min(self._begun, self._queued)
        return work


class _CacheSize:
    """How many of our tokens the engine's cache holds: as large as it says, less what its counters contradict."""

    def __init__(self, assumed_tokens: int) -> None:
        self._capacity = assumed_tokens
        self._share = 1.0
        self._read = self._expected = 0.0  # by our books
        self._queried = self._hit = 0.0  # by the engine's

    @property
    def tokens(self) -> float:
        scale = self._queried / self._read if self._read and self._queried else 1.0
        return self._capacity * self._share / min(4.0, max(0.25, scale))

    def read(self, tokens: int, cached: int) -> None:
        self._read += tokens
        self._expected += cached

    def begin(self, capacity: int | None) -> None:
        """The engine is heard of for the first time."""
        self._capacity = capacity or self._capacity
        self._read = self._expected = self._queried = self._hit = 0.0

    def compare(self, queried: int, hit: int) -> None:
        """What the engine has counted since."""
        self._queried += queried
        self._hit += hit
        if self._queried and self._read and self._expected:
            expected, found = self._expected / self._read, self._hit / self._queried
            share = self._share * (1 + _SHARE_GAIN * (found - expected) / expected)
            self._share = min(1.0, max(_LEAST_SHARE, share))
        self._read, self._expected = self._read * _FORGETS, self._expected * _FORGETS
        self._queried, self._hit = self._queried * _FORGETS, self._hit * _FORGETS


class PrefillBooks:
    """The books of all instances of a model."""

    def __init__(self, *, cache_tokens: int, max_blocks: int, max_age_s: float) -> None:
        self._limits = Limits(cache_tokens, max_blocks, max_age_s)
        self._books: dict[str, Book] = {}

    def __len__(self) -> int:
        return len(self._books)

    def of(self, instance: InstanceView, now: float) -> Book:
        book = self._books.get(instance.instance_id)
        if book is None:
            book = self._books[instance.instance_id] = Book(self._limits, now)
        if instance.metrics is not book.metrics and instance.metrics is not None:
            book.heard(instance.metrics)
        return book

    def forget(self, instance_id: str) -> None:
        self._books.pop(instance_id, None)
