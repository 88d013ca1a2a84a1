# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic: ratios within a round, files that later runs go into, what load generators report."""

import json
from pathlib import Path

import pytest

from bench.load import LoadFailed, parse_plain
from bench.results import Measured, Results, add_ratios, read, save

WRK = {
    "requests": 10,
    "seconds": 2.0,
    "refused": 0,
    "broken": 0,
    "bad_status": 0,
    "late": 0,
    "p50_us": 1,
    "p99_us": 2500,
}


def test_a_ratio_is_to_the_yardstick_of_the_same_round() -> None:
    samples = {"nginx": {"cpu_us": 20.0}, "gateway": {"cpu_us": 50.0}, "direct": {"per_s": 9.0}}
    add_ratios(samples, "nginx")
    assert samples == {
        "nginx": {"cpu_us": 20.0, "ratio": 1.0},
        "gateway": {"cpu_us": 50.0, "ratio": 2.5},
        "direct": {"per_s": 9.0},
    }


def test_without_a_yardstick_there_is_no_ratio() -> None:
    samples = {"gateway": {"cpu_us": 50.0}}
    add_ratios(samples, "nginx")
    assert samples == {"gateway": {"cpu_us": 50.0}}


def test_the_direct_way_s_delay_is_not_the_proxy_s() -> None:
    samples = {"direct": {"delay_p99_ms": 0.5}, "gateway": {"cpu_us": 20.0, "delay_p99_ms": 1.25}}
    add_ratios(samples, "nginx")
    assert samples["gateway"]["added_p99_ms"] == 0.75


def test_spread() -> None:
    measured = Measured([{"ratio": 3.0}, {"ratio": 1.0}, {"other": 9.0}, {"ratio": 2.5}])
    spread = measured.spread("ratio")
    assert spread is not None
    assert (spread.least, spread.median, spread.most) == (1.0, 2.5, 3.0)
    assert measured.median("nothing") is None


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    results = Results(date="2026-01-01", machine={"python": "3.11"}, rounds=5, seconds=3.0, missing={"envoy": "absent"})
    results.rows = {"plain_1k": {"gateway": Measured([{"cpu_us": 61.234567}]), "litellm": Measured([], "slow")}}
    save(results, tmp_path / "results.json")
    found = read(tmp_path / "results.json")
    assert found.of("plain_1k", "gateway").samples == [{"cpu_us": 61.235}]
    results.rows["plain_1k"]["gateway"].samples = [{"cpu_us": 61.235}]
    assert found == results


def test_a_later_run_of_some_targets_leaves_the_others() -> None:
    before = Results(versions={"nginx": "1", "envoy": "1"}, missing={"envoy": "absent"})
    before.rows = {"plain_1k": {"nginx": Measured([{"cpu_us": 1.0}])}, "flat": {"1 instance": Measured()}}
    after = Results(versions={"nginx": "2", "envoy": "2"})
    after.rows = {"plain_1k": {"nginx": Measured([{"cpu_us": 2.0}]), "envoy": Measured([{"cpu_us": 3.0}])}}
    before.take(after, ["envoy"])
    assert before.versions == {"nginx": "1", "envoy": "2"}
    assert before.missing == {}
    assert before.of("plain_1k", "nginx").median("cpu_us") == 1.0
    assert before.of("plain_1k", "envoy").median("cpu_us") == 3.0
    assert "flat" in before.rows


def test_wrk_s_line_is_found_behind_its_own_words() -> None:
    result = parse_plain(f"Running 2s test\n  Latency\n\n{json.dumps(WRK)}\n")
    assert (result.requests, result.seconds, result.p99_ms) == (10, 2.0, 2.5)


@pytest.mark.parametrize("wrong", [{"bad_status": 3}, {"broken": 1}, {"requests": 0}])
def test_failed_requests_have_no_cost(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadFailed):
        parse_plain(json.dumps(WRK | wrong))
