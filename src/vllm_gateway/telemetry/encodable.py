# SPDX-License-Identifier: Apache-2.0
"""What no encoder takes becomes its text: a line of the log must never be what fails."""

from collections.abc import Mapping

_WIDEST = 1 << 63
_DEEPEST = 8


def encodable(value: object, depth: int = 0) -> object:
    """The same, of what JSON and UTF-8 can hold.

    >>> encodable({"count": 1 << 64, "name": "a\\ud800"})
    {'count': '18446744073709551616', 'name': 'a\\\\ud800'}
    """
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -_WIDEST <= value < _WIDEST:
        return value
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {_text(key): encodable(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [encodable(one, depth + 1) for one in value]
    return _text(value)


def _text(value: object) -> str:
    try:
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception:  # of whose text, a plug-in's perhaps, nothing is known
        return f"<{type(value).__name__}>"
