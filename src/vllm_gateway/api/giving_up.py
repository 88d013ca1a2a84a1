# SPDX-License-Identifier: Apache-2.0
"""What engines say when they cannot take requests any more: their failure, not an answer for the client."""

_WORDS = (
    b"cannot schedule new futures after shutdown",  # it is being stopped
    b"EngineCore encountered an issue",  # its core is dead, it will soon be
)


def is_giving_up(status: int, body: bytes) -> bool:
    """`body`: what a reply from 500 on says, or the beginning of it."""
    return status in (502, 503) or (status == 500 and any(words in body for words in _WORDS))
