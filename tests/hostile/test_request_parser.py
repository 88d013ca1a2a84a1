# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the reading of requests in both lanes, beside h11: nobody sees a request that a strict reader does not.

The gateway may refuse more than h11 does. What it reads must be what h11 reads in the same bytes, request for request,
the same in both lanes, and the same wherever the reads end.
"""

import os

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile.heads import BODY, CARRIED, HEAD, LENGTH, REST, TE, TOO_LARGE, UNREADABLE
from tests.hostile.lanes import aiohttp_lane, both_lanes, reference

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = [sent for sent in (*CARRIED.values(), *UNREADABLE.values()) if len(sent) < 600]
SEEDS = [*SMALL, GET, GET.replace(b"1.1", b"1.0"), HEAD + b"Connection: close\r\n" + REST]
NASTY = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"\x0b", b":", b",", b";", b"\r\n\r\n", b"\r\n ", b"\xff", b"\xc3\xa9",
    b"0", b"1", b"-", b"+", b"0x", b"_", b"0\r\n\r\n", b"chunked", b"identity", b"close", b"keep-alive", b"Upgrade",
    b"HTTP/1.1", b"HTTP/1.0", b"GET / HTTP/1.1", b"Host: y\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"X: y\r\n", LENGTH, TE,
    b"Content-Length: 0\r\n", BODY, GET,
]  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A few requests one after the other, some of them spoilt."""
    sent = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(sent)))
        end = min(len(sent), start + draw(st.sampled_from([0, 0, 0, 1, 1, 2, 5])))
        sent = sent[:start] + draw(st.sampled_from(NASTY)) + sent[end:]
    return sent


def pieces(sent: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(sent) + 1) for cut in cuts})
    return [sent[start:end] for start, end in zip([0, *places], [*places, len(sent)], strict=True) if start < end]


@FUZZ
@given(messages(), st.lists(st.integers(0, 5000), max_size=6))
@example(HEAD + REST + HEAD + TE + b"\r\nd\r\n" + BODY + b"\r\n0\r\n\r\n" + GET, [10, 100])
def test_fuzz_of_requests(sent: bytes, cuts: list[int]) -> None:
    expected = reference(sent).requests
    for parts in ([sent], pieces(sent, cuts)):
        fast, slow = both_lanes(parts), aiohttp_lane(parts)
        assert fast.requests == slow.requests, "the lanes agree"
        assert fast.requests == expected[: len(fast.requests)], "and so does the reference"
        assert fast.refused == slow.refused
        if len(fast.requests) < len(expected):
            assert fast.refused, "what h11 reads is read, or refused"


def test_the_corpus_is_read_as_the_reference_reads_it() -> None:
    for name, sent in (CARRIED | UNREADABLE | TOO_LARGE).items():
        fast, slow, expected = both_lanes([sent]), aiohttp_lane([sent]), reference(sent)
        assert fast.requests == slow.requests, name
        assert fast.requests == expected.requests[: len(fast.requests)], name
        assert bool(fast.requests) == (name in CARRIED), name
        assert fast.refused == (name not in CARRIED), name
