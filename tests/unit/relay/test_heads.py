# SPDX-License-Identifier: Apache-2.0
"""Heads go through byte for byte, and whatever two parsers could read in two ways does not go through."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.relay.framing import Chunked, Length, UntilClose
from vllm_gateway.relay.heads import (
    REQUEST_ONLY_HERE,
    BadHead,
    header_lines,
    own_headers,
    parse_reply_head,
    reply_head,
    request_head,
    tokens,
)
from vllm_gateway.relay.loops import via
from vllm_gateway.routing import Address

NONE = own_headers(())


def a_request(*headers: tuple[bytes, bytes], target: str = "/v1/x?a=b", method: str = "POST", length: int = 3) -> bytes:
    own = own_headers([("X-Request-Id", "r1")])
    lines = header_lines(headers, REQUEST_ONLY_HERE | own.names)
    return request_head(method, target, Address("127.0.0.1", 8000), lines, own=own, body_length=length)


class TestRequestHead:
    def test_whole(self) -> None:
        assert a_request(
            (b"Host", b"gateway.example"),
            (b"Content-Type", b"application/json"),
            (b"content-length", b"999"),
            (b"X-REQUEST-ID", b"theirs"),
            (b"TE", b"trailers"),
            (b"Proxy-Authorization", b"secret"),
            (b"Expect", b"100-continue"),
            (b"X-Name", b"J\xc3\xbcrgen"),
        ) == (
            b"POST /v1/x?a=b HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n" + via() + b"Content-Type: application/json\r\n"
            b"X-Name: J\xc3\xbcrgen\r\nX-Request-Id: r1\r\nContent-Length: 3\r\n\r\n"
        )

    @pytest.mark.parametrize(("method", "said"), [("POST", True), ("PUT", True), ("GET", False), ("HEAD", False)])
    def test_an_empty_body_is_announced_where_one_is_expected(self, method: str, said: bool) -> None:
        assert (b"Content-Length: 0" in a_request(method=method, length=0)) is said

    @pytest.mark.parametrize("bad", ["\r\n", "\n", "\r", "\0", " ", "\x7f", "\t"])
    def test_refuses_a_target_that_could_end_its_line(self, bad: str) -> None:
        with pytest.raises(ValueError, match="target"):
            a_request(target=f"/v1{bad}X: y")

    @pytest.mark.parametrize("bad", [b"\r\n", b"\n", b"\r", b"\0"])
    def test_refuses_a_header_that_could_end_its_line(self, bad: bytes) -> None:
        with pytest.raises(ValueError, match="headers"):
            a_request((b"X-A", b"a" + bad + b"X-B: b"))

    @pytest.mark.parametrize("method", ["", "get", "GET /", "CONNECT", "G\r\n"])
    def test_refuses_a_method(self, method: str) -> None:
        with pytest.raises(ValueError, match="method"):
            a_request(method=method)

    def test_tokens_of_connection_headers(self) -> None:
        assert tokens([b"close, X-Mine", b" Keep-Alive "]) == {b"close", b"x-mine", b"keep-alive"}


class TestOwnHeaders:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("X", "a\r\nY: b"),
            ("X", "a\nb"),
            ("X", "a\0"),
            ("X:", ""),
            ("X Y", ""),
            ("", ""),
            ("X: a\r\nY", "b"),
            ("ü", "a"),
        ],
    )
    def test_refuses_what_cannot_stand_in_a_header(self, name: str, value: str) -> None:
        with pytest.raises(ValueError, match=r"control character|name"):
            own_headers([(name, value)])


def head_of(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (status, *lines, b""))


def passed(head: bytes, **kwargs: object) -> bytes:
    options: dict[str, object] = {"own": NONE, "chunked": False, "connection": b"", **kwargs}
    return reply_head(parse_reply_head(head), **options)  # type: ignore[arg-type]


class TestReplyHead:
    def test_passes_byte_for_byte_and_in_order(self) -> None:
        head = head_of(
            b"date: today", b"Vary:Origin ", b"content-length:  5", b"X-\xc2: no"[:2] + b"A: \xff\t", b"x-a:"
        )
        assert passed(head) == head

    def test_drops_what_belongs_to_one_connection(self) -> None:
        head = head_of(
            b"Keep-Alive: timeout=5",
            b"A: 1",
            b"Connection: X-Hop, keep-alive",
            b"Proxy-Authenticate: Basic",
            b"Upgrade: h2c",
            b"x-hop: 1",
            b"TE: trailers",
            b"TExt: stays",
            b"Trailer: X-Check",
            b"Transfer-Encoding: Chunked",
        )
        assert passed(head, chunked=True, connection=b"close") == head_of(
            b"A: 1", b"TExt: stays", b"Transfer-Encoding: chunked", b"Connection: close"
        )

    def test_drops_what_is_of_the_engine_alone(self) -> None:
        head = head_of(b"Server: uvicorn", b"A: 1", b"set-cookie: a=b", b"X-Accel-Redirect: /etc", b"Alt-Svc: clear")
        assert passed(head) == head_of(b"A: 1")

    @pytest.mark.parametrize(
        ("place", "stays"),
        [
            (b"/v1/files/1", True),
            (b"http://127.0.0.1:8000/v1/x", False),
            (b"//127.0.0.1:8000/v1/x", False),
            (b"/\\127.0.0.1/", False),
            (b"x", False),
        ],
    )
    def test_a_place_is_a_path_here(self, place: bytes, stays: bool) -> None:
        head = head_of(b"Location: " + place, b"content-location:" + place, status=b"HTTP/1.1 201 x")
        assert passed(head) == (head if stays else head_of(status=b"HTTP/1.1 201 x"))

    def test_ours_replace_theirs(self) -> None:
        own = own_headers([("X-Request-Id", "ours")])
        head = head_of(b"x-request-id: theirs", b"X-Request-Id-2: stays", b"A: 1", b"X-REQUEST-ID: again")
        assert passed(head, own=own) == head_of(b"X-Request-Id-2: stays", b"A: 1", b"X-Request-Id: ours")

    def test_no_proxy_keeps_a_stream_back(self) -> None:
        events, now = b"Content-Type: Text/Event-Stream; charset=utf-8", b"X-Accel-Buffering: no"
        assert passed(head_of(events)) == head_of(events, now, b"Cache-Control: no-cache")
        assert passed(head_of(b"x-accel-buffering: yes", events, b"cache-control: no-store")) == head_of(
            events, b"cache-control: no-store", now
        )
        named = head_of(b"Connection: cache-control", events, b"Cache-Control: public")
        assert passed(named) == head_of(events, now, b"Cache-Control: no-cache")
        assert b"X-Accel" not in passed(head_of(b"Content-Type: application/json"))

    def test_a_connection_header_cannot_remove_the_length(self) -> None:
        assert b"Content-Length: 5" in passed(head_of(b"Connection: content-length", b"Content-Length: 5"))

    def test_the_same_length_twice_is_said_once(self) -> None:
        assert passed(head_of(b"Content-Length: 5", b"A: 1", b"content-length: 5")) == head_of(
            b"Content-Length: 5", b"A: 1"
        )

    def test_our_version_stands_in_the_status_line(self) -> None:
        assert passed(head_of(status=b"HTTP/1.0 404 Not \xfc here")) == head_of(status=b"HTTP/1.1 404 Not \xfc here")
        assert passed(head_of(status=b"HTTP/1.1 200")) == head_of(status=b"HTTP/1.1 200")

    def test_no_length_where_no_body_may_be(self) -> None:
        assert passed(head_of(b"Content-Length: 0", b"A: 1", status=b"HTTP/1.1 204 x")) == head_of(
            b"A: 1", status=b"HTTP/1.1 204 x"
        )
        assert b"Content-Length: 7" in passed(head_of(b"Content-Length: 7", status=b"HTTP/1.1 304 x"))

    @pytest.mark.parametrize(
        ("lines", "method", "status", "framing"),
        [
            ([b"Content-Length: 5"], "GET", b"200", Length),
            ([b"Transfer-Encoding: chunked"], "GET", b"200", Chunked),
            ([], "GET", b"200", UntilClose),
            ([b"Content-Length: 5"], "HEAD", b"200", Length),
            ([b"Transfer-Encoding: chunked"], "HEAD", b"200", Length),
            ([], "GET", b"204", Length),
            ([], "GET", b"304", Length),
        ],
    )
    def test_framing(self, lines: list[bytes], method: str, status: bytes, framing: type) -> None:
        found = parse_reply_head(head_of(*lines, status=b"HTTP/1.1 " + status + b" x")).framing(method)
        assert isinstance(found, framing)
        assert found.done is (method == "HEAD" or status in (b"204", b"304"))

    @pytest.mark.parametrize(
        ("status", "lines", "keep_alive"),
        [
            (b"HTTP/1.1 200 OK", [], True),
            (b"HTTP/1.1 200 OK", [b"Connection: x, CLOSE"], False),
            (b"HTTP/1.1 200 OK", [b"Connection: keep-alive", b"connection: close"], False),
            (b"HTTP/1.0 200 OK", [b"Connection: keep-alive"], False),
        ],
    )
    def test_keep_alive(self, status: bytes, lines: list[bytes], keep_alive: bool) -> None:
        assert parse_reply_head(head_of(*lines, status=status)).keep_alive is keep_alive

    @pytest.mark.parametrize(
        "head",
        [
            b"\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"http/1.1 200 OK\r\n\r\n",
            b" HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 O\0K\r\n\r\n",
            b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
            b"HTTP/1.1 600 OK\r\n\r\n",
            b"HTTP/1.1 200 " + b"x" * 201 + b"\r\n\r\n",
            head_of(*[b"A: b"] * 256),
            head_of(b"A" * 257 + b": b"),
            head_of(b"A: b", b" folded"),
            head_of(b"A: b", b"\tfolded"),
            head_of(b" A: b"),
            head_of(b"A : b"),
            head_of(b"A"),
            head_of(b": b"),
            head_of(b"A: b\0c"),
            head_of(b"A: b\rc"),
            head_of(b"A: b\nC: d"),
            head_of(b"A: b\x01"),
            head_of(b"\xc3\xa9: b"),
            head_of(b"Content-Length: 5", b"Content-Length: 6"),
            head_of(b"Content-Length: 5, 5"),
            head_of(b"Content-Length: -5"),
            head_of(b"Content-Length: +5"),
            head_of(b"Content-Length: 5_0"),
            head_of(b"Content-Length:"),
            head_of(b"Content-Length: 0x5"),
            head_of(b"Content-Length: " + b"9" * 19),
            head_of(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
            head_of(b"Transfer-Encoding: chunked", b"content-length: 5"),
            head_of(b"Transfer-Encoding: gzip, chunked"),
            head_of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            head_of(b"Transfer-Encoding: identity"),
            head_of(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK"),
        ],
    )
    def test_refuses(self, head: bytes) -> None:
        with pytest.raises(BadHead):
            parse_reply_head(head)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.text("abcXYZ-_09", min_size=1, max_size=12).map(str.encode),
                st.binary(max_size=20).filter(lambda value: not any(byte < 32 or byte == 127 for byte in value)),
            ).filter(lambda field: field[0].lower() != b"te"),
            max_size=8,
        )
    )
    def test_any_ordinary_head_goes_through_unchanged(self, fields: list[tuple[bytes, bytes]]) -> None:
        head = head_of(*(name + b": " + value for name, value in fields))
        assert passed(head) == head

    @settings(deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"Content-Length: 5",
                    b"content-length: 123456",
                    b"content-length:  7 ",
                    b"CONTENT-LENGTH: 5",
                    b"Content-Length: x",
                    b"X-Content-Length: 9",
                    b"X: Content-Length: 5",
                    b"Transfer-Encoding: chunked",
                    b"Connection: close, X-A",
                    b"X-A: b",
                    b"X-Request-Id: theirs",
                    b"broken",
                ]
            ),
            max_size=5,
        ),
        st.sampled_from([frozenset(), frozenset({b"x-request-id"}), frozenset({b"content-length"})]),
    )
    def test_a_head_that_is_known_but_for_its_length_reads_as_any_other(
        self, lines: list[bytes], names: frozenset[bytes]
    ) -> None:
        """A head over the limit is never kept, and always read as a whole."""
        padding = b"Padding: " + b"x" * 2048
        known, whole = read(head_of(*lines), names), read(head_of(*lines, padding), names)
        assert known == (whole and {**whole, "lines": whole["lines"].replace(padding + b"\r\n", b"")})


def read(head: bytes, names: frozenset[bytes]) -> dict[str, Any] | None:
    try:
        found = parse_reply_head(head)
    except BadHead:
        return None
    framing = type(found.framing("POST")).__name__
    return {
        "status": found.status,
        "length": found.length,
        "framing": framing,
        "keep_alive": found.keep_alive,
        "lines": found.without(names),
    }
