# SPDX-License-Identifier: Apache-2.0
"""Finds in a request's body what routing needs, model and stream, and puts a model's own name in."""

import codecs
import json
from dataclasses import dataclass

import msgspec

from vllm_gateway.api.errors import ApiError
from vllm_gateway.bodies.flags import Flag, truth
from vllm_gateway.bodies.forms import Form, boundary_of, form, is_form
from vllm_gateway.bodies.limits import BodyLimits, Malformed, TooComplex
from vllm_gateway.bodies.outline import Outline, outline
from vllm_gateway.bodies.payload import Body, Payload
from vllm_gateway.bodies.scan import Span
from vllm_gateway.bodies.turns import Turns, at_once
from vllm_gateway.bodies.words import dotted, words

_LONGEST_VALUE = 4096
"""Of a field that is a name or a flag, in a large body."""


_MOST_IN_OTHERS = 2 << 20
"""Of a body in UTF-16 or UTF-32: taken in one go, which is some milliseconds."""
_SPACES = b" " * len(codecs.BOM_UTF8)


class Wanted(msgspec.Struct):
    """Everything else in the body is skipped, not built."""

    model: str | None = None
    stream: Flag = False
    """A bool once it has been looked at."""


@dataclass(frozen=True, slots=True)
class Large:
    """What was found in a large body, and where."""

    wanted: Wanted
    models: list[Span]
    outline: Outline
    """Empty if it is a form."""
    is_form: bool = False


_decode = msgspec.json.Decoder(Wanted).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Malformed, TooComplex)


def in_utf8(body: Body) -> Body:
    """JSON as the gateway reads it, from any encoding in which engines take it: they ask its first bytes.

    Spaces take the place of a byte order mark: a large body is not copied, and stays as long as it was counted.
    Raises ApiError bad_request for one in another encoding, of which there would be two for as long as it lasts.
    """
    if body.startswith(codecs.BOM_UTF8):
        if isinstance(body, bytes):
            return _SPACES + body[len(_SPACES) :]
        body[: len(_SPACES)] = _SPACES
    elif (encoding := json.detect_encoding(body)) != "utf-8":
        if len(body) > _MOST_IN_OTHERS:
            limit = _MOST_IN_OTHERS >> 20
            raise ApiError("bad_request", f"JSON in UTF-16 or UTF-32 is taken up to {limit} MiB. Send it in UTF-8.")
        try:
            return body.decode(encoding).encode()
        except UnicodeDecodeError:
            pass  # it is refused as it stands
    return body


def wanted(body: Body, content_type: str, limits: BodyLimits) -> Wanted:
    """Of a body that is not large. Raises ApiError bad_request, body_too_complex or model_missing."""
    try:
        if is_form(content_type):
            found = _in_form(body, at_once(form(body, boundary_of(content_type), limits)))
        elif not body:
            raise ApiError("bad_request", "The request body is empty. Send a JSON object that names the model.")
        else:
            found = _decode(body)
        if found.stream is not True and found.stream is not False:
            found.stream = truth(found.stream, "stream")
    except _NOT_READABLE as error:
        raise _refused(error, content_type) from None
    if not found.model:
        raise _model_missing()
    return found


def is_json_in_python(body: Body, content_type: str) -> bool:
    """Of a body that `wanted` has refused: whether it is what engines take, with NaN or Infinity in it."""
    if is_form(content_type) or not (b"NaN" in body or b"Infinity" in body):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


async def looked_through(body: Body, content_type: str, limits: BodyLimits, turns: Turns) -> Large:
    """As `wanted`, of a large body, or one that is JSON only in Python, while others have their turns."""
    try:
        if is_form(content_type):
            found = await turns.run(form(body, boundary_of(content_type), limits))
            large = Large(_in_form(body, found), found.model, Outline(b"", {}, [], {}), is_form=True)
        else:
            large = _in_outline(await turns.run(outline(body, limits)))
    except _NOT_READABLE as error:
        raise _refused(error, content_type) from None
    if not large.wanted.model:
        raise _model_missing()
    return large


def with_model(body: Body, content_type: str, model: str, limits: BodyLimits) -> bytes:
    """A body that `wanted` has read, for this model by its own name: engines do not know aliases."""
    if not is_form(content_type):
        return msgspec.json.encode({**_fields(body), "model": model})
    models = at_once(form(body, boundary_of(content_type), limits)).model
    return b"".join(_replaced(body, models, model.encode()))


def large_with_model(body: Body, large: Large, model: str) -> Payload:
    """The same of a body that was `looked_through`. Nothing large is copied."""
    return _replaced(body, large.models, model.encode() if large.is_form else msgspec.json.encode(model))


def _replaced(body: Body, spans: list[Span], by: bytes) -> tuple[bytes | memoryview, ...]:
    pieces: list[bytes | memoryview] = []
    view, at = memoryview(body), 0
    for begin, end in spans:
        pieces += (view[at:begin], by)
        at = end
    return (*pieces, view[at:])


def _in_outline(found: Outline) -> Large:
    """Raises what a decoder raises for values of another kind."""
    given = {name: found.raw(name) for name in ("model", "stream") if name in found.spans}
    if any(memoryview(value).nbytes > _LONGEST_VALUE for value in given.values()):
        raise Malformed("'model' or 'stream' is too long")
    wanted = _decode(msgspec.json.encode(given))
    wanted.stream = truth(wanted.stream, "stream")
    return Large(wanted, found.models, found)


def _in_form(body: Body, found: Form) -> Wanted:
    model, stream = (_last(body, spans) for spans in (found.model, found.stream))
    return Wanted(model, truth(stream or None, "stream"))


def _last(body: Body, spans: list[Span]) -> str | None:
    if not spans:
        return None
    begin, end = spans[-1]
    return bytes(body[begin : min(end, begin + _LONGEST_VALUE)]).decode("utf-8", "replace")


def _refused(error: Exception, content_type: str) -> ApiError:
    if isinstance(error, TooComplex):
        return ApiError("body_too_complex", str(error))
    kind = "form" if is_form(content_type) else "JSON object"
    text, field = str(error), error.field if isinstance(error, Malformed) else None
    if isinstance(error, msgspec.ValidationError):
        at, text = words(error)
        field = dotted(at)
        text = f"'{field}' {text}" if field else f"it {text}"
    return ApiError("bad_request", f"The request body is not the {kind} expected: {text}", param=field or None)


def _model_missing() -> ApiError:
    return ApiError("model_missing", "Say which model: the field 'model' is missing or empty.", param="model")
