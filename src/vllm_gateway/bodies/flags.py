# SPDX-License-Identifier: Apache-2.0
"""Truth values in the forms in which engines take them: pydantic's, which are more than `true` and `false`."""

from typing import TypeAlias

import msgspec

from vllm_gateway.bodies.limits import Malformed

Flag: TypeAlias = bool | int | float | str | None
"""What may stand in a body for one; `null` is the default."""

_VALUES = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}
_TRUE, _FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")
_LONGEST = 16  # of the text of one, however many digits or escapes
_decode = msgspec.json.Decoder(Flag).decode


def truth(value: Flag, name: str = "") -> bool:
    """Raises Malformed, which calls it by its `name`, for what engines do not take.

    >>> [truth(value) for value in (True, 1, 1.0, "True", "on", None)]
    [True, True, True, True, True, False]
    """
    if value is None:
        return False
    if isinstance(value, str):
        value = _VALUES.get(value.lower(), value)
    if value not in (0, 1):
        raise Malformed(f"'{name}' must be true or false", name)
    return bool(value)


def is_true(raw: msgspec.Raw | None) -> bool:
    """Of a value that is not decoded; for what is none, an engine finds words."""
    if raw is None or raw == _FALSE:
        return False
    if raw == _TRUE:
        return True
    if memoryview(raw).nbytes > _LONGEST:
        return False
    try:
        return truth(_decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, Malformed):
        return False
