# SPDX-License-Identifier: Apache-2.0
"""HTTP in for people and their tools: /gateway/..., /metrics."""
