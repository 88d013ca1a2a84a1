# SPDX-License-Identifier: Apache-2.0
"""Passive health: which instances of a model get no requests because of how theirs ended; never the last one. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

from vllm_gateway.configuration.settings import Ejection
from vllm_gateway.scheduling.types import Outcome

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
FORGET_S = 120.0
"""After this long without a failure the pauses begin anew."""

MIN_REQUESTS = 10
"""Fewer do not make a rate."""

_GOOD = frozenset({Outcome.OK, Outcome.CLIENT_ERROR})
_FAULTS = frozenset({Outcome.UNREACHABLE, Outcome.BROKEN})


@dataclass(frozen=True, slots=True)
class Change:
    """An instance was ejected for `pause_s`, or restored."""

    instance_id: str
    ejected: bool
    reason: str
    pause_s: float = 0.0


def may_eject(instances: int, ejected: int, max_share: float) -> bool:
    """One at least, wherever there are two; never the last."""
    return ejected < min(max(1, int(instances * max_share)), instances - 1)


@dataclass(slots=True)
class _Record:
    """Kept of instances that failed lately: those that always work cost nothing."""

    last_bad: float
    since: float  # of good and bad
    good: int = 0
    bad: int = 0
    in_a_row: int = 0
    ejections: int = 0
    until: float | None = None  # ejected; from then on a request may probe it
    probe: object = field(default=None)  # the request that probes it


class PassiveHealth:
    """Hears how requests end. Faults (no reply, or a cut one) count in a row and in the rate, 5xx in the rate only."""

    __slots__ = ("_instances", "_records", "_settings", "ejections", "troubled")

    def __init__(self, settings: Ejection) -> None:
        self.ejections = 0
        self.troubled = False  # whether good outcomes matter to it: looked at for every request
        self._settings = settings
        self._instances: Collection[str] = ()
        self._records: dict[str, _Record] = {}

    def configure(self, settings: Ejection) -> None:
        """Those that are ejected stay so until their probe."""
        self._settings = settings

    def keep(self, instance_ids: Collection[str]) -> None:
        """These are the model's instances now; what was known of others is forgotten."""
        self._instances = instance_ids
        for gone in self._records.keys() - set(instance_ids):
            del self._records[gone]
        self.troubled = bool(self._records)

    def is_ejected(self, instance_id: str) -> bool:
        record = self._records.get(instance_id)
        return record is not None and record.until is not None

    def wants_probe(self, instance_id: str, now: float) -> bool:
        """Whether its pause is over and no request probes it yet."""
        record = self._records.get(instance_id)
        return record is not None and record.until is not None and record.until <= now and record.probe is None

    def placed(self, instance_id: str, request: object) -> None:
        """`request` goes to this instance: if it is ejected and not being probed, this is the probe."""
        record = self._records.get(instance_id)
        if record is not None and record.until is not None and record.probe is None:
            record.probe = request

    def is_probe(self, instance_id: str, request: object) -> bool:
        record = self._records.get(instance_id)
        return record is not None and record.probe is request

    def answers(self, instance_id: str, request: object, now: float) -> Change | None:
        """`request` has a reply that is no error and has begun: as a probe it has succeeded."""
        record = self._records.get(instance_id)
        if record is None or record.until is None or record.probe is not request:
            return None
        return self._restore(instance_id, record, now)

    def ended(self, instance_id: str, request: object, outcome: Outcome, now: float) -> Change | None:
        """`request` has ended there; what follows from it."""
        if instance_id not in self._instances:
            return None
        record = self._records.get(instance_id)
        if record is not None and record.until is not None:
            return self._ended_while_ejected(instance_id, record, request, outcome, now)
        if outcome in _GOOD:
            if record is not None:
                self._good(instance_id, record, now)
            return None
        if outcome is Outcome.CLIENT_GONE:
            return None
        if record is None or now - record.last_bad > FORGET_S:
            record = self._records[instance_id] = _Record(now, now)
            self.troubled = True
        return self._bad(instance_id, record, outcome, now)

    def _ended_while_ejected(
        self, instance_id: str, record: _Record, request: object, outcome: Outcome, now: float
    ) -> Change | None:
        if record.probe is not request:
            return None  # it began before the ejection: that is known already
        record.probe = None
        if outcome is Outcome.CLIENT_GONE:
            return None
        if outcome in _GOOD:
            return self._restore(instance_id, record, now)
        if record.until is not None and now < record.until:
            return None  # it had the request only for want of another instance
        return self._eject(instance_id, record, f"its probe failed ({outcome.value})", now)

    def _good(self, instance_id: str, record: _Record, now: float) -> None:
        record.in_a_row = 0
        if now - record.last_bad > FORGET_S:
            del self._records[instance_id]
            self.troubled = bool(self._records)
            return
        if now - record.since > self._settings.window_s:
            self._begin_window(record, now)
        record.good += 1

    def _bad(self, instance_id: str, record: _Record, outcome: Outcome, now: float) -> Change | None:
        settings = self._settings
        if now - record.since > settings.window_s:
            self._begin_window(record, now)
        record.bad += 1
        record.last_bad = now
        record.in_a_row += outcome in _FAULTS
        requests = record.good + record.bad
        if record.in_a_row >= settings.consecutive_failures:
            reason = f"{record.in_a_row} requests failed in a row ({outcome.value})"
        elif requests >= MIN_REQUESTS and record.bad >= settings.error_rate * requests:
            reason = f"{record.bad} of {requests} requests failed"
        else:
            return None
        ejected = sum(one.until is not None for one in self._records.values())
        if not may_eject(len(self._instances), ejected, settings.max_share):
            return None
        return self._eject(instance_id, record, reason, now)

    def _restore(self, instance_id: str, record: _Record, now: float) -> Change:
        record.until, record.probe, record.last_bad = None, None, now
        record.in_a_row = 0
        self._begin_window(record, now)
        return Change(instance_id, False, "its probe succeeded")

    def _eject(self, instance_id: str, record: _Record, reason: str, now: float) -> Change:
        self.ejections += 1
        record.ejections += 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** (record.ejections - 1), LONGEST_PAUSE_S)
        record.until, record.last_bad = now + pause_s, now
        return Change(instance_id, True, reason, pause_s)

    @staticmethod
    def _begin_window(record: _Record, now: float) -> None:
        record.since, record.good, record.bad = now, 0, 0
