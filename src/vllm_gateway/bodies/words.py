# SPDX-License-Identifier: Apache-2.0
"""What msgspec finds wrong with a value, in the words of somebody who wrote it."""

import re

import msgspec

At = tuple[str | int, ...]

_KINDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "a mapping (name: value)",
    "str": "text",
}
_BOUNDS = {">": "more than", ">=": "at least", "<": "less than", "<=": "at most"}
_PLACE = re.compile(r" - at `(?:key in )?\$?(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[a-z |]+)`(?: of length)?(?: (?P<sign>[<>]=?) (?P<bound>[-+.\de]+))?")
_FIELD = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>.*)`")


def words(error: msgspec.ValidationError) -> tuple[At, str]:
    """Where in the value, and what is wrong there.

    >>> try:
    ...     msgspec.convert({"weights": [1, "x"]}, dict[str, list[float]])
    ... except msgspec.ValidationError as error:
    ...     words(error)[1]
    'must be a number'
    """
    text, at = str(error), At()
    if place := _PLACE.search(text):
        text = text[: place.start()]
        at = tuple(int(index) if index.isdigit() else name or index for name, index in _STEP.findall(place["path"]))
    if found := _EXPECTED.match(text):
        return at, "must be " + _expected(found["kinds"], found["sign"], found["bound"])
    if found := _FIELD.fullmatch(text):
        return (*at, found["name"]), "is missing" if found["what"].startswith("missing") else "is unknown here"
    return at, text.replace("`", "")


def dotted(at: At) -> str:
    return ".".join(map(str, at))


def _expected(kinds: str, sign: str | None, bound: str | None) -> str:
    named = [_KINDS.get(kind, kind) for kind in kinds.split(" | ")]
    if sign is None or bound is None:
        return " or ".join(named)
    limit = f"{_BOUNDS[sign]} {float(bound):.12g}"
    if named == ["a list"]:
        return f"a list with {limit} {'entry' if float(bound) == 1 else 'entries'}"
    return f"{' or '.join(named)}, {limit}"
