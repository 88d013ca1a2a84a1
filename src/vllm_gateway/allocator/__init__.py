# SPDX-License-Identifier: Apache-2.0
"""The books of GPU memory: what each GPU holds, what fits where, and who makes way."""
