# SPDX-License-Identifier: Apache-2.0
"""Reads the head of a plain inference request strictly; whatever is not plain is left to aiohttp's parser.

Plain: a POST below /v1/ in HTTP/1.1 with one well-formed Content-Length and nothing that changes how the message is
framed or how the connection goes on. Nothing is guessed: a head that two parsers could read in two ways is not plain.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from vllm_gateway.relay.framing import FIELD_NAME

MAX_HEAD_BYTES = 16 * 1024
_BEGINNING = b"POST /v1/"
_METHOD = re.compile(rb"[A-Z]{1,20} |[A-Z]{0,20}\Z")

_REQUEST_LINE = re.compile(rb"POST ((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)(\?[A-Za-z0-9._~/=&%+-]*)? HTTP/1\.1")
_FIELD = re.compile(rb"(" + FIELD_NAME + rb"):([\t\x20-\x7e]*+)")
_LENGTH = re.compile(rb"[1-9][0-9]{0,14}")

_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"http2-settings"})
_ONCE = frozenset(
    {b"host", b"content-length", b"content-type", b"connection", b"authorization", b"x-api-key", b"x-request-id"}
)
_PERSISTENCE = {b"": True, b"keep-alive": True, b"close": False}
_MAX_KEPT_LINE = 256


def may_become_a_head(data: bytes) -> bool:
    """Whether more bytes could make it one: what cannot is answered at once."""
    return len(data) < MAX_HEAD_BYTES and _METHOD.match(data) is not None and data.count(b"\n") == data.count(b"\r\n")


@dataclass(frozen=True, slots=True)
class Field:
    """One header."""

    name: bytes
    """Lower-case."""
    raw: tuple[bytes, bytes]
    line: bytes
    """As it is passed on."""
    once: bool


@dataclass(slots=True)
class RequestHead:
    """The head of a plain inference request."""

    target: str
    path: str
    fields: list[Field]
    length: int
    keep_alive: bool
    credentials: bytes
    """As OpenAI's clients send a key; Anthropic's header is read as the same."""
    request_id: str | None


def parse_request_head(head: bytes) -> RequestHead | None:
    """Reads a head, without its empty line. None: not a plain one."""
    request_line, *lines = head.split(b"\r\n")
    targets = _targets(request_line)
    if targets is None:
        return None
    fields = []
    once: dict[bytes, bytes] = {}
    for line in lines:
        field = _field(line) if len(line) <= _MAX_KEPT_LINE else _field.__wrapped__(line)
        if field is None:
            return None
        if field.once:
            if field.name in once:
                return None
            once[field.name] = field.raw[1]
        fields.append(field)
    keep_alive = _PERSISTENCE.get(once.get(b"connection", b"").lower())
    length = once.get(b"content-length", b"")
    if b"host" not in once or keep_alive is None or _LENGTH.fullmatch(length) is None:
        return None
    key = once.get(b"x-api-key")
    request_id = once.get(b"x-request-id")
    return RequestHead(
        *targets,
        fields,
        int(length),
        keep_alive,
        once.get(b"authorization") or (b"Bearer " + key if key else b""),
        None if request_id is None else request_id.decode("ascii"),
    )


@lru_cache(maxsize=256)  # nearly all requests ask for the same few targets
def _targets(request_line: bytes) -> tuple[str, str] | None:
    """Target and path."""
    found = _REQUEST_LINE.fullmatch(request_line)
    if found is None or not request_line.startswith(_BEGINNING) or request_line.startswith(b"POST /v1/models"):
        return None
    path = found[1].decode("ascii")
    return path + (found[2] or b"").decode("ascii"), path


@lru_cache(maxsize=2048)  # a client's requests have the same few lines
def _field(line: bytes) -> Field | None:
    found = _FIELD.fullmatch(line)
    if found is None:
        return None
    name, value = found[1], found[2].strip(b" \t")
    lower = name.lower()
    if lower in _NOT_PLAIN:
        return None
    return Field(lower, (name, value), b"%b: %b\r\n" % (name, value), lower in _ONCE)
