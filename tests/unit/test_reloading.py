# SPDX-License-Identifier: Apache-2.0
"""A changed configuration counts as a whole or not at all, and what needs a restart is named."""

import asyncio

from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.configuration import ConfigError, Problem
from vllm_gateway.reloading import FIXED, Reloader, keep_fixed
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.settings import Settings

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
    await Reloader(OLD, lambda: new, applied, said).reload()
    assert applied == [new]
    assert said.lines == [("config_reloaded", {"models": ["a"]})]


async def test_a_bad_one_changes_nothing_and_says_why() -> None:
    said, applied = Said(), Applied()

    def bad() -> Settings:
        raise ConfigError([Problem("gateway.yaml:3", "unknown setting 'modles'")])

    await Reloader(OLD, bad, applied, said).reload()
    assert not applied
    assert said.lines == [("config_reload_failed", {"problems": ["gateway.yaml:3: unknown setting 'modles'"]})]

    for error in (StrategyError("no strategy 'x'"), ProbeError("no GPU")):

        async def refuse(_: Settings, error: Exception = error) -> None:
            raise error

        await Reloader(OLD, lambda: OLD, refuse, said).reload()
        assert said.lines[-1] == ("config_reload_failed", {"problems": [str(error)]})


async def test_who_asks_while_one_is_applied_is_served_after_it() -> None:
    said = Said()
    applied = asyncio.Queue[Settings]()
    go_on = asyncio.Semaphore(0)

    async def apply(settings: Settings) -> None:
        await applied.put(settings)
        await go_on.acquire()

    reloader = Reloader(OLD, lambda: OLD, apply, said)
    following = asyncio.create_task(reloader.follow())
    reloader.ask()
    await applied.get()
    for _ in range(3):
        reloader.ask()
    go_on.release()
    await applied.get()
    assert [name for name, _ in said.lines] == ["config_reloaded"]
    assert applied.empty()
    following.cancel()
    await asyncio.wait({following})
