# SPDX-License-Identifier: Apache-2.0
"""The name of a model is found wherever reads split it, and nowhere in what the model has said."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.relay.renaming import Rename, Renaming

RENAME = Rename("org/m\u00e9", 'an "alias"')
BODY = (
    '{"id":"1","model":"org/m\u00e9","choices":[{"text":"\\"model\\":\\"org/m\u00e9\\" \u00e9"}],'
    '"inner":{"model": "org/m\u00e9"},"models":"org/m\u00e9","model":"org/m"}'
).encode()
RENAMED = (
    '{"id":"1","model":"an \\"alias\\"","choices":[{"text":"\\"model\\":\\"org/m\u00e9\\" \u00e9"}],'
    '"inner":{"model":"an \\"alias\\""},"models":"org/m\u00e9","model":"org/m"}'
).encode()


@given(st.lists(st.integers(0, len(BODY)), max_size=8))
def test_wherever_it_is_cut(cuts: list[int]) -> None:
    renaming = Renaming.of(RENAME)
    places = [0, *sorted(cuts), len(BODY)]
    fed = [renaming.feed(BODY[begin:end]) for begin, end in itertools.pairwise(places)]
    assert b"".join(fed) + renaming.rest() == RENAMED


@given(st.text(max_size=50), st.text(max_size=50), st.text(max_size=5))
def test_nothing_else_changes(before: str, after: str, name: str) -> None:
    text = msgspec.json.encode({"text": f'{before}"model":"{name}"{after}', "n": 1})
    renaming = Renaming.of(Rename(name, "other"))
    assert renaming.feed(text) + renaming.rest() == text


@pytest.mark.parametrize(
    "event", [b'data: {"a":1}\n\n', b'data: {"model":"x"}\n\n', b": comment\n\n", b"data: [DONE]\n\n"]
)
def test_no_event_waits_for_the_next(event: bytes) -> None:
    assert Renaming.of(Rename("m", "n")).feed(event) == event
