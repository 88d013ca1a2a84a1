# SPDX-License-Identifier: Apache-2.0
"""Reads the environment: a setting a variable, and the two that name models."""

import json
from collections.abc import Mapping
from typing import Any

from vllm_gateway.configuration.draft import Draft, Keys, Problem

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
    "VLLM_GATEWAY_STATE_DIR": ("state_dir",),
    "MEMORY_FOOTPRINT_FILE": ("memory_footprint_file",),
    "HUGGING_FACE_HUB_TOKEN": ("hf_token",),
    "HF_TOKEN": ("hf_token",),
    "LOG_LEVEL": ("log", "level"),
    "VLLM_GATEWAY_API_KEYS": ("server", "api_keys"),
    "VLLM_GATEWAY_OPEN": ("server", "open"),
}
_MAX_INSTANCES = 64


def read_environment(draft: Draft, environ: Mapping[str, str]) -> None:
    for name, keys in ENVIRONMENT.items():
        text = environ.get(name, "").strip()
        if not text:
            continue
        value: object = text
        if name == "LOG_LEVEL":
            value = {"warn": "warning", "critical": "error"}.get(text.lower(), text.lower())
        elif name == "VLLM_GATEWAY_API_KEYS":
            value = [key.strip() for key in text.split(",") if key.strip()] or [""]  # which is said: it is no key
        draft.put(keys, value, name)


def read_models(draft: Draft, environ: Mapping[str, str]) -> None:
    """Joins the file's models, ALLOWED_MODELS_JSON and PARALLEL_MODELS_JSON."""
    says_which = isinstance(draft.data.get("models"), dict)  # `models: {}` is none
    for name, repository in _allowed_models(environ, draft.problems).items():
        draft.put(("models", name, "repository"), repository, ALLOWED_MODELS)
    draft.names_models = says_which or bool(draft.models())
    before = len(draft.problems)
    wanted = parallel_models(environ, draft.problems)
    if not wanted:
        is_broken = len(draft.problems) > before
        wanted = {} if says_which or is_broken else dict(DEFAULT_PARALLEL_MODELS)
    for name, instances in wanted.items():
        if name not in draft.models():
            if name not in BUILT_IN_REPOSITORIES:
                message = f"nothing says how to serve '{name}': add it to {ALLOWED_MODELS} or models:"
                draft.problems.append(Problem(PARALLEL_MODELS, message))
                continue
            draft.put(("models", name, "repository"), BUILT_IN_REPOSITORIES[name], "built in")
        draft.put(("models", name, "instances"), instances, PARALLEL_MODELS)


def parallel_models(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, int] | None:
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
