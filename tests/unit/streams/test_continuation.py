# SPDX-License-Identifier: Apache-2.0
"""A stream that was cut anywhere, however often, goes on so that the client sees what it would have seen uncut."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.streams.engine import answer, sent
from tests.unit.streams.test_sse import split
from vllm_gateway.bodies.limits import BodyLimits
from vllm_gateway.bodies.outline import outline
from vllm_gateway.bodies.turns import at_once
from vllm_gateway.streams import Ask, Finish, GiveUp, Resume, Tracker, asked, next_step
from vllm_gateway.streams.asked import Kind, Known, with_token_ids
from vllm_gateway.streams.sse import EventReader, data_of, event_of

CHAT, COMPLETION = Kind.CHAT.value, Kind.COMPLETION.value


def request(path: str, **more: Any) -> bytes:
    what = {"messages": [{"role": "user", "content": "Hello"}]} if path == CHAT else {"prompt": "Hello"}
    return json.dumps({"model": "m", "stream": True, "temperature": 0, **what, **more}).encode()


def tracker_of(path: str, body: bytes, resume: Resume = Resume.EXACT) -> Tracker:
    wanted = asked(path, body)
    assert wanted is not None
    return Tracker(wanted, resume)


def chunks(wire: bytes) -> list[Any]:
    reader = EventReader()
    datas = [data_of(event) for event in reader.feed(wire)]
    assert not reader.held
    return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in datas if data is not None]


def seen(wire: bytes) -> dict[str, Any]:
    """What a client makes of a stream."""
    events = chunks(wire)
    found: dict[str, Any] = {"text": "", "ids": [], "finish": [], "roles": [], "usage": [], "heads": set()}
    assert events.pop() == "[DONE]"
    for chunk in events:
        found["heads"].add((chunk["id"], chunk["object"], chunk["created"], chunk["model"]))
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            found["text"] += delta.get("content", "") + choice.get("text", "")
            found["ids"] += choice.get("token_ids") or []
            found["finish"] += [choice["finish_reason"]] * bool(choice["finish_reason"])
            found["roles"] += [delta["role"]] if "role" in delta else []
        if chunk.get("usage"):
            found["usage"].append(
                {name: chunk["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
            )
    return found


LIMITS = st.sampled_from([{}, {"max_tokens": 1}, {"max_tokens": 9}, {"max_tokens": None}, {"max_tokens": 30}])
USAGE = st.sampled_from(
    [
        {},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ]
)
IDS = st.sampled_from([{}, {"return_token_ids": True}])
CUT_AND_READS = st.tuples(st.integers(0), st.lists(st.integers(0), max_size=6))


@given(
    st.sampled_from([CHAT, COMPLETION]),
    st.tuples(LIMITS, USAGE, IDS),
    st.lists(CUT_AND_READS, max_size=4),
    st.booleans(),
)
@settings(deadline=None)
def test_a_stream_cut_anywhere_looks_uncut(
    path: str, options: tuple[dict[str, Any], ...], cuts: list[Any], says_done: bool
) -> None:
    limits, usage, ids = options
    body = request(path, **limits, **usage, **ids)
    tracker = tracker_of(path, body)
    step: Ask | Finish | GiveUp = Ask(path, body if ids else with_token_ids(body), tracker)
    client = b""
    for number, (cut, reads) in enumerate([*cuts, (None, [])]):
        if not isinstance(step, Ask):
            break
        wire = b"".join(answer(step.path, step.body, f"instance-{number}"))
        if cut is not None:
            wire = wire[: cut % (len(wire) + 1)]
            if says_done and b'"finish_reason":"' not in wire:
                wire = wire[: wire.rfind(b"\n\n") + 2 if b"\n\n" in wire else 0] + b"data: [DONE]\n\n"
        for read in split(wire, reads):
            client += step.stream.feed(read)
        if step.stream.done:
            break
        step = next_step(tracker)
        assert not isinstance(step, GiveUp), step
    if isinstance(step, Finish):
        client += step.events
    got, uncut = seen(client), seen(b"".join(answer(path, body, "whole")))
    assert len(got.pop("heads")) == 1
    uncut.pop("heads")
    continuous = got["usage"] if "continuous_usage_stats" in str(usage) else []
    if continuous:  # the events of the reply's begin and end may be cut apart or repeated
        got["usage"], uncut["usage"] = got["usage"][-1], uncut["usage"][-1]
    assert got == uncut
    if not ids:
        assert b'_ids":[' not in client


def cut_after(events: list[bytes], count: int) -> bytes:
    return b"".join(events[:count])


@pytest.mark.parametrize("resume", [Resume.EXACT, Resume.BEST_EFFORT])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_large_request_is_continued_as_a_small_one_by_what_was_found_in_it(path: str, resume: Resume) -> None:
    """Its body goes out in pieces."""
    more = {"presence_penalty": 0.5} if resume is Resume.BEST_EFFORT else {}
    body = request(path, max_tokens=12, **more)
    found = at_once(outline(bytearray(body), BodyLimits()))
    at = body.index(b'"m"')
    pieces = (memoryview(body)[:at], b'"m"', memoryview(body)[at + 3 :])
    large = asked(path, b"", Known(found.fields(), pieces))
    assert large is not None
    small = tracker_of(path, body, resume)
    assert (large.obstacle, large.obstacle_for_ids, large.choices) == (
        small.asked.obstacle,
        small.asked.obstacle_for_ids,
        1,
    )
    steps = []
    for tracker in (Tracker(large, resume), small):
        assert json.loads(sent(tracker.body)) == json.loads(sent(with_token_ids(body)))
        tracker.feed(cut_after(answer(path, tracker.body, "a"), 6))
        step = next_step(tracker)
        assert isinstance(step, Ask)
        steps.append((step.how, json.loads(sent(step.body))))
    assert steps[0] == steps[1]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("obstacle", [{"stop": ["\n", "end"]}, {"presence_penalty": 0.5}])
def test_best_effort_goes_on_from_the_text_where_ids_are_not_exact(path: str, obstacle: dict[str, Any]) -> None:
    body = request(path, max_tokens=12, stream_options={"include_usage": True}, **obstacle)
    tracker = tracker_of(path, body, Resume.BEST_EFFORT)
    client = tracker.feed(cut_after(answer(path, with_token_ids(body), "a"), 6))
    exact = tracker_of(path, body)
    exact.feed(cut_after(answer(path, exact.body, "a"), 6))
    assert next_step(exact) == GiveUp(next(iter(obstacle)))
    step = next_step(tracker)
    assert isinstance(step, Ask)
    asked_for = json.loads(sent(step.body))
    assert step.path == path
    assert {**asked_for, **obstacle} == asked_for, "what the client wants still holds"
    client += step.stream.feed(b"".join(answer(step.path, step.body, "b")))
    got, uncut = seen(client), seen(b"".join(answer(path, body, "whole")))
    assert (got["text"], got["finish"], got["usage"]) == (uncut["text"], uncut["finish"], uncut["usage"])


@pytest.mark.parametrize(
    ("more", "obstacle"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"include_reasoning": False}, "include_reasoning"),
        ({"a_field_of_tomorrow": None}, "a_field_of_tomorrow"),
        ({"stream_options": 3}, "stream_options"),
        ({"max_tokens": 20.0}, "max_tokens"),
        ({"max_completion_tokens": "20"}, "max_completion_tokens"),
        ({"min_tokens": "5"}, "min_tokens"),
        ({"prompt": ["a", "b"]}, "more than one prompt"),
        ({"prompt": [[1, 2], [3]]}, "more than one prompt"),
    ],
)
def test_what_cannot_be_continued(more: dict[str, Any], obstacle: str) -> None:
    wanted = asked(CHAT, request(CHAT, **more))
    assert wanted is not None
    assert [wanted.obstacle_to(resume) for resume in (Resume.EXACT, Resume.BEST_EFFORT)] == [obstacle] * 2


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "logprobs": None, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"stop": "\n"},
        {"stop": ["\u2603", "."], "include_stop_str_in_output": True},
        {"stop": []},
        {"prompt": ["a"]},
        {"prompt": [[1, 2]]},
        {"prompt": [1, 2]},
        {"prompt": " "},
        {"prompt": []},
        {"stream_options": None, "max_tokens": None, "return_token_ids": False},
        {"seed": 3, "top_k": 5, "stop": None, "presence_penalty": 0, "user": "me", "logit_bias": {"5": 1}},
    ],
)
def test_what_can_be_continued(more: dict[str, Any]) -> None:
    wanted = asked(CHAT, request(CHAT, **more))
    assert wanted is not None
    assert wanted.obstacle_to(Resume.EXACT) is None
    assert wanted.obstacle_to(Resume.OFF) == "resume is off"


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_half_of_a_character_is_said_anew(path: str, shown: bool) -> None:
    body = request(path, max_tokens=12, **({"return_token_ids": True} if shown else {}))
    tracker = tracker_of(path, body)
    events = answer(path, tracker.body, "a")
    tracker.feed(cut_after(events, 6))
    before, tokens = bytes(tracker.ids), tracker.tokens
    half = re.sub(rb'("content"|"text"):"[^"]+"', rb'\1:""', events[5])
    assert half != events[5]
    tracker.feed(half)
    assert tracker.tokens > tokens
    step = next_step(tracker)
    if shown:
        assert step == GiveUp("half of a character")
        return
    assert isinstance(step, Ask)
    asked_for = json.loads(sent(step.body))
    assert json.dumps(asked_for["prompt"]).replace(" ", "").endswith(before.decode() + "]")
    assert asked_for["max_tokens"] == 12 - tokens


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_stop_characters_hold_for_what_follows(path: str) -> None:
    stops = {"stop": ["\u2603"], "include_stop_str_in_output": True}
    body = request(path, max_tokens=12, **stops)
    tracker = tracker_of(path, body)
    tracker.feed(cut_after(answer(path, tracker.body, "a"), 6))
    step = next_step(tracker)
    assert isinstance(step, Ask)
    assert step.how == "ids"
    asked_for = json.loads(sent(step.body))
    assert {**asked_for, **stops} == asked_for


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": "m"}', b'{"stream": false}'])
def test_what_is_no_request_for_a_stream(body: bytes) -> None:
    assert asked(CHAT, body) is None


def test_a_picture_in_the_prompt_is_more_than_its_ids() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    body = request(CHAT, messages=[{"role": "user", "content": parts}], max_tokens=9)
    for resume, step in (Resume.EXACT, GiveUp), (Resume.BEST_EFFORT, Ask):
        tracker = tracker_of(CHAT, body, resume)
        tracker.feed(cut_after(answer(CHAT, tracker.body, "a"), 4))
        assert isinstance(next_step(tracker), step)


def chat_event(delta: dict[str, Any], **choice: Any) -> bytes:
    whole = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": [7], **choice}
    head = {"id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [whole]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (chat_event({"reasoning": "hm"}), "reasoning"),
        (chat_event({"tool_calls": [{"index": 0}]}), "tool_calls"),
        (chat_event({"content": "x"}, logprobs={"content": []}), "logprobs"),
        (chat_event({"content": "x"}, token_ids=None), "the engine gave no token ids"),
        (b"data: 3\n\n", "an event of a strange form"),
        (b"data: {\n\n", "an event of a strange form"),
    ],
)
def test_what_a_reply_shows_to_be_impossible(event: bytes, why: str) -> None:
    body = request(CHAT)
    tracker = tracker_of(CHAT, body)
    tracker.feed(cut_after(answer(CHAT, with_token_ids(body), "a"), 3) + event)
    assert next_step(tracker) == GiveUp(why)


ERROR = b'data: {"error": {"message": "EngineCore", "type": "InternalServerError", "param": null, "code": 500}}\n\n'


@pytest.mark.parametrize(
    ("end", "failed"),
    [
        (ERROR + b"data: [DONE]\n\n", "engine_error"),
        (b"data: [DONE]\n\n", "stream_incomplete"),
        (chat_event({"content": ""}, finish_reason="abort") + b"data: [DONE]\n\n", "engine_error"),
    ],
)
@pytest.mark.parametrize("continued", [False, True])
def test_an_end_without_a_result_is_not_shown(end: bytes, failed: str, continued: bool) -> None:
    body = request(CHAT)
    tracker = tracker_of(CHAT, body)
    begin = cut_after(answer(CHAT, with_token_ids(body), "a"), 3)
    tracker.feed(begin)
    stream: Any = tracker
    if continued:
        step = next_step(tracker)
        assert isinstance(step, Ask)
        stream = step.stream
    assert stream.feed(end) == b""
    assert (stream.failed, stream.done) == (failed, False)
    assert stream.feed(begin) == b"", "nothing comes after it"


@pytest.mark.parametrize("more", [{"n": 2}, {"tools": [{"type": "function"}]}, {}])
def test_a_stream_in_which_nothing_was_said_begins_anew(more: dict[str, Any]) -> None:
    body = request(CHAT, **more)
    tracker = tracker_of(CHAT, body)
    assert tracker.feed(b'data: {"id": "half an ev') == b""
    step = next_step(tracker)
    assert isinstance(step, Ask)
    assert json.loads(sent(step.body)) == {**json.loads(body), **({} if more else {"return_token_ids": True})}
    events = answer(CHAT, request(CHAT, n=more.get("n", 1), max_tokens=3), "b")
    assert step.stream.feed(b"".join(events)) == b"".join(events)
    assert step.stream.done


def test_a_reply_of_two_choices_ends_when_both_have_a_reason() -> None:
    body = request(CHAT, n=2, max_tokens=3)
    tracker = tracker_of(CHAT, body)
    events = answer(CHAT, body, "a")
    assert tracker.feed(b"".join(events)) == b"".join(events)
    assert tracker.done
    tracker = tracker_of(CHAT, body)
    tracker.feed(b"".join(events[:-2]) + events[-1])
    assert tracker.failed == "stream_incomplete"


@pytest.mark.parametrize("more", [{"n": 2}, {"n": "2"}, {"n": 2.0}, {"prompt": ["a", "b"]}])
def test_however_two_choices_are_asked_for_one_that_is_missing_is_no_success(more: dict[str, Any]) -> None:
    tracker = tracker_of(COMPLETION, request(COMPLETION, **more))
    for index, reason in (0, None), (1, None), (0, "stop"):
        choice = {"index": index, "text": "x", "logprobs": None, "finish_reason": reason, "token_ids": [7]}
        assert tracker.feed(event_of(json.dumps({"id": "i", "choices": [choice]}).encode()))
    assert isinstance(next_step(tracker), GiveUp)
    tracker.feed(b"data: [DONE]\n\n")
    assert tracker.failed == "stream_incomplete"


def test_ids_are_asked_for_even_if_the_client_does_not_want_them() -> None:
    body = request(CHAT, return_token_ids=False)
    assert json.loads(sent(tracker_of(CHAT, body).body)) == {**json.loads(body), "return_token_ids": True}


PIECES = ['"', "\\", ",", "token_ids", "\n", "é", " ", '","x":"', "]}]}", '"},"logprobs":null,"finish_reason":null']
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)


@given(st.lists(TEXTS), st.sampled_from([CHAT, COMPLETION]), st.booleans())
def test_ids_are_hidden_whatever_the_text(texts: list[str], path: str, coalesced: bool) -> None:
    head = {"id": "i", "object": "x", "created": 1, "model": "m"}
    ended = {
        "logprobs": None,
        "finish_reason": None,
        **({} if path == CHAT else {"stop_reason": None, "prompt_token_ids": None}),
    }

    def event(text: str, ids: list[int] | None) -> bytes:
        what = {"delta": {"content": text}} if path == CHAT else {"text": text}
        chunk = {**head, "choices": [{"index": 0, **what, **ended, "token_ids": ids}]}
        return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    tracker = tracker_of(path, request(path), Resume.BEST_EFFORT)
    events = [event(text, [number, 5]) for number, text in enumerate(texts)]
    reads = [b"".join(events)] if coalesced else events
    assert b"".join(tracker.feed(read) for read in reads) == b"".join(event(text, None) for text in texts)
    assert tracker.tokens == 2 * len(texts)
    assert tracker.texts is not None
    assert json.loads(b'"' + b"".join(tracker.texts) + b'"') == "".join(texts)
