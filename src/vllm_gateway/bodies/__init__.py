# SPDX-License-Identifier: Apache-2.0
"""What a request's body says, found within bounds of time and memory, whatever was sent."""
