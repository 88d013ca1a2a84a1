# SPDX-License-Identifier: Apache-2.0
"""What is read from /metrics of vLLM, of one engine and of several ranks behind one address."""

import pytest

from vllm_gateway.fleet.engines.vllm_metrics import parse
from vllm_gateway.simulator.metrics import Gauges, Metrics, render

RANK = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{{engine="{0}",model_name="m"}} 3.0
vllm:num_requests_waiting{{engine="{0}",model_name="m"}} 2.0
vllm:num_requests_waiting_by_reason{{engine="{0}",model_name="m",reason="capacity"}} 2.0
vllm:kv_cache_usage_perc{{engine="{0}",model_name="m"}} 0.5
vllm:prefix_cache_queries_total{{engine="{0}",model_name="m"}} 1.216e+03
vllm:prefix_cache_hits_total{{engine="{0}",model_name="m"}} 1152.0
vllm:cache_config_info{{block_size="16",cache_dtype="auto",engine="{0}",num_gpu_blocks="1000"}} 1.0
"""


def test_what_an_engine_says() -> None:
    found = parse(RANK.format(0).encode(), at=7.0)
    assert (found.at, found.running, found.waiting, found.kv_usage) == (7.0, 3, 2, 0.5)
    assert (found.prefix_queries, found.prefix_hits, found.cache_tokens) == (1216, 1152, 16_000)


def test_ranks_count_together() -> None:
    found = parse((RANK.format(0) + RANK.format(1)).encode(), at=7.0)
    assert (found.running, found.kv_usage, found.cache_tokens) == (6, 0.5, 32_000)


def test_the_simulated_engine_is_read_the_same() -> None:
    page = render(
        Metrics(prefix_queries=100, prefix_hits=64),
        Gauges(running=1, waiting=4, kv_cache_usage=0.25, sleep_level=0),
        model="m",
        cache_config={"block_size": "16", "num_gpu_blocks": "10"},
    )
    found = parse(page.encode(), at=1.0)
    assert (found.running, found.waiting, found.kv_usage, found.prefix_hits, found.cache_tokens) == (
        1,
        4,
        0.25,
        64,
        160,
    )


def test_another_page_says_nothing() -> None:
    assert parse(b"<html>", at=1.0).cache_tokens is None


def test_the_size_in_tokens_holds_where_it_is_told() -> None:
    page = b'vllm:cache_config_info{block_size="128",kv_cache_size_tokens="4067203",num_gpu_blocks="65536"} 1.0\n'
    assert parse(page, at=1.0).cache_tokens == 4_067_203


@pytest.mark.parametrize("number", ["NaNaN", "NaN", "+Inf", "-Inf", "-1", "1e308", "", "9" * 5000])
def test_a_number_that_is_none_is_not_trusted(number: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(b'vllm:num_requests_running{engine="0"} ' + number.encode(), at=1.0)


def test_a_page_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match="too many lines"):
        parse(b'vllm:num_requests_running{engine="0"} 1\n' * 20_000, at=1.0)
    with pytest.raises(ValueError, match="too long"):
        parse(b"vllm:" + b"x" * 10_000, at=1.0)
    assert parse(b"other 1\n" * 500_000, at=1.0).running == 0


def test_its_work_is_all_that_it_has_done() -> None:
    page = (
        'vllm:prompt_tokens_total{engine="0",model_name="m"} 10.0\n'
        'vllm:generation_tokens_total{engine="0",model_name="m"} 200.0\n'
        'vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 7.0\n'
        'vllm:iteration_tokens_total_count{engine="0",model_name="m"} 3000.0\n'
        'vllm:prompt_tokens_total{engine="1",model_name="m"} 40000.0\n'
    )
    assert parse(page.encode(), at=1.0).work == 43_210
    assert parse(RANK.format(0).encode(), at=1.0).work is None
