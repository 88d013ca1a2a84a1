# SPDX-License-Identifier: Apache-2.0
"""Prints the JSON schema: `python -m vllm_gateway.configuration > config/schema.json`."""

from vllm_gateway.configuration.loading import schema

print(schema(), end="")
