# SPDX-License-Identifier: Apache-2.0
"""Tells a request that has come back to the gateway that sent it: each that goes out carries this process's mark."""

import secrets
from functools import cache


@cache
def _mark() -> bytes:
    """Made at its first use: processes that were forked from one have one each."""
    return b"vllm-gateway-" + secrets.token_hex(8).encode()


@cache
def via() -> bytes:
    """A line for the head of a request, beside what others have said in theirs."""
    return b"Via: 1.1 " + _mark() + b"\r\n"


def came_back(value: bytes) -> bool:
    """`value`: what a request says of its way."""
    return _mark() in value
