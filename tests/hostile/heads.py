# SPDX-License-Identifier: Apache-2.0
"""The corpus of heads, and of framing that follows them: what is sent, and what must become of it. Data, no code."""

BODY = b'{"model":"m"}'
LENGTH = b"Content-Length: 13\r\n"
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: x\r\n"
CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
REST = LENGTH + b"\r\n" + BODY
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nX-Hidden: yes\r\n" + REST
"""Comes behind what is refused: no instance must ever see it."""

UNREADABLE = {
    # Two parsers could see two ends.
    "CL.TE": HEAD + LENGTH + TE + b"\r\n" + CHUNKS,
    "TE.CL": HEAD + TE + b"Content-Length: 4\r\n\r\n" + CHUNKS,
    "TE twice": HEAD + TE + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "TE chunked twice": HEAD + TE + TE + b"\r\n" + CHUNKS,
    "TE unknown": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "TE not last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKS,
    "TE of two codings": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "TE with an empty element": HEAD + b"Transfer-Encoding: , chunked\r\n\r\n" + CHUNKS,
    "TE in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKS,
    "TE behind a control": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS,
    "TE before a zero byte": HEAD + b"Transfer-Encoding: chunked\0\r\n\r\n" + CHUNKS,
    "TE hidden by a space": HEAD + LENGTH + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "TE hidden by a fold": HEAD + LENGTH + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "TE hidden by a control": HEAD + LENGTH + b"Transfer-Encoding\x0b: chunked\r\n\r\n" + CHUNKS,
    "two lengths": HEAD + LENGTH + b"Content-Length: 4\r\n\r\n" + BODY,
    "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "two lengths in one": HEAD + b"Content-Length: 13, 4\r\n\r\n" + BODY,
    "the same length twice in one": HEAD + b"Content-Length: 13, 13\r\n\r\n" + BODY,
    "signed length": HEAD + b"Content-Length: +13\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "hexadecimal length": HEAD + b"Content-Length: 0xd\r\n\r\n" + BODY,
    "length with an underscore": HEAD + b"Content-Length: 1_3\r\n\r\n" + BODY,
    "length with a point": HEAD + b"Content-Length: 13.0\r\n\r\n" + BODY,
    "length of 65 bits": HEAD + b"Content-Length: 18446744073709551629\r\n\r\n" + BODY,
    "length of other digits": HEAD + "Content-Length: ¹³\r\n\r\n".encode() + BODY,
    "length that is empty": HEAD + b"Content-Length: \r\n\r\n" + BODY,
    "length behind a space": HEAD + b"Content-Length : 13\r\n\r\n" + BODY,
    "length in a fold": HEAD + b"X: y\r\n\tContent-Length: 4\r\n" + REST,
    "length in the first line's fold": LINE + b" Content-Length: 4\r\nHost: x\r\n" + REST,
    # Lines that are none.
    "bare line feed": HEAD + b"X: y\nContent-Length: 4\r\n" + REST,
    "bare line feeds alone": (HEAD + REST).replace(b"\r\n", b"\n"),
    "bare line feed at the end": HEAD + LENGTH + b"\n" + BODY,
    "bare carriage return": HEAD + b"X: y\rContent-Length: 4\r\n" + REST,
    "zero byte": HEAD + b"X: y\0\r\n" + REST,
    "escape in a value": HEAD + b"X: \x1b[31m\r\n" + REST,
    "line without a colon": HEAD + b"X\r\n" + REST,
    "empty name": HEAD + b": y\r\n" + REST,
    "name that is none": HEAD + b"X Y: z\r\n" + REST,
    "name of other letters": HEAD + "Ä: z\r\n".encode() + REST,
    # Request lines that are none.
    "control in the target": b"POST /v1/x\x0bHTTP/1.1 HTTP/1.1\r\nHost: x\r\n" + REST,
    "space in the target": b"POST /v1/x y HTTP/1.1\r\nHost: x\r\n" + REST,
    "two spaces": b"POST  /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "a tab": b"POST\t/v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "space at the end": b"POST /v1/chat/completions HTTP/1.1 \r\nHost: x\r\n" + REST,
    "space at the beginning": b" " + HEAD + REST,
    "no target": b"POST HTTP/1.1\r\nHost: x\r\n" + REST,
    "target without a slash": b"POST v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "HTTP/0.9": b"POST /v1/chat/completions\r\nHost: x\r\n" + REST,
    "HTTP/1.2": b"POST /v1/chat/completions HTTP/1.2\r\nHost: x\r\n" + REST,
    "HTTP/2": b"POST /v1/chat/completions HTTP/2.0\r\nHost: x\r\n" + REST,
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version in small letters": b"POST /v1/chat/completions http/1.1\r\nHost: x\r\n" + REST,
    "method in small letters": b"post /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "method unknown": b"FOO /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "method without end": b"A" * 1000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "zeros": b"\0" * 100_000,
    "a reply": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    # Whose is it?
    "no Host": LINE + REST,
    "empty Host": LINE + b"Host:\r\n" + REST,
    "Host of spaces": LINE + b"Host: \t \r\n" + REST,
    "two Hosts": HEAD + b"Host: y\r\n" + REST,
    # Chunks that are none.
    "chunk longer than it says": HEAD + TE + b"\r\n4\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk shorter than it says": HEAD + TE + b"\r\n20\r\n" + BODY + b"\r\n0\r\n\r\n" + b" " * 32,
    "chunk size of letters": HEAD + TE + b"\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size of 17 digits": HEAD + TE + b"\r\n1000000000000000d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size with a sign": HEAD + TE + b"\r\n+d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size with 0x": HEAD + TE + b"\r\n0xd\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size behind a space": HEAD + TE + b"\r\n d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size with a bare line feed": HEAD + TE + b"\r\nd\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk with a bare line feed behind it": HEAD + TE + b"\r\nd\r\n" + BODY + b"\n0\r\n\r\n",
    "chunk extension of 8 KiB": HEAD + TE + b"\r\nd;" + b"x" * 8192 + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk extension with a control": HEAD + TE + b"\r\nd;\x01\r\n" + BODY + b"\r\n0\r\n\r\n",
    "trailer that is none": HEAD + TE + b"\r\nd\r\n" + BODY + b"\r\n0\r\nX Y\r\n\r\n",
    "trailer of 8 KiB": HEAD + TE + b"\r\nd\r\n" + BODY + b"\r\n0\r\nX: " + b"y" * 8192 + b"\r\n\r\n",
    "1,000 trailers": HEAD + TE + b"\r\nd\r\n" + BODY + b"\r\n0\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
}
"""400 `bad_request`."""

