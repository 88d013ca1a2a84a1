# SPDX-License-Identifier: Apache-2.0
"""A changed configuration counts as a whole or not at all, and what needs a restart is named."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.configuration.loading import ConfigError, Problem
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.service import reloading
from vllm_gateway.service.reloading import FIXED, Reloader, Watch, keep_fixed

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


class Watched:
    """`looks` does not wait between two looks."""

    def __init__(self, *paths: Path) -> None:
        self._watch = Watch(paths)

    async def looks(self, times: int = 1) -> bool:
        return any([await self._watch.look() for _ in range(times)])


async def test_a_file_that_is_written_little_by_little_counts_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("models: {}\n")
    watched = Watched(file)
    assert not await watched.looks(2)
    file.write_text("")
    assert not await watched.looks(3), "an editor that empties it first"
    for text in ("m", "mo", "mod"):
        file.write_text(text)
        assert not await watched.looks()
    assert await watched.looks()
    assert not await watched.looks(2), "once"
    file.unlink()
    assert not await watched.looks(3)
    file.write_text("models: {a: {}}\n")
    assert await watched.looks(2)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text("")], ids=["gone", "empty"])
async def test_a_file_that_stays_away_is_told_of_once(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("a key")
    watched = Watched(file)
    spoil(file)
    assert await watched.looks(6)
    assert not await watched.looks(6)


async def test_who_may_read_a_file_is_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("a key")
    watched = Watched(file)
    file.chmod(0o640)
    assert await watched.looks(2)


async def test_files_that_change_together_are_one_change(tmp_path: Path) -> None:
    files = [tmp_path / "certificate.pem", tmp_path / "key.pem"]
    for file in files:
        file.write_text("old")
    watched = Watched(*files)
    files[0].write_text("a new one")
    assert not await watched.looks()
    files[1].write_text("a new one")
    assert not await watched.looks(), "they have not come to rest"
    assert await watched.looks()
    assert not await watched.looks(3)


async def test_a_file_that_is_replaced_is_noticed_behind_links_too(tmp_path: Path) -> None:
    """As Kubernetes does it: the file is a link into a folder that is itself a link, and that one is replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gateway.yaml").write_text("models: {}\n")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "gateway.yaml").symlink_to("..data/gateway.yaml")
    watched = Watched(tmp_path / "gateway.yaml")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "..data")
    assert await watched.looks(2)
