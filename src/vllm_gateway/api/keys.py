# SPDX-License-Identifier: Apache-2.0
"""The API keys that clients send, and what a caller is called where the key itself must not be seen."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from vllm_gateway.api.errors import ApiError

_SCHEME = b"bearer"


def offered_keys(authorization: Iterable[bytes], x_api_key: Iterable[bytes]) -> Sequence[bytes]:
    """The digests of all keys that a request brings: as OpenAI's clients send them, and as Anthropic's do."""
    keys = []
    for value in authorization:
        scheme, _, key = value.strip(b" \t").partition(b" ")
        if scheme.lower() == _SCHEME:
            keys.append(key)
    stripped = [key.strip(b" \t") for key in (*keys, *x_api_key)]
    return tuple([hashlib.sha256(key).digest() for key in stripped if key])


class ApiKeys:
    """Those that are valid."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._valid = [hashlib.sha256(key.encode()).digest() for key in keys]

    def caller(self, offered: Iterable[bytes]) -> str:
        """The name of the first valid key among those offered, by their digests. Raises ApiError invalid_api_key."""
        for digest in offered:
            # All are compared, each in constant time: how long it takes says nothing of any key.
            if True in [hmac.compare_digest(digest, valid) for valid in self._valid]:
                return digest.hex()[:16]
        raise ApiError("invalid_api_key", "Send one of the gateway's keys: 'Authorization: Bearer <key>'.")
