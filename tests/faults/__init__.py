# SPDX-License-Identifier: Apache-2.0
"""Every fault in every phase of a request, on real processes: what the client gets, and that nothing is left behind."""
