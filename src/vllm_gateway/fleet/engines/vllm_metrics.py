# SPDX-License-Identifier: Apache-2.0
"""Reads what vLLM's /metrics says of load and cache: a few lines of the hundreds that such a page has."""

import re
from collections.abc import Mapping

from vllm_gateway.routing import EngineMetrics

_LINE = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    r"|prefix_cache_queries(?:_total)?|prefix_cache_hits(?:_total)?)(?:\{[^\n]*\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)
_CACHE = re.compile(r"^vllm:cache_config_info\{([^\n]*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="(\d+)"')


def parse(page: str, at: float) -> EngineMetrics:
    """Of all data-parallel ranks together. What a page does not tell is 0."""
    sums: dict[str, float] = {}
    ranks = 0
    for name, value in _LINE.findall(page):
        sums[name] = sums.get(name, 0.0) + float(value)
        ranks += name == "num_requests_running"
    usage = sums.get("kv_cache_usage_perc", sums.get("gpu_cache_usage_perc", 0.0))  # its name before vLLM 0.10
    return EngineMetrics(
        at,
        running=int(sums.get("num_requests_running", 0)),
        waiting=int(sums.get("num_requests_waiting", 0)),
        kv_usage=usage / max(1, ranks),
        prefix_queries=_counter(sums, "prefix_cache_queries"),
        prefix_hits=_counter(sums, "prefix_cache_hits"),
        cache_tokens=sum(map(_cache_tokens, _CACHE.findall(page))) or None,
    )


def _counter(sums: Mapping[str, float], name: str) -> int:
    return int(sums.get(f"{name}_total", sums.get(name, 0)))


def _cache_tokens(labels: str) -> int:
    values = {name: int(value) for name, value in _LABEL.findall(labels)}
    return values.get("num_gpu_blocks", 0) * values.get("block_size", 0)
