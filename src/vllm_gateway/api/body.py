# SPDX-License-Identifier: Apache-2.0
"""Reads a request's body, bounded, finds in it what routing needs, model and stream, and puts a model's own name in."""

import asyncio
from email.message import Message

import msgspec
from aiohttp import hdrs, web

from vllm_gateway.api.errors import ApiError

LEAST_BYTES_PER_S = 1024
"""So fast a body must come on average, after `stall_s`: enough for a poor mobile network, whatever the length."""


class Wanted(msgspec.Struct):
    """Everything else in the body is skipped, not built."""

    model: str | None = None
    stream: bool | None = False


_decode = msgspec.json.Decoder(Wanted).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def read_body(request: web.BaseRequest, limit: int, stall_s: float) -> bytes:
    """Raises ApiError body_too_large, or body_timeout."""
    too_large = ApiError("body_too_large", f"The request body is over {limit >> 20} MiB (server.max_body_mib).")
    if (request.content_length or 0) > limit:
        raise too_large
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts = bytearray()
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        while block := await _more(request, min(stall_s, body_time_s(len(parts), stall_s) - (clock() - began))):
            parts += block
            if len(parts) > limit:
                raise too_large
    except TimeoutError:
        raise body_timeout() from None
    return bytes(parts)


def body_time_s(received: int, stall_s: float) -> float:
    """So long a body may have taken of which so many bytes have come."""
    return stall_s + received / LEAST_BYTES_PER_S


async def _more(request: web.BaseRequest, stall_s: float) -> bytes:
    async with asyncio.timeout(stall_s):
        return await request.content.readany()


def body_timeout() -> ApiError:
    return ApiError("body_timeout", "The rest of the request's body did not come. Send it faster, or in smaller parts.")


def wanted(body: bytes, content_type: str) -> Wanted:
    """Raises ApiError bad_request, or model_missing."""
    if _is_form(content_type):
        found = _from_form(body, content_type)
    elif not body:
        raise ApiError("bad_request", "The request body is empty. Send a JSON object that names the model.")
    else:
        try:
            found = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError("bad_request", f"The request body is not the JSON object expected: {error}") from None
    if not found.model:
        raise ApiError("model_missing", "Say which model: the field 'model' is missing or empty.", param="model")
    return found


def with_model(body: bytes, content_type: str, model: str) -> bytes:
    """A body that `wanted` has read, for this model by its own name: engines do not know aliases."""
    if not _is_form(content_type):
        return msgspec.json.encode({**_fields(body), "model": model})
    cut = _cut(content_type)
    parts = body.split(cut)
    for index, part in enumerate(parts):
        if _text(part, b"model") is not None:
            parts[index] = part[: part.find(_HEAD_END) + len(_HEAD_END)] + model.encode() + b"\r\n"
    return cut.join(parts)


# Forms: only the small text fields are looked at; files are skipped by their boundary.

_HEAD_END = b"\r\n\r\n"


def _is_form(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/form-data")


def _from_form(body: bytes, content_type: str) -> Wanted:
    found = Wanted()
    for part in body.split(_cut(content_type))[1:-1]:
        if (model := _text(part, b"model")) is not None:
            found.model = model
        elif (stream := _text(part, b"stream")) is not None:
            found.stream = stream.lower() == "true"
    return found


def _cut(content_type: str) -> bytes:
    """What stands between the parts. Raises ApiError bad_request."""
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ApiError("bad_request", "A multipart form needs a boundary in its Content-Type.")
    return b"--" + boundary.encode("utf-8", "surrogateescape")


def _text(part: bytes, name: bytes) -> str | None:
    """The value of the text field of that name; None if this part is another one, or a file."""
    end = part.find(_HEAD_END)
    head = part[: max(end, 0)]
    if b"filename=" in head or not (b'name="%b"' % name in head or b"name=%b" % name in head):
        return None
    return part[end + len(_HEAD_END) :].removesuffix(b"\r\n").decode("utf-8", "replace")
