# SPDX-License-Identifier: Apache-2.0
"""The one exception of the lab: this machine cannot run it, and why."""


class LabUnavailableError(Exception):
    """Raised with a reason that tells the developer what is missing; tests are then skipped, or fail in CI."""
