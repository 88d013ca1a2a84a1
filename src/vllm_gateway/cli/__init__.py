# SPDX-License-Identifier: Apache-2.0
"""What can be typed: one file a command."""

from vllm_gateway.cli.main import main

__all__ = ["main"]
