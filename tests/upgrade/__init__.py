# SPDX-License-Identifier: Apache-2.0
"""The release before this one, with all that it has started: taken over, and given back."""

PREVIOUS_RELEASE = "c3a3663"
"""A tag or a commit. A new release names its predecessor here, and nowhere else."""
