# SPDX-License-Identifier: Apache-2.0
"""Nothing that strangers name does anything on a terminal."""

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from vllm_gateway.cli.columns import columns
from vllm_gateway.cli.main import main
from vllm_gateway.cli.status import table
from vllm_gateway.configuration.settings import Log
from vllm_gateway.telemetry import log
from vllm_gateway.telemetry.events import REQUEST_FINISHED
from vllm_gateway.telemetry.terminal import printable

PACKAGE = Path(__file__).parents[3] / "src" / "vllm_gateway"
EVIL = {
    "ESC": "\x1b]0;owned\x07",
    "BEL": "\x07",
    "backspace": "\b",
    "carriage return": "\r",
    "DEL": "\x7f",
    "CSI of eight bits": "\x9b2J",
    "bidirectional": "\u202e\u2066\u200f\u061c",
    "line separators": "\u2028\u2029\x85",
    "invisible": "\u200b\u2060\ufeff\U000e0041",
    "a lone surrogate": "\udc80",
    "private use": "\ue000",
}


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_what_does_something_is_shown_as_an_escape(evil: str) -> None:
    shown = printable(f"a{evil}\nb")
    assert all(one.isprintable() for one in shown.replace("\n", ""))
    assert (shown[0], shown[-2:]) == ("a", "\nb")
    assert printable("a\nb", lines=False) == "a\\u000ab"


def test_what_people_write_stays() -> None:
    text = "Grüße, 你好, שלום, 👋 'quoted' \\ back"
    assert printable(text) == text
    assert printable(f"{text}\x1b") == f"{text}\\u001b"


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_the_log_for_people(evil: str) -> None:
    out = io.StringIO()
    log.configure(Log(format="console"), out)
    try:
        about = {"request_id": "r", "method": "GET", "status": 404, "outcome": evil, "duration_ms": 1}
        log.get_logger().emit(REQUEST_FINISHED, path=f"/{evil}\nforged line", **about)
        log.write_line(b'{"level": "info", "event": "x", "path": "/\\u001b[2J\\u202e", "list": ["\\u001b"]}')
        assert log.flush()
    finally:
        log.shutdown()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_tables_and_messages(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert columns(["A", "B"], [evil, "b\nc"]).replace("\n", "").isprintable()
    model: dict[str, Any] = dict.fromkeys(("state", "strategy", "last_error"), f"x{evil}")
    model |= {"running": 0, "wanted": 1, "queued": 0, "served": 0, "why_fewer": None}
    page: dict[str, Any] = {"gpus": [], "models": {evil: model}, "active_containers_by_name": {}, "problems": []}
    page |= {"version": "1", "uptime_s": 1.0, "runtime": "docker", "host_memory": {"held_mib": 0}}
    assert table(page).replace("\n", "").isprintable()
    for command in (["check", "--config", f"/no{evil}"], ["status", "--url", f"http://127.0.0.1:1/{evil}"], [evil]):
        with contextlib.suppress(SystemExit):
            main(command)
        said = capsys.readouterr()
        assert (said.out + said.err).replace("\n", "").isprintable(), command


def test_nothing_else_prints() -> None:
    """`say` is the one way to the terminal; the simulated engine is no part of the gateway."""
    allowed = {"telemetry/terminal.py", "telemetry/events.py", "configuration/__main__.py"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert {path for path in found if not path.startswith("simulator/")} <= allowed
