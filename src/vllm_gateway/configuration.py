# SPDX-License-Identifier: Apache-2.0
"""Reads the config file, the environment and the command line into Settings, and reports every problem at once."""

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vllm_gateway.configuration_words import words
from vllm_gateway.scheduling import StrategyError, make_strategy
from vllm_gateway.settings import Model, Settings
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import get_logger

Keys = tuple[str | int, ...]

DEFAULT_PARALLEL_MODELS: Mapping[str, int] = {"gemma3-4B": 2}
BUILT_IN_REPOSITORIES: Mapping[str, str] = {"gemma3-4B": "google/gemma-3-4b-it"}
PARALLEL_MODELS = "PARALLEL_MODELS_JSON"
ALLOWED_MODELS = "ALLOWED_MODELS_JSON"
ENVIRONMENT: Mapping[str, Keys] = {
    "VLLM_GATEWAY_RUNTIME": ("runtime",),
    "VLLM_IMAGE": ("docker", "image"),
    "VLLM_CONTAINER_PREFIX": ("docker", "container_prefix"),
    "DOCKER_NETWORK_NAME": ("docker", "network"),
    "HOST_CACHE_DIR": ("docker", "cache_dir"),
    "VLLM_INACTIVITY_TIMEOUT": ("idle_timeout_s",),
    "MEMORY_FOOTPRINT_FILE": ("memory_footprint_file",),
    "HUGGING_FACE_HUB_TOKEN": ("hf_token",),
    "HF_TOKEN": ("hf_token",),
    "LOG_LEVEL": ("log", "level"),
    "VLLM_GATEWAY_API_KEYS": ("server", "api_keys"),
}
_SECRET = {"hf_token", "api_keys"}
_MAX_INSTANCES = 64
_MAX_DEPTH = 30
_ENGINE_SETTINGS = (
    "instances",
    "engine_arguments",
    "environment",
    "image",
    "tensor_parallel_size",
    "footprint_mib",
    "pinned",
    "idle_timeout_s",
)
_OPTIONS_OF_THE_GATEWAY = {
    "--api-key": "only the gateway reaches the engine: set `server.api_keys`",
    "--host": "remove it",
    "--model": "set `repository`",
    "--port": "remove it",
    "--served-model-name": "the engine knows the model by the name that stands here; set `aliases` for others",
    "--tensor-parallel-size": "set `tensor_parallel_size`",
    "-tp": "set `tensor_parallel_size`",
}
_log = get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """`place` is where the operator has to look, `message` what is wrong there and what to do."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(Exception):
    """Everything that is wrong with a configuration."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load_settings(
    config_file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> Settings:
    """Overrides (`{"server.port": 8001}`; None: not given) before environment before file before defaults."""
    draft = _Draft()
    if config_file is not None:
        _read_file(draft, config_file)
    _read_environment(draft, environ)
    _read_models(draft, environ)
    for name, value in (overrides or {}).items():
        if value is not None:
            draft.put(tuple(name.split(".")), value, "command line")
    _find_contradictions(draft)
    try:
        settings = Settings.model_validate(draft.data)
    except ValidationError as error:
        problems = [draft.explain(details) for details in error.errors(include_url=False)]
        raise ConfigError(_without_repeats(draft.problems + problems)) from None
    _find_bad_strategies(draft, settings)
    if draft.problems:
        raise ConfigError(_without_repeats(draft.problems))
    counts = {name: model.instances for name, model in settings.models.items()}
    load_parallel_models_config(environ, counts if draft.names_models else None)
    return settings


