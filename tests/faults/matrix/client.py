# SPDX-License-Identifier: Apache-2.0
"""Faults of clients."""

from tests.faults import strikes, waits
from tests.faults.faults import Fault, Side
from tests.faults.matrix.rows import SOON, TOO_LATE, always, in_the_stream, row, when_queued
from tests.faults.outcomes import COMPLETED, LEFT, CannotHappen, answered, error, event, for_now
from tests.faults.requests import SENSELESS

_AS_IT_CAME = answered("the engine's answer as it came; nobody else is asked, and nobody blamed")
_IS_THE_FIRST_BYTE = CannotHappen("it is refused before there is anything to wait for")
_TOO_LONG = for_now("request_timeout", "504 `request_timeout`")
_TOO_LONG_TOO = error("request_timeout", "504 `request_timeout`; an event where the engine has sent a stream's head")
_CUT_SHORT = event("request_timeout", "an error event `request_timeout`")
_ENDS_ITSELF = CannotHappen("connecting ends at `timeouts.connect_s`")

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
        settings=SOON,
        afterwards=strikes.stalled_client_is_cut_off,
    ),
    Fault(
        "senseless",
        "asks for what the engine refuses (4xx)",
        Side.CLIENT,
        strikes.nothing,
        row(_AS_IT_CAME, _AS_IT_CAME, _IS_THE_FIRST_BYTE, TOO_LATE, TOO_LATE),
        kinds=SENSELESS,
        afterwards=strikes.nobody_was_blamed,
    ),
    Fault(
        "queue-full",
        "comes when `queue_size` others wait",
        Side.CLIENT,
        waits.the_queue_is_full,
        when_queued(for_now("queue_full", "429 `queue_full` with `Retry-After`, at once; the others are answered")),
        afterwards=waits.those_before_were_served,
    ),
    Fault(
        "queue-timeout",
        "waits for `queue_timeout_s`",
        Side.CLIENT,
        waits.a_wait_may_take_so_long,
        when_queued(for_now("queue_timeout", "503 `queue_timeout` with `Retry-After`")),
        afterwards=waits.those_before_were_served,
    ),
    Fault(
        "client-patience",
        "waits for as long as its `X-Request-Timeout` says",
        Side.CLIENT,
        waits.a_client_has_little_patience,
        when_queued(for_now("request_timeout", "504 `request_timeout` with `Retry-After`")),
        afterwards=waits.those_before_were_served,
    ),
    Fault(
        "request-timeout",
        "asks for what takes longer than `timeouts.request_s`",
        Side.CLIENT,
        waits.a_request_may_take_so_long,
        row(_TOO_LONG, _ENDS_ITSELF, _TOO_LONG_TOO, _CUT_SHORT, COMPLETED),
        befalls_new=True,
        stays_held=True,
        afterwards=waits.those_before_were_served,
    ),
)
