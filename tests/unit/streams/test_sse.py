# SPDX-License-Identifier: Apache-2.0
"""Events are whole wherever the reads split, and no byte of the stream is lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.streams.sse import DONE, EventReader, EventTooLong, comment, data_of, event_of

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20).map(str.encode)
LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def events(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An event and its data."""
    lines = draw(st.lists(LINE, min_size=1, max_size=3))
    end = draw(LINE_END)
    note = draw(st.sampled_from([b"", b": a comment", b"event: error", b"id: 3"]))
    name = draw(st.sampled_from([b"data: ", b"data:"]))
    if name == b"data:":
        lines = [line.lstrip(b" ") for line in lines]
    fields = [note] * bool(note) + [name + line for line in lines]
    return b"".join(field + end for field in fields) + end, b"\n".join(lines)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(events(), max_size=5), st.lists(st.integers(0), max_size=12))
def test_events_are_found_wherever_the_reads_split(parts: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    wire = b"".join(event for event, _ in parts)
    reader = EventReader()
    found = [event for read in split(wire, cuts) for event in reader.feed(read)]
    assert b"".join(found) + reader.held == wire
    if reader.held:  # a carriage return at the very end may be half a line end
        assert wire.endswith(b"\r")
        found += reader.feed(b"\n")
    assert [data_of(event) for event in found] == [data for _, data in parts]


def test_a_comment_has_no_data() -> None:
    assert data_of(comment("starting gemma3-4B, 34 %")) is None
    assert EventReader().feed(comment("x") + DONE) == [b": x\n\n", b"data: [DONE]\n\n"]


@given(LINE)
def test_an_event_of_one_line_is_read_back(line: bytes) -> None:
    assert data_of(event_of(line)) == line


def test_an_endless_event_is_refused() -> None:
    reader = EventReader(max_bytes=100)
    assert reader.feed(b"x" * 100) == []
    with pytest.raises(EventTooLong):
        reader.feed(b"x")
