# SPDX-License-Identifier: Apache-2.0
"""What SIGTERM and Ctrl-C ask for: an end that cuts nothing short; when they come again, an end now."""

import asyncio


class Ending:
    """While the gateway starts there is nothing to be cut short: `task`, which starts it, is cancelled then."""

    def __init__(self, task: "asyncio.Task[object] | None") -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self._starting = task

    def started(self) -> None:
        self._starting = None

    def ask(self) -> None:
        """A signal has come."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
