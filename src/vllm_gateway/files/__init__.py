# SPDX-License-Identifier: Apache-2.0
"""Reading what an operator names, whatever lies there: no pipe, device or dead network drive holds anybody up."""
