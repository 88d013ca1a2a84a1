# SPDX-License-Identifier: Apache-2.0
"""The few calls of Docker's HTTP API that the lab makes for itself, with the standard library only.

Needs no `docker` command, and stands apart from the client library that the product uses and the tests try.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode


class DockerApiError(Exception):
    """The daemon does not answer, or refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class DockerApi:
    def __init__(self, socket_path: Path, *, timeout_s: float = 60) -> None:
        self._socket_path = socket_path
        self._timeout_s = timeout_s

    def answers(self) -> bool:
        try:
            return self._call("GET", "/_ping") == b"OK"
        except DockerApiError:
            return False

    def exists(self, path: str) -> bool:
        try:
            self._call("GET", path)
        except DockerApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self._call("GET", _with_query(path, query)))

    def delete(self, path: str, **query: str) -> None:
        """What is already gone, or still in use, is no error."""
        try:
            self._call("DELETE", _with_query(path, query))
        except DockerApiError as error:
            if error.status not in (404, 409):
                raise

    def send_tar(self, path: str, tar: bytes | IO[bytes], query: Mapping[str, str]) -> None:
        """For calls that take a tar archive and report their progress, the failure included, in a 200's body."""
        answer = self._call("POST", _with_query(path, query), body=tar)
        for line in answer.splitlines():
            failure = json.loads(line).get("error") if line.strip() else None
            if failure:
                raise DockerApiError(500, failure)

    def _call(self, method: str, path: str, body: bytes | IO[bytes] | None = None) -> bytes:
        connection = _UnixConnection(self._socket_path, self._timeout_s)
        headers = {"Content-Type": "application/x-tar"} if body is not None else {}
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DockerApiError(0, f"no answer on {self._socket_path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise DockerApiError(response.status, answer.decode(errors="replace").strip())
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: Path, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
