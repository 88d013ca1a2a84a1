# SPDX-License-Identifier: Apache-2.0
"""By what an engine's arguments multiply the GPUs of an instance."""

import math
from collections.abc import Mapping, Sequence

_MOST = 64
_SHARDS = {"-pp": "--pipeline-parallel-size"}
_COPIES = {"-dp": "--data-parallel-size", "-pcp": "--prefill-context-parallel-size"}


class BadSize(ValueError):
    """`index`: of the argument."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


def shards(arguments: Sequence[str]) -> int:
    """Into how many parts the weights are cut, beside by tensor parallelism. Raises BadSize."""
    return _product(arguments, _SHARDS)


def copies(arguments: Sequence[str]) -> int:
    """Of all those parts. Raises BadSize."""
    return _product(arguments, _COPIES)


def _product(arguments: Sequence[str], options: Mapping[str, str]) -> int:
    """`options`: long names by short ones."""
    sizes: dict[str, int] = {}  # of one given twice, the last counts
    for index, argument in enumerate(arguments):
        name, is_joined, value = argument.partition("=")
        name = name.replace("_", "-")
        option = options.get(name, name)
        if option in options.values():
            given = value if is_joined else "".join(arguments[index + 1 : index + 2])
            if not (given.isascii() and given.isdigit() and len(given) < 12 and 1 <= int(given) <= _MOST):
                text = f"{option} needs a whole number from 1 to {_MOST}: it decides how many GPUs are taken"
                raise BadSize(index, text)
            sizes[option] = int(given)
    return math.prod(sizes.values())
