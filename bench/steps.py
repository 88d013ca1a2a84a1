# SPDX-License-Identifier: Apache-2.0
"""How many bytecodes the gateway executes for a plain request, by function: nearly the same number in every run.

    python -m bench.steps [--beside FOLDER] [--top 30]

It says in seconds, on a busy machine too, which function has become dearer than in another checkout; the ruler says
whether that matters. What happens in C counts nothing here.
"""

import argparse
import collections
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvloop
from tests.integration.front.house import House

from bench import path

_ROOT = Path(__file__).parents[1]
_REQUESTS = 320

Steps = Mapping[str, float]
"""Bytecodes for a request, by function."""


class Counter:
    """Counts what is executed while it is on."""

    def __init__(self) -> None:
        self.steps: collections.Counter[CodeType] = collections.Counter()

    def __call__(self, frame: FrameType, event: str, _: Any) -> "Counter":
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.steps[frame.f_code] += 1
        return self

    def by_function(self) -> dict[str, float]:
        found: collections.Counter[str] = collections.Counter()
        for code, count in self.steps.items():
            if not code.co_filename.endswith(("bench/path.py", "bench/steps.py")):
                found[f"{_short(code.co_filename)}:{code.co_qualname}"] += count
        return {name: count / _REQUESTS for name, count in found.items()}


def _short(file: str) -> str:
    return file.rpartition("/vllm_gateway/")[2].rpartition("/lib/")[2]


async def count() -> dict[str, float]:
    counter, rounds = Counter(), 0
    ask = path.ask

    async def asked(gateway: House, requests: int) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == path.CLIENTS + 1:  # the first round warms up
            sys.settrace(counter)
        await ask(gateway, requests)

    path.ask, path.WARM_UP = asked, _REQUESTS
    try:
        await path.run(1, _REQUESTS, 1)
    finally:
        sys.settrace(None)
        path.ask = ask
    return counter.by_function()


def _of(folder: Path) -> Steps:
    """Of another checkout, by this script."""
    python = folder / ".venv" / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": f"{folder}/src:{folder}"}
    done = subprocess.run(
        [python if python.exists() else sys.executable, __file__, "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: Steps = json.loads(done.stdout)
    return found


def _table(here: Steps, there: Steps | None, top: int) -> str:
    lines = [f"{sum(here.values()):8.0f} bytecodes a request" + (f", {sum(there.values()):.0f} there" if there else "")]
    if there is None:
        rows = sorted(here.items(), key=lambda one: -one[1])
        lines += [f"{steps:8.1f}  {name}" for name, steps in rows[:top]]
    else:
        more = {name: here.get(name, 0.0) - there.get(name, 0.0) for name in here.keys() | there.keys()}
        rows = sorted(more.items(), key=lambda one: -abs(one[1]))
        lines += [f"{steps:+8.1f}  {name}" for name, steps in rows[:top] if abs(steps) >= 1]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description="Bytecodes of a plain request.")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gc.disable()
    here = uvloop.run(count())
    if given.json:
        print(json.dumps(here))
    else:
        print(_table(here, _of(given.beside) if given.beside else None, given.top))


if __name__ == "__main__":
    main()
