# SPDX-License-Identifier: Apache-2.0
"""Runtimes with real processes."""
