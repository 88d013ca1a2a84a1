# SPDX-License-Identifier: Apache-2.0
"""Reads the head of a plain inference request strictly; whatever is not plain is left to aiohttp's parser.

Plain: a POST below /v1/ in HTTP/1.1 with one well-formed Content-Length and nothing that changes how the message is
framed or how the connection goes on. Nothing is guessed: a head that two parsers could read in two ways is not plain.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from vllm_gateway.api.begun_head import MAX_FIELDS
from vllm_gateway.api.keys import offered_keys
from vllm_gateway.relay.framing import FIELD_NAME
from vllm_gateway.relay.loops import came_back

_BEGINNING = b"POST /v1/"

_REQUEST_LINE = re.compile(rb"POST ((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)(\?[A-Za-z0-9._~/=&%+-]*)? HTTP/1\.1")
_FIELD = re.compile(rb"(" + FIELD_NAME + rb"):([\t\x20-\x7e]*+)")
_LENGTH = re.compile(rb"[1-9][0-9]{0,14}")
_LENGTH_LINES = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
"""As clients write it; in any other form it is not plain."""

_NOT_PLAIN = frozenset(
    {b"transfer-encoding", b"content-length", b"content-encoding", b"expect", b"upgrade", b"http2-settings"}
)
_ONCE = frozenset({b"host", b"origin", b"content-type", b"connection", b"authorization", b"x-api-key", b"x-request-id"})
_PERSISTENCE = {b"": True, b"keep-alive": True, b"close": False}
_MAX_KEPT_HEAD = 2048
_MAX_KEPT_LINE = 256


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """The head of a plain inference request, less the length of its body: a client's requests have the same few."""

    target: str
    path: str
    raw_headers: Sequence[tuple[bytes, bytes]]
    keep_alive: bool
    host: bytes
    origin: bytes
    """Empty if there is none."""
    forwarded: Sequence[bytes]
    """Where proxies say that it comes from."""
    keys: Sequence[bytes]
    """Digests of those that it brings."""
    content_type: str
    request_id: str | None
    _passed_on: dict[frozenset[bytes], bytes] = field(default_factory=dict)

    def lines(self, dropped: frozenset[bytes]) -> bytes:
        """The headers as lines to be passed on, less those of these lower-case names."""
        lines = self._passed_on.get(dropped)
        if lines is None:
            kept = [b"%b: %b\r\n" % header for header in self.raw_headers if header[0].lower() not in dropped]
            lines = self._passed_on[dropped] = b"".join(kept)
        return lines


def parse_request_head(head: bytes) -> tuple[RequestHead, int] | None:
    """Reads a head, without its empty line, and the length of the body. None: not a plain one."""
    for length_line in _LENGTH_LINES:
        if (start := head.find(length_line)) >= 0:
            break
    else:
        return None
    end = head.find(b"\r\n", start + 2)
    length = head[start + len(length_line) : end if end >= 0 else None]
    if _LENGTH.fullmatch(length) is None:
        return None
    rest = head[:start] + head[end:] if end >= 0 else head[:start]
    parsed = _parse(rest) if len(rest) <= _MAX_KEPT_HEAD else _parse.__wrapped__(rest)
    return None if parsed is None else (parsed, int(length))


@lru_cache(maxsize=1024)
def _parse(head: bytes) -> RequestHead | None:
    """Of a head from which the one Content-Length has been taken."""
    request_line, *lines = head.split(b"\r\n")
    if len(lines) >= MAX_FIELDS:
        return None
    found = _REQUEST_LINE.fullmatch(request_line)
    if found is None or not request_line.startswith(_BEGINNING):
        return None
    headers = []
    forwarded = []
    once: dict[bytes, bytes] = {}
    for line in lines:
        header = _header(line) if len(line) <= _MAX_KEPT_LINE else _header.__wrapped__(line)
        if header is None:
            return None
        name, raw = header
        if name in _ONCE:
            if name in once:
                return None
            once[name] = raw[1]
        elif name == b"x-forwarded-for":
            forwarded.append(raw[1])
        headers.append(raw)
    keep_alive = _PERSISTENCE.get(once.get(b"connection", b"").lower())
    if not once.get(b"host") or keep_alive is None:
        return None
    request_id = once.get(b"x-request-id")
    path = found[1].decode("ascii")
    return RequestHead(
        path + (found[2] or b"").decode("ascii"),
        path,
        headers,
        keep_alive,
        once[b"host"],
        once.get(b"origin", b""),
        forwarded,
        offered_keys([once.get(b"authorization", b"")], [once.get(b"x-api-key", b"")]),
        once.get(b"content-type", b"").decode("ascii"),
        None if request_id is None else request_id.decode("ascii"),
    )


@lru_cache(maxsize=2048)  # heads that differ in one line, as an id of the request, share the others
def _header(line: bytes) -> tuple[bytes, tuple[bytes, bytes]] | None:
    """Its lower-case name, and name and value as they came."""
    found = _FIELD.fullmatch(line)
    if found is None:
        return None
    name = found[1].lower()
    if name in _NOT_PLAIN or (name == b"via" and came_back(line)):
        return None
    return name, (found[1], found[2].strip(b" \t"))
