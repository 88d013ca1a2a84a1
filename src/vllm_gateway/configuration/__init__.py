# SPDX-License-Identifier: Apache-2.0
"""What is wanted: every setting and its default (`settings`), read and checked from file, environment, command line."""
