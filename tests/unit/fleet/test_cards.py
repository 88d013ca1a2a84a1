# SPDX-License-Identifier: Apache-2.0
"""Of a model is said what its engine said, as long as the model means the same."""

from dataclasses import replace
from typing import Any

import pytest

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.fleet.cards import Cards, max_model_len
from vllm_gateway.fleet.engines import vllm
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.routing import ModelCard

SAID = ModelCard("org/m", 4096)
LISTED = {"m": SAID, "sql": ModelCard("/adapters/sql"), "other": ModelCard("org/other")}


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"models": {"m": {"repository": "org/m", "adapters": ["sql"], **more}}})


def an_instance(of: Settings, *, external: bool = False) -> Instance:
    spec_hash = "" if external else vllm.spec_hash("m", of.models["m"], of)
    return Instance("i1", "m-1", "m", 1, spec_hash, 10, external=external)


def test_what_an_engine_says_holds_as_long_as_the_next_one_would_say_it() -> None:
    now = settings()
    cards = Cards(lambda: now)
    assert (cards.of("m", "m"), cards.of("m", "sql")) == (ModelCard("org/m"), ModelCard())
    cards.learn(an_instance(now), LISTED)
    assert (cards.of("m", "m"), cards.of("m", "sql")) == (SAID, ModelCard("/adapters/sql"))
    now = settings(idle_timeout_s=5)
    assert cards.of("m", "m") == SAID
    now = settings(engine_arguments=["--max-model-len", "512"])
    assert (cards.of("m", "m"), cards.of("m", "sql")) == (ModelCard("org/m", 512), ModelCard())


def test_what_is_on_its_way_out_has_no_say() -> None:
    now = settings()
    cards = Cards(lambda: now)
    cards.learn(an_instance(settings(image="older")), LISTED)
    cards.learn(replace(an_instance(now), model="gone"), LISTED)
    assert cards.of("m", "m") == ModelCard("org/m")


def test_of_engines_that_somebody_else_runs_nothing_is_known_before() -> None:
    now = settings(repository=None, endpoints=["http://a:1"], engine_arguments=["--max-model-len=8"])
    cards = Cards(lambda: now)
    assert cards.of("m", "m") == ModelCard()
    cards.learn(an_instance(now, external=True), LISTED)
    assert cards.of("m", "m") == SAID
    now = settings(repository=None, endpoints=["http://b:1"])
    assert cards.of("m", "m") == ModelCard()


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ([], None),
        (["--max-model-len", "8192"], 8192),
        (["--max_model_len=10", "--max-model-len=20"], 20),
        (["--max-model-len", "8k"], None),
        (["--max-model-len", "auto"], None),
        (["--max-model-len"], None),
        (["--max-model-len", "0"], None),
    ],
)
def test_the_length_that_was_asked_for(arguments: list[str], length: int | None) -> None:
    assert max_model_len(arguments) == length
