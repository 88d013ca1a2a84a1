# SPDX-License-Identifier: Apache-2.0
"""Faults of clients."""

from tests.faults import strikes
from tests.faults.faults import Fault, Side
from tests.faults.matrix.rows import always, in_the_stream
from tests.faults.outcomes import LEFT, answered

FAULTS = (
    Fault(
        "client-leaves",
        "leaves",
        Side.CLIENT,
        strikes.clients_leave,
        always(LEFT),
    ),
    Fault(
        "client-stalls",
        "does not read its reply",
        Side.CLIENT,
        strikes.client_stops_reading,
        in_the_stream(answered("its connection is closed at `timeouts.client_s`; other clients do not notice")),
        befalls_new=True,
        afterwards=strikes.stalled_client_is_cut_off,
    ),
)
