# SPDX-License-Identifier: Apache-2.0
"""Where a body ends must not depend on how the network cut it into reads."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.relay.framing import MAX_LINE_BYTES, BadFraming, Chunked, Framing, Length, UntilClose

PAYLOAD = b"hello, world\r\n0\r\n\r\n"
PASSED_ON = b"5\r\nhello\r\n%X\r\n%b\r\n0\r\n\r\n" % (len(PAYLOAD) - 5, PAYLOAD[5:])
WHOLE = b"5;name=value\r\nhello\r\n%X\r\n%b\r\n0\r\nX-Check: sum\r\nX-Other:\r\n\r\n" % (len(PAYLOAD) - 5, PAYLOAD[5:])


def run(framing: Framing, reads: list[bytes]) -> tuple[bytes, bool]:
    """What was passed on, and whether the body ended."""
    passed = b""
    for data in reads:
        used = framing.feed(data)
        assert 0 <= used <= len(data)
        passed += data[:used] if framing.instead is None else framing.instead
        if framing.done:
            return passed, True
        assert used == len(data), "bytes are left over only at the end"
    return passed, False


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """As it comes, as it is passed on, and its data."""
    wire, plain, payload = b"", b"", b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5)):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(data)
        wire += size + draw(st.sampled_from([b"", b";a", b' ; a="b"'])) + b"\r\n" + data + b"\r\n"
        plain += size + b"\r\n" + data + b"\r\n"
        payload += data
    last = draw(st.sampled_from([b"0", b"000"]))
    wire += last + draw(st.sampled_from([b"", b";last"])) + b"\r\n"
    wire += draw(st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c d\r\n"])) + b"\r\n"
    return wire, plain + last + b"\r\n\r\n", payload


class TestLength:
    @pytest.mark.parametrize("cut", range(8))
    def test_ends_at_its_length_and_leaves_the_rest(self, cut: int) -> None:
        assert run(Length(5), [b"hello, "[:cut], b"hello, "[cut:]]) == (b"hello", True)

    def test_no_body_is_over_at_once(self) -> None:
        framing = Length(0)
        assert framing.done
        assert framing.feed(b"stray") == 0

    def test_is_not_over_early(self) -> None:
        assert run(Length(9), [b"four", b"more"]) == (b"fourmore", False)


class TestUntilClose:
    def test_takes_everything(self) -> None:
        assert run(UntilClose(), [b"a", b"b"]) == (b"ab", False)
        assert not UntilClose().self_delimiting


class TestChunked:
    @pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
    def test_split_anywhere_it_ends_where_it_ends_whole(self, cut: int) -> None:
        assert run(Chunked(), [WHOLE[:cut], WHOLE[cut:] + b"HTTP/1.1 200 surplus"]) == (PASSED_ON, True)

    def test_byte_by_byte(self) -> None:
        assert run(Chunked(), [bytes([byte]) for byte in WHOLE]) == (PASSED_ON, True)

    @pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
    def test_gives_the_payload_without_its_framing(self, cut: int) -> None:
        framing, payload = Chunked(), list[bytes]()
        for data in (WHOLE[:cut], WHOLE[cut:]):
            framing.feed(data, payload)
        assert b"".join(payload) == PAYLOAD
        assert framing.done

    @settings(max_examples=60, deadline=None)
    @given(chunked_bodies(), st.lists(st.integers(0, 10_000), max_size=12), st.binary(max_size=8))
    def test_any_body_in_any_pieces(self, body: tuple[bytes, bytes, bytes], cuts: list[int], surplus: bytes) -> None:
        wire, plain, payload = body
        assert run(Chunked(), split(wire + surplus, cuts)) == (plain, True)
        framing, parts = Chunked(), list[bytes]()
        for data in split(wire, cuts):
            framing.feed(data, parts)
        assert b"".join(parts) == payload

    @settings(max_examples=60, deadline=None)
    @given(
        st.one_of(st.binary(max_size=30), st.text("05af;= \r\n:X", max_size=30).map(str.encode)),
        st.lists(st.integers(0, 40), max_size=8),
    )
    def test_what_is_refused_whole_is_refused_in_pieces(self, data: bytes, cuts: list[int]) -> None:
        def verdict(reads: list[bytes]) -> object:
            try:
                return run(Chunked(), reads)
            except BadFraming:
                return BadFraming

        assert verdict([data]) == verdict(split(data, cuts))

    @pytest.mark.parametrize(
        "wire",
        [
            b"\r\n",
            b"g\r\n",
            b"-5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"1_0\r\n" + b"x" * 16 + b"\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello!\r\n",
            b"5\r\nhell\r\n",
            b"5\r\nhello\n",
            b"5;\x00\r\nhello\r\n",
            b"5;a\rb\r\nhello\r\n",
            b"1" * 17 + b"\r\n",
            b"0\r\nX: a\r\n folded\r\n\r\n",
            b"0\r\nnot a field\r\n\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"5;" + b"a" * MAX_LINE_BYTES,
            b"0\r\n" + b"X: y\r\n" * 1000,
        ],
    )
    def test_refuses(self, wire: bytes) -> None:
        with pytest.raises(BadFraming):
            run(Chunked(), [wire])
        with pytest.raises(BadFraming):
            run(Chunked(), [bytes([byte]) for byte in wire])
