# SPDX-License-Identifier: Apache-2.0
"""The KV memory of one simulated engine: blocks that running sequences hold, and an LRU of those that nobody holds."""

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """Counts in tokens: whole prompt blocks (shared, kept after use) and private tokens (generated; gone after use)."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.capacity_tokens = blocks * block_tokens
        self._block_tokens = block_tokens
        self._held: dict[int, int] = {}  # block -> how many sequences hold it
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._private_tokens = 0

    def __len__(self) -> int:
        return len(self._held) + len(self._idle)

    def __contains__(self, block: int) -> bool:
        return block in self._held or block in self._idle

    @property
    def used_tokens(self) -> int:
        """What running sequences hold; the rest is free, or holds idle blocks that make way."""
        return len(self._held) * self._block_tokens + self._private_tokens

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - self.used_tokens

    def leading(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are here."""
        held, idle = self._held, self._idle
        count = 0
        for block in blocks:
            if block not in held and block not in idle:
                break
            count += 1
        return count

    def need_tokens(self, blocks: Sequence[int]) -> int:
        """How much of `free_tokens` holding these blocks takes."""
        held = self._held
        return sum(block not in held for block in blocks) * self._block_tokens

    def hold(self, blocks: Sequence[int]) -> None:
        held, idle = self._held, self._idle
        for block in blocks:
            if block in held:
                held[block] += 1
            else:
                idle.pop(block, None)
                held[block] = 1
        self._evict()

    def release(self, blocks: Sequence[int]) -> None:
        """The tail becomes the oldest: a prefix without its end is of use, an end without its prefix is not."""
        held, idle = self._held, self._idle
        for block in reversed(blocks):
            if held[block] > 1:
                held[block] -= 1
            else:
                del held[block]
                idle[block] = None
        self._evict()

    def grow(self, tokens: int) -> None:
        """Private tokens come (or go, if negative)."""
        self._private_tokens += tokens
        assert self._private_tokens >= 0
        if tokens > 0:
            self._evict()

    def _evict(self) -> None:
        room = self.free_tokens // self._block_tokens
        assert room >= 0, "more is held than there is"
        idle = self._idle
        while len(idle) > room:
            idle.popitem(last=False)
