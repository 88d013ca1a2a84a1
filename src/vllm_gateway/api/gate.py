# SPDX-License-Identifier: Apache-2.0
"""Who may ask: whoever has a key; where none is asked for, whoever calls the gateway by a name of its own.

Without keys it is the browsers of this machine, or of its network, that must be kept from asking on behalf of the pages
they show. A page of another site gives itself away by its `Origin`; and one whose name was made to point here after
it was loaded (DNS rebinding), so that the browser takes the gateway for its own site, by the `Host` that it asks for.
With keys nothing of this is refused: no page has a key that it was not given.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from vllm_gateway.api.client_address import ClientAddresses
from vllm_gateway.api.cors import NO_CORS, Cors, cors_for
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.keys import ApiKeys, Task
from vllm_gateway.configuration.settings import Server
from vllm_gateway.configuration.values import ANY_ORIGIN
from vllm_gateway.telemetry.cut import cut

FOR_THE_GATE = frozenset({"authorization", "cookie", "origin", "x-api-key"})
"""Headers that end here: credentials are none of an engine's business, nor whose pages it would serve."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+?)\.?)(?::\d{0,5})?")


class Refusal(NamedTuple):
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What a request's Host and Origin mean."""

    refusal: Refusal | None = None
    cors: Cors = NO_CORS
    is_foreign: bool = False
    """A page of another site asks, which may ask for what is for clients and for nothing else."""

    def check(self, *, for_clients: bool) -> None:
        """Raises ApiError."""
        if self.refusal is not None:
            raise ApiError(*self.refusal)
        if self.is_foreign and not for_clients:
            raise ApiError("origin_not_allowed", "Pages of other sites may not ask for this.")


class Gate:
    """All that clients are let in by; made anew when the settings change."""

    def __init__(self, server: Server) -> None:
        self._keys = ApiKeys(server.api_keys)
        self.asks_for_keys = bool(server.api_keys)
        self.addresses = ClientAddresses(server.trusted_proxies)
        self._hosts = frozenset({"localhost", server.host.lower(), *map(str.lower, server.hosts)})
        self._origins = frozenset(map(str.lower, server.allowed_origins))
        self.judge = lru_cache(maxsize=1024)(self._judge)
        """By Host and Origin as they came; empty: not given."""

    def caller(self, offered: Iterable[bytes], client: str, task: Task) -> str:
        """Whose turn it is in the queues. Raises ApiError invalid_api_key or role_not_allowed."""
        return self._keys.caller(offered, task) if self.asks_for_keys else client

    def _judge(self, host: bytes, origin: bytes) -> Judged:
        cors = self._cors(origin.decode("latin-1").lower())
        if self.asks_for_keys:
            return Judged(cors=cors)
        if host and not self._is_ours(host.decode("latin-1").lower()):
            text = f"Ask by address, as localhost, or by a name in server.hosts; {_shown(host)} is none of these."
            return Judged(Refusal("host_not_allowed", text))
        if not origin or origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower()):
            return Judged(cors=cors)
        if cors is NO_CORS:
            text = f"Pages of {_shown(origin)} may not ask here: it is not in server.allowed_origins."
            return Judged(Refusal("origin_not_allowed", text))
        return Judged(cors=cors, is_foreign=True)

    def _cors(self, origin: str) -> Cors:
        if ANY_ORIGIN in self._origins:
            return cors_for(ANY_ORIGIN)
        return cors_for(origin) if origin in self._origins else NO_CORS

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        if found[2] in self._hosts:
            return True
        try:
            ip_address(found[1] or found[2])
        except ValueError:
            return False
        return True


def _shown(given: bytes) -> str:
    return cut(given.decode("ascii", "backslashreplace"))
