# SPDX-License-Identifier: Apache-2.0
"""The body of a request as it goes out: where something was put into a large one it is in pieces, and never copied."""

from typing import TypeAlias

Body: TypeAlias = bytes | bytearray
"""As it came in. Nobody changes it."""
Payload: TypeAlias = Body | tuple[bytes | memoryview, ...]


def length_of(body: Payload) -> int:
    return sum(map(len, body)) if isinstance(body, tuple) else len(body)
