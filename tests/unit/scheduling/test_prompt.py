# SPDX-License-Identifier: Apache-2.0
"""Prompts have as many leading blocks in common as they begin alike, whoever wrote their JSON."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.scheduling import Prompt, RequestInfo

Messages = list[dict[str, Any]]


def prompt(**body: Any) -> Prompt:
    return request(json.dumps({"model": "m", **body}).encode()).prompt


def request(body: bytes) -> RequestInfo:
    return RequestInfo("r", "m", "/v1/chat/completions", True, body)


def common(one: Prompt, other: Prompt) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one.blocks, other.blocks, strict=False)) if a != b),
        min(len(one.blocks), len(other.blocks)),
    )


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


TEXT = st.text(max_size=3000)
CHAT = st.lists(st.builds(say, st.sampled_from(["user", "assistant", "system"]), TEXT), min_size=1, max_size=6)


@given(chat=CHAT, more=CHAT)
def test_a_later_turn_begins_with_the_earlier_ones(chat: Messages, more: Messages) -> None:
    earlier, later = prompt(messages=chat), prompt(messages=[*chat, *more])
    assert common(earlier, later) == len(earlier.blocks)
    assert later.tokens >= earlier.tokens


@given(one=TEXT, other=TEXT)
def test_texts_have_in_common_what_is_alike(one: str, other: str) -> None:
    before = "x" * 2000
    first, second = prompt(prompt=before + one), prompt(prompt=before + other)
    alike = common(first, second)
    assert alike >= min(3, len(first.blocks), len(second.blocks))
    if one[:1] != other[:1]:
        assert alike <= 4


@given(body=st.binary(max_size=200))
def test_nothing_that_a_client_sends_is_an_error(body: bytes) -> None:
    for text in (body, b'{"messages": ' + body + b"}", b'{"messages": [{"content": [' + body + b"]}]}"):
        assert request(text).prompt.tokens >= 0
        assert request(text).output_tokens > 0


def test_spaces_and_the_order_of_fields_do_not_matter() -> None:
    chat = [say("system", "s" * 700), say("user", "u" * 700)]
    turned = [dict(reversed(one.items())) for one in chat]
    tight = json.dumps({"messages": turned, "model": "m"}, separators=(",", ":")).encode()
    assert request(tight).prompt == prompt(messages=chat)


def test_a_text_is_the_same_alone_and_as_a_part() -> None:
    parts = [{"type": "text", "text": "t" * 2000}]
    assert prompt(messages=[say("user", "t" * 2000)]) == prompt(messages=[{"role": "user", "content": parts}])


def test_tools_and_system_prompt_stand_first() -> None:
    tools = [{"type": "function", "function": {"name": "find", "description": "d" * 1000}}]
    one = prompt(tools=tools, messages=[say("user", "a" * 600)])
    other = prompt(tools=tools, messages=[say("user", "b" * 600)])
    without = prompt(messages=[say("user", "a" * 600)])
    assert common(one, other) == 2
    assert common(one, without) == 0


@pytest.mark.parametrize("size", [10, 500_000])
def test_an_image_counts_by_what_it_shows_not_by_its_bytes(size: int) -> None:
    def show(fill: bytes) -> Prompt:
        url = f"data:image/png;base64,{base64.b64encode(fill * size).decode()}"
        return prompt(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])

    assert 1000 < show(b"a").tokens < 1100
    assert show(b"a") == show(b"a")
    assert common(show(b"a"), show(b"b")) == 0


def test_token_ids_are_counted() -> None:
    assert prompt(prompt=list(range(1000, 1600))).tokens == 600
    assert common(prompt(prompt=[7] * 1000), prompt(prompt=[7] * 999 + [8])) >= 5


@pytest.mark.parametrize("field", ["cache_salt", "model"])
def test_a_salt_parts_caches_and_so_does_an_adapter(field: str) -> None:
    chat = [say("user", "a" * 2000)]
    assert common(prompt(messages=chat, **{field: "x"}), prompt(messages=chat, **{field: "y"})) == 0


@pytest.mark.parametrize(
    ("body", "tokens"),
    [({"max_tokens": 7}, 7), ({"max_completion_tokens": 9}, 9), ({"max_tokens": 100_000}, 256), ({}, 256)],
)
def test_the_output_is_guessed(body: dict[str, int], tokens: int) -> None:
    assert request(json.dumps(body).encode()).output_tokens == tokens


def test_a_form_has_no_prompt() -> None:
    assert request(b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--x--").prompt == Prompt(0, (), 1)
