# SPDX-License-Identifier: Apache-2.0
"""Session affinity: a session stays on its instance while that is not overloaded. Right when clients name sessions."""

import math
from collections.abc import Sequence
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Annotated

from msgspec import Meta
from xxhash import xxh3_64_intdigest

from vllm_gateway.scheduling import InstanceView, RequestInfo

_LONGEST_USER = 1024
"""Bytes of a `user` that tell it from others: it is hashed for each instance."""


class SessionAffinity:
    """Rendezvous hashing with bounded load: no state, and when instances come or go only their own sessions move."""

    name = "session_affinity"

    def __init__(
        self, *, header: str = "x-session-id", cookie: str = "", overload: Annotated[float, Meta(ge=1)] = 1.25
    ) -> None:
        self._header = header
        self._cookie = cookie
        self._overload = overload

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        session = self._session(request)
        if not session:
            return min(instances, key=_load)
        in_flight = sum(instance.in_flight for instance in instances) + 1
        bound = self._overload * in_flight / sum(instance.weight for instance in instances)
        homes = sorted(instances, key=lambda instance: _rank(session, instance))
        return next((one for one in homes if one.in_flight + 1 <= math.ceil(bound * one.weight)), homes[0])

    def _session(self, request: RequestInfo) -> bytes:
        """By the header, else the cookie, else the body's `user`; empty: none."""
        if found := request.header(self._header):
            return found.encode("utf-8", "surrogateescape")
        if self._cookie and (cookies := request.header("cookie")):
            with suppress(CookieError):
                if morsel := SimpleCookie(cookies).get(self._cookie):
                    return morsel.value.encode("utf-8", "surrogateescape")
        user = bytes(memoryview(request.fields.user)[:_LONGEST_USER])
        return b"" if user == b"null" else user


def _rank(session: bytes, instance: InstanceView) -> float:
    """Lowest at home. By the name, which outlives a restart; a weight of 2 draws twice as many sessions."""
    draw = (xxh3_64_intdigest(session, xxh3_64_intdigest(instance.name.encode())) + 1) / (2**64 + 1)
    return -math.log(draw) / instance.weight


def _load(instance: InstanceView) -> float:
    return instance.in_flight / instance.weight
