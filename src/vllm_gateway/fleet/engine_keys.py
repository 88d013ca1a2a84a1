# SPDX-License-Identifier: Apache-2.0
"""The key of each engine that listens on a port: it keeps out everybody else who can reach the port."""

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from vllm_gateway.files.plain import read_plain

_FILE = "engines.key"
_BYTES = 32


class EngineKeys:
    """Random to everybody who cannot read the one secret, which lies in the gateway's own folder.

    What a container was started with, its configuration says: a lost secret costs no engine.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._secret = b""

    def of(self, instance: str) -> str:
        self._secret = self._secret or self._kept_secret()
        return hmac.new(self._secret, instance.encode(), "sha256").hexdigest()

    def _kept_secret(self) -> bytes:
        """Of this process alone if it cannot be kept."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                self._make()
            kept = read_plain(self._path, _BYTES)
            if len(kept) == _BYTES:
                return kept
        return secrets.token_bytes(_BYTES)

    def _make(self) -> None:
        """Whole or not at all, whoever else makes it at the same time. Raises OSError."""
        own = self._path.with_suffix(f".{secrets.token_hex(4)}")
        with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        try:
            os.link(own, self._path)
        finally:
            own.unlink()