def load_parallel_models_config(
    environ: Mapping[str, str] | None = None, configured: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many instances of which model are wanted; logged as an event. Raises ConfigError.

    PARALLEL_MODELS_JSON of `environ` (default: the process's own) before the `configured` numbers; where neither names
    a model, `{"gemma3-4B": 2}`.
    """
    problems: list[Problem] = []
    wanted = _parallel_models(os.environ if environ is None else environ, problems)
    if problems:
        raise ConfigError(problems)
    models = {**(configured or {}), **(wanted or {})} or dict(DEFAULT_PARALLEL_MODELS)
    source = PARALLEL_MODELS if wanted else "configuration" if configured else "default"
    _log.emit(events.PARALLEL_MODELS_CONFIG, models=models, source=source)
    return models


def schema() -> str:
    """The JSON schema of the config file, for editors."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"


@dataclass(slots=True)
class _Draft:
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
                is_variable = at in ENVIRONMENT or at in (PARALLEL_MODELS, ALLOWED_MODELS)
                return at if is_variable or not keys else f"{at}: {'.'.join(map(str, keys))}"
        return ".".join(map(str, keys)) or "configuration"

    def complain(self, keys: Keys, message: str) -> None:
        self.problems.append(Problem(self.place(keys), message))

    def explain(self, details: ErrorDetails) -> Problem:
        keys: Keys = tuple(key for key in details["loc"] if key != "[key]")
        kind, value = details["type"], details["input"]
        if kind == "extra_forbidden":
            known = _settings_at(keys[:-1])
            near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
            remedy = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
            return Problem(self.place(keys), f"unknown setting '{keys[-1]}'; {remedy}")
        message = words(details)
        if not isinstance(value, dict | list) and not _SECRET.intersection(map(str, keys)):
            message += f"; got {json.dumps(value, default=str, ensure_ascii=False)}"
        return Problem(self.place(keys), message)


def _without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _settings_at(keys: Keys) -> list[str]:
    """The names of the settings that may stand below `keys`."""
    shape: type[BaseModel] = Settings
    for key in keys:
        if key in shape.model_fields:
            annotation = shape.model_fields[str(key)].annotation
            inner = [annotation, *get_args(annotation)]
            shape = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), shape)
    return list(shape.model_fields)


# The file


def _read_file(draft: _Draft, path: Path) -> None:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        draft.problems.append(Problem(str(path), f"cannot be read ({error.strerror}): name a file that is there"))
        return
    except UnicodeDecodeError as error:
        draft.problems.append(Problem(str(path), f"is not UTF-8 text (byte {error.start})"))
        return
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        value = _Reader(draft, path, loader).read(node, ()) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        draft.problems.append(Problem(place, f"not valid YAML: {error.problem or error.context}"))
        return
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        draft.problems.append(Problem(str(path), f"not valid YAML: {error}"))
        return
    finally:
        loader.dispose()
    if isinstance(value, dict):
        draft.data = value
    elif value is not None:
        draft.problems.append(Problem(f"{path}:1", "must be settings of the form `name: value`"))


@dataclass(slots=True)
class _Reader:
    """Turns YAML nodes into plain data and remembers the line of each key."""

    draft: _Draft
    path: Path
    loader: yaml.SafeLoader

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        self.draft.places.setdefault(keys, f"{self.path}:{node.start_mark.line + 1}")
        if len(keys) > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, keys)
        return self.loader.construct_object(node)

    def _read_mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
            if key.value in first:
                place = f"{self.path}:{line}: {'.'.join(map(str, (*keys, key.value)))}"
                message = f"said twice, first on line {first[key.value]}; keep one of them"
                self.draft.problems.append(Problem(place, message))
            first.setdefault(key.value, line)
        self.loader.flatten_mapping(node)
        result = {}
        for key, value in node.value:
            self.draft.places[(*keys, key.value)] = f"{self.path}:{key.start_mark.line + 1}"
            result[key.value] = self.read(value, (*keys, key.value))
        return result


# The environment


def _read_environment(draft: _Draft, environ: Mapping[str, str]) -> None:
    for name, keys in ENVIRONMENT.items():
        text = environ.get(name, "").strip()
        if not text:
            continue
        value: object = text
        if name == "LOG_LEVEL":
            value = {"warn": "warning", "critical": "error"}.get(text.lower(), text.lower())
        elif name == "VLLM_GATEWAY_API_KEYS":
            value = [key.strip() for key in text.split(",") if key.strip()]
        draft.put(keys, value, name)


def _read_models(draft: _Draft, environ: Mapping[str, str]) -> None:
    """Joins the file's models, ALLOWED_MODELS_JSON and PARALLEL_MODELS_JSON."""
    file_names_models = bool(draft.models())
    for name, repository in _allowed_models(environ, draft.problems).items():
        draft.put(("models", name, "repository"), repository, ALLOWED_MODELS)
    draft.names_models = bool(draft.models())
    before = len(draft.problems)
    wanted = _parallel_models(environ, draft.problems)
    if not wanted:
        is_broken = len(draft.problems) > before
        wanted = {} if file_names_models or is_broken else dict(DEFAULT_PARALLEL_MODELS)
    for name, instances in wanted.items():
        if name not in draft.models():
            if name not in BUILT_IN_REPOSITORIES:
                message = f"nothing says how to serve '{name}': add it to {ALLOWED_MODELS} or models:"
                draft.problems.append(Problem(PARALLEL_MODELS, message))
                continue
            draft.put(("models", name, "repository"), BUILT_IN_REPOSITORIES[name], "built in")
        draft.put(("models", name, "instances"), instances, PARALLEL_MODELS)


