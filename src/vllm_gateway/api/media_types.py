# SPDX-License-Identifier: Apache-2.0
"""Refuses, before an engine is started for it, a body in a form that the engine would not take."""

from collections.abc import Iterable

from vllm_gateway.api.errors import ApiError
from vllm_gateway.telemetry.cut import cut


def check_media_type(path: str, given: str, taken: str) -> None:
    """Raises ApiError bad_request. `given`: the Content-Type. `taken`: the one type that the path takes."""
    if given.partition(";")[0].strip().lower() != taken:
        said = f"not {cut(given)!r}" if given else "and none was sent"
        raise ApiError("bad_request", f"Unsupported Media Type: {path} takes Content-Type {taken} alone, {said}.")


def check_encoding(given: Iterable[bytes]) -> None:
    """Raises ApiError unsupported_media_type. `given`: what the request's Content-Encoding says."""
    codings = [coding.strip().lower() for value in given for coding in value.split(b",")]
    if any(coding not in (b"", b"identity") for coding in codings):
        said = cut(b", ".join(codings).decode("utf-8", "replace"))
        text = f"The request body is compressed (Content-Encoding: {said}). Send it as it is: engines do not unpack it."
        raise ApiError("unsupported_media_type", text)
