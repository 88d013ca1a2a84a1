# SPDX-License-Identifier: Apache-2.0
"""What is known of bodies that have been on engines when they died: of whom, and until when. Pure."""

from collections import OrderedDict
from hashlib import blake2b
from typing import Generic, TypeVar

from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.types import RequestInfo

REMEMBERED_S = 600.0
MOST = 256
_Shape = tuple[str, str, int]

T = TypeVar("T")


class KnownBodies(Generic[T]):
    """Remembers no body, only what tells it from others: a body is hashed only if one of its length is known."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any: OrderedDict[_Shape, dict[bytes, tuple[float, T]]] = OrderedDict()

    def add(self, request: RequestInfo, about: T, now: float) -> None:
        shape = _shape(request)
        self.any.setdefault(shape, {})[_hash(request)] = now + REMEMBERED_S, about
        self.any.move_to_end(shape)
        while sum(map(len, self.any.values())) > MOST:
            self.any.popitem(last=False)

    def get(self, request: RequestInfo, now: float) -> T | None:
        """What is known of the same body of the same client."""
        self._forget_oldest(now)
        shape = _shape(request)
        same = self.any.get(shape)
        if same is None:
            return None
        for known in [known for known, (until, _) in same.items() if until <= now]:
            del same[known]
        if not same:
            del self.any[shape]
            return None
        found = same.get(_hash(request))
        return None if found is None else found[1]

    def _forget_oldest(self, now: float) -> None:
        """Nobody may ask for them again."""
        while self.any:
            same = next(iter(self.any.values()))
            if same and max(until for until, _ in same.values()) > now:
                return
            self.any.popitem(last=False)

    def pop(self, request: RequestInfo, now: float) -> T | None:
        """The same, which is forgotten."""
        found = self.get(request, now)
        if found is not None:
            same = self.any[_shape(request)]
            del same[_hash(request)]
            if not same:
                del self.any[_shape(request)]
        return found


def refusal_of(model: str) -> Refusal:
    minutes = REMEMBERED_S / 60
    text = f"Two instances of {model} died of this request. It is refused, and for {minutes:g} minutes any like it."
    return Refusal("poison_request", text)


def _shape(request: RequestInfo) -> _Shape:
    return request.client, request.path, len(request.body)


def _hash(request: RequestInfo) -> bytes:
    return blake2b(request.body, digest_size=16).digest()
