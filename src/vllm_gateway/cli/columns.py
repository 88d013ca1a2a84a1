# SPDX-License-Identifier: Apache-2.0
"""Rows of text as a table for a terminal."""

from collections.abc import Sequence

from vllm_gateway.telemetry.terminal import printable


def columns(*rows: Sequence[object]) -> str:
    """The first row is the head."""
    cells = [[printable(str(cell), lines=False) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
