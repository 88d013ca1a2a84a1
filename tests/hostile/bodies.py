# SPDX-License-Identifier: Apache-2.0
"""Bodies that strangers may send, and what becomes of each: carried to the engine as it is, or refused with a code."""

from collections.abc import Callable
from dataclasses import dataclass

CARRIED = ""
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
JSON = b"application/json"
FORM = b"multipart/form-data; boundary=b"


@dataclass(frozen=True, slots=True)
class Body:
    """`make` builds it, of about so many bytes. `code`: of the refusal."""

    path: str
    code: str
    make: Callable[[int], bytes]
    content_type: bytes = JSON


def _of(path: str, code: str, begin: bytes, unit: bytes, end: bytes = b"", *, content_type: bytes = JSON) -> Body:
    """A unit over and over."""
    return Body(path, code, lambda size: begin + unit * (size // len(unit)) + end, content_type)


def _numbered(path: str, code: str, begin: bytes, unit: bytes, end: bytes) -> Body:
    """The same with a number in each unit."""
    return Body(path, code, lambda size: begin + b"".join(unit % n for n in range(size // len(unit % 10**6))) + end)


_STREAM = b'{"model":"m","stream":true,'

BOMBS = {
    "form of boundaries": _of("/v1/audio/transcriptions", "body_too_complex", b"", b"--b\r\n", content_type=FORM),
    "form of models": _of(
        "/v1/audio/transcriptions",
        "body_too_complex",
        b"",
        b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n",
        b"--b--",
        content_type=FORM,
    ),
    "form with a file": _of(
        "/v1/audio/transcriptions",
        CARRIED,
        b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nalias\r\n"
        b'--b\r\nContent-Disposition: form-data; name=file; filename="a"\r\n\r\n',
        b"\r\n-b-",
        b"\r\n--b--\r\n",
        content_type=FORM,
    ),
    "fields": _numbered(CHAT, "body_too_complex", _STREAM, b'"%d":0,', b'"z":0}'),
    "fields of one name": _of(CHAT, "body_too_complex", b"{", b'"stream":true,', b'"model":"m"}'),
    "models": _of(CHAT, "body_too_complex", b"{", b'"model":"m",', b'"model":"m"}'),
    "content of numbers": _of(
        CHAT, "body_too_complex", b'{"model":"m","messages":[{"role":"user","content":[', b"1,", b"1]}]}"
    ),
    "content of parts": _of(
        CHAT, "body_too_complex", b'{"model":"m","messages":[{"role":"user","content":[', b"{},", b"{}]}]}"
    ),
    "content of images": _of(
        CHAT,
        "body_too_complex",
        b'{"model":"m","messages":[{"role":"user","content":[',
        b'{"type":"image_url"},',
        b"{}]}]}",
    ),
    "messages": _of(CHAT, "body_too_complex", _STREAM + b'"messages":[', b"{},", b"{}]}"),
    "messages that are none": _of(CHAT, "body_too_complex", _STREAM + b'"messages":[', b'"",', b'""]}'),
    "a message of many fields": _numbered(
        CHAT, "body_too_complex", _STREAM + b'"messages":[{', b'"%d":0,', b'"content":""}]}'
    ),
    "prompts": _of(COMPLETION, "body_too_complex", _STREAM + b'"prompt":[', b'"",', b'""]}'),
    "prompts of ids": _of(COMPLETION, "body_too_complex", _STREAM + b'"prompt":[', b"[1],", b"[1]]}"),
    "stop texts": _of(COMPLETION, CARRIED, _STREAM + b'"stop":[', b'"a",', b'"a"]}'),
    "stream options": _of(CHAT, CARRIED, _STREAM + b'"stream_options":{', b'"a":0,', b'"a":0}}'),
    "ids": _of(COMPLETION, CARRIED, _STREAM + b'"prompt":[', b"1,", b"1]}"),
    "a list": _of(CHAT, "body_too_complex", _STREAM + b'"x":[', b"[],", b"[]]}"),
    "nests": _of(CHAT, "body_too_complex", _STREAM + b'"x":[', b"[[[[{}]]]],", b"0]}"),
    "levels": _of(CHAT, "body_too_complex", _STREAM + b'"x":', b"[", b""),
    "texts": _of(CHAT, CARRIED, _STREAM + b'"x":[', b'"\\n",', b'""]}'),
    "a text": _of(CHAT, CARRIED, b'{"model":"alias","stream":true,"messages":[{"content":"', b"x", b'"}]}'),
    "a text of escapes": _of(CHAT, CARRIED, b'{"model":"alias","messages":[{"content":"', b'\\"', b'"}]}'),
    "an image": _of(
        CHAT,
        CARRIED,
        _STREAM + b'"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:',
        b"QUJD",
        b'"}}]}]}',
    ),
    "a salt": _of(CHAT, CARRIED, b'{"model":"m","cache_salt":"', b"s", b'"}'),
    "a user": _of(CHAT, CARRIED, b'{"model":"m","user":"', b"u", b'"}'),
    "a name": _of(CHAT, "bad_request", b'{"model":"', b"m", b'"}'),
    "a name of a field": _of(CHAT, "bad_request", b'{"model":"m","', b"x", b'":1}'),
    "a number": _of(CHAT, "bad_request", b'{"model":"m","seed":', b"9", b"}"),
    "spaces": _of(CHAT, CARRIED, b'{"model":"m","seed":', b" ", b"1}"),
    "a text without an end": _of(CHAT, "bad_request", b'{"model":"m","x":"', b"\\\\"),
    "escapes without a text": _of(CHAT, "bad_request", b'{"model":"m","x":', b"\\"),
    "zeros": _of(CHAT, "bad_request", b"", b"\0"),
    "quotes": _of(CHAT, "bad_request", b'{"model":"m","x":[', b'"'),
    "to tokenize": _of("/tokenize", CARRIED, b'{"model":"m","prompt":"', b"x ", b'"}'),
    "inputs": _of("/v1/embeddings", "body_too_complex", b'{"model":"m","input":[', b'"a",', b'"a"]}'),
    "inputs of one": _of("/v1/responses", "body_too_complex", b'{"model":"m","input":[', b'{"content":[]},', b"{}]}"),
}
"""Each is meant to cost much more than its bytes."""

SMALL = {
    "content of numbers": Body(CHAT, CARRIED, BOMBS["content of numbers"].make),
    "content of parts": Body(CHAT, CARRIED, BOMBS["content of parts"].make),
    "content of images": Body(CHAT, CARRIED, BOMBS["content of images"].make),
    "messages": Body(CHAT, CARRIED, BOMBS["messages"].make),
    "fields": Body(CHAT, CARRIED, BOMBS["fields"].make),
    "prompts": Body(COMPLETION, CARRIED, BOMBS["prompts"].make),
    "form of boundaries": BOMBS["form of boundaries"],
    "a name": Body(CHAT, "model_not_found", BOMBS["a name"].make),
    "levels": Body(CHAT, "bad_request", BOMBS["levels"].make),
}
"""The same, below the size from which a body may be looked through."""


def _padded(path: str, begin: bytes, unit: bytes, end: bytes) -> Body:
    """As many units as a body of almost 2 MiB may have that is not large; spaces fill it up."""
    count = 24_500 // sum(unit.count(one) for one in (b",", b":", b"[", b"{"))
    units = b"".join(unit % number if b"%" in unit else unit for number in range(count))
    return Body(
        path, CARRIED, lambda size: begin + b" " * (max(0, size - len(begin) - len(units) - len(end))) + units + end
    )


MEDIUM = {
    "fields": _padded(CHAT, _STREAM, b'"%d":0,', b'"z":0}'),
    "fields for an alias": _padded(CHAT, b'{"model":"alias","stream":true,', b'"%d":0,', b'"z":0}'),
    "content of numbers": _padded(CHAT, b'{"model":"m","messages":[{"role":"user","content":[', b"1,", b"1]}]}"),
    "content of parts": _padded(CHAT, b'{"model":"m","messages":[{"role":"user","content":[', b"{},", b"{}]}]}"),
    "content of images": _padded(CHAT, b'{"model":"m","messages":[{"content":[', b'{"type":"image_url"},', b"{}]}]}"),
    "messages": _padded(CHAT, _STREAM + b'"messages":[', b"{},", b"{}]}"),
    "prompts": _padded(COMPLETION, _STREAM + b'"prompt":[', b'"",', b'""]}'),
    "stop texts": _padded(COMPLETION, _STREAM + b'"stop":[', b'"a",', b'"a"]}'),
    "a name": Body(CHAT, "model_not_found", BOMBS["a name"].make),
    "a text of escapes": BOMBS["a text of escapes"],
    "an image": BOMBS["an image"],
}
"""The most that may be in a body which is not looked through."""


def _exactly(body: bytes, code: str, path: str = CHAT) -> Body:
    return Body(path, code, lambda size: body)


ODD = {
    "no body": _exactly(b" ", "bad_request"),
    "5,000 digits": _exactly(b'{"model":"m","max_tokens":' + b"9" * 5000 + b"}", CARRIED),
    "5,000 digits of a stream": _exactly(
        _STREAM + b'"n":' + b"9" * 5000 + b',"max_tokens":' + b"9" * 5000 + b"}", CARRIED
    ),
    "a float of 5,000 digits": _exactly(b'{"model":"m","temperature":1.' + b"9" * 5000 + b"}", CARRIED),
    "a large exponent": _exactly(b'{"model":"m","seed":1e400}', CARRIED),
    "500 levels": _exactly(_STREAM + b'"x":' + b"[" * 500 + b"]" * 500 + b"}", CARRIED),
    "989 levels": _exactly(_STREAM + b'"x":' + b"[" * 989 + b"]" * 989 + b"}", "bad_request"),
    "a lone surrogate": _exactly(b'{"model":"m","user":"\\ud800"}', "bad_request"),
    "a lone surrogate for a model": _exactly(b'{"model":"\\ud800"}', "bad_request"),
    "bytes that are no UTF-8": _exactly(b'{"model":"\xff"}', "bad_request"),
    "two models": _exactly(b'{"model":"other","model":"m"}', CARRIED),
    "two models, the other way round": _exactly(b'{"model":"m","model":"other"}', "model_not_found"),
    "a model by an escape": _exactly(b'{"mod\\u0065l":"m"}', CARRIED),
    "not a number": _exactly(b'{"model":"m","temperature":NaN}', CARRIED),
    "infinity": _exactly(_STREAM + b'"logit_bias":{"7":-Infinity,"8":Infinity}}', CARRIED),
    "not a number for a model": _exactly(b'{"model":NaN}', "bad_request"),
    "not a number for a stream": _exactly(b'{"model":"m","stream":NaN}', "bad_request"),
    "not a number in what is no JSON": _exactly(b'{"model":"m","x":NaN,"y":nul}', "bad_request"),
    "not a number in 100,000 levels": _exactly(b'{"model":"m","y":NaN,"x":' + b"[" * 100_000, "bad_request"),
    "not a number, with 5,000 digits": _exactly(b'{"model":"m","y":NaN,"x":' + b"9" * 5000 + b"}", "bad_request"),
    "not a number in a list": _exactly(b"[NaN]", "bad_request"),
    "a byte order mark": _exactly(b'\xef\xbb\xbf{"model":"m"}', CARRIED),
    "UTF-16 that is cut": _exactly('{"model":"m"}'.encode("utf-16")[:-1], "bad_request"),
    "a zero byte behind": _exactly(b'{"model":"m"}\0', "bad_request"),
    "a zero byte in a text": _exactly(b'{"model":"m","user":"\\u0000"}', CARRIED),
    "a model that is a list": _exactly(b'{"model":["m"]}', "bad_request"),
    "a stream that is a text": _exactly(b'{"model":"m","stream":"true"}', CARRIED),
    "a list": _exactly(b'[{"model":"m"}]', "bad_request"),
    "two objects": _exactly(b'{"model":"m"}{"model":"m"}', "bad_request"),
    "messages that are none": _exactly(_STREAM + b'"messages":{"a":[]},"prompt":{},"stop":3,"max_tokens":[]}', CARRIED),
}
"""What parsers read in different ways, or fail on."""
