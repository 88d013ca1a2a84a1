# SPDX-License-Identifier: Apache-2.0
"""How to start an engine and talk to it."""
