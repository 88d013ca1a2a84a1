# SPDX-License-Identifier: Apache-2.0
"""What one worker of a parallel run plays, one after the other: tests that share something dear to start."""

from xdist.scheduler import LoadScopeScheduling

_ENDS = {"tests/faults/": ", ", "tests/vllm/": "::"}
"""By folder: tests whose names are the same up to there go together, as the phases of a fault do."""


class SideBySide(LoadScopeScheduling):  # type: ignore[misc]
    """Large groups first, then in the order of the files. Tests do not wait for a worker that is busy."""

    def _split_scope(self, nodeid: str) -> str:
        for folder, end in _ENDS.items():
            if nodeid.startswith(folder):
                return nodeid.partition(end)[0]
        return nodeid
