# SPDX-License-Identifier: Apache-2.0
"""Who may ask: the API keys, and what a caller is called where the key itself must not be seen."""

import hashlib
import hmac
from collections.abc import Iterable

from vllm_gateway.api.errors import ApiError


class ApiKeys:
    """The bearer tokens that clients must send; none at all: open to everybody."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.configure(keys)

    def configure(self, keys: Iterable[str]) -> None:
        self._keys = [(f"Bearer {key}".encode(), hashlib.sha256(key.encode()).hexdigest()[:16]) for key in keys]

    def caller(self, authorization: bytes, peer: str) -> str:
        """A digest of the key, or `peer` where no keys are set. Raises ApiError invalid_api_key."""
        if not self._keys:
            return peer
        for key, digest in self._keys:
            if hmac.compare_digest(authorization, key):
                return digest
        raise ApiError("invalid_api_key", "Send one of the gateway's keys: 'Authorization: Bearer <key>'.")
