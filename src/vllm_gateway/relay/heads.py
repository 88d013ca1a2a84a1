# SPDX-License-Identifier: Apache-2.0
"""Heads of messages: writes the request's, reads the reply's strictly, and writes it anew for the client.

Pure functions of bytes. What goes through is kept byte for byte and in order; what belongs to one connection only
(hop-by-hop headers) stays on its side.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from vllm_gateway.relay.framing import FIELD_NAME, Chunked, Framing, Length, UntilClose
from vllm_gateway.relay.loops import via
from vllm_gateway.routing import Address

_NAME = re.compile(FIELD_NAME)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01])( ([1-5][0-9][0-9])(?: .{0,200})?)")
_METHOD = re.compile(r"[A-Z]{1,32}")
_TARGET = re.compile(r"[^\x00-\x20\x7f]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")

_LENGTH_LINES = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
"""As servers write it."""

_MAX_KNOWN_HEAD = 2048
_MAX_KNOWN_LINE = 256
_MAX_LINES = 256
_EVENTS = re.compile(rb"\ncontent-type:[ \t]*+text/event-stream[;\s]")
_JSON = re.compile(rb"\ncontent-type:[ \t]*+(?:application/(?:[^\r\n;]*\+)?json|text/event-stream)[;\s]")
UNBUFFERED = b"X-Accel-Buffering: no\r\n"
UNCACHED = b"Cache-Control: no-cache\r\n"
"""With an event stream: a proxy on its way keeps nothing of it, neither for a moment nor for others."""
_CONTROLS = bytes(c for c in range(128) if c < 32 or c == 127).replace(b"\t", b"")

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
_OF_THE_ENGINE = frozenset(
    {
        # What it is made of.
        b"server",
        b"via",
        b"x-powered-by",
        # What it says to browsers about its whole site, which is the gateway's.
        b"accept-ch",
        b"alt-svc",
        b"clear-site-data",
        b"nel",
        b"public-key-pins",
        b"refresh",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"set-cookie",
        b"set-cookie2",
        b"strict-transport-security",
        # What a proxy before the gateway would do at its word: serve a file of its own, for one.
        b"x-accel-charset",
        b"x-accel-expires",
        b"x-accel-limit-rate",
        b"x-accel-redirect",
        b"x-lighttpd-send-file",
        b"x-reproxy-url",
        b"x-sendfile",
        # Of the message, and nothing that was agreed on.
        b"trailer",
    }
)
"""Headers of a reply that are not passed on."""

_PLACES = frozenset({b"location", b"content-location"})
"""These may name a path, and no other host: an engine knows nothing but its own address."""

REQUEST_ONLY_HERE = _HOP_BY_HOP | {b"trailer", b"expect", b"host", b"content-length"}
"""Headers of a client's request that are not passed on: of this connection, or written anew."""

_SPECIAL = _HOP_BY_HOP | _OF_THE_ENGINE | _PLACES | {b"content-length"}

_ASKS_FOR_NO_LENGTH = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


class BadHead(ValueError):
    """The reply's head is not one that may be passed on."""


# --- Headers of our own

Headers: TypeAlias = Sequence[tuple[str, str]]


class OwnHeaders(NamedTuple):
    """Headers that the gateway adds, ready to be written; they replace what comes under the same name."""

    names: frozenset[bytes]
    """Lower-case, with those that are only left out."""
    lines: bytes
    for_client: bytes = b""
    """Lines for the client alone."""


NO_HEADERS = OwnHeaders(frozenset(), b"")


def own_headers(headers: Headers, *, for_client: bytes = b"", withheld: frozenset[bytes] = frozenset()) -> OwnHeaders:
    """`withheld`: lower-case names of headers that go neither way. Raises ValueError for what no header can be."""
    if not (headers or for_client or withheld):
        return NO_HEADERS
    lines = ""
    for name, value in headers:
        if not value.isprintable():
            raise ValueError(f"control character in the value of {name!r}")
        lines += f"{name}: {value}\r\n"
    return OwnHeaders(_names(tuple([name for name, _ in headers]), withheld), lines.encode(), for_client)


@lru_cache(maxsize=64)  # few sets of names are ever used
def _names(names: tuple[str, ...], more: frozenset[bytes]) -> frozenset[bytes]:
    return more.union(_field_name(name.encode()) for name in names)


# --- The request, to the instance


def request_head(method: str, target: str, to: Address, lines: bytes, *, own: OwnHeaders, body_length: int) -> bytes:
    """The head for the instance; `lines` are the client's headers. Raises ValueError for what is no request line."""
    length = b"Content-Length: %d\r\n" % body_length if body_length or method not in _ASKS_FOR_NO_LENGTH else b""
    return b"".join((_request_line(method, target, to), lines, own.lines, length, b"\r\n"))


