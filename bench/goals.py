# SPDX-License-Identifier: Apache-2.0
"""What the gateway's request path is meant to cost, and whether a run's results hold it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.results import Results


@dataclass(frozen=True, slots=True)
class Judged:
    measured: str
    holds: bool | None  # None: the run does not tell


_UNKNOWN = Judged("not measured", None)


@dataclass(frozen=True, slots=True)
class Goal:
    work: str
    target: str
    judge: Callable[[Results], Judged]


def _ratio(row: str, limit: float) -> Callable[[Results], Judged]:
    def judge(results: Results) -> Judged:
        ratio = results.of(row, "gateway").spread("ratio")
        if ratio is None:
            return _UNKNOWN
        return Judged(f"{ratio.median:.2f} x ({ratio.least:.2f}-{ratio.most:.2f})", ratio.median <= limit)

    return judge


def _cheaper_than(row: str, peer: str) -> Callable[[Results], Judged]:
    """By the ratio to nginx of each one's own run, which holds when they were not measured in the same one."""

    def judge(results: Results) -> Judged:
        ours, theirs = results.of(row, "gateway").median("ratio"), results.of(row, peer).median("ratio")
        if ours is None or theirs is None:
            return _UNKNOWN
        return Judged(f"{ours:.2f} x nginx against {theirs:.2f} x", ours < theirs)

    return judge


def _added_delay(results: Results) -> Judged:
    measured = results.of("streams_384", "gateway")
    added, busy = measured.spread("added_p99_ms"), measured.median("busy")
    if added is None or busy is None:
        return _UNKNOWN
    text = f"{added.median:.2f} ms ({added.least:.2f}-{added.most:.2f}), core {busy:.0%} busy"
    return Judged(text, added.median < 2 if busy < 0.6 else None)


def _memory(results: Results) -> Judged:
    found = results.of("streams_2000", "gateway").spread("kib_per_stream")
    return Judged(f"{found.median:.1f} KiB", found.median < 20) if found else _UNKNOWN


def _flat(results: Results) -> Judged:
    many, models = (results.of("flat", name).median("ratio") for name in ("64 instances", "200 models"))
    if many is None or models is None:
        return _UNKNOWN
    text = f"64 instances: {many - 1:+.0%}; 200 models: {models - 1:+.0%}"
    return Judged(text, max(many, models) <= 1.1)


def _start(results: Results) -> Judged:
    measured = results.of("start", "gateway")
    health, imports = measured.spread("health_s"), measured.median("import_s")
    if health is None or imports is None:
        return _UNKNOWN
    return Judged(
        f"{health.median:.2f} s (slowest {health.most:.2f}); imports {imports:.2f} s of it", health.median < 1
    )


GOALS = (
    Goal("plain request, 1 KiB prompt", "at most 3.0 x nginx's CPU", _ratio("plain_1k", 3.0)),
    Goal("plain request, 1 KiB prompt", "less CPU than vllm-router (Rust)", _cheaper_than("plain_1k", "vllm-router")),
    Goal("plain request, 64 KiB prompt", "at most 2.5 x nginx's CPU", _ratio("plain_64k", 2.5)),
    Goal("plain request, 1 MiB prompt", "at most 2.5 x nginx's CPU", _ratio("plain_1m", 2.5)),
    Goal("384 streams of 50 tokens/s", "at most 1.25 x nginx's CPU per token", _ratio("streams_384", 1.25)),
    Goal("384 streams of 50 tokens/s", "p99 delay added to a token below 2 ms, core under 60 % busy", _added_delay),
    Goal("2,000 open streams", "below 20 KiB a stream above the idle process", _memory),
    Goal("1 or 64 instances, 1 or 200 models", "the same CPU within 10 %", _flat),
    Goal("start", "/health answers within 1 s of the process's start", _start),
)
