# SPDX-License-Identifier: Apache-2.0
"""What an engine may send, and what its client is to see of it: the corpus of replies."""

from dataclasses import dataclass

HTTP = b"HTTP/1.1 200 OK\r\n"
OK = HTTP + b"Content-Length: 2\r\n\r\nok"
CHUNKED = HTTP + b"Transfer-Encoding: chunked\r\n\r\n"
STREAM = HTTP + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True)
class Passed:
    """The client gets a reply: this status and body, these lines of the head, and none of those."""

    body: bytes
    status: int = 200
    has: tuple[bytes, ...] = ()
    lacks: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Refused:
    """The client gets the gateway's own error, and nothing of the engine's."""

    code: str = "instance_failed"
    status: int = 502


@dataclass(frozen=True)
class Cut:
    """The client has the head already: its reply ends so that it cannot be taken for a whole one."""


@dataclass(frozen=True)
class Reply:
    wire: bytes
    outcome: Passed | Refused | Cut
    closes: bool = False
    """The engine closes the connection after it."""
    stream: bool = False
    """The client asked for a stream of events."""


WHOLE = Passed(b"ok")

HEADS = {
    "no HTTP": Reply(b"220 smtp ready\r\n\r\n", Refused()),
    "HTTP/2": Reply(b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok", Refused()),
    "HTTP/0.9": Reply(b"ok\n", Refused(), closes=True),
    "a status of two digits": Reply(OK.replace(b"200", b"20"), Refused()),
    "a status beyond all": Reply(OK.replace(b"200", b"999"), Refused()),
    "an endless reason": Reply(OK.replace(b"OK", b"O" * 300), Refused()),
    "bare line feeds": Reply(OK.replace(b"\r\n", b"\n"), Refused()),
    "a bare carriage return": Reply(OK.replace(b"Content", b"X: a\rContent"), Refused()),
    "a line before the status": Reply(b"\r\n" + OK, Refused()),
    "a folded line": Reply(OK.replace(b"Content", b"X: a\r\n b\r\nContent"), Refused()),
    "a line without a colon": Reply(OK.replace(b"Content", b"X\r\nContent"), Refused()),
    "a space before the colon": Reply(OK.replace(b"Content-Length:", b"Content-Length :"), Refused()),
    "no name": Reply(OK.replace(b"Content", b": a\r\nContent"), Refused()),
    "a zero byte": Reply(OK.replace(b"Content", b"X: a\0b\r\nContent"), Refused()),
    "an escape": Reply(OK.replace(b"Content", b"X: \x1b[2J\r\nContent"), Refused()),
    "a name of 300 bytes": Reply(OK.replace(b"Content", b"X" * 300 + b": a\r\nContent"), Refused()),
    "64 KiB and more": Reply(OK.replace(b"Content", b"X: " + b"a" * 65_600 + b"\r\nContent"), Refused()),
    "ten thousand lines": Reply(OK.replace(b"Content", b"X: a\r\n" * 10_000 + b"Content"), Refused()),
    "an endless line": Reply(HTTP + b"X: " + b"a" * (1 << 20), Refused()),
    "endless lines": Reply(HTTP + b"X: a\r\n" * (1 << 17), Refused()),
    "half a head": Reply(OK[:20], Refused(), closes=True),
    "nothing": Reply(b"", Refused(), closes=True),
    "interim replies": Reply(b"HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n" * 20 + OK, Passed(b"ok", lacks=(b"link",))),
    "endless interim replies": Reply(b"HTTP/1.1 100 \r\n\r\n" * 60_000, Refused()),
    "another protocol": Reply(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", Refused()),
    "bytes of no encoding": Reply(
        OK.replace(b"Content", b"X: \xff\xfe\r\nContent"), Passed(b"ok", has=(b"X: \xff\xfe",))
    ),
}

LENGTHS = {
    "two lengths": Reply(OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), Refused()),
    "the same length twice": Reply(OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n"), WHOLE),
    "two lengths in a line": Reply(OK.replace(b": 2", b": 2, 2"), Refused()),
    "a signed length": Reply(OK.replace(b": 2", b": +2"), Refused()),
    "a hexadecimal length": Reply(OK.replace(b": 2", b": 0x2"), Refused()),
    "a length beyond all": Reply(OK.replace(b": 2", b": " + b"9" * 30), Refused()),
    "length and chunks": Reply(OK.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), Refused()),
    "chunks twice": Reply(CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), Refused()),
    "compressed chunks": Reply(CHUNKED.replace(b": chunked", b": gzip, chunked"), Refused()),
    "chunks in HTTP/1.0": Reply((CHUNKED + chunk(b"ok") + LAST).replace(b"1.1", b"1.0"), Refused()),
    "HTTP/1.0": Reply(OK.replace(b"1.1", b"1.0"), WHOLE),
    "HTTP/1.0 without a length": Reply(b"HTTP/1.0 200 OK\r\n\r\nok", WHOLE, closes=True),
    "more than the length": Reply(OK + OK.replace(b"ok", b"no"), WHOLE),
    "less than the length": Reply(OK.replace(b": 2", b": 9"), Cut(), closes=True),
    "a body where none may be": Reply(b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok", Passed(b"", 204)),
}

CHUNKS = {
    "extensions": Reply(CHUNKED + b'2;a="b"\r\nok\r\n0;c\r\n\r\n', WHOLE),
    "extensions with controls": Reply(CHUNKED + b"2;\x1b[2J\r\nok\r\n" + LAST, Refused()),
    "an endless extension": Reply(CHUNKED + b"2;" + b"a" * (1 << 20), Refused()),
    "an endless size": Reply(CHUNKED + b"0" * (1 << 20), Refused()),
    "a size beyond all": Reply(CHUNKED + b"f" * 17 + b"\r\n", Refused()),
    "a signed size": Reply(CHUNKED + b"+2\r\nok\r\n" + LAST, Refused()),
    "a size behind a space": Reply(CHUNKED + b" 2\r\nok\r\n" + LAST, Refused()),
    "a bare line feed after the size": Reply(CHUNKED + b"2\nok\r\n" + LAST, Refused()),
    "a chunk longer than its size": Reply(CHUNKED + b"2\r\nokay\r\n" + LAST, Refused()),
    "bad after a good one": Reply(CHUNKED + chunk(b"x" * 20_000) + b"zz\r\n", Cut()),
    "no last chunk": Reply(CHUNKED + chunk(b"ok"), Cut(), closes=True),
    "trailers": Reply(
        CHUNKED.replace(b"\r\n\r\n", b"\r\nTrailer: X-Sum\r\n\r\n")
        + chunk(b"ok")
        + b"0\r\nX-Sum: 1\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\n\r\n",
        Passed(b"ok", lacks=(b"trailer", b"x-sum", b"set-cookie")),
    ),
    "endless trailers": Reply(CHUNKED + chunk(b"x" * 20_000) + b"0\r\n" + b"X: a\r\n" * 50_000, Cut()),
    "a trailer with controls": Reply(CHUNKED + chunk(b"ok") + b"0\r\nX: \x07\r\n\r\n", Refused()),
    "a reply behind the last chunk": Reply(CHUNKED + chunk(b"ok") + LAST + OK, WHOLE),
}

_SELF = b"http://127.0.0.1:8000/v1/chat/completions"
HEADERS = {
    "a redirect to itself": Reply(
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + _SELF + b"\r\nContent-Length: 0\r\n\r\n",
        Refused("engine_redirect"),
    ),
    "a redirect elsewhere": Reply(
        b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\nContent-Length: 0\r\n\r\n",
        Refused("engine_redirect"),
    ),
    "not modified": Reply(
        b"HTTP/1.1 304 No\r\nLocation: " + _SELF + b"\r\n\r\n", Passed(b"", 304, lacks=(b"location",))
    ),
    "its address": Reply(
        OK.replace(b"Content", b"Location: " + _SELF + b"\r\nContent-Location: //127.0.0.1/\r\nContent"),
        Passed(b"ok", lacks=(b"location", b"content-location")),
    ),
    "a path": Reply(
        OK.replace(b"200 OK\r\n", b"201 Made\r\nLocation: /v1/files/1\r\n"),
        Passed(b"ok", 201, has=(b"Location: /v1/files/1",)),
    ),
    "cookies": Reply(
        OK.replace(b"Content", b"Set-Cookie: a=b\r\nset-cookie: c=d\r\nContent"), Passed(b"ok", lacks=(b"set-cookie",))
    ),
    "its server": Reply(
        OK.replace(b"Content", b"server: uvicorn\r\nVia: 1.1 x\r\nX-Powered-By: y\r\nContent"),
        Passed(b"ok", lacks=(b"server", b"via", b"x-powered-by")),
    ),
    "words to the proxy before us": Reply(
        OK.replace(b"Content", b"X-Accel-Redirect: /secret\r\nX-Sendfile: /etc/passwd\r\nContent"),
        Passed(b"ok", lacks=(b"x-accel-redirect", b"x-sendfile")),
    ),
    "words to browsers about the site": Reply(
        OK.replace(b"Content", b'Clear-Site-Data: *\r\nRefresh: 0;url=//evil\r\nAlt-Svc: h3=":1"\r\nContent'),
        Passed(b"ok", lacks=(b"clear-site-data", b"refresh", b"alt-svc")),
    ),
    "of the connection": Reply(
        OK.replace(
            b"Content",
            b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nContent",
        ),
        Passed(b"ok", lacks=(b"x-hop", b"keep-alive", b"proxy-authenticate")),
    ),
    "our own headers": Reply(
        OK.replace(b"Content", b"X-Request-Id: theirs\r\nAccess-Control-Allow-Origin: *\r\nContent"),
        Passed(b"ok", lacks=(b"access-control-allow-origin",)),
    ),
}

_OF = b'data: {"id":"1","object":"o","created":1,"model":"m","choices":'
_EVENT = _OF + b'[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
_END = _OF + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
_DONE = b"data: [DONE]\n\n"
_GRAMMAR = b'data: {"error": {"message": "Grammar error: no", "type": "BadRequestError", "code": 400}}\n\n'

_TOO_LONG = b'{"error":{"message":"The prompt is longer than the model\'s context."}}'
ERRORS = {
    "the client's fault as a 500": Reply(
        b"HTTP/1.1 500 x\r\nContent-Length: %d\r\n\r\n%b" % (len(_TOO_LONG), _TOO_LONG), Passed(_TOO_LONG, 500)
    ),
}

STREAMS = {
    "a whole one": Reply(
        STREAM + chunk(_EVENT) + chunk(_END) + chunk(_DONE) + LAST, Passed(_EVENT + _END + _DONE), stream=True
    ),
    "with extensions and trailers": Reply(
        STREAM + b"%x;a\r\n%b\r\n" % (len(_EVENT), _EVENT) + chunk(_END + _DONE) + b"0\r\nSet-Cookie: a=b\r\n\r\n",
        Passed(_EVENT + _END + _DONE, lacks=(b"set-cookie",)),
        stream=True,
    ),
    "the client's fault as its first event": Reply(
        STREAM + chunk(_GRAMMAR) + chunk(_DONE) + LAST, Passed(_GRAMMAR + _DONE), stream=True
    ),
    "the client's fault within it": Reply(
        STREAM + chunk(_EVENT) + chunk(_GRAMMAR) + chunk(_DONE) + LAST, Passed(_EVENT + _GRAMMAR + _DONE), stream=True
    ),
    "a redirect": Reply(
        b"HTTP/1.1 307 x\r\nLocation: " + _SELF + b"\r\nContent-Length: 0\r\n\r\n",
        Refused("engine_redirect"),
        stream=True,
    ),
}

ALL = {
    f"{kind}: {name}": reply
    for kind, replies in {
        "head": HEADS,
        "length": LENGTHS,
        "chunks": CHUNKS,
        "headers": HEADERS,
        "errors": ERRORS,
        "stream": STREAMS,
    }.items()
    for name, reply in replies.items()
}
