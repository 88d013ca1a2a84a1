# SPDX-License-Identifier: Apache-2.0
"""A real Docker engine with simulated GPUs, for the integration tests and for developers; see README.md."""
