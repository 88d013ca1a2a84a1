# SPDX-License-Identifier: Apache-2.0
"""vLLM's Prometheus metrics, those that say something about load, under vLLM's names and labels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_LATENCIES = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._count = 0
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._count += 1
        self._sum += value
        for place, bound in enumerate(self._bounds):
            if value <= bound:
                self._counts[place] += 1

    def lines(self, name: str, model: str) -> list[str]:
        def bucket(bound: str, count: int) -> str:
            return f'{name}_bucket{{engine="0",le="{bound}",model_name="{model}"}} {float(count)}'

        labels = f'{{engine="0",model_name="{model}"}}'
        buckets = [bucket(str(bound), count) for bound, count in zip(self._bounds, self._counts, strict=True)]
        return [
            *buckets,
            bucket("+Inf", self._count),
            f"{name}_count{labels} {float(self._count)}",
            f"{name}_sum{labels} {self._sum}",
        ]


@dataclass(slots=True)
class Metrics:
    """Counters that only rise; the gauges are read from the engine at the moment of the scrape."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHED_REASONS, 0))
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    request_latency: Histogram = field(default_factory=lambda: Histogram(_LATENCIES))
    queue_time: Histogram = field(default_factory=lambda: Histogram(_LATENCIES))


@dataclass(frozen=True, slots=True)
class Gauges:
    running: int
    waiting: int
    kv_cache_usage: float
    sleep_level: int
    """0 awake, 1 weights in host memory, 2 everything discarded."""


def render(metrics: Metrics, gauges: Gauges, *, model: str, cache_config: Mapping[str, str]) -> str:
    """The text of /metrics. Labels stand in alphabetical order, as the Prometheus client writes them."""
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> None:
        """`values`: the labels between engine and model_name or after it, as written, with the value."""
        lines.extend((f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"))
        lines.extend(
            f"vllm:{name}{{{_labels(labels, model)}}} {value if isinstance(value, float) else float(value)}"
            for labels, value in values.items()
        )

    def histogram(name: str, text: str, values: Histogram) -> None:
        lines.extend((f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} histogram"))
        lines.extend(values.lines(f"vllm:{name}", model))

    metric("num_requests_running", "gauge", "Number of requests in model execution batches.", {"": gauges.running})
    metric("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", {"": gauges.waiting})
    metric(
        "num_requests_waiting_by_reason",
        "gauge",
        "Number of waiting requests by reason.",
        {'reason="capacity"': gauges.waiting, 'reason="deferred"': 0},
    )
    metric(
        "engine_sleep_state",
        "gauge",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.",
        {
            'sleep_state="awake"': gauges.sleep_level == 0,
            'sleep_state="weights_offloaded"': gauges.sleep_level == 1,
            'sleep_state="discard_all"': gauges.sleep_level == 2,
        },
    )
    metric("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", {"": gauges.kv_cache_usage})
    tokens = "in terms of number of"
    metric("prefix_cache_queries_total", "counter", f"Prefix cache queries, {tokens} queried tokens.",
           {"": metrics.prefix_queries})  # fmt: skip
    metric("prefix_cache_hits_total", "counter", f"Prefix cache hits, {tokens} cached tokens.",
           {"": metrics.prefix_hits})  # fmt: skip
    metric("num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", {"": 0})
    metric("prompt_tokens_total", "counter", "Number of prefill tokens processed.", {"": metrics.prompt_tokens})
    metric("prompt_tokens_cached_total", "counter", "Number of cached prompt tokens (local + external).",
           {"": metrics.prefix_hits})  # fmt: skip
    metric("generation_tokens_total", "counter", "Number of generation tokens processed.",
           {"": metrics.generation_tokens})  # fmt: skip
    metric(
        "request_success_total",
        "counter",
        "Count of successfully processed requests.",
        {f'finished_reason="{reason}"': count for reason, count in metrics.finished.items()},
    )
    histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.",
              metrics.time_to_first_token)  # fmt: skip
    histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", metrics.request_latency)
    histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
              metrics.queue_time)  # fmt: skip
    config = ",".join(f'{key}="{value}"' for key, value in sorted({**cache_config, "engine": "0"}.items()))
    lines += [
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig",
        "# TYPE vllm:cache_config_info gauge",
        f"vllm:cache_config_info{{{config}}} 1.0",
        "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.",
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {_STARTED}",
    ]
    return "\n".join(lines) + "\n"


def _labels(extra: str, model: str) -> str:
    return ",".join(sorted(part for part in ('engine="0"', extra, f'model_name="{model}"') if part))


_STARTED = time.time()
