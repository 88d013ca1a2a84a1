# SPDX-License-Identifier: Apache-2.0
"""Every setting, given what makes no sense for it: it is refused, in the words of somebody who edits the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_gateway.configuration.loading import ConfigError, load_settings, schema

JARGON = ("Input should", "Input tag", "after validation", "Tuple", "valid string", "Expected `", "`$")
ODD: tuple[Any, ...] = (None, "", "x", -1, 0.5, True, [], {}, [None], [[]], {"": None}, {"x": {}}, 2**70, ["\ud800"])
SCHEMA = json.loads(schema())
Path_ = tuple[str, ...]


def resolved(shape: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][shape["$ref"].rpartition("/")[2]] if "$ref" in shape else shape


def settings(shape: dict[str, Any] = SCHEMA, at: Path_ = ()) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Each with its place; `[]` stands for an entry of a list, `x` for one of a mapping."""
    shape = resolved(shape)
    yield at, shape
    for one in [*shape.get("anyOf", []), *shape.get("oneOf", [])]:
        yield from settings(one, at)
    for name, one in shape.get("properties", {}).items():
        yield from settings(one, (*at, name))
    if isinstance(items := shape.get("items"), dict):
        yield from settings(items, (*at, "[]"))
    for more in [shape.get("additionalProperties"), *shape.get("patternProperties", {}).values()]:
        if isinstance(more, dict):
            yield from settings(more, (*at, "normal" if at == ("priorities",) else "x"))


EVERY = list(settings())
NUMBERS = sorted({at for at, shape in EVERY if shape.get("type") in ("integer", "number")})


def told(folder: Path, at: Path_, value: Any) -> list[str]:
    for key in reversed(at):
        value = [value] if key == "[]" else {key: value}
    file = folder / "g.yaml"
    file.write_text(json.dumps(value))
    try:
        load_settings(file, {})
    except ConfigError as error:
        return list(map(str, error.problems))
    return []


def test_there_are_numbers_to_try() -> None:
    assert {("queue_size",), ("models", "x", "weights", "[]"), ("priorities", "normal")} <= set(NUMBERS)
    assert len(NUMBERS) > 50


@pytest.mark.parametrize("at", NUMBERS, ids=".".join)
def test_no_number_is_too_large_to_be_counted_timed_or_logged(at: Path_, tmp_path: Path) -> None:
    for value in (2**63, 10**400, 1e300, float("inf"), float("nan"), -(2**63)):
        name = ".".join(key for key in at if key != "[]")
        problems = told(tmp_path, at, value)
        assert any(name in problem.replace(".0", "") for problem in problems), (value, problems)


def test_what_is_wrong_is_told_in_plain_words(tmp_path: Path) -> None:
    problems = [
        problem for at in sorted({at for at, _ in EVERY}) for value in ODD for problem in told(tmp_path, at, value)
    ]
    assert len(problems) > 1000
    assert [problem for problem in problems if any(word in problem for word in JARGON)] == []
