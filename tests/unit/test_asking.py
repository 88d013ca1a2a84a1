# SPDX-License-Identifier: Apache-2.0
"""The commands `status` and `retry` against what it may meet instead of an open gateway."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vllm_gateway.cli.client import Address
from vllm_gateway.cli.retry import retry
from vllm_gateway.cli.status import status


class Stranger(BaseHTTPRequestHandler):
    reply = (200, b"{}")

    def do_GET(self) -> None:
        status, body = self.reply
        assert self.path == "/gateway/status"
        self.send_response(401 if self.headers["Authorization"] else status)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("reply", "key", "said"),
    [
        ((200, b"{}"), None, "is not this gateway"),
        ((200, b"<html>"), None, "is not this gateway"),
        ((404, b""), None, "is not this gateway (HTTP 404)"),
        ((200, b""), "wrong", "asks for one of its API keys: --api-key"),
    ],
)
@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/v1/"])
def test_who_answers_is_said(
    address: str, capsys: pytest.CaptureFixture[str], *, form: str, reply: tuple[int, bytes], key: str | None, said: str
) -> None:
    Stranger.reply = reply
    assert status(Address(form.format(address), key), as_json=True) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "foo://bar", "http://127.0.0.1:port", "http://"])
def test_nobody_is_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert retry(Address(url, None), "a") == 1
    assert "with --url" in capsys.readouterr().err
