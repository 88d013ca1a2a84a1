# SPDX-License-Identifier: Apache-2.0
"""Hours in minutes: mixed load on more models than fit, random faults, and at the end nothing lost and nothing left."""
