# SPDX-License-Identifier: Apache-2.0
"""Which strategy is best, where? Every strategy and some yardsticks on simulated engines; see docs/strategies.md."""
