# SPDX-License-Identifier: Apache-2.0
"""Runtimes without an engine behind them."""
