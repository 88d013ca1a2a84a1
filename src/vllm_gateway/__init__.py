# SPDX-License-Identifier: Apache-2.0
"""vllm-gateway: one OpenAI-compatible address in front of vLLM, several instances a model."""

__version__ = "0.1.0"
