# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: which leading blocks of a prompt were computed before and are still kept; LRU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks of `block_size` tokens, each known by its own tokens and all tokens before it."""

    def __init__(self, capacity_blocks: int, block_size: int, *, enabled: bool = True) -> None:
        self._capacity = capacity_blocks
        self._block_size = block_size
        self._enabled = enabled
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def hit_tokens(self, ids: Sequence[int], salt: str = "") -> int:
        """How many leading tokens need not be computed. Never all: the last one is needed to make the next token."""
        if not self._enabled:
            return 0
        hits = 0
        for key in self._keys(ids, (len(ids) - 1) // self._block_size, salt):
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            hits += 1
        return hits * self._block_size

    def insert(self, ids: Sequence[int], salt: str = "") -> None:
        """Keeps all whole blocks of a sequence."""
        if not self._enabled:
            return
        for key in self._keys(ids, len(ids) // self._block_size, salt):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()

    def _keys(self, ids: Sequence[int], blocks: int, salt: str) -> list[int]:
        keys = []
        key = hash(salt)
        for at in range(0, blocks * self._block_size, self._block_size):
            key = hash((key, tuple(ids[at : at + self._block_size])))
            keys.append(key)
        return keys
