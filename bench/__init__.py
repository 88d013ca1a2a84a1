# SPDX-License-Identifier: Apache-2.0
"""What does a request cost? Measures this gateway beside nginx and other routers; see docs/performance.md."""