def _parallel_models(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, int] | None:
    form = '\'{"gemma3-4B": 2, "qwen2.5": 1}\' (a JSON object: name of the model -> number of instances)'
    result = {}
    pairs = _json_object(PARALLEL_MODELS, environ, form, problems)
    for name, count in pairs or ():
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_INSTANCES:
            shown = json.dumps(count, ensure_ascii=False)
            message = f"instances of '{name}' must be a whole number from 1 to {_MAX_INSTANCES}, got {shown}"
            problems.append(Problem(PARALLEL_MODELS, f"{message}; expected {form}"))
        else:
            result[name] = count
    return None if pairs is None else result


def _allowed_models(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, str]:
    form = '\'{"gemma3-4B": "google/gemma-3-4b-it"}\' (a JSON object: name of the model -> repository)'
    result = {}
    for name, repository in _json_object(ALLOWED_MODELS, environ, form, problems) or ():
        if not isinstance(repository, str) or not repository.strip():
            shown = json.dumps(repository, ensure_ascii=False)
            problems.append(Problem(ALLOWED_MODELS, f"'{name}' must name a repository, got {shown}; expected {form}"))
        else:
            result[name] = repository.strip()
    return result


def _json_object(
    variable: str, environ: Mapping[str, str], form: str, problems: list[Problem]
) -> list[tuple[str, Any]] | None:
    """The pairs of the JSON object in a variable, also if still in the shell's quotes; None if it is not set."""
    text = environ.get(variable, "").strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip().replace('\\"', '"')
    if not text:
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        problems.append(Problem(variable, f"is not valid JSON ({error}), got {text}; expected {form}"))
        return []
    if not isinstance(pairs, _Pairs):
        problems.append(Problem(variable, f"must be a JSON object, got {text}; expected {form}"))
        return []
    names = [name for name, _ in pairs]
    for name in dict.fromkeys(names):
        if not name.strip():
            problems.append(Problem(variable, f"a model's name is empty, got {text}; expected {form}"))
        if names.count(name) > 1:
            problems.append(Problem(variable, f"names '{name}' twice, got {text}; keep one of them"))
    return [(name, value) for name, value in pairs if name.strip()]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repetitions, told apart from a JSON array."""


# What settings say together


def _find_contradictions(draft: _Draft) -> None:
    models = draft.models()
    owner = dict.fromkeys(models, "a model")
    for name, model in models.items():
        for setting, kind in (("aliases", "an alias"), ("adapters", "an adapter")):
            names = model.get(setting)
            for index, other in enumerate(names if isinstance(names, list) else ()):
                if not isinstance(other, str):
                    continue
                if other in owner:
                    keys: Keys = ("models", name, setting, index)
                    draft.complain(keys, f"'{other}' is already the name of {owner[other]}; choose another name")
                owner.setdefault(other, f"'{name}' (as {kind})")
        arguments = model.get("engine_arguments")
        for index, argument in enumerate(arguments if isinstance(arguments, list) else ()):
            option = str(argument).partition("=")[0].replace("_", "-")
            if option in _OPTIONS_OF_THE_GATEWAY:
                message = f"{option} is given to the engine by the gateway; {_OPTIONS_OF_THE_GATEWAY[option]}"
                draft.complain(("models", name, "engine_arguments", index), message)
            elif option.startswith("-") and len(pieces := option.split()) > 1:
                message = f"an option and its value are two items of the list: [{pieces[0]}, ...]"
                draft.complain(("models", name, "engine_arguments", index), message)
        if model.get("endpoints"):
            for setting in _ENGINE_SETTINGS:
                if setting in model:
                    message = f"'{setting}' is for engines that the gateway starts; remove it or `endpoints`"
                    draft.complain(("models", name, setting), message)


def _find_bad_strategies(draft: _Draft, settings: Settings) -> None:
    directory = Path(settings.strategies_dir) if settings.strategies_dir else None
    if directory is not None and not directory.is_dir():
        draft.complain(("strategies_dir",), f"{directory} is not a folder; name one that is there")
        return
    named: dict[Keys, Any] = {("models", name, "strategy"): model.strategy for name, model in settings.models.items()}
    for keys, strategy in {("strategy",): settings.strategy, **named}.items():
        try:
            if strategy is not None:
                make_strategy(strategy, directory)
        except StrategyError as error:
            draft.complain(keys, str(error))


assert set(_ENGINE_SETTINGS) <= set(Model.model_fields)

if __name__ == "__main__":
    print(schema(), end="")
