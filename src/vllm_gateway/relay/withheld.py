# SPDX-License-Identifier: Apache-2.0
"""A reply that is kept back until it is known whether the instance has given the request up, or answered it."""

from vllm_gateway.relay.framing import Framing
from vllm_gateway.relay.heads import ReplyHead
from vllm_gateway.relay.types import HasGivenUp

ENOUGH_BYTES = 4 * 1024
"""What a longer body says at its beginning is all that is asked."""


class Withheld:
    """Only replies from 500 on come here: all others pass by without a look."""

    __slots__ = ("_framing", "_has_given_up", "body", "head")

    def __init__(self, head: ReplyHead, framing: Framing, has_given_up: HasGivenUp) -> None:
        self.head = head
        self.body = b""
        """As received, framing included."""
        self._framing = framing
        self._has_given_up = has_given_up

    @property
    def ends_with_connection(self) -> bool:
        return not self._framing.self_delimiting

    def feed(self, data: bytes) -> bool:
        """Whether there is enough to judge by. Raises BadFraming."""
        self._framing.feed(data)
        self.body += data
        return self._framing.done or len(self.body) >= ENOUGH_BYTES

    def has_given_up(self) -> bool:
        return self._has_given_up(self.head.status, self.body)
