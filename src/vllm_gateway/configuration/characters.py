# SPDX-License-Identifier: Apache-2.0
"""Characters that no name, path, variable or argument has: most came there by mistake, and a NUL stops any start."""

import unicodedata

from vllm_gateway.configuration.draft import Draft, Keys

_MANY_LINES = ("environment", "engine_arguments", "command")
"""Settings whose texts may hold ends of lines and tabs: chat templates, JSON."""


def find_odd_characters(draft: Draft) -> None:
    _look(draft, draft.data, ())


def _look(draft: Draft, value: object, keys: Keys) -> None:
    if keys == ("server", "api_keys"):
        return  # they have their own form, and are not shown
    if isinstance(value, dict):
        for key, one in value.items():
            if keys != ("models",):  # their names have their own form
                _complain(draft, str(key), (*keys, str(key)), "its name holds")
            _look(draft, one, (*keys, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _look(draft, one, (*keys, index))
    elif isinstance(value, str):
        _complain(draft, value, keys, "holds")


def _complain(draft: Draft, text: str, keys: Keys, holds: str) -> None:
    allowed = "\n\t\r" if holds == "holds" and any(key in _MANY_LINES for key in keys) else ""
    for one in text:
        if one not in allowed and unicodedata.category(one) in ("Cc", "Cs"):
            what = "a NUL" if one == "\0" else f"the control character U+{ord(one):04X}"
            what = what if unicodedata.category(one) == "Cc" else "what is no character (not UTF-8)"
            draft.complain(keys, f"{holds} {what}, which does not belong there; remove it")
            return
