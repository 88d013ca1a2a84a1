# SPDX-License-Identifier: Apache-2.0
"""A changed configuration counts as a whole or not at all, and what needs a restart is named."""

import asyncio
import threading
from functools import partial

import pytest

from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.configuration.loading import ConfigError, Problem
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.service import reloading
from vllm_gateway.service.reloading import FIXED, Reloader, keep_fixed

OLD = Settings.model_validate({"server": {"port": 8000}, "models": {"a": {"repository": "a"}}})


class Said:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: object, **fields: object) -> None:
        self.lines.append((str(getattr(event, "name", event)), fields))


def test_what_cannot_change_stays_and_is_named() -> None:
    wanted = {"server": {"port": 9000, "api_keys": ["k"]}, "runtime": "process", "models": {"b": {"repository": "b"}}}
    settings, differing = keep_fixed(OLD, Settings.model_validate(wanted))
    assert differing == ["server.port", "runtime"]
    assert (settings.server.port, settings.runtime) == (8000, "docker")
    assert (settings.server.api_keys, list(settings.models)) == (("k",), ["b"])
    assert keep_fixed(OLD, OLD) == (OLD, [])


def test_what_cannot_change_is_named_as_the_file_has_it() -> None:
    settings, differing = keep_fixed(OLD, Settings.model_validate({"gpus": {"except": ["1"]}}))
    assert (differing, settings.gpus.without) == (["gpus.except"], ())


def test_every_fixed_setting_is_there() -> None:
    for name in FIXED:
        section, _, key = name.rpartition(".")
        assert hasattr(getattr(OLD, section) if section else OLD, key)


class Applied(list[Settings]):
    async def __call__(self, settings: Settings) -> None:
        self.append(settings)


async def test_a_good_one_is_applied() -> None:
    said, applied = Said(), Applied()
    new = OLD.model_copy(update={"queue_size": 5})
    await Reloader(OLD, lambda _: new, applied, said, asyncio.Event()).reload()
    assert applied == [new]
    assert said.lines == [("config_reloaded", {"models": ["a"]})]


async def test_a_bad_one_changes_nothing_and_says_why() -> None:
    said, applied = Said(), Applied()

    def bad(_: Settings) -> Settings:
        raise ConfigError([Problem("gateway.yaml:3", "unknown setting 'modles'")])

    await Reloader(OLD, bad, applied, said, asyncio.Event()).reload()
    assert not applied
    assert said.lines == [("config_reload_failed", {"problems": ["gateway.yaml:3: unknown setting 'modles'"]})]

    for error in (StrategyError("no strategy 'x'"), ProbeError("no GPU")):

        async def refuse(_: Settings, error: Exception = error) -> None:
            raise error

        await Reloader(OLD, lambda _: OLD, refuse, said, asyncio.Event()).reload()
        assert said.lines[-1] == ("config_reload_failed", {"problems": [str(error)]})


async def test_files_that_do_not_answer_fail_one_reload_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    said, applied, answers = Said(), Applied(), threading.Event()
    monkeypatch.setattr(reloading, "aside", partial(aside, limit_s=0.01))

    def load(current: Settings) -> Settings:
        answers.wait()
        return current

    reloader = Reloader(OLD, load, applied, said, asyncio.Event())
    await reloader.reload()
    assert "do not answer" in str(said.lines[0])
    answers.set()
    monkeypatch.setattr(reloading, "aside", aside)
    await reloader.reload()
    assert [name for name, _ in said.lines] == ["config_reload_failed", "config_reloaded"]


async def test_who_asks_while_one_is_applied_is_served_after_it() -> None:
    said = Said()
    applied = asyncio.Queue[Settings]()
    go_on = asyncio.Semaphore(0)

    async def apply(settings: Settings) -> None:
        await applied.put(settings)
        await go_on.acquire()

    asked = asyncio.Event()
    asked.set()  # before there was anybody who could reload
    reloader = Reloader(OLD, lambda _: OLD, apply, said, asked)
    first = asyncio.create_task(reloader.follow())
    await applied.get()
    for _ in range(3):
        asked.set()
    go_on.release()
    await first
    assert [name for name, _ in said.lines] == ["config_reloaded"]
    go_on.release()
    await reloader.follow()
    assert applied.qsize() == 1
    assert not asked.is_set()


async def test_an_unforeseen_error_is_told_as_a_failed_reload_and_goes_on_to_whoever_contains_it() -> None:
    said = Said()

    async def apply(settings: Settings) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Reloader(OLD, lambda _: OLD, apply, said, asyncio.Event()).reload()
    assert said.lines == [("config_reload_failed", {"problems": ["ZeroDivisionError()"]})]
