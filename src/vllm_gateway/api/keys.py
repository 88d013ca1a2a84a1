# SPDX-License-Identifier: Apache-2.0
"""The API keys that clients send: who that is, where the key itself must not be seen, and what each may be used for."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_gateway.api.errors import ApiError
from vllm_gateway.configuration.api_keys import NamedKey, Role, digest_of, name_of, role_of

Task = Literal["infer", "scrape", "look", "steer", "nothing"]
"""What a path is for. `nothing`: there is no such path, and everybody who has a key is told so."""

_MAY: Mapping[Role, frozenset[Task]] = {
    "inference": frozenset({"infer", "nothing"}),
    "metrics": frozenset({"scrape", "nothing"}),
    "viewer": frozenset({"infer", "scrape", "look", "nothing"}),
    "admin": frozenset({"infer", "scrape", "look", "steer", "nothing"}),
}
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


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    name: str
    role: Role
    may: frozenset[Task]


class ApiKeys:
    """Those that are valid."""

    def __init__(self, keys: Iterable[str | NamedKey]) -> None:
        self._keys = [_Key(digest_of(key), name_of(key), role_of(key), _MAY[role_of(key)]) for key in keys]

    def caller(self, offered: Iterable[bytes], task: Task) -> str:
        """The name of the first key among those offered that may be used for it.

        Raises ApiError invalid_api_key or role_not_allowed.
        """
        too_little: _Key | None = None
        for digest in offered:
            # All are compared, each in constant time: how long it takes says nothing of any key.
            for key in [key for key in self._keys if hmac.compare_digest(digest, key.digest)]:
                if task in key.may:
                    return key.name
                too_little = key
        if too_little is None:
            raise ApiError("invalid_api_key", "Send one of the gateway's keys: 'Authorization: Bearer <key>'.")
        enough = " or ".join(role for role, may in _MAY.items() if task in may)
        text = f"This needs a key with the role {enough}; the role of {too_little.name!r} is {too_little.role}."
        raise ApiError("role_not_allowed", text)
