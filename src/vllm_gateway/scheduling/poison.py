# SPDX-License-Identifier: Apache-2.0
"""The bodies that are known to end engines: of whom, and until when. Pure."""

from collections import OrderedDict
from hashlib import blake2b

from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.types import RequestInfo

REMEMBERED_S = 600.0
MOST = 256


class Poison:
    """Remembers no body, only what tells it from others: a body is hashed only if one of its length is known."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: OrderedDict[tuple[str, str, int], dict[bytes, float]] = OrderedDict()

    def add(self, request: RequestInfo, now: float) -> None:
        self.known.setdefault(_shape(request), {})[_hash(request)] = now + REMEMBERED_S
        self.known.move_to_end(_shape(request))
        while sum(map(len, self.known.values())) > MOST:
            self.known.popitem(last=False)

    def knows(self, request: RequestInfo, now: float) -> bool:
        """Whether the same client has sent the same before."""
        same = self.known.get(_shape(request))
        if same is None:
            return False
        for known in [known for known, until in same.items() if until <= now]:
            del same[known]
        if not same:
            del self.known[_shape(request)]
        return bool(same) and _hash(request) in same


def refusal_of(model: str) -> Refusal:
    minutes = REMEMBERED_S / 60
    text = f"Two instances of {model} died of this request. It is refused, and for {minutes:g} minutes any like it."
    return Refusal("poison_request", text)


def _shape(request: RequestInfo) -> tuple[str, str, int]:
    return request.client, request.path, len(request.body)


def _hash(request: RequestInfo) -> bytes:
    return blake2b(request.body, digest_size=16).digest()