TOO_LARGE = {
    "field of 64 KiB": HEAD + b"X: " + b"y" * 65_536 + b"\r\n" + REST,
    "name of 64 KiB": HEAD + b"X" * 65_536 + b": y\r\n" + REST,
    "target of 64 KiB": b"POST /v1/" + b"x" * 65_536 + b" HTTP/1.1\r\nHost: x\r\n" + REST,
    "64 KiB in many fields": HEAD + b"".join(b"X-%d: %b\r\n" % (i, b"y" * 900) for i in range(80)) + REST,
    "120 fields of 8,000 bytes without an end": HEAD + b"".join(b"X-%d: %b\r\n" % (i, b"y" * 8000) for i in range(120)),
    "1,000 fields": HEAD + b"X: y\r\n" * 1000 + REST,
    "257 fields": HEAD + b"X: y\r\n" * 255 + REST,
}
"""431 `head_too_large`."""

CARRIED = {
    "plain": HEAD + REST,
    "field of 8,000 bytes": HEAD + b"X: " + b"y" * 8000 + b"\r\n" + REST,
    "60 KiB in many fields": HEAD + b"".join(b"X-%d: %b\r\n" % (i, b"y" * 900) for i in range(66)) + REST,
    "256 fields": HEAD + b"X: y\r\n" * 254 + REST,
    "chunked": HEAD + TE + b"\r\n" + CHUNKS,
    "chunked in capitals": HEAD + b"TRANSFER-ENCODING: Chunked\r\n\r\n" + CHUNKS,
    "chunks with extensions and trailers": HEAD
    + TE
    + b"Trailer: X-Sum\r\n\r\nd;a=b\r\n"
    + BODY
    + b"\r\n0\r\nX-Sum: 1\r\n\r\n",
    "a length as a trailer": HEAD + TE + b"\r\nd\r\n" + BODY + b"\r\n0\r\nContent-Length: 4\r\n\r\n",
    "chunks of one byte": HEAD + TE + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    "length in capitals": HEAD + b"CONTENT-LENGTH:13\r\n\r\n" + BODY,
    "length with zeros before it": HEAD + b"Content-Length: 0013\r\n\r\n" + BODY,
    "length named by Connection": HEAD + LENGTH + b"Connection: Content-Length\r\n\r\n" + BODY,
    "an underscore is no hyphen": HEAD + b"Transfer_Encoding: chunked\r\nContent_Length: 4\r\n" + REST,
    "upgrade to HTTP/2": HEAD
    + LENGTH
    + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n"
    + BODY,
    "upgrade to a WebSocket": HEAD + LENGTH + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + BODY,
    "upgrade in chunks": HEAD + TE + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + CHUNKS,
    "request looks like a reply": HEAD + b"X: HTTP/1.1 200 OK\r\n" + REST,
    "value of other letters": HEAD + "X: ä\r\n".encode() + REST,
    "value of bytes that are no text": HEAD + b"X: \xff\xfe\r\n" + REST,
    "empty value": HEAD + b"X:\r\n" + REST,
    "empty lines before it": b"\r\n\r\n\r\n" + HEAD + REST,
    "absolute target": b"POST http://other/v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + REST,
    "a request within the body": HEAD
    + b"Content-Length: 99\r\n\r\n"
    + b'{"model":"m",\r\n\r\n"x":"POST /v1/embeddings HTTP/1.1"}'.ljust(99),
}
"""200, exactly once, with the body as it was meant."""

ONLY_HERE = (b"transfer-encoding", b"upgrade", b"http2-settings", b"trailer", b"connection", b"x-sum", b"expect")
"""Fields that go on to no instance."""
