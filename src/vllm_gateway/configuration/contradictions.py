# SPDX-License-Identifier: Apache-2.0
"""What is wrong with settings that are well-formed one by one: contradictions, and strategies that cannot be made."""

from pathlib import Path
from typing import Any

from vllm_gateway.configuration.api_keys import digest_of, name_of
from vllm_gateway.configuration.draft import Draft, Keys, Problem
from vllm_gateway.configuration.openness import open_to_others
from vllm_gateway.configuration.own_address import is_own
from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.configuration.tls import BadTls, context_of
from vllm_gateway.scheduling import StrategyError, UnknownStrategy, make_strategy

_ENGINE_SETTINGS = (
    "instances",
    "engine_arguments",
    "environment",
    "image",
    "engine_address",
    "tensor_parallel_size",
    "footprint_mib",
    "pinned",
    "idle_timeout_s",
)
_OPTIONS_OF_THE_GATEWAY = {
    "--api-key": "only the gateway reaches the engine: set `server.api_keys`",
    "--host": "remove it",
    "--model": "set `repository`",
    "--port": "set `engine_address`",
    "--served-model-name": "the engine knows the model by the name that stands here; set `aliases` for others",
    "--uds": "set `engine_address`",
    "--tensor-parallel-size": "set `tensor_parallel_size`",
    "-tp": "set `tensor_parallel_size`",
}
_SEVERAL_MACHINES = ("--nnodes", "--node-rank", "--data-parallel-address", "-dpa", "--data-parallel-rank", "-dpn")


def find_contradictions(draft: Draft) -> None:
    models = draft.models()
    owner = dict.fromkeys(models, "a model")
    for name, model in models.items():
        _find_names_taken(draft, name, owner)
        _find_bad_arguments(draft, name)
        _find_endpoints_twice(draft, name)
        if model.get("endpoints"):
            _find_settings_of_engines(draft, name)


def _find_names_taken(draft: Draft, model: str, owner: dict[str, str]) -> None:
    """`owner`: whose each name is, in words; this model's are added."""
    for setting, kind in (("aliases", "an alias"), ("adapters", "an adapter")):
        for index, name in enumerate(_list(draft, model, setting)):
            if not isinstance(name, str):
                continue
            if name in owner:
                message = f"'{name}' is already the name of {owner[name]}; choose another name"
                draft.complain(("models", model, setting, index), message)
            owner.setdefault(name, f"'{model}' (as {kind})")


def _find_bad_arguments(draft: Draft, model: str) -> None:
    for index, argument in enumerate(_list(draft, model, "engine_arguments")):
        keys: Keys = ("models", model, "engine_arguments", index)
        option = str(argument).partition("=")[0].replace("_", "-")
        if option in _OPTIONS_OF_THE_GATEWAY:
            draft.complain(keys, f"{option} is given to the engine by the gateway; {_OPTIONS_OF_THE_GATEWAY[option]}")
        elif option in _SEVERAL_MACHINES:
            draft.complain(
                keys, f"{option}: start an engine over several machines yourself, and name it in `endpoints`"
            )
        elif option.startswith("-") and len(pieces := option.split()) > 1:
            draft.complain(keys, f"an option and its value are two items of the list: [{pieces[0]}, ...]")


def _find_endpoints_twice(draft: Draft, model: str) -> None:
    """One engine would get two shares of the requests, and twice as many at once as it may."""
    seen: set[str] = set()
    for index, endpoint in enumerate(_list(draft, model, "endpoints")):
        if isinstance(endpoint, str):
            known_as = endpoint.rstrip("/").lower()
            if known_as in seen:
                message = f"{endpoint} stands before it; give each engine once, and its strength in `weights`"
                draft.complain(("models", model, "endpoints", index), message)
            seen.add(known_as)


def _find_settings_of_engines(draft: Draft, model: str) -> None:
    for setting in _ENGINE_SETTINGS:
        if setting in draft.models()[model]:
            message = f"'{setting}' is for engines that the gateway starts; remove it or `endpoints`"
            draft.complain(("models", model, setting), message)


def _list(draft: Draft, model: str, setting: str) -> list[Any]:
    """Empty if it is no list: that is complained of elsewhere."""
    value = draft.models()[model].get(setting)
    return value if isinstance(value, list) else []


def find_open_door(draft: Draft, settings: Settings) -> None:
    """Of a socket that is handed in, it shows at the start."""
    server = settings.server
    if server.socket is None and (problem := open_to_others(server, server.host)):
        draft.complain(("server", "host"), problem)


def find_own_address(draft: Draft, settings: Settings) -> None:
    """An endpoint that is this gateway. By another name, or through others, it shows when a request comes back."""
    for name, model in settings.models.items():
        for index, url in enumerate(model.endpoints):
            if is_own(url, settings.server):
                message = f"{url} is this gateway itself (`server`); name the engine's address"
                draft.complain(("models", name, "endpoints", index), message)


def find_keys_twice(draft: Draft, settings: Settings) -> None:
    """One key would be two people, or have two roles."""
    names: set[str] = set()
    plain: dict[bytes, bool] = {}  # plain text may be said again
    for index, key in enumerate(settings.server.api_keys):
        name, digest, is_plain = name_of(key), digest_of(key), isinstance(key, str)
        if name in names and not is_plain:
            draft.complain(("server", "api_keys", index), f"'{name}' is the name of a key before it; choose another")
        elif digest in plain and not (is_plain and plain[digest]):
            draft.complain(("server", "api_keys", index), "the same key stands before it; keep one of them")
        names.add(name)
        plain[digest] = is_plain


def find_lost_models(draft: Draft, settings: Settings, before: Settings, config_file: Path | None) -> None:
    """Of a file that says nothing of models: an editor may have emptied it, or the disk was full."""
    if lost := [name for name in before.models if name not in settings.models]:
        names = ", ".join(lost)
        message = f"no `models` are here any more, and {names} would be stopped; if that is wanted, say `models: {{}}`"
        draft.problems.append(Problem(str(config_file), message))


def find_bad_tls(draft: Draft, settings: Settings) -> None:
    """Reads the files that it names."""
    if settings.server.tls is not None:
        try:
            context_of(settings.server.tls)
        except BadTls as error:
            draft.complain(("server", "tls", error.setting), str(error))


def find_bad_strategies(draft: Draft) -> None:
    """Of what is well-formed, whatever else is wrong."""
    directory = draft.data.get("strategies_dir")
    folder = Path(directory) if directory and isinstance(directory, str) else None
    is_there = folder is not None and folder.is_dir()
    if folder is not None and not is_there:
        draft.complain(("strategies_dir",), f"{folder} is not a folder; name one that is there")
    named: dict[Keys, Any] = {("models", name, "strategy"): one.get("strategy") for name, one in draft.models().items()}
    for keys, strategy in {("strategy",): draft.data.get("strategy"), **named}.items():
        if not strategy or not isinstance(strategy.get("name") if isinstance(strategy, dict) else strategy, str):
            continue
        try:
            make_strategy(strategy, folder if is_there else None)
        except StrategyError as error:
            if directory and not is_there and isinstance(error, UnknownStrategy):
                continue  # it may be there
            for at, text in error.problems:
                draft.complain((*keys, *at), text)


assert set(_ENGINE_SETTINGS) <= set(Model.model_fields)
