# SPDX-License-Identifier: Apache-2.0
"""What is found in a large body is what a parser finds, and no work is done without a break."""

import contextlib
import gc
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.bodies import scan
from vllm_gateway.bodies.limits import BodyLimits, Malformed, TooComplex
from vllm_gateway.bodies.outline import Outline, outline
from vllm_gateway.bodies.turns import at_once
from vllm_gateway.scheduling import RequestInfo

LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.text()}),
    st.integers(),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.one_of(st.none(), st.text(), st.lists(PART))},
    optional={"tool_calls": VALUE, "name": st.text()},
)
BODY = st.dictionaries(st.text(), VALUE, max_size=5)


def found(body: bytes, limits: BodyLimits | None = None) -> Outline:
    return at_once(outline(bytearray(body), limits or BodyLimits()))


@given(BODY, st.booleans(), st.sampled_from([None, 1]))
def test_the_fields_are_those_that_a_parser_finds(body: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    fields = found(text).fields()
    assert {name: json.loads(bytes(value)) for name, value in fields.items()} == json.loads(text)


@pytest.mark.parametrize("space", [b" " * 40_000, b"\r\n\t " * 25_000, b" " * scan.SLICE, b" " * 4090], ids=len)
def test_white_space_may_be_anywhere_and_of_any_length(space: bytes) -> None:
    messages = b'[ { "role" : "user" , "content" : [ { "text" : "t" } , 1 ] } , { } ]'
    parts = b'{ "model" : "m" , "messages" : %b , "prompt" : [ 1 , 2 ] }' % messages
    small = found(parts)
    spaced = parts.split(b" ")
    for place in range(len(spaced) + 1):
        body = b" ".join(spaced[:place]) + space + b" ".join(spaced[place:])
        seen = found(body)
        assert {name: json.loads(bytes(value)) for name, value in seen.fields().items()} == json.loads(parts)
        assert {name: (one.elements + one.ids, len(one.pieces)) for name, one in seen.lists.items()} == {
            name: (one.elements + one.ids, len(one.pieces)) for name, one in small.lists.items()
        }
        with pytest.raises(Malformed):
            found(body + b"x")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ 1a', max_size=40).map(str.encode))
def test_of_anything_else_nothing_is_found_or_as_much_as_a_parser_would(text: bytes) -> None:
    for body in (text, b'{"a":' + text + b"}", b'{"messages":[' + text + b"]}"):
        try:
            names = set(found(body).spans)
        except (Malformed, TooComplex):
            continue
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            continue  # the engine's to refuse
        assert names == set(parsed)


@given(st.lists(MESSAGE, max_size=5), BODY)
def test_a_prompt_is_the_same_however_large_its_body_is(messages: list[Any], more: dict[str, Any]) -> None:
    body = {**more, "messages": messages, "model": "m"}
    text = json.dumps(body).encode()
    assert _large(text).prompt == _small(text).prompt
    assert _large(text).output_tokens == _small(text).output_tokens


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 5000},
        {"prompt": list(range(5000))},
        {"prompt": ["x" * 700, "y" * 700]},
        {"input": "x" * 5000},
        {"input": list(range(5000))},
        {"input": [[1, 2, 3], [4, 5, 6]]},
        {"input": [{"role": "user", "content": "x" * 3000}], "instructions": "i" * 600},
        {"tools": [{"type": "function"}] * 100, "system": "s" * 600, "messages": []},
    ],
    ids="-".join,
)
def test_of_every_kind_of_prompt(body: dict[str, Any]) -> None:
    text = json.dumps({"model": "m", **body}).encode()
    assert _large(text).prompt == _small(text).prompt


def _large(text: bytes) -> RequestInfo:
    return RequestInfo("r", "m", "/v1/chat/completions", False, text, outline=found(text))


def _small(text: bytes) -> RequestInfo:
    return RequestInfo("r", "m", "/v1/chat/completions", False, text)


LIMITS = BodyLimits(fields=10, messages=10, items=100, depth=10)


@pytest.mark.parametrize(
    ("begin", "unit", "most", "end", "setting"),
    [
        (b"{", b'"a":1,', 9, b'"b":1}', "max_body_fields"),
        (b'{"messages":[', b"{},", 9, b"{}]}", "max_body_messages"),
        (b'{"messages":[{"content":[', b"1,", 8, b"1]}]}", "max_body_messages"),
        (b'{"messages":[{', b'"a":1,', 99, b'"b":1}]}', "max_body_messages"),
        (b'{"prompt":[', b'"",', 9, b'""]}', "max_body_messages"),
        (b'{"a":[', b"[],", 97, b"[]]}", "max_body_items"),
        (b'{"a":', b'{"a":', 9, b"[1" + b"]" + b"}" * 10, "max_body_depth"),
    ],
)
def test_what_is_over_a_limit_is_refused_by_its_name(
    begin: bytes, unit: bytes, most: int, end: bytes, setting: str
) -> None:
    assert found(begin + unit * most + end, LIMITS).spans
    with pytest.raises(TooComplex, match=rf"server\.{setting}\b"):
        found(begin + unit * (most + 1) + end, LIMITS)


@pytest.mark.parametrize("unit", [b"1,", b'"",', b'"\\n",', b"[],", b"{},", b'{"a":1},', b"    "])
@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":[',
        b'{"prompt":[',
        b'{"messages":[',
        b'{"messages":[{"content":[',
    ],
)
def test_there_is_a_break_within_milliseconds(begin: bytes, unit: bytes) -> None:
    limits = BodyLimits(messages=10**9, items=10**9)
    steps = outline(bytearray(begin + unit * (300_000 // len(unit))), limits)
    longest = 0.0
    gc.collect()
    gc.freeze()  # what the other tests hold is not to be looked through
    began = time.thread_time()
    with contextlib.suppress(Malformed):
        for _ in steps:
            longest = max(longest, time.thread_time() - began)
            began = time.thread_time()
    longest = max(longest, time.thread_time() - began)
    gc.unfreeze()
    assert longest < 0.02


def test_a_slice_is_what_it_says() -> None:
    assert sum(1 for _ in outline(bytearray(b'{"a":[' + b"1," * 10**6 + b"1]}"), BodyLimits())) > 10**6 // scan.SLICE
