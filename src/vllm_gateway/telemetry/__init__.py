# SPDX-License-Identifier: Apache-2.0
"""Logs and metrics: used by all, uses none."""
