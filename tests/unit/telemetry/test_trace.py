# SPDX-License-Identifier: Apache-2.0
"""The trace recorder: what it writes can be replayed, says nothing of what was said, and never makes anyone wait."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.replay.trace import read_trace
from vllm_gateway.telemetry import trace as recording
from vllm_gateway.telemetry.trace import BLOCK_TOKENS, ReplyLength, TraceRecorder, regular

CHUNK = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'


def record(recorder: TraceRecorder, **changes: Any) -> None:
    row: dict[str, Any] = {
        "arrived_s": 10.0,
        "model": "m",
        "prompt_tokens": 300,
        "blocks": (11, 12),
        "block_tokens": 128,
    }
    recorder.record(**{**row, "reply_tokens": 5, **changes})


def test_what_is_recorded_can_be_replayed(tmp_path: Path) -> None:
    path, problems = tmp_path / "trace.jsonl", list[str]()
    recorder = TraceRecorder(path, 9.0, problems.append)
    record(recorder)
    record(recorder, arrived_s=9.5, blocks=(11, 13, 14), prompt_tokens=400)
    record(recorder, arrived_s=11.25, model="other")
    recorder.close()
    trace = read_trace(path, "m")
    assert not problems
    assert trace.block_tokens == BLOCK_TOKENS
    first, second = trace.requests
    assert (first.arrival_s, first.input_tokens, len(first.blocks)) == (0.0, 400, 3)
    assert (second.arrival_s, second.output_tokens, len(second.blocks)) == (0.5, 5, 2)
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]
    assert [json.loads(line)["timestamp"] for line in path.read_text().splitlines()] == [1000, 500, 2250]


def test_the_hashes_are_of_no_use_to_others(tmp_path: Path) -> None:
    """The same prompt has other numbers in another recording: nobody can look up whether it was asked."""
    numbers: list[int] = []
    for name in ("a", "b"):
        recorder = TraceRecorder(tmp_path / name, 0.0, pytest.fail)
        record(recorder)
        recorder.close()
        numbers += read_trace(tmp_path / name).requests[0].blocks
    assert len({*numbers, 11, 12}) == 6
    assert max(numbers) < 2**53


def test_an_old_recording_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for round_ in range(3):
        recorder = TraceRecorder(path, 0.0, pytest.fail)
        record(recorder, reply_tokens=round_)
        recorder.close()
    assert json.loads(path.read_text())["output_length"] == 2
    assert json.loads((tmp_path / "trace.jsonl.1").read_text())["output_length"] == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_large_file_makes_way_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LARGEST_FILE_BYTES", 1000)
    path = tmp_path / "trace.jsonl"
    recorder = TraceRecorder(path, 0.0, pytest.fail)
    for _ in range(50):
        record(recorder)
    recorder.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * 1200
    assert read_trace(tmp_path / "trace.jsonl.1", "m").requests


def test_what_cannot_be_written_in_time_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_WAITING_ROWS", 1)
    problems: list[str] = []
    recorder = TraceRecorder(tmp_path / "trace.jsonl", 0.0, problems.append)
    for _ in range(3000):
        record(recorder, blocks=tuple(range(300)), prompt_tokens=300 * 128)
    recorder.close()
    written = len((tmp_path / "trace.jsonl").read_bytes().splitlines())
    (problem,) = problems
    assert problem.startswith(f"{3000 - written} requests came faster")


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    path, problems = tmp_path / "trace.jsonl", list[str]()
    path.symlink_to("/dev/full")
    recorder = TraceRecorder(path, 0.0, problems.append)
    for _ in range(20):
        record(recorder)
    recorder.close()
    assert "No space left" in problems[0]


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([CHUNK] * 7 + [b"data: [DONE]\n\n"], 6),
        ([CHUNK * 3, b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 41}}\n\n'], 41),
        ([b'{"choices": [{"text": "' + b"x" * 5000 + b'"}], "usage": {"completion_tok', b'ens":77, "x": 1}}'], 77),
        ([b'{"data": [], "usage": {"prompt_tokens": 3}}'], 0),
        ([], 0),
    ],
)
def test_a_replys_length_is_what_the_engine_counted_else_its_events(pieces: list[bytes], tokens: int) -> None:
    length = ReplyLength()
    for piece in pieces:
        length.watch(piece)
    assert length.tokens == tokens


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(0, 40))
def test_blocks_of_any_size_become_blocks_of_one(tokens: int, block_tokens: int, blocks: int) -> None:
    found = list(regular(tokens, range(blocks), block_tokens))
    assert found == sorted(found)
    assert len(found) * BLOCK_TOKENS <= tokens
    for place, block in enumerate(found, start=1):
        assert (
            abs((block + 1) * block_tokens - place * BLOCK_TOKENS) <= max(block_tokens, BLOCK_TOKENS) / 2 or block == 0
        )
