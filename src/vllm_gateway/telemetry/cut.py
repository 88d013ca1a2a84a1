# SPDX-License-Identifier: Apache-2.0
"""What strangers have named, as errors, log lines and labels show it: its beginning, which any encoder can write."""

LONGEST = 100
_MORE = "..."


def cut(text: str) -> str:
    """At most LONGEST characters of a path, a name, a header; what is no character (a lone surrogate) as an escape."""
    if len(text) > LONGEST:
        text = text[: LONGEST - len(_MORE)] + _MORE
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
