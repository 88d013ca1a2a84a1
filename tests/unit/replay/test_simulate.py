# SPDX-License-Identifier: Apache-2.0
"""The command `simulate`: what it prints, and what it says of wrong arguments."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_gateway.cli import main

ROWS = [
    {"timestamp": at * 400, "input_length": 1300, "output_length": 20, "hash_ids": [0, at % 3 + 1, 100 + at]}
    for at in range(30)
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def simulate(*arguments: object) -> int:
    return main(["simulate", *map(str, arguments)])


def test_json_has_an_object_for_each_strategy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--trace", trace, "--strategy", "round_robin,least_connections", "--instances", 2, "--json"]
    assert simulate(*given) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert [first["strategy"], second["strategy"]] == ["round_robin", "least_connections"]
    assert 0 < first["ttft_p50_s"] <= first["ttft_p99_s"]
    assert 0 < first["hit_rate"] < 1 and 0 < first["utilization"] <= 1
    assert first["requests"] == 30


def test_a_table_otherwise(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--trace", trace, "--strategy", "round_robin", "--instances", 2, "--limit", 7) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "TTFT p50" in head and row.startswith("round_robin")


def test_load_and_cache_can_be_varied(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def figures(*more: object) -> dict[str, float]:
        assert simulate("--trace", trace, "--strategy", "round_robin", "--instances", 1, "--json", *more) == 0
        (one,) = json.loads(capsys.readouterr().out)
        assert isinstance(one, dict)
        return one

    assert figures("--speed", 10)["ttft_p50_s"] > figures()["ttft_p50_s"]
    assert figures("--cache-blocks", 4)["hit_rate"] < figures("--cache-blocks", 99)["hit_rate"]


def test_a_strategy_of_ones_own(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "strategies"
    folder.mkdir()
    source = "class Last:\n    name = 'last'\n    def choose(self, request, instances):\n        return instances[-1]\n"
    (folder / "last.py").write_text(source, encoding="utf-8")
    given = ["--trace", trace, "--strategy", "last", "--instances", 3, "--strategies-dir", folder, "--json"]
    assert simulate(*given) == 0
    assert json.loads(capsys.readouterr().out)[0]["imbalance"] == 3


def test_a_strategy_that_fails_is_said(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text("class Bad:\n    def choose(self, request, instances):\n        return 1 / 0\n")
    assert simulate("--trace", trace, "--strategy", "bad", "--instances", 3, "--strategies-dir", tmp_path) == 1
    assert "strategy 'bad' failed: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--trace": "none.jsonl"}, "none.jsonl: No such file"),
        ({"--trace": "."}, "Is a directory"),
        ({"--trace": "empty.jsonl"}, "empty.jsonl holds no requests"),
        ({"--strategy": "nonsense"}, "no strategy 'nonsense'; there are: "),
        ({"--strategies-dir": "nowhere"}, "nowhere is not a directory"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    trace: Path,
    changes: dict[str, str],
    words: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    given = {"--trace": str(trace), "--strategy": "round_robin", "--instances": "2", **changes}
    assert simulate(*(word for pair in given.items() for word in pair)) == 2
    told = capsys.readouterr()
    assert words in told.err and not told.out


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--instances", "0", "not a whole number from 1 to 256"),
        ("--instances", "two", "not a whole number"),
        ("--speed", "0", "not a number above 0"),
        ("--speed", "nan", "not a number above 0"),
        ("--cache-blocks", "-1", "not a whole number from 1"),
        ("--limit", "0", "not a whole number from 1"),
        ("--strategy", ",", "names no strategy"),
    ],
)
def test_a_number_out_of_range_is_a_wrong_argument(
    trace: Path, option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--trace": str(trace), "--strategy": "round_robin", "--instances": "2", option: value}
    with pytest.raises(SystemExit) as ended:
        simulate(*(word for pair in given.items() for word in pair))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_requests_that_fit_nowhere_are_told_of(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--trace", trace, "--strategy", "round_robin", "--instances", 2, "--cache-blocks", 2]
    assert simulate(*given) == 0
    assert "30 requests are longer than an instance's cache" in capsys.readouterr().err


def test_a_plot_needs_matplotlib(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--trace", trace, "--strategy", "round_robin", "--instances", 2, "--plot", tmp_path / "ttft.png"]
    if find_spec("matplotlib") is not None:
        assert simulate(*given) == 0
        assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("vllm_gateway.replay.plot.find_spec", lambda name: None)
    assert simulate(*given) == 2
    assert "pip install 'vllm-gateway[plot]'" in capsys.readouterr().err


def test_other_commands_do_not_load_the_simulator() -> None:
    code = "import sys, vllm_gateway.cli; sys.exit(any('replay' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
