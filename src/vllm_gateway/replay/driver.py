# SPDX-License-Identifier: Apache-2.0
"""Hands the requests of a trace to simulated engines as the gateway does: the strategy's choice, queue and hooks."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from vllm_gateway.replay.engine import EngineOptions, Sequence, SimulatedEngine
from vllm_gateway.replay.trace import Trace, TracedRequest
from vllm_gateway.scheduling import Address, EngineMetrics, InstanceView, Outcome, Prompt, RequestInfo, Scheduler

MODEL = "trace"
METRICS_EVERY_S = 1.0
_READY_SINCE_S = -3600.0  # long before the trace begins: nothing starts slowly


@dataclass(frozen=True, slots=True)
class Setting:
    """The fleet on which a trace is replayed."""

    instances: int
    engine: EngineOptions
    speed: float = 1.0  # of the arrivals
    max_in_flight: int = 256
    seed: int = 0
    clients: int | None = None  # so many, each asking again once it is answered; None: as the trace's arrivals say
    streamed: bool = True  # else the strategy hears of a first byte only at the end, as from replies in one piece


@dataclass(slots=True)
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True, slots=True)
class World:
    """What a strategy may be built from: the simulated clock, a seeded generator and, for an oracle, the engines."""

    clock: Clock
    random: Random
    engines: Mapping[str, SimulatedEngine]


Build = Callable[[World], Scheduler]


@dataclass(slots=True)
class Served:
    """One request and what became of it. All times in seconds from its arrival."""

    request: TracedRequest
    arrival_s: float  # in simulated time: the trace's, by the speed, or when its client was free to ask
    instance: str | None = None  # None: it fits no instance
    queued_s: float = 0.0  # in the gateway, not in the engine
    ttft_s: float = 0.0
    total_s: float = 0.0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """Every request of the trace, in order of arrival, and what the engines counted."""

    setting: Setting
    served: list[Served]
    engines: Mapping[str, SimulatedEngine]


def replay(trace: Trace, build: Build, setting: Setting) -> Replay:
    """Replays `trace` under one strategy. What the strategy raises comes out of here."""
    assert setting.instances > 0 and setting.speed > 0 and setting.max_in_flight > 0 and setting.clients != 0
    assert setting.engine.block_tokens == trace.block_tokens
    run = _Run(trace, build, setting)
    run.to_the_end()
    return Replay(setting, run.served, run.engines)


@dataclass(slots=True)
class _Placed:
    served: Served
    info: RequestInfo
    view: InstanceView = field(init=False)


class _Run:
    def __init__(self, trace: Trace, build: Build, setting: Setting) -> None:
        self.engines = {
            f"{MODEL}-{number}": SimulatedEngine(setting.engine, self._first_token)
            for number in range(setting.instances)
        }
        self._views = [
            InstanceView(name, name, MODEL, Address(), setting.max_in_flight, ready_since=_READY_SINCE_S)
            for name in self.engines
        ]
        self._clock = Clock()
        self._strategy = build(World(self._clock, Random(setting.seed), self.engines))  # noqa: S311 - repeatable
        self._first_byte = getattr(self._strategy, "first_byte", None)
        self._finished = getattr(self._strategy, "finished", None)
        self._metrics_due_s = 0.0 if getattr(self._strategy, "wants_metrics", False) else float("inf")
        self.served = [Served(request, request.arrival_s / setting.speed) for request in trace.requests]
        self._streamed = setting.streamed
        self._block_tokens = trace.block_tokens
        self._unasked = deque(enumerate(self.served))
        self._clients = setting.clients
        self._queue: deque[_Placed] = deque()
        self._in_engine: dict[Sequence, _Placed] = {}

    def to_the_end(self) -> None:
        if self._clients is None:
            self._as_they_arrive()
        else:
            for _ in range(self._clients):
                self._ask_next()
        self._engines_until(float("inf"))
        assert not self._unasked and not self._queue and not self._in_engine

    def _as_they_arrive(self) -> None:
        while self._unasked:
            number, served = self._unasked.popleft()
            self._engines_until(served.arrival_s)
            self._clock.now_s = served.arrival_s
            self._arrive(str(number), served)

    def _ask_next(self) -> None:
        """A client is free: it asks the next of the trace that can be answered at all."""
        while self._unasked:
            number, served = self._unasked.popleft()
            served.arrival_s = self._clock.now_s
            if self._arrive(str(number), served):
                return

    def _arrive(self, request_id: str, served: Served) -> bool:
        """False: it fits no instance."""
        request = served.request
        if not next(iter(self.engines.values())).fits(request):
            return False
        prompt = Prompt(request.input_tokens, request.blocks, self._block_tokens)
        info = RequestInfo.simulated(request_id, MODEL, prompt)
        info.stream = self._streamed
        self._queue.append(_Placed(served, info))
        if len(self._queue) == 1:
            self._serve_queue()
        return True

    def _engines_until(self, until_s: float) -> None:
        engines = list(zip(self._views, self.engines.values(), strict=True))
        while True:
            next_s, view, engine = until_s, None, None
            for one, candidate in engines:
                if candidate.next_s is not None and candidate.next_s <= next_s:
                    if candidate.next_s == next_s and engine is not None:
                        continue
                    next_s, view, engine = candidate.next_s, one, candidate
            if engine is None or view is None:
                return
            self._clock.now_s = next_s
            for sequence in engine.advance():
                self._end(sequence, view)

    def _serve_queue(self) -> None:
        """First come, first served, and bound late: nobody gets an instance before one has a place."""
        while self._queue:
            open_to_all = tuple(view for view in self._views if view.in_flight < view.max_in_flight)
            if not open_to_all:
                return
            self._measure()
            self._place(self._queue.popleft(), open_to_all)

    def _place(self, placed: _Placed, open_to_all: tuple[InstanceView, ...]) -> None:
        view = placed.view = self._strategy.choose(placed.info, open_to_all)
        if not any(view is one for one in open_to_all):
            raise LookupError(f"the strategy chose {view!r}, which it was not given")
        now = self._clock.now_s
        view.in_flight += 1
        view.total += 1
        view.last_used = now
        placed.served.instance = view.instance_id
        placed.served.queued_s = now - placed.served.arrival_s
        self._in_engine[self.engines[view.instance_id].submit(placed.served.request, now)] = placed

    def _first_token(self, sequence: Sequence) -> None:
        placed = self._in_engine[sequence]
        placed.served.ttft_s = self._clock.now_s - placed.served.arrival_s
        placed.served.cached_tokens = sequence.cached_tokens
        if self._streamed and self._first_byte is not None:
            self._first_byte(placed.info, placed.view)

    def _end(self, sequence: Sequence, view: InstanceView) -> None:
        placed = self._in_engine.pop(sequence)
        placed.served.total_s = self._clock.now_s - placed.served.arrival_s
        view.in_flight -= 1
        view.last_used = self._clock.now_s
        if not self._streamed and self._first_byte is not None:
            self._first_byte(placed.info, view)
        if self._finished is not None:
            self._finished(placed.info, view, Outcome.OK)
        self._serve_queue()
        if self._clients is not None:
            self._ask_next()

    def _measure(self) -> None:
        """The engines' metrics, as old as they would be where the fleet asks at a fixed pace."""
        now = self._clock.now_s
        if now < self._metrics_due_s:
            return
        self._metrics_due_s = now + METRICS_EVERY_S
        for view in self._views:
            engine = self.engines[view.instance_id]
            cache = engine.cache
            view.metrics = EngineMetrics(
                now,
                running=engine.running,
                waiting=len(engine.waiting),
                kv_usage=cache.used_tokens / cache.capacity_tokens,
                prefix_queries=engine.prompt_tokens,
                prefix_hits=engine.cached_tokens,
                cache_tokens=cache.capacity_tokens,
            )
