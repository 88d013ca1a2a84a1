# SPDX-License-Identifier: Apache-2.0
"""What replies from 500 on say of whose failure it was: the engine's that gives up, or the client's after all."""

import re

_DEAD = b"EngineCore encountered an issue"  # and so will its process be, soon
_GIVING_UP = (
    b"cannot schedule new futures after shutdown",  # it is being stopped
    _DEAD,
)
_CODE_OF_CLIENT = re.compile(rb'"code"\s*+:\s*+"?4\d\d\b')
_TOO_LONG = re.compile(
    rb"maximum (?:context|model|sequence) length|max_model_len|exceeds? the (?:available |model's )?context"
    rb"|longer than the model's context|context length exceeded|context_length_exceeded",
    re.IGNORECASE,
)


def is_giving_up(status: int, body: bytes) -> bool:
    """`body`: what a reply from 500 on says, or the beginning of it."""
    return status in (502, 503) or (status == 500 and any(words in body for words in _GIVING_UP))


def is_dead(body: bytes) -> bool:
    """Whether it gives up because its core has died, rather than because it was told to end."""
    return _DEAD in body


def is_clients_fault(status: int, body: bytes) -> bool:
    """Whether an engine found something wrong with the request, and only says so in the wrong way."""
    return status == 500 and (_CODE_OF_CLIENT.search(body) or _TOO_LONG.search(body)) is not None
