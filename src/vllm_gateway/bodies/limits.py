# SPDX-License-Identifier: Apache-2.0
"""How much there may be in a body beside its bytes, and how it is said that there is more."""

from dataclasses import dataclass

from vllm_gateway.bodies.payload import Body

_SMALL = 128 * 1024
_LARGE = 2 << 20
_MOST_PUNCTUATION = 24 * 1024
_NOT_PUNCTUATION = bytes(set(range(256)) - set(b",:[{"))


def is_large(body: Body) -> bool:
    """Whether it is to be looked through before anything is built of it.

    What another one can cost is bounded: by its size, and by how many things there can be in it. At most some
    milliseconds, and some megabytes for as long.
    """
    size = len(body)
    if size < _SMALL:
        return False
    return size >= _LARGE or len(body.translate(None, _NOT_PUNCTUATION)) > _MOST_PUNCTUATION


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Of large bodies. Each has its setting of the same name in `server`."""

    fields: int = 1000
    """Fields of the object, or parts of a form."""
    messages: int = 20_000
    """Messages and their parts, prompts or inputs; in all they may have ten times as many fields."""
    items: int = 200_000
    """Lists and objects in all."""
    depth: int = 200
    """Lists and objects within each other."""


class Malformed(Exception):
    """Not the JSON object, or the form, that is expected; `field`: what it is about, if one of its fields alone."""

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


class TooComplex(Exception):
    """More in it than the limits allow."""

    def __init__(self, what: str, limit: int, setting: str) -> None:
        super().__init__(f"The request body has more than {limit} {what} (server.max_body_{setting}).")
