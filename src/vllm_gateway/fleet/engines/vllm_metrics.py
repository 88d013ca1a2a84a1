# SPDX-License-Identifier: Apache-2.0
"""Reads what vLLM's /metrics says of load and cache: a few lines of the hundreds that such a page has."""

import re

from vllm_gateway.routing import EngineMetrics

_NUMBERS = (
    "vllm:num_requests_running{",
    "vllm:num_requests_waiting{",
    "vllm:kv_cache_usage_perc{",
    "vllm:prefix_cache_queries_total{",
    "vllm:prefix_cache_hits_total{",
)
_CACHE = "vllm:cache_config_info{"
_LABEL = re.compile(r'(kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d+)"')


def parse(page: str, at: float) -> EngineMetrics:
    """Of all data-parallel ranks together. What a page does not tell is 0."""
    sums = dict.fromkeys(_NUMBERS, 0.0)
    ranks = cache_tokens = 0
    for line in page.splitlines():
        if line.startswith(_NUMBERS):
            name = line[: line.index("{") + 1]
            sums[name] += float(line.rpartition(" ")[2])
            ranks += name == _NUMBERS[0]
        elif line.startswith(_CACHE):
            cache_tokens += _cache_tokens(line)
    running, waiting, usage, queries, hits = sums.values()
    usage /= max(1, ranks)
    return EngineMetrics(at, int(running), int(waiting), usage, int(queries), int(hits), cache_tokens or None)


def _cache_tokens(line: str) -> int:
    """Blocks of hybrid models are not all as large as they say: where vLLM tells the size, that holds."""
    labels = {name: int(value) for name, value in _LABEL.findall(line)}
    return labels.get("kv_cache_size_tokens") or labels.get("num_gpu_blocks", 0) * labels.get("block_size", 0)
