# SPDX-License-Identifier: Apache-2.0
"""Tests of the books of GPU memory."""
