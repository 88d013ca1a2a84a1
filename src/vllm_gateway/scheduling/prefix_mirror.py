# SPDX-License-Identifier: Apache-2.0
"""What one engine's prefix cache probably holds: blocks of the prompts that were sent there, least used first out."""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixMirror:
    """Like vLLM it lets go of the end of a prompt before its beginning, so what is held is always a leading part."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, float] = OrderedDict()  # oldest first; when it was last used

    def __len__(self) -> int:
        return len(self._blocks)

    def leading(self, blocks: Sequence[int]) -> int:
        """How many of the leading blocks are held. A search by halves, for any leading part is held as a whole."""
        held, low, high = self._blocks, 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            if blocks[middle] in held:
                low = middle + 1
            else:
                high = middle
        return low

    def use(self, blocks: Sequence[int], now: float) -> None:
        """A prompt was sent there."""
        held = self._blocks
        for block in reversed(blocks):
            held[block] = now
            held.move_to_end(block)

    def trim(self, most: int, oldest: float) -> None:
        """Forgets what is over `most` blocks, and what was not used since `oldest`."""
        held = self._blocks
        while held and (len(held) > most or next(iter(held.values())) < oldest):
            held.popitem(last=False)
