# SPDX-License-Identifier: Apache-2.0
"""Every call of `emit` in the gateway names an event of the table, and fields that the event has."""

import ast
from pathlib import Path

from vllm_gateway.telemetry import events

PACKAGE = Path(__file__).parents[3] / "src" / "vllm_gateway"


def test_every_emitted_event_fits_the_table() -> None:
    problems = [problem for path in sorted(PACKAGE.rglob("*.py")) for problem in problems_of(path)]
    assert not problems, "\n".join(problems)


def problems_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"):
            continue
        if not (node.args and isinstance(node.args[0], ast.Attribute)):
            continue
        name = node.args[0].attr
        event = events.TABLE.get(name.lower())
        if event is None:
            found.append(f"{path.name}:{node.lineno}: no event {name}")
            continue
        given: dict[str, object] = {keyword.arg: 0 for keyword in node.keywords if keyword.arg}
        is_whole = all(keyword.arg for keyword in node.keywords)
        found += [
            f"{path.name}:{node.lineno}: {problem}"
            for problem in event.problems(given)
            if is_whole or "unknown" in problem
        ]
    return found
