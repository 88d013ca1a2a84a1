# SPDX-License-Identifier: Apache-2.0
"""Reads what vLLM's /metrics says of load and cache: a few lines of the hundreds that such a page has."""

import re
from collections.abc import Iterator

from vllm_gateway.routing import EngineMetrics

_NUMBERS = (
    b"vllm:num_requests_running{",
    b"vllm:num_requests_waiting{",
    b"vllm:kv_cache_usage_perc{",
    b"vllm:prefix_cache_queries_total{",
    b"vllm:prefix_cache_hits_total{",
)
_WORK = (
    b"vllm:prompt_tokens_total{",
    b"vllm:generation_tokens_total{",
    b"vllm:iteration_tokens_total_count{",
)
_CACHE = b"vllm:cache_config_info{"
_LABEL = re.compile(rb'(kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"')
_MOST = 1e15  # and no infinity, and nothing that is no number
_LONGEST_LINE = 4096
_MOST_LINES = 10_000  # of these: a few for each rank, of which nobody has a thousand


def parse(page: bytes, at: float) -> EngineMetrics:
    """Of all data-parallel ranks together. What a page does not tell is 0. Raises ValueError."""
    sums = dict.fromkeys(_NUMBERS, 0.0)
    ranks = cache_tokens = 0
    work: float | None = None
    for line in _lines(page):
        if line.startswith(_NUMBERS):
            name = line[: line.index(b"{") + 1]
            sums[name] += _number(line.rpartition(b" ")[2])
            ranks += name == _NUMBERS[0]
        elif line.startswith(_WORK):
            work = (work or 0.0) + _number(line.rpartition(b" ")[2])
        elif line.startswith(_CACHE):
            cache_tokens += _cache_tokens(line)
    running, waiting, usage, queries, hits = sums.values()
    usage /= max(1, ranks)
    return EngineMetrics(
        at,
        int(running),
        int(waiting),
        usage,
        int(queries),
        int(hits),
        cache_tokens or None,
        work=None if work is None else int(work),
    )


def _lines(page: bytes) -> Iterator[bytes]:
    """vLLM's own. A page is searched for them rather than cut into all its lines: who sends it may mean harm."""
    page = b"\n" + page
    start = page.find(b"\nvllm:")
    for _ in range(_MOST_LINES):
        if start < 0:
            return
        end = page.find(b"\n", start + 1)
        line = page[start + 1 : end if end >= 0 else len(page)]
        if len(line) > _LONGEST_LINE:
            raise ValueError("a line is too long")
        yield line
        start = page.find(b"\nvllm:", start + 1)
    raise ValueError("too many lines")


def _number(text: bytes) -> float:
    number = float(text)
    if not 0 <= number <= _MOST:
        raise ValueError(f"no number that can be: {text!r}")
    return number


def _cache_tokens(line: bytes) -> int:
    """Blocks of hybrid models are not all as large as they say: where vLLM tells the size, that holds."""
    labels = {name: int(value) for name, value in _LABEL.findall(line)}
    return labels.get(b"kv_cache_size_tokens") or labels.get(b"num_gpu_blocks", 0) * labels.get(b"block_size", 0)
