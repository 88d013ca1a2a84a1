# SPDX-License-Identifier: Apache-2.0
"""The table: fault x phase -> what is promised. The tests and the page in docs/reliability.md are made from it."""

from collections.abc import Iterator

from tests.faults.faults import Fault, Stage
from tests.faults.matrix import client, engine, gateway, machine, start
from tests.faults.outcomes import Promise
from tests.faults.phases import Phase

FAULTS: tuple[Fault, ...] = (*engine.FAULTS, *start.FAULTS, *client.FAULTS, *gateway.FAULTS, *machine.FAULTS)
"""In the order of the page."""


def cells(stage: Stage | None = None) -> Iterator[tuple[Fault, Phase, Promise]]:
    for fault in FAULTS:
        if stage in (None, fault.stage):
            for phase, promise in fault.promises.items():
                yield fault, phase, promise
