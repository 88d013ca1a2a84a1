# SPDX-License-Identifier: Apache-2.0
"""The page about the configuration tells every setting and every variable, with the default that holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from vllm_gateway.configuration.loading import ALLOWED_MODELS, ENVIRONMENT, PARALLEL_MODELS
from vllm_gateway.configuration.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text("utf-8")


def expected_rows(shape: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """The first two cells of each setting's row: its dotted name and its default."""
    for name, info in shape.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        below = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if below is not None:
            between = {"models": ".NAME", "devices": "[]"}.get(name, "")
            yield from expected_rows(below, f"{prefix}{name}{between}.")
            continue
        default = info.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"`{json.dumps(to_jsonable_python(default))}`"
        yield f"| `{prefix}{info.alias or name}` | {'none' if default is None else shown} |"


@pytest.mark.parametrize("row", list(expected_rows()))
def test_a_setting_is_told_with_its_default(row: str) -> None:
    assert row in PAGE


@pytest.mark.parametrize("variable", [*ENVIRONMENT, PARALLEL_MODELS, ALLOWED_MODELS])
def test_a_variable_is_told_with_its_setting(variable: str) -> None:
    setting = f" `{'.'.join(map(str, ENVIRONMENT[variable]))}` |" if variable in ENVIRONMENT else ""
    assert f"| `{variable}` |{setting}" in PAGE


def test_no_row_tells_of_a_setting_that_is_gone() -> None:
    part = PAGE.split("## Settings", 1)[1]
    told = [line for line in part.splitlines() if line.startswith("| `")]
    assert all(any(line.startswith(row) for row in expected_rows()) for line in told)
