# SPDX-License-Identifier: Apache-2.0
"""The shipped strategies: one file each, found by name (see docs/strategies.md)."""
