# SPDX-License-Identifier: Apache-2.0
"""The life of the process: listening, serving, reloading, handing over, ending, and what killed gateways left."""
