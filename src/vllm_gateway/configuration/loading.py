# SPDX-License-Identifier: Apache-2.0
"""Reads the config file, the environment and the command line into Settings, and reports every problem at once."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vllm_gateway.configuration.characters import find_odd_characters
from vllm_gateway.configuration.contradictions import (
    find_bad_strategies,
    find_bad_tls,
    find_contradictions,
    find_keys_twice,
    find_lost_models,
    find_open_door,
    find_own_address,
)
from vllm_gateway.configuration.draft import ConfigError, Draft, Problem, without_repeats
from vllm_gateway.configuration.environment import (
    ALLOWED_MODELS,
    DEFAULT_PARALLEL_MODELS,
    ENVIRONMENT,
    PARALLEL_MODELS,
    parallel_models,
    read_environment,
    read_models,
)
from vllm_gateway.configuration.file import read_file
from vllm_gateway.configuration.gpus import find_missing_gpus, find_wrong_gpus
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import get_logger

__all__ = [
    "ALLOWED_MODELS",
    "ENVIRONMENT",
    "PARALLEL_MODELS",
    "ConfigError",
    "Problem",
    "load_parallel_models_config",
    "load_settings",
    "schema",
]

_log = get_logger()


def load_settings(
    config_file: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    before: Settings | None = None,
) -> Settings:
    """Overrides (`{"server.port": 8001}`; None: not given) before environment before file before defaults.

    `before`: what counts until now; a file that does not mention models any more does not remove them.
    """
    draft = Draft()
    if config_file is not None:
        read_file(draft, config_file)
    says_models = isinstance(draft.data.get("models"), dict)
    read_environment(draft, environ)
    read_models(draft, environ)
    for name, value in (overrides or {}).items():
        if value is not None:
            draft.put(tuple(name.split(".")), value, "command line")
    find_odd_characters(draft)
    find_contradictions(draft)
    find_bad_strategies(draft)
    try:
        settings = Settings.model_validate(draft.data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        draft.problems += map(draft.explain, problems)
        if (rest := _without(draft.data, problems)) is not None:
            _find_what_does_not_fit(draft, rest)
        raise ConfigError(without_repeats(draft.problems)) from None
    if before is not None and not says_models:
        find_lost_models(draft, settings, before, config_file)
    _find_what_does_not_fit(draft, settings)
    if draft.problems:
        raise ConfigError(without_repeats(draft.problems))
    counts = {name: model.instances for name, model in settings.models.items()}
    load_parallel_models_config(environ, counts if draft.names_models else None)
    return settings


def _find_what_does_not_fit(draft: Draft, settings: Settings) -> None:
    find_open_door(draft, settings)
    find_own_address(draft, settings)
    find_keys_twice(draft, settings)
    find_bad_tls(draft, settings)
    find_wrong_gpus(draft, settings)
    find_missing_gpus(draft, settings)


def _without(data: Mapping[str, Any], problems: Iterable[ErrorDetails]) -> Settings | None:
    """The settings, as if sections and models in which something is wrong were not there: the others may be, too."""
    rest = dict(data)
    for section, *below in (details["loc"] for details in problems):
        if section == "models" and below and isinstance(rest.get("models"), dict):
            rest["models"] = {name: model for name, model in rest["models"].items() if name != below[0]}
        else:
            rest.pop(str(section), None)
    try:
        return Settings.model_validate(rest)
    except ValidationError:
        return None


def load_parallel_models_config(
    environ: Mapping[str, str] | None = None, configured: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many instances of which model are wanted; logged as an event. Raises ConfigError.

    PARALLEL_MODELS_JSON of `environ` (default: the process's own) before the `configured` numbers; where neither names
    a model, `{"gemma3-4B": 2}`.
    """
    problems: list[Problem] = []
    wanted = parallel_models(os.environ if environ is None else environ, problems)
    if problems:
        raise ConfigError(problems)
    models = {**(configured or {}), **(wanted or {})}
    source = PARALLEL_MODELS if wanted else "default" if configured is None else "configuration"
    if source == "default":
        models = dict(DEFAULT_PARALLEL_MODELS)
    _log.emit(events.PARALLEL_MODELS_CONFIG, models=models, source=source)
    return models


def schema() -> str:
    """The JSON schema of the config file, for editors."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
