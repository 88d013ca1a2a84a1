# SPDX-License-Identifier: Apache-2.0
"""A plain head is read exactly, and the least doubt leaves it to aiohttp's parser."""

import hashlib

import pytest

from vllm_gateway.api.request_head import RequestHead, parse_request_head


def head(*lines: bytes, request_line: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join([request_line, *lines])


PLAIN = (b"Host: x", b"Content-Length: 5")


def digests(*keys: bytes) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key).digest() for key in keys)


def parsed(of: bytes) -> tuple[RequestHead, int]:
    found = parse_request_head(of)
    assert found is not None
    return found


def test_heads_that_differ_in_length_alone_are_read_once() -> None:
    one, length = parsed(head(b"Host: x", b"Content-Length: 5", b"X: y"))
    other, other_length = parsed(head(b"Host: x", b"content-length: 70000", b"X: y"))
    assert one is other
    assert (length, other_length) == (5, 70000)


def test_a_plain_head() -> None:
    found, length = parsed(
        head(*PLAIN, b"X-A:\t b ", b"x-a:", b"X-Request-ID: r1", b"Authorization: Bearer k", b"Connection: Keep-Alive")
    )
    assert (found.target, found.path, length) == ("/v1/chat/completions", "/v1/chat/completions", 5)
    assert (found.keep_alive, found.keys, found.request_id) == (True, digests(b"k"), "r1")
    assert found.raw_headers[1:3] == [(b"X-A", b"b"), (b"x-a", b"")]
    assert found.lines(frozenset({b"host", b"connection"})).startswith(b"X-A: b\r\nx-a: \r\nX-Request-ID: r1\r\nAuth")
    assert found.lines(frozenset({b"host", b"connection", b"x-a"})).startswith(b"X-Request-ID: r1\r\nAuth")


def test_the_path_is_the_target_without_its_query() -> None:
    found, _ = parsed(head(*PLAIN, request_line=b"POST /v1/x?a=%20b&c HTTP/1.1"))
    assert (found.target, found.path) == ("/v1/x?a=%20b&c", "/v1/x")


def test_who_asks_and_how() -> None:
    found, _ = parsed(
        head(*PLAIN, b"Origin: http://a", b"X-Forwarded-For: 1.1.1.1", b"x-api-key: k", b"x-forwarded-for: 2.2.2.2")
    )
    assert (found.host, found.origin) == (b"x", b"http://a")
    assert found.forwarded == [b"1.1.1.1", b"2.2.2.2"]
    assert found.keys == digests(b"k")
    plain, _ = parsed(head(*PLAIN))
    assert (plain.origin, plain.forwarded, plain.keys) == (b"", [], ())


def test_connection_close() -> None:
    found, _ = parsed(head(*PLAIN, b"connection: Close"))
    assert not found.keep_alive
    assert found.request_id is None


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/x HTTP/1.1",
        b"POST /v1/x HTTP/1.0",
        b"POST /v1/x HTTP/1.1 ",
        b"POST  /v1/x HTTP/1.1",
        b"POST /v1/ HTTP/1.1",
        b"POST /v2/x HTTP/1.1",
        b"POST /v1/../x HTTP/1.1",
        b"POST /v1/%2e%2e/x HTTP/1.1",
        b"POST /v1//x HTTP/1.1",
        b"POST /v1/./x HTTP/1.1",
        b"POST /v1/x#y HTTP/1.1",
        b"POST /v1/\xc3\xa9 HTTP/1.1",
        b"POST http://x/v1/x HTTP/1.1",
        b"post /v1/x HTTP/1.1",
        b"",
    ],
)
def test_another_request_line(request_line: bytes) -> None:
    assert parse_request_head(head(*PLAIN, request_line=request_line)) is None


@pytest.mark.parametrize(
    "lines",
    [
        (b"Host: x",),
        (b"Content-Length: 5",),
        (b"Host: x", b"Content-Length: 0"),
        (b"Host: x", b"Content-Length: 05"),
        (b"Host: x", b"Content-Length: +5"),
        (b"Host: x", b"Content-Length: 5, 5"),
        (b"Host: x", b"Content-Length: "),
        (b"Host: x", b"Content-Length: 9999999999999999"),
        (b"Host: x", b"Content-Length : 5"),
        (*PLAIN, b"Content-Length: 5"),
        (*PLAIN, b"content-length: 6"),
        (*PLAIN, b"CONTENT-LENGTH: 5"),
        (*PLAIN, b"Content-Length:5"),
        (b"Host: x", b"CONTENT-LENGTH: 5"),
        (*PLAIN, b"Host: y"),
        (*PLAIN, b"Authorization: a", b"authorization: b"),
        (*PLAIN, b"Origin: a", b"origin: b"),
        (*PLAIN, b"Transfer-Encoding: chunked"),
        (*PLAIN, b"transfer-encoding: identity"),
        (*PLAIN, b"Expect: 100-continue"),
        (*PLAIN, b"Upgrade: h2c"),
        (*PLAIN, b"Connection: x-hop"),
        (*PLAIN, b"Connection: close, x"),
        (*PLAIN, b" folded"),
        (*PLAIN, b"X : y"),
        (*PLAIN, b"X"),
        (*PLAIN, b""),
        (*PLAIN, b": y"),
        (*PLAIN, b"X: \xc3\xa9"),
        (*PLAIN, b"X: a\nb"),
        (*PLAIN, b"X: a\rb"),
        (*PLAIN, b"X: a\0"),
        (*PLAIN, b"X: " + b"a" * 300 + b"\x7f"),
    ],
)
def test_not_plain(lines: tuple[bytes, ...]) -> None:
    assert parse_request_head(head(*lines)) is None
