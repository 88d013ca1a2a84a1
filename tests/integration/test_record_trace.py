# SPDX-License-Identifier: Apache-2.0
"""Live requests recorded by a real gateway, and replayed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import CHAT, running_gateway
from vllm_gateway.cli import main

FAST = {"SIM_LOAD_S": "0.2", "SIM_TTFT_S": "0", "SIM_TOKENS_PER_S": "2000"}
SECRET = "the launch code is 1234 "


def config(trace: Path) -> dict[str, Any]:
    model = {"repository": "test/tiny-1b", "environment": FAST, "footprint_mib": 6000}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 20000}], "margin_mib": 0},
        "models": {"tiny": model},
        "record_trace": str(trace),
    }


async def test_what_was_recorded_can_be_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    async with running_gateway(tmp_path, config(trace)) as gateway:
        messages = [{"role": "user", "content": SECRET * 100}]
        for turn in range(3):
            body = {"model": "tiny", "messages": messages, "max_tokens": 20, "ignore_eos": True, "stream": turn == 1}
            async with gateway.http.post(CHAT, json=body) as reply:
                assert reply.status == 200
                await reply.read()
            messages += [
                {"role": "assistant", "content": "Noted."},
                {"role": "user", "content": "And what else? " * 20},
            ]
        assert (await gateway.chat("unknown"))[0] == 404
    text = trace.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["model"] for row in rows] == ["tiny"] * 3
    assert [row["output_length"] for row in rows] == pytest.approx([20, 20, 20], abs=1)
    first, *later = [row["hash_ids"] for row in rows]
    assert all(ids[: len(first)] == first and len(ids) > len(first) for ids in later)
    assert rows[0]["input_length"] == pytest.approx(100 * len(SECRET) / 4, rel=0.05)
    assert "launch" not in text

    arguments = [
        "simulate",
        "--trace",
        str(trace),
        "--strategy",
        "round_robin,prefix_aware",
        "--instances",
        "2",
        "--json",
    ]
    assert main(arguments) == 0
    turns, aware = json.loads(capsys.readouterr().out)
    assert aware["hit_rate"] > turns["hit_rate"] > 0
