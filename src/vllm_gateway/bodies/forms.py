# SPDX-License-Identifier: Apache-2.0
"""Multipart forms: only the small text fields are looked at; files are passed over by their boundary."""

import re
from dataclasses import dataclass, field

from vllm_gateway.bodies.limits import BodyLimits, Malformed, TooComplex
from vllm_gateway.bodies.payload import Body
from vllm_gateway.bodies.scan import Span, Steps

# At most 70 characters, says RFC 2046.
_BOUNDARY = re.compile(r'boundary=(?:"([^"\\]{1,70})"|([^\s;,"]{1,70})(?=[\s;]|$))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:[ \t]*+form-data[ \t]*+(;[^\r\n]*+)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*+([^\s=;"]++)=(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*+))')
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 16 * 1024
_JUMP = 1 << 20


@dataclass(slots=True)
class Form:
    """The spans of the text fields of these names, in the order in which they came."""

    model: list[Span] = field(default_factory=list)
    stream: list[Span] = field(default_factory=list)


def is_form(content_type: str) -> bool:
    return content_type[:19].lower() == "multipart/form-data"


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts. Raises Malformed."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Malformed("a multipart form needs a boundary, of at most 70 characters, in its Content-Type")
    return b"--" + (found[1] or found[2]).encode("utf-8", "surrogateescape")


def form(body: Body, boundary: bytes, limits: BodyLimits) -> Steps[Form]:
    """Raises Malformed or TooComplex."""
    found = Form()
    parts = -1  # what stands before the first boundary is none
    begin = 0
    while True:
        at = begin
        while (end := body.find(boundary, at, at + _JUMP)) < 0 and at + _JUMP < len(body):
            at += _JUMP - len(boundary)
            yield
        if end < 0:
            return found  # what follows the last boundary is none
        if parts >= 0:
            _read(body, (begin, end), found)
        parts += 1
        if parts > limits.fields:
            raise TooComplex("parts", limits.fields, "fields")
        begin = end + len(boundary)


def _read(body: Body, part: Span, found: Form) -> None:
    begin, stop = part
    end = body.find(_HEAD_END, begin, min(stop, begin + _LONGEST_HEAD))
    if end < 0:
        return
    name = _name(bytes(body[begin:end]))
    value = (end + len(_HEAD_END), stop - 2 if body[stop - 2 : stop] == b"\r\n" else stop)
    if name == b"model":
        found.model.append(value)
    elif name == b"stream":
        found.stream.append(value)


def _name(head: bytes) -> bytes | None:
    """Of the field that the part holds; None for a file."""
    disposition = _DISPOSITION.search(head)
    if disposition is None:
        return None
    given = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(disposition[1])}
    return None if given.keys() & {b"filename", b"filename*"} else given.get(b"name")
