# SPDX-License-Identifier: Apache-2.0
"""Streams of messages and responses: wherever the first instance is cut, the client has one coherent stream."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.streams.engine import sent
from vllm_gateway.simulator.engine import Generation
from vllm_gateway.simulator.other_replies import MessagesShape, ResponsesShape
from vllm_gateway.streams import TYPED, Ask, Finish, GiveUp, Typed, next_step
from vllm_gateway.streams.sse import data_of

MESSAGES, RESPONSES = TYPED
BODY = b'{"model":"m","stream":true}'
BOTH = pytest.mark.parametrize("path", TYPED)


async def _answer(path: str, instance: str, tokens: int) -> list[bytes]:
    shape: MessagesShape | ResponsesShape
    if path == MESSAGES:
        shape = MessagesShape(reply_id=f"m_{instance}", model="m")
    else:
        shape = ResponsesShape({}, reply_id=f"resp_{instance}", item_id=f"i_{instance}", model="m")
    generation = Generation([1, 2, 3], max_tokens=tokens, stop_at_end=False)
    wire = shape.opening(generation)
    while generation.finish_reason is None:
        generation.advance()
        wire += shape.tokens(generation, generation.tokens[-1:])
    return [event + b"\n\n" for event in (wire + shape.closing(generation)).split(b"\n\n")[:-1]]


def answer(path: str, instance: str = "a", tokens: int = 4) -> list[bytes]:
    """All events of the stream, as this instance words it."""
    return asyncio.run(_answer(path, instance, tokens))


def told(path: str) -> Typed:
    return Typed(TYPED[path], BODY)


def events_of(wire: bytes) -> list[dict[str, Any]]:
    datas = [data_of(event + b"\n\n") for event in wire.split(b"\n\n")[:-1]]
    return [orjson.loads(data) for data in datas if data is not None]


def first_said(path: str) -> int:
    """How many events of the answer come before something is said in it."""
    names = [event["type"] for event in events_of(b"".join(answer(path)))]
    return next(number for number, name in enumerate(names) if name.endswith("delta"))


@BOTH
def test_a_stream_passes_unchanged_however_it_is_cut_into_reads(path: str) -> None:
    wire = b"".join(answer(path))
    for size in (1, 7, 100, len(wire)):
        stream = told(path)
        assert b"".join(stream.feed(wire[at : at + size]) for at in range(0, len(wire), size)) == wire
        assert (stream.done, stream.failed, stream.is_finished) == (True, None, True)


@BOTH
def test_chunks_pass_as_they_are(path: str) -> None:
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in answer(path)]
    stream = told(path)
    taken = 0
    for chunk, event in zip(chunks, answer(path), strict=True):
        passed = stream.feed_chunk(chunk) if stream.is_between_events else None
        if passed is None:
            stream.feed(event)
        else:
            assert passed == chunk
            taken += 1
    assert stream.done
    assert taken == 3, "all deltas but the first"
    assert stream.number == len(chunks)


@BOTH
@pytest.mark.parametrize("cut_by", ["nothing", "error", "an end"])
def test_cut_before_something_is_said_another_instance_begins_anew(path: str, cut_by: str) -> None:
    first, second = answer(path), answer(path, "b")
    for cut in range(first_said(path) + 1):
        stream = told(path)
        seen = stream.feed(b"".join(first[:cut]))
        if cut_by == "nothing":
            seen += stream.feed(first[cut][:-1])  # half an event
        elif cut_by == "error":
            seen += stream.feed(b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n')
            assert stream.failed == "engine_error"
        else:
            seen += stream.feed(b"data: [DONE]\n\n")
            assert stream.failed == "stream_incomplete"
        assert stream.tokens == 0
        step = next_step(stream)
        assert isinstance(step, Ask)
        assert (step.path, step.stream, step.how) == (path, stream, "anew")
        seen += b"".join([stream.feed(event) for event in second])
        assert stream.done
        check_coherent(path, events_of(seen), "a" if stream.response_id == b"resp_a" or cut else "b", second)


def check_coherent(path: str, events: list[dict[str, Any]], begun_by: str, second: Iterable[bytes]) -> None:
    assert [event["type"] for event in events] == [event["type"] for event in events_of(b"".join(second))]
    if path == MESSAGES:
        assert events[0]["message"]["id"] == f"m_{begun_by}"
        return
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert {event["response"]["id"] for event in events if "response" in event} == {f"resp_{begun_by}"}
    items = {event["item_id"] for event in events if "item_id" in event}
    assert items == {"i_b"} == {event["item"]["id"] for event in events if "item" in event}


def test_the_next_instance_is_told_the_responses_name() -> None:
    stream = told(RESPONSES)
    stream.feed(answer(RESPONSES)[0])
    step = next_step(stream)
    assert isinstance(step, Ask)
    assert orjson.loads(sent(step.body)) == {"model": "m", "stream": True, "request_id": "resp_a"}
    large = Typed(TYPED[RESPONSES], (memoryview(b'{"model":'), b'"m"', memoryview(b',"stream":true} \n')))
    large.feed(answer(RESPONSES)[0])
    assert isinstance(large.body, tuple)
    assert orjson.loads(b"".join(large.body))["request_id"] == "resp_a"


def test_an_engine_that_counts_otherwise_is_renumbered() -> None:
    first, second = answer(RESPONSES), answer(RESPONSES, "b")
    stream = told(RESPONSES)
    seen = stream.feed(first[0])
    next_step(stream)
    queued = (
        b'event: response.queued\ndata: {"response":{"id":"resp_b"},"sequence_number":0,"type":"response.queued"}\n\n'
    )
    shifted = [
        event.replace(b'"sequence_number":%d' % n, b'"sequence_number":%d' % (n + 1)) for n, event in enumerate(second)
    ]
    seen += b"".join([stream.feed(event) for event in [queued, *shifted]])
    numbers = [event["sequence_number"] for event in events_of(seen)]
    assert numbers == list(range(len(second) + 1))


@BOTH
def test_once_something_is_said_it_is_given_up(path: str) -> None:
    events = answer(path)
    whole_at = len(events) - (1 if path == MESSAGES else 0)
    for cut in range(first_said(path) + 1, whole_at):
        stream = told(path)
        stream.feed(b"".join(events[:cut]))
        assert isinstance(next_step(stream), GiveUp)
        assert stream.tokens == cut - first_said(path)


def test_a_message_of_which_only_the_last_event_is_missing_is_completed() -> None:
    events = answer(MESSAGES)
    stream = told(MESSAGES)
    seen = stream.feed(b"".join(events[:-1]))
    step = next_step(stream)
    assert isinstance(step, Finish)
    assert seen + step.events == b"".join(events)


NO_REASON = 'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":null}}\n\n'


@pytest.mark.parametrize(
    ("path", "end"),
    [
        (MESSAGES, 'event: message_stop\ndata: {"type":"message_stop"}'),
        (MESSAGES, f"{NO_REASON}event: message_stop\ndata: {{}}"),
        (MESSAGES, "data: [DONE]"),
        (RESPONSES, "data: [DONE]"),
        (RESPONSES, 'data: {"error":{"message":"x","type":"InternalServerError","code":500}}'),
        (RESPONSES, 'event: error\ndata: {"type":"error","code":"server_error","message":"x","sequence_number":1}'),
        (RESPONSES, 'event: response.failed\ndata: {"response":{"error":{"code":"server_error"}},"sequence_number":9}'),
    ],
)
def test_ends_that_are_none_do_not_reach_the_client(path: str, end: str) -> None:
    for said in (0, first_said(path) + 2):
        stream = told(path)
        stream.feed(b"".join(answer(path)[:said]))
        assert stream.feed(end.encode() + b"\n\n") == b""
        assert stream.failed in ("stream_incomplete", "engine_error")
        assert isinstance(next_step(stream), GiveUp if said else Ask)


def test_a_reason_may_come_later() -> None:
    events = answer(MESSAGES)
    events.insert(-2, NO_REASON.encode())
    stream = told(MESSAGES)
    assert b"".join(map(stream.feed, events)) == b"".join(events)
    assert stream.done


_IN_WORDS = "input_value={'error': {'message': 'Gr...am': None, 'code': 400}}, input_type=dict]"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (MESSAGES, {"type": "error", "error": {"type": "invalid_request_error", "message": "x"}}),
        (MESSAGES, {"type": "error", "error": {"type": "internal_error", "message": _IN_WORDS}}),
        (RESPONSES, {"type": "error", "code": "400", "message": "x", "error": {"message": "x", "code": 400}}),
        (RESPONSES, {"error": {"message": "Grammar error", "type": "BadRequestError", "code": 400}}),
    ],
)
def test_what_is_wrong_with_the_request_is_passed_on_and_nobody_else_asked(path: str, error: dict[str, Any]) -> None:
    stream = told(path)
    event = b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"
    event = event if "type" in error else event.removeprefix(b"event: error\n")
    assert stream.feed(answer(path)[0] + event + b"data: [DONE]\n\n") == answer(path)[0] + event
    assert (stream.refused, stream.done, stream.failed) == (True, True, None)


@BOTH
def test_comments_pings_and_what_nobody_knows_pass(path: str) -> None:
    stream = told(path)
    others = [b": hello\n\n", b'event: ping\ndata: {"type": "ping"}\n\n', b"data: not json\n\n"]
    assert b"".join(stream.feed(one) for one in others) == b"".join(others)
    stream.feed(b"".join(answer(path)[:2]))
    assert isinstance(next_step(stream), Ask)


@BOTH
def test_an_event_over_the_limit_ends_it(path: str) -> None:
    stream = Typed(TYPED[path], BODY, max_event_bytes=1000)
    stream.feed(b"event: content_block_delta\ndata: " + b"x" * 1000)
    assert stream.failed == "event_too_long"


@BOTH
def test_what_is_held_back_is_bounded(path: str) -> None:
    opening = answer(path)[2 if path == RESPONSES else 1]
    stream = told(path)
    fed = list(itertools.repeat(opening, 100))
    assert b"".join(stream.feed(one) for one in fed) == b"".join(fed)
    assert stream.tokens > 0


_PIECES = st.one_of(
    st.sampled_from([piece for path in TYPED for piece in answer(path)]),
    st.sampled_from(
        [b"event: error\n", b"data: ", b"\n\n", b'{"error":', b'{"type":[]}', b"[DONE]", b'"sequence_number":']
    ),
    st.binary(max_size=20),
)


@given(st.sampled_from(list(TYPED)), st.lists(_PIECES, max_size=12), st.lists(_PIECES, max_size=12))
def test_whatever_engines_send_nothing_is_made_up_and_nothing_raises(
    path: str, first: list[bytes], second: list[bytes]
) -> None:
    stream = told(path)
    seen = b"".join(map(stream.feed, first))
    assert len(seen) <= len(b"".join(first))
    if not stream.done and isinstance(next_step(stream), Ask):
        seen = b"".join(map(stream.feed, second))
        renumbered = b"".join(second).count(b"sequence_number") * 5
        assert len(seen) <= len(b"".join(second)) + renumbered
