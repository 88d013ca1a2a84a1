# SPDX-License-Identifier: Apache-2.0
"""Reads a request's body, bounded, and finds in it the two things that routing needs: model and stream."""

from email.message import Message

import msgspec
from aiohttp import hdrs, web

from vllm_gateway.api.errors import ApiError


class Wanted(msgspec.Struct):
    """Everything else in the body is skipped, not built."""

    model: str | None = None
    stream: bool | None = False


_decode = msgspec.json.Decoder(Wanted).decode


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """Raises ApiError body_too_large."""
    too_large = ApiError("body_too_large", f"The request body is over {limit >> 20} MiB (server.max_body_mib).")
    if (request.content_length or 0) > limit:
        raise too_large
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.content_length is not None:
        return await request.content.read(-1) if request.content_length else b""
    parts = bytearray()
    while block := await request.content.readany():
        parts += block
        if len(parts) > limit:
            raise too_large
    return bytes(parts)


def wanted(body: bytes, content_type: str) -> Wanted:
    """Raises ApiError bad_request, or model_missing."""
    if content_type.lower().startswith("multipart/form-data"):
        found = _from_form(body, content_type)
    else:
        try:
            found = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError("bad_request", f"The request body is not the JSON object expected: {error}") from None
    if not found.model:
        raise ApiError("model_missing", "Say which model: the field 'model' is missing or empty.", param="model")
    return found


def _from_form(body: bytes, content_type: str) -> Wanted:
    """Looks only at the small text fields; files are skipped by their boundary."""
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ApiError("bad_request", "A multipart form needs a boundary in its Content-Type.")
    found = Wanted()
    for part in body.split(b"--" + boundary.encode("utf-8", "surrogateescape"))[1:-1]:
        fields, separator, value = part.partition(b"\r\n\r\n")
        if not separator or b"filename=" in fields:
            continue
        text = value.removesuffix(b"\r\n").decode("utf-8", "replace")
        if b'name="model"' in fields or b"name=model" in fields:
            found.model = text
        elif b'name="stream"' in fields or b"name=stream" in fields:
            found.stream = text.lower() == "true"
    return found
