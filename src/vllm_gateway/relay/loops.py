# SPDX-License-Identifier: Apache-2.0
"""Tells a request that has come back to the gateway that sent it: each that goes out carries this process's mark."""

import secrets

_MARK = b"vllm-gateway-" + secrets.token_hex(8).encode()
VIA = b"Via: 1.1 " + _MARK + b"\r\n"
"""Beside what others have said in theirs."""


def came_back(via: bytes) -> bool:
    """`via`: what a request says of its way."""
    return _MARK in via
