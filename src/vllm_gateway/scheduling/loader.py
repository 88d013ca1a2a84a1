# SPDX-License-Identifier: Apache-2.0
"""Finds a strategy by its name: shipped, by entry point, or a file in `strategies_dir`."""

import importlib
import importlib.util
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, cast, get_type_hints

import msgspec

from vllm_gateway.bodies.words import At, dotted, words
from vllm_gateway.files.plain import read_plain
from vllm_gateway.scheduling.types import Scheduler

GROUP = "vllm_gateway.strategies"
_MOST_BYTES = 1 << 20
_MOST = 1 << 53
SHIPPED = "vllm_gateway.strategies"

Factory = Callable[..., Scheduler]
StrategySpec = str | Mapping[str, Any]  # a name, or `name` with options


class StrategyError(Exception):
    """No such strategy or option, or its file cannot be loaded. The text names what there is.

    `problems`: the same one by one, each with its place below the strategy.
    """

    def __init__(self, text: str, problems: Sequence[tuple[At, str]] = ()) -> None:
        super().__init__(text)
        self.problems = tuple(problems) or (((), text),)


class UnknownStrategy(StrategyError):
    """There is none of that name."""


def make_strategy(
    spec: StrategySpec,
    strategies_dir: Path | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    random: Random | None = None,
) -> Scheduler:
    """A new strategy, as the configuration describes it. Raises StrategyError."""
    random = random or Random()  # noqa: S311 - chooses instances, no secrets
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise StrategyError("a strategy with options needs its `name` among them")
    factory = load_strategy(name, strategies_dir)
    given: dict[str, Any] = {
        "clock": clock,
        "random": random,
        "make": lambda inner: make_strategy(inner, strategies_dir, clock=clock, random=random),
    }
    parameters = {
        key: one for key, one in inspect.signature(factory).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    taken = parameters.keys()
    known = sorted(taken - given.keys())
    hints = get_type_hints(vars(factory).get("__init__"), include_extras=True) if options else {}
    wrong: list[tuple[At, str]] = []
    for option, value in options.items():
        if option not in known:
            text = f"strategy {name!r} has no option {option!r}; it has: {', '.join(known) or 'none'}"
            wrong.append(((option,), text))
            continue
        wrong += _odd_numbers(value, (option,))
        if "make" in taken:
            wrong += _wrong_members(value, (option,), given["make"])
        try:
            options[option] = msgspec.convert(value, hints.get(option, Any))
        except msgspec.ValidationError as error:
            at, text = words(error)
            wrong.append(((option, *at), text))
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            wrong.append(((), f"strategy {name!r} needs its option {option!r}"))
    if wrong:
        texts = [f"strategy {name!r}, {dotted(at)}: {text}" if at else text for at, text in wrong]
        raise StrategyError("; ".join(texts), wrong)
    try:
        return factory(**options, **{key: value for key, value in given.items() if key in taken})
    except (TypeError, ValueError) as error:
        raise StrategyError(f"strategy {name!r}: {error}") from error


def _odd_numbers(value: object, at: At) -> Iterator[tuple[At, str]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _odd_numbers(one, (*at, str(key)))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _odd_numbers(one, (*at, index))
    elif isinstance(value, int | float) and not abs(value) <= _MOST:
        yield at, f"must be a finite number, at most {_MOST}"


def _wrong_members(value: object, at: At, make: Callable[[StrategySpec], Scheduler]) -> Iterator[tuple[At, str]]:
    """Of a strategy that is made of others: each is tried, for it alone could name only the first that is wrong."""
    for index, one in enumerate(value if isinstance(value, list) else []):
        spec = one.get("strategy") if isinstance(one, Mapping) else None
        if isinstance(spec, str | Mapping):
            try:
                make(spec)
            except StrategyError as error:
                for below, text in error.problems:
                    yield (*at, index, "strategy", *below), text


def load_strategy(name: str, strategies_dir: Path | None = None) -> Factory:
    """The class called `name`; `make_strategy` makes one object of it for each model. Raises StrategyError."""
    shipped = [module.name for module in pkgutil.iter_modules(importlib.import_module(SHIPPED).__path__)]
    if name in shipped:
        return _strategy_in(importlib.import_module(f"{SHIPPED}.{name}"), name)
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if name in plugins:
        try:
            return cast("Factory", plugins[name].load())
        except Exception as error:
            raise StrategyError(f"strategy {name!r}: its package cannot be loaded: {error}") from error
    files = {path.stem: path for path in sorted(strategies_dir.glob("*.py"))} if strategies_dir else {}
    if name in files:
        return _strategy_in(_module_of(files[name]), name)
    known = ", ".join(sorted({*shipped, *plugins, *files}))
    raise UnknownStrategy(f"no strategy {name!r}; there are: {known}")


def _module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"vllm_gateway_strategy_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        read_plain(path, _MOST_BYTES)  # Python would wait for a pipe
        spec.loader.exec_module(module)
    except Exception as error:
        raise StrategyError(f"strategy file {path} cannot be loaded: {error!r}") from error
    return module


def _strategy_in(module: ModuleType, name: str) -> Factory:
    """The class that says `name = "..."`, else the only class with a `choose` method."""
    own = [one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == module.__name__]
    classes = [one for one in own if callable(getattr(one, "choose", None))]
    named = [one for one in classes if getattr(one, "name", None) == name] or classes
    if len(named) != 1:
        raise StrategyError(f"{module.__file__} holds {len(named)} strategies called {name!r}; it needs exactly one")
    return cast("Factory", named[0])
