# SPDX-License-Identifier: Apache-2.0
"""What runs: instances, their states, and the supervisor that brings wanted and running together."""
