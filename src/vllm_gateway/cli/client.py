# SPDX-License-Identifier: Apache-2.0
"""The one client of a running gateway that all commands use; it says who answers if that is none."""

import argparse
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

_TIMEOUT_S = 10
_ELSEWHERE = "Name another address with --url."
_UNIX = "unix:"
_HERE = "http://localhost"  # whatever the path: a gateway without keys wants a host that is this machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which gateway to ask, and with which key."""
    here = os.environ.get("VLLM_GATEWAY_URL", "http://127.0.0.1:8000")
    parser.add_argument(
        "--url",
        default=here,
        help="http://..., https://..., or unix:/path of its socket; default: VLLM_GATEWAY_URL, else http://127.0.0.1:8000",
    )
    parser.add_argument("--api-key", metavar="KEY", help="if it asks for one; default: VLLM_GATEWAY_API_KEY")


def address_of(arguments: argparse.Namespace) -> "Address":
    return Address(arguments.url, arguments.api_key or os.environ.get("VLLM_GATEWAY_API_KEY"))


class NoAnswer(Exception):
    """The text says why, and what to do."""


@dataclass(frozen=True)
class Address:
    """Of a gateway, with the key that it may ask for."""

    url: str
    api_key: str | None

    def ask(self, method: str, path: str, expected: str) -> dict[str, Any]:
        """The answer, which holds what is `expected`. Raises NoAnswer."""
        with self._answers(), self._open(method, path, _TIMEOUT_S) as reply:
            page = json.load(reply)
        if not isinstance(page, dict) or expected not in page:
            raise NoAnswer(f"What answers at {self._base} is not this gateway. {_ELSEWHERE}")
        return page

    def lines(self, path: str, *, patient: bool) -> Iterator[str]:
        """Of a text, as they come; `patient`: however long that takes. Raises NoAnswer."""
        with self._answers(), self._open("GET", path, None if patient else _TIMEOUT_S) as reply:
            for line in reply:
                yield line.decode("utf-8", "replace").rstrip("\n")

    def _open(self, method: str, path: str, timeout_s: float | None) -> HTTPResponse:
        there = _HERE if self._base.startswith(_UNIX) else self._base
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        request = urllib.request.Request(there + path, headers=headers, method=method)  # noqa: S310 - the operator names it
        reply: HTTPResponse = self._opener().open(request, timeout=timeout_s)
        return reply

    @contextmanager
    def _answers(self) -> Iterator[None]:
        base = self._base
        try:
            yield
        except urllib.error.HTTPError as error:
            raise NoAnswer(_refusal(base, error)) from None
        except (OSError, HTTPException) as error:
            raise NoAnswer(f"No gateway answers at {base}: {getattr(error, 'reason', error)}. {_ELSEWHERE}") from None
        except ValueError as error:
            raise NoAnswer(f"What answers at {base} is not this gateway: {error}. {_ELSEWHERE}") from None

    @property
    def _base(self) -> str:
        if self.url.startswith(_UNIX):
            path = self.url.removeprefix(_UNIX)
            return f"{_UNIX}/{path.lstrip('/')}" if path.startswith("//") else self.url
        url = self.url if "://" in self.url else f"http://{self.url}"
        return url.rstrip("/").removesuffix("/v1")

    def _opener(self) -> urllib.request.OpenerDirector:
        if not self._base.startswith(_UNIX):
            return urllib.request.build_opener()
        no_proxy = urllib.request.ProxyHandler({})
        return urllib.request.build_opener(no_proxy, _ByUnixSocket(self._base.removeprefix(_UNIX)))


class _ByUnixSocket(urllib.request.HTTPHandler):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_UnixConnection, path=self._path), req)


class _UnixConnection(HTTPConnection):
    def __init__(self, host: str, *, path: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _refusal(base: str, error: urllib.error.HTTPError) -> str:
    if error.code == HTTPStatus.UNAUTHORIZED:
        return f"{base} asks for one of its API keys: --api-key, or VLLM_GATEWAY_API_KEY."
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, LookupError, TypeError, OSError):
        return f"What answers at {base} is not this gateway (HTTP {error.code}). {_ELSEWHERE}"
