# SPDX-License-Identifier: Apache-2.0
"""What is read in one match as a whole chunk is read as it would be if it were taken apart, or not at all."""

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.streams.engine import answer
from tests.unit.streams.test_continuation import CHAT, COMPLETION, request, tracker_of
from vllm_gateway.relay.framing import chunk
from vllm_gateway.streams import Resume, Tracker
from vllm_gateway.streams.asked import with_token_ids

PATHS = st.sampled_from([CHAT, COMPLETION])
RESUMES = st.sampled_from(list(Resume))
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"return_token_ids": True},
        {"n": 2},
        {"stop": ["xy"]},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ]
)


def state(tracker: Tracker) -> dict[str, Any]:
    return {name: getattr(tracker, name) for name in tracker.__slots__ if name != "_reader"}


@given(PATHS, OPTIONS, RESUMES, st.booleans())
@settings(deadline=None)
def test_streams_of_an_engine(path: str, options: dict[str, Any], resume: Resume, gives_ids: bool) -> None:
    body = request(path, **options)
    whole, apart = tracker_of(path, body, resume), tracker_of(path, body, resume)
    taken = 0
    for event in answer(path, with_token_ids(body) if gives_ids else body, "id-1"):
        passed_on = whole.feed_chunk(chunk(event)) if whole.is_between_events else None
        taken += passed_on is not None
        if passed_on is None:
            events = whole.feed(event)
            passed_on = chunk(events) if events else b""
        events = apart.feed(event)
        assert passed_on == (chunk(events) if events else b"")
        assert state(whole) == state(apart)
    assert whole.done
    simple = "stream_options" not in options and (gives_ids or resume is not Resume.BEST_EFFORT)
    assert taken or not simple, "nothing was read the short way"


TEXTS = st.text(max_size=20).map(lambda text: json.dumps(text)[1:-1].encode()) | st.binary(max_size=8)
HURTS = st.tuples(st.integers(0), st.sampled_from(["cut", "put", "double"]), st.sampled_from(list(b'\n\r"\\]}0,:{x')))


def plain_event(path: str, text: bytes, ids: str = "5,17") -> bytes:
    said = b'"delta":{"content":"%b"}' % text if path == CHAT else b'"text":"%b"' % text
    more = b"" if path == CHAT else b'"stop_reason":null,"prompt_token_ids":null,'
    return (
        b'data: {"id":"i","object":"o","created":1,"model":"m","choices":[{"index":0,%b,"logprobs":null,'
        b'"finish_reason":null,%b"token_ids":[%b]}]}\n\n' % (said, more, ids.encode())
    )


@given(PATHS, RESUMES, TEXTS, st.lists(HURTS, max_size=3))
@example(CHAT, Resume.EXACT, b'"},"logprobs":null,"finish_reason":null,"token_ids":[1]}]}', [])
@example(CHAT, Resume.EXACT, b"\\", [])
@settings(deadline=None)
def test_anything_else(path: str, resume: Resume, text: bytes, hurts: list[tuple[int, str, int]]) -> None:
    """A chunk that was damaged anywhere, in its framing as well."""
    read = bytearray(chunk(plain_event(path, text)))
    for place, how, byte in hurts:
        at = place % (len(read) or 1)
        if how == "cut":
            del read[at:]
        elif how == "put":
            read.insert(at, byte)
        else:
            read += read[at:]
    whole, apart = tracker_of(path, request(path), resume), tracker_of(path, request(path), resume)
    for tracker in (whole, apart):
        tracker.feed(plain_event(path, b"first"))
    before = state(whole)
    passed_on = whole.feed_chunk(bytes(read))
    if passed_on is None:
        assert state(whole) == before
        return
    size, _, rest = bytes(read).partition(b"\r\n")
    assert int(size, 16) == len(rest) - 2 and rest.endswith(b"\r\n")
    assert passed_on == chunk(apart.feed(rest[:-2]))
    assert state(whole) == state(apart)


def test_the_usual_event_is_read_the_short_way() -> None:
    tracker = tracker_of(CHAT, request(CHAT))
    tracker.feed(plain_event(CHAT, b"first", "1"))
    passed_on = tracker.feed_chunk(chunk(plain_event(CHAT, b'say \\"hello\\"')))
    assert passed_on == chunk(plain_event(CHAT, b'say \\"hello\\"').replace(b"[5,17]", b"null"))
    assert tracker.tokens == 3


def test_a_stream_without_ids_is_not_taken_apart() -> None:
    """Nothing of it is needed: it cannot be continued."""
    tracker = tracker_of(CHAT, request(CHAT))
    event = plain_event(CHAT, b"text").replace(b',"token_ids":[5,17]', b"")
    tracker.feed(event)
    assert tracker.obstacle == "the engine gave no token ids"
    assert tracker.feed_chunk(chunk(event)) == chunk(event)


def test_an_error_is_seen_in_any_form_of_stream() -> None:
    tracker = tracker_of(CHAT, request(CHAT, n=2))
    text = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\"error\\""}}],"id":"i"}\n\n'
    tracker.feed(text)
    assert tracker.feed_chunk(chunk(text)) == chunk(text)
    assert tracker.feed_chunk(chunk(text.replace(b'"id":"i"', b'"error":{"message":"x"}'))) is None


def test_half_an_event_is_waited_for() -> None:
    tracker = tracker_of(CHAT, request(CHAT))
    tracker.feed(plain_event(CHAT, b"first"))
    tracker.feed(b"data: ")
    assert not tracker.is_between_events