def header_lines(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> bytes:
    """Headers as lines to be passed on, less those of these lower-case names and those that Connection names.

    Raises ValueError for what could smuggle a line.
    """
    connection = [value for name, value in headers if name.lower() == b"connection"]
    if connection and connection != [b"keep-alive"]:
        dropped |= tokens(connection)
    lines = [b"%b: %b\r\n" % header for header in headers if header[0].lower() not in dropped]
    joined = b"".join(lines)
    if joined.count(b"\n") != len(lines) or joined.count(b"\r") != len(lines) or b"\0" in joined:
        raise ValueError("control character in the request's headers")
    return joined


@lru_cache(maxsize=256)  # nearly all requests ask for the same few targets
def _request_line(method: str, target: str, to: Address) -> bytes:
    if _METHOD.fullmatch(method) is None or method == "CONNECT":
        raise ValueError(f"method not carried: {method!r}")
    if _TARGET.fullmatch(target) is None:
        raise ValueError("control character or space in the request's target")
    return f"{method} {target} HTTP/1.1\r\nHost: {to.authority}\r\n".encode("utf-8", "surrogateescape") + via()


def tokens(values: Iterable[bytes]) -> frozenset[bytes]:
    """The lower-case names that Connection headers list."""
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


# --- The reply, from the instance


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """What replies have in common whose heads differ in the length of the body alone."""

    status: int
    lines: bytes
    """What is passed on: the status line, always of our own HTTP version, and the headers."""
    length: int | None
    chunked: bool
    keep_alive: bool
    has_events: bool
    """It is a stream of server-sent events, by its type."""
    of_any_length: bool
    """The value of its length is a stand-in."""
    _parts: dict[frozenset[bytes], tuple[bytes, bytes]] = field(default_factory=dict)

    def without(self, names: frozenset[bytes]) -> tuple[bytes, bytes]:
        """The lines less the headers of these lower-case names: up to the length's stand-in, and from there on."""
        parts = self._parts.get(names)
        if parts is None:
            lines = _without(self.lines, names)
            at = lines.lower().find(_LENGTH_LINES[1]) if self.of_any_length else -1
            value = at + len(_LENGTH_LINES[1])
            parts = (lines, b"") if at < 0 else (lines[:value], lines[lines.index(b"\r\n", value) :])
            self._parts[names] = parts
        return parts


class ReplyHead:
    """The head of an instance's reply."""

    __slots__ = ("_digits", "_form", "keep_alive", "status")

    def __init__(self, form: _Form, digits: bytes = b"") -> None:
        """`digits`: of the length, if it is not the form's."""
        self._form = form
        self._digits = digits
        self.status = form.status
        self.keep_alive = form.keep_alive

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400 and self.status != 304

    @property
    def is_compressed(self) -> bool:
        return b"\ncontent-encoding:" in self._form.lines.lower()

    @property
    def may_name_model(self) -> bool:
        """Whether the body is JSON, or events with JSON in them, as it is."""
        return _JSON.search(self._form.lines.lower()) is not None and not self.is_compressed

    @property
    def length(self) -> int | None:
        return int(self._digits) if self._digits else self._form.length

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is a stream of server-sent events, as they are."""
        return self._form.has_events and self.status == 200 and not self.is_compressed

    def without(self, names: frozenset[bytes]) -> bytes:
        """What is passed on, status line and headers, less the headers of these lower-case names."""
        before, after = self._form.without(names)
        return before + self._digits + after if after else before

    def framing(self, method: str) -> Framing:
        """How the body that follows this head ends."""
        if method == "HEAD" or self.status in (204, 304):
            return Length(0)
        if self._form.chunked:
            return Chunked()
        length = self.length
        return UntilClose() if length is None else Length(length)


def parse_reply_head(head: bytes) -> ReplyHead:
    """Reads a head, from the status line to the empty line. Raises BadHead for all that could be read in two ways."""
    if len(head) > _MAX_KNOWN_HEAD:
        return ReplyHead(_parse(head))
    for length_line in _LENGTH_LINES:
        at = head.find(length_line) + len(length_line)
        if at >= len(length_line):
            digits = head[at : head.find(b"\r\n", at)]
            if _LENGTH.fullmatch(digits) is None:
                break
            form = _form_of_any_length(head[:at] + head[at + len(digits) :], at)
            return ReplyHead(_parse(head)) if form is None else ReplyHead(form, digits)
    return ReplyHead(_form(head))


@lru_cache(maxsize=1024)  # an engine's replies have the same few
def _form_of_any_length(head: bytes, at: int) -> _Form | None:
    """Of a head whose length is missing there; None if another one stands in it."""
    if head.lower().count(_LENGTH_LINES[1].rstrip()) > 1:
        return None
    return _parse(head[:at] + b"0" + head[at:], of_any_length=True)


@lru_cache(maxsize=256)
def _form(head: bytes) -> _Form:
    return _parse(head)


def _parse(head: bytes, *, of_any_length: bool = False) -> _Form:
    """Raises BadHead."""
    if head.count(b"\n") > _MAX_LINES:
        raise BadHead("too many lines")
    status_line, *lines = head[:-4].split(b"\r\n")
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * len(lines) - 4 or not head.endswith(b"\r\n\r\n"):
        raise BadHead("control character, or a line end that is none")
    status, version_1_0, first_line = _status(status_line)
    kept = [first_line]
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    connection: list[bytes] = []
    for line in lines:
        name = _role(line) if len(line) <= _MAX_KNOWN_LINE else _role.__wrapped__(line)
        if name is not None:
            value = line[len(name) + 1 :]
            if name == b"content-length":
                lengths.append(value.strip(b" \t"))
                if len(lengths) > 1:
                    continue
            else:
                if name == b"transfer-encoding":
                    encodings.append(value.strip(b" \t").lower())
                elif name == b"connection":
                    connection.append(value)
                elif name in _PLACES and _is_path(value.strip(b" \t")):
                    kept.append(line)
                continue
        kept.append(line)
    kept.append(b"")
    passed_on = b"\r\n".join(kept)

    length = _one_length(lengths)
    if encodings:
        if lengths:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if encodings != [b"chunked"] or version_1_0:
            raise BadHead("a transfer encoding other than chunked")
    keep_alive = not version_1_0
    if connection:
        named = tokens(connection)
        keep_alive = keep_alive and b"close" not in named
        passed_on = _without(passed_on, named - {b"content-length"})
    has_events = _EVENTS.search(passed_on.lower()) is not None
    if has_events:
        passed_on = _at_once(passed_on)
    return _Form(status, passed_on, length, bool(encodings), keep_alive, has_events, of_any_length)


def _at_once(lines: bytes) -> bytes:
    """Whatever the engine says of buffers; what it says of caches may be stricter."""
    lines = _without(lines, (b"x-accel-buffering",)) + UNBUFFERED
    return lines if b"\ncache-control:" in lines.lower() else lines + UNCACHED


@lru_cache(maxsize=64)
def _status(line: bytes) -> tuple[int, bool, bytes]:
    """The status, whether it is of HTTP/1.0, and the line as it is passed on."""
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise BadHead("not a status line of HTTP/1")
    return int(found[3]), found[1] == b"0", b"HTTP/1.1" + found[2]


@lru_cache(maxsize=1024)  # an engine's replies have the same few lines
def _role(line: bytes) -> bytes | None:
    """The lower-case name of a header that is not merely passed on; None for an ordinary one."""
    name, colon, _ = line.partition(b":")
    lower = _field_name(name)
    if not colon:
        raise BadHead("header line without a colon")
    return lower if lower in _SPECIAL else None


def _is_path(place: bytes) -> bool:
    return place.startswith(b"/") and not place.startswith((b"//", b"/\\"))


def _field_name(name: bytes) -> bytes:
    """Lower-case."""
    if len(name) > _MAX_KNOWN_LINE:
        raise BadHead("header name too long")
    return _known_field_name(name)


@lru_cache(maxsize=256)  # the same few names, whatever the values
def _known_field_name(name: bytes) -> bytes:
    if _NAME.fullmatch(name) is None:
        raise BadHead("malformed header name")
    return name.lower()


def _one_length(lengths: Sequence[bytes]) -> int | None:
    if not lengths:
        return None
    if len(lengths) > 1 and len(set(lengths)) > 1:
        raise BadHead("Content-Length twice, with different values")
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise BadHead("malformed Content-Length")
    return int(lengths[0])


def _without(lines: bytes, names: Iterable[bytes]) -> bytes:
    """The lines of a head less the headers of these lower-case names."""
    lowered = lines.lower()
    found = {name for name in names if b"\n" + name + b":" in lowered}
    if not found:
        return lines
    return b"".join([line for line in lines.splitlines(keepends=True) if line.partition(b":")[0].lower() not in found])


# --- The reply, to the client


def reply_head(head: ReplyHead, *, own: OwnHeaders, chunked: bool, connection: bytes) -> bytes:
    """The head for the client: the instance's headers, ours, and what holds for the client's connection."""
    lines = head.without(own.names)
    if head.status == 204:
        lines = _without(lines, (b"content-length",))  # RFC 9110 8.6; some clients would wait for a body
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b""
    persistence = b"Connection: %b\r\n" % connection if connection else b""
    return b"".join((lines, own.lines, own.for_client, framing, persistence, b"\r\n"))
