# SPDX-License-Identifier: Apache-2.0
"""What a replay comes to: the figures by which strategies are compared, and the table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from vllm_gateway.replay.driver import Replay


@dataclass(frozen=True, slots=True)
class Summary:
    """Times in seconds. `hit_rate`: the part of all prompt tokens that the caches held. `utilization`: the part of the
    time in which engines worked. `imbalance`: the work of the busiest by the mean of all; 1 is even."""

    strategy: str
    requests: int
    refused: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    e2e_p50_s: float
    e2e_p90_s: float
    e2e_p99_s: float
    throughput_rps: float
    output_tokens_per_s: float
    hit_rate: float
    utilization: float
    imbalance: float
    preemptions: int


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed; 0 where there is none."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def summary(strategy: str, replay: Replay) -> Summary:
    served = [one for one in replay.served if one.instance is not None]
    ttft = sorted(one.ttft_s for one in served)
    total = sorted(one.total_s for one in served)
    span = max((one.arrival_s + one.total_s for one in served), default=0.0)
    busy = [engine.busy_s for engine in replay.engines.values()]
    prompt_tokens = sum(one.request.input_tokens for one in served)
    return Summary(
        strategy=strategy,
        requests=len(served),
        refused=len(replay.served) - len(served),
        ttft_mean_s=sum(ttft) / max(1, len(ttft)),
        ttft_p50_s=percentile(ttft, 50),
        ttft_p90_s=percentile(ttft, 90),
        ttft_p99_s=percentile(ttft, 99),
        e2e_p50_s=percentile(total, 50),
        e2e_p90_s=percentile(total, 90),
        e2e_p99_s=percentile(total, 99),
        throughput_rps=len(served) / span if span else 0.0,
        output_tokens_per_s=sum(one.request.output_tokens for one in served) / span if span else 0.0,
        hit_rate=sum(one.cached_tokens for one in served) / max(1, prompt_tokens),
        utilization=sum(busy) / len(busy) / span if span else 0.0,
        imbalance=max(busy) * len(busy) / sum(busy) if sum(busy) else 1.0,
        preemptions=sum(engine.preemptions for engine in replay.engines.values()),
    )


_COLUMNS = (
    ("TTFT p50", "ttft_p50_s"),
    ("p90", "ttft_p90_s"),
    ("p99", "ttft_p99_s"),
    ("total p50", "e2e_p50_s"),
    ("p90", "e2e_p90_s"),
    ("p99", "e2e_p99_s"),
    ("requests/s", "throughput_rps"),
    ("hit rate", "hit_rate"),
    ("utilization", "utilization"),
    ("imbalance", "imbalance"),
)


def table(summaries: Sequence[Summary]) -> str:
    """For a terminal; times in seconds."""
    rows = [["strategy", *(title for title, _ in _COLUMNS)]]
    rows += [[one.strategy, *(f"{getattr(one, key):.3f}" for _, key in _COLUMNS)] for one in summaries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)
