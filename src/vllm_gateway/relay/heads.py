# SPDX-License-Identifier: Apache-2.0
"""Heads of messages: writes the request's, reads the reply's strictly, and writes it anew for the client.

Pure functions of bytes. What goes through is kept byte for byte and in order; what belongs to one connection only
(hop-by-hop headers) stays on its side.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_gateway.relay.framing import FIELD_NAME, FIELD_VALUE, Chunked, Framing, Length, UntilClose
from vllm_gateway.relay.types import Headers

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: " + FIELD_VALUE + rb")?+\r\n")
_FIELD = re.compile(rb"(" + FIELD_NAME + rb"):(" + FIELD_VALUE + rb")\r\n")
_METHOD = re.compile(r"[A-Z]{1,32}")
_TARGET = re.compile(r"[^\x00-\x20\x7f]+")
_NAME = re.compile(FIELD_NAME)
_VALUE = re.compile(FIELD_VALUE)
_LENGTH = re.compile(rb"[0-9]{1,18}")

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
REQUEST_ONLY_HERE = _HOP_BY_HOP | {b"trailer", b"expect", b"host", b"content-length"}
"""Headers of a client's request that are not passed on: of this connection, or written anew."""

_ASKS_FOR_NO_LENGTH = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_NEEDS_A_LOOK = _HOP_BY_HOP | {b"content-length"}


class BadHead(ValueError):
    """The reply's head is not one that may be passed on."""


# --- Headers of our own


@dataclass(frozen=True, slots=True)
class OwnHeaders:
    """Headers that the gateway adds, ready to be written; they replace what comes under the same name."""

    names: frozenset[bytes]
    lines: bytes


_NO_HEADERS = OwnHeaders(frozenset(), b"")


def own_headers(headers: Headers) -> OwnHeaders:
    """Raises ValueError for what cannot stand in a header."""
    if not headers:
        return _NO_HEADERS
    names = []
    lines = []
    for name, value in headers:
        raw_name, raw_value = name.encode("ascii"), value.encode("utf-8", "surrogateescape")
        if _NAME.fullmatch(raw_name) is None or _VALUE.fullmatch(raw_value) is None:
            raise ValueError(f"not a header: {name!r}")
        names.append(raw_name.lower())
        lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
    return OwnHeaders(frozenset(names), b"".join(lines))


# --- The request, to the instance


def request_head(
    method: str,
    target: str,
    authority: str,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    dropped: frozenset[bytes],
    own: OwnHeaders,
    body_length: int,
) -> bytes:
    """The head for the instance; `dropped` holds lower-case names. Raises ValueError for what could smuggle a line."""
    if _METHOD.fullmatch(method) is None or method == "CONNECT":
        raise ValueError(f"method not carried: {method!r}")
    if _TARGET.fullmatch(target) is None:
        raise ValueError("control character or space in the request's target")
    parts = [f"{method} {target} HTTP/1.1\r\nHost: {authority}\r\n".encode("utf-8", "surrogateescape")]
    line_count = 2
    if own.names:
        dropped |= own.names
    for name, value in headers:
        if name.lower() not in dropped:
            parts += (name, b": ", value, b"\r\n")
            line_count += 1
    parts.append(own.lines)
    line_count += own.lines.count(b"\n")
    if body_length or method not in _ASKS_FOR_NO_LENGTH:
        parts.append(b"Content-Length: %d\r\n" % body_length)
        line_count += 1
    parts.append(b"\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != line_count + 1 or head.count(b"\r") != line_count + 1 or b"\0" in head:
        raise ValueError("control character in the request's headers")
    return head


def tokens(values: Iterable[str]) -> frozenset[bytes]:
    """The lower-case names that Connection headers list."""
    return frozenset(
        token.strip().lower().encode("utf-8", "surrogateescape") for value in values for token in value.split(",")
    )


# --- The reply, from the instance


@dataclass(slots=True)
class ReplyHead:
    """The head of an instance's reply, parsed."""

    status: int
    status_line: bytes
    """As it goes to the client: always our own HTTP version."""
    fields: list[tuple[bytes, bytes]]
    """Lower-case name and the whole line, of what is passed on."""
    length: int | None
    chunked: bool
    keep_alive: bool

    def framing(self, method: str) -> Framing:
        """How the body that follows this head ends."""
        if method == "HEAD" or self.status in (204, 304):
            return Length(0)
        if self.chunked:
            return Chunked()
        return UntilClose() if self.length is None else Length(self.length)


def parse_reply_head(head: bytes) -> ReplyHead:
    """Reads a head, from the status line to the empty line. Raises BadHead for all that could be read in two ways."""
    line = _STATUS_LINE.match(head)
    if line is None:
        raise BadHead("not a status line of HTTP/1")
    version_1_0 = line[1] == b"0"
    status_line = b"HTTP/1.1" + head[8 : line.end()]
    status = int(line[2])
    fields: list[tuple[bytes, bytes]] = []
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    connection: list[bytes] = []
    position, end = line.end(), len(head) - 2
    while position < end:
        field = _FIELD.match(head, position)
        if field is None:
            raise BadHead("malformed header line")
        name = field[1].lower()
        if name in _NEEDS_A_LOOK:
            if name == b"content-length":
                lengths.append(field[2].strip(b" \t"))
                if len(lengths) == 1:
                    fields.append((name, field[0]))
            elif name == b"transfer-encoding":
                encodings.append(field[2].strip(b" \t").lower())
            elif name == b"connection":
                connection.append(field[2])
        else:
            fields.append((name, field[0]))
        position = field.end()
    if position != end:
        raise BadHead("malformed end of the head")

    length = _one_length(lengths)
    if encodings:
        if lengths:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if encodings != [b"chunked"] or version_1_0:
            raise BadHead("a transfer encoding other than chunked")
    keep_alive = not version_1_0
    if connection:
        named = tokens(value.decode("latin-1") for value in connection) - {b"content-length"}
        keep_alive = keep_alive and b"close" not in named
        fields = [field for field in fields if field[0] not in named]
    return ReplyHead(status, status_line, fields, length, bool(encodings), keep_alive)


def _one_length(lengths: Sequence[bytes]) -> int | None:
    if not lengths:
        return None
    if len(set(lengths)) > 1:
        raise BadHead("Content-Length twice, with different values")
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise BadHead("malformed Content-Length")
    return int(lengths[0])


# --- The reply, to the client


def reply_head(head: ReplyHead, *, own: OwnHeaders, chunked: bool, connection: bytes) -> bytes:
    """The head for the client: the instance's headers, ours, and what holds for the client's connection."""
    dropped = own.names
    if head.status == 204:
        dropped |= {b"content-length"}  # RFC 9110 8.6: must not be there, and some clients would wait for a body
    parts = [head.status_line]
    parts += [line for name, line in head.fields if name not in dropped]
    parts.append(own.lines)
    if chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if connection:
        parts.append(b"Connection: %b\r\n" % connection)
    parts.append(b"\r\n")
    return b"".join(parts)
