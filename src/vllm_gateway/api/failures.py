# SPDX-License-Identifier: Apache-2.0
"""What instances have failed one request, and what that says: made with the first failure, so that others cost none."""

from dataclasses import dataclass

from vllm_gateway.scheduling import Lost

NOBODY_GOT_IT = frozenset({"connect_refused", "connect_failed"})
"""With these an instance has failed, but no try was used up."""
_LIVES_ON = NOBODY_GOT_IT | {
    "instance_silent",
    "instance_hung",
    "connect_timeout",
    "first_byte_timeout",
    "idle_timeout",
}
"""With these it has not died while it had the request."""
MOST_HUNG = 2
"""A request that has been on so many engines when they hung is not given a further one: it may be its doing."""


@dataclass(slots=True)
class Failures:
    reason: str = ""
    """Why the last instance failed."""
    failed: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    """Of those: the request has had its time there."""
    hung: int = 0
    """Engines that hung while they had it."""
    lost: Lost | None = None
    lives: bool = False
    """The instance says that it cannot go on, and not that it has died."""
    blames_client: bool = False
    """It says what it could not do, for it was asked wrongly."""

    def add(self, reason: str, instance_id: str, ran_s: float) -> None:
        """One more instance has failed the request, after so long."""
        self.reason = reason
        here = frozenset({instance_id})
        self.failed |= here
        self.hung += reason == "instance_hung"
        if reason == "first_byte_timeout":
            self.never |= here
        if self.lives or reason in _LIVES_ON:
            self.lost = None
        else:
            self.lost = Lost(instance_id, ran_s, (self.lost.all if self.lost else frozenset()) | here)
        self.lives = self.blames_client = False
