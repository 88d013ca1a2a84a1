# SPDX-License-Identifier: Apache-2.0
"""What was read of a configuration so far, with the place where each part was said, and all that is wrong with it."""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.configuration.words import words
from vllm_gateway.telemetry.secrets import mask_urls
from vllm_gateway.telemetry.terminal import printable

Keys = tuple[str | int, ...]

_SECRET = {"hf_token", "api_keys"}
_NOT_IN_THE_FILE = {"[key]", "[plain]", "[named]"}  # of places, in pydantic's words


@dataclass(frozen=True, slots=True)
class Problem:
    """`place` is where the operator has to look, `message` what is wrong there and what to do."""

    place: str
    message: str

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.message}", lines=False)


class ConfigError(Exception):
    """Everything that is wrong with a configuration."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(slots=True)
class Draft:
    """What was read so far: plain data, and for each key the place where it was said."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    names_models: bool = False  # the file or ALLOWED_MODELS_JSON does

    def put(self, keys: Keys, value: object, place: str) -> None:
        """Sets one value; where the file has no mapping on the way, the file's problem is reported, not this one."""
        target: Any = self.data
        for key in keys[:-1]:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
            if not isinstance(target, dict):
                return
        target[keys[-1]] = value
        self.places = {known: at for known, at in self.places.items() if known[: len(keys)] != keys}
        self.places[keys] = place

    def models(self) -> dict[str, dict[str, Any]]:
        models = self.data.get("models")
        return {k: v for k, v in models.items() if isinstance(v, dict)} if isinstance(models, dict) else {}

    def place(self, keys: Keys) -> str:
        for length in range(len(keys), -1, -1):
            at = self.places.get(keys[:length])
            if at is not None:
                is_variable = at.isidentifier()  # a place in a file has a colon
                return at if is_variable or not keys else f"{at}: {'.'.join(map(str, keys))}"
        return ".".join(map(str, keys)) or "configuration"

    def complain(self, keys: Keys, message: str) -> None:
        self.problems.append(Problem(self.place(keys), message))

    def explain(self, details: ErrorDetails) -> Problem:
        keys: Keys = tuple(key for key in details["loc"] if key not in _NOT_IN_THE_FILE)
        kind, value = details["type"], details["input"]
        if kind == "extra_forbidden":
            known = _settings_at(keys[:-1])
            near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
            remedy = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
            return Problem(self.place(keys), f"unknown setting '{keys[-1]}'; {remedy}")
        message = words(details)
        if not isinstance(value, dict | list) and not _SECRET.intersection(map(str, keys)):
            message += f"; got {mask_urls(json.dumps(value, default=str, ensure_ascii=False))}"
        return Problem(self.place(keys), message)


def without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _settings_at(keys: Keys) -> list[str]:
    """The names of the settings that may stand below `keys`."""
    shape: type[BaseModel] = Settings
    for key in keys:
        if key in shape.model_fields:
            annotation = shape.model_fields[str(key)].annotation
            shape = next(_shapes_in(annotation), shape)
    return [field.alias or name for name, field in shape.model_fields.items()]


def _shapes_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _shapes_in(inner)
