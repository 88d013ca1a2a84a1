# SPDX-License-Identifier: Apache-2.0
"""What pydantic finds wrong with a setting, in the words of somebody who edits the file."""

from pydantic_core import ErrorDetails

_WHOLE = "must be a whole number"
_NUMBER = "must be a number"
_BOOLEAN = "must be true or false"
_MAPPING = "must be settings of the form `name: value`"
_WORDS = {
    "bool_parsing": _BOOLEAN,
    "bool_type": _BOOLEAN,
    "dict_type": _MAPPING,
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be more than {gt:.12g}",
    "greater_than_equal": "must be at least {ge:.12g}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "is too large a number",
    "int_type": _WHOLE,
    "less_than_equal": "must be at most {le:.12g}",
    "literal_error": "must be {expected}",
    "missing": "is missing, and has no default",
    "model_type": _MAPPING,
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must not be empty",
    "string_unicode": "holds what is no character",
    "string_type": "must be text; put it in quotes",
    "too_long": "has more than {max_length} entries",
    "too_short": "must not be empty",
    "tuple_type": "must be a list of the form [one, two]",
}


def words(details: ErrorDetails) -> str:
    text = _WORDS.get(details["type"])
    return details["msg"].removeprefix("Value error, ") if text is None else text.format_map(details.get("ctx", {}))
