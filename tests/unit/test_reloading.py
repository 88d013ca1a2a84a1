# SPDX-License-Identifier: Apache-2.0
"""A changed configuration counts as a whole or not at all, and what needs a restart is named."""

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


def test_a_good_one_is_applied() -> None:
    said, applied = Said(), list[Settings]()
    new = OLD.model_copy(update={"queue_size": 5})
    Reloader(OLD, lambda: new, applied.append, said).reload()
    assert applied == [new]
    assert said.lines == [("config_reloaded", {"models": ["a"]})]


def test_a_bad_one_changes_nothing_and_says_why() -> None:
    said, applied = Said(), list[Settings]()

    def bad() -> Settings:
        raise ConfigError([Problem("gateway.yaml:3", "unknown setting 'modles'")])

    Reloader(OLD, bad, applied.append, said).reload()
    assert not applied
    assert said.lines == [("config_reload_failed", {"problems": ["gateway.yaml:3: unknown setting 'modles'"]})]

    def no_strategy(_: Settings) -> None:
        raise StrategyError("no strategy 'x'")

    Reloader(OLD, lambda: OLD, no_strategy, said).reload()
    assert said.lines[1] == ("config_reload_failed", {"problems": ["no strategy 'x'"]})
