# SPDX-License-Identifier: Apache-2.0
"""Faults of engines that served."""

import signal

from tests.faults import strikes
from tests.faults.faults import Fault, Side
from tests.faults.matrix.rows import ONLY_IN_STREAMS, before_the_reply, in_the_stream, row
from tests.faults.outcomes import (
    ANSWERED,
    ANSWERED_LATER,
    COMPLETED,
    COMPLETED_LATER,
    CONTINUED,
    CONTINUED_LATER,
    UNDISTURBED,
    error,
)
from tests.faults.requests import TWO_CHOICES

_INTERRUPTED = error("stream_interrupted", "an error event `stream_interrupted`")

FAULTS = (
    Fault(
        "killed",
        "is killed (SIGKILL)",
        Side.ENGINE,
        strikes.engine_gets(signal.SIGKILL),
        row(ANSWERED, ANSWERED, ANSWERED, CONTINUED, COMPLETED),
        costs_engine=True,
    ),
    Fault(
        "terminated",
        "is told to end (SIGTERM)",
        Side.ENGINE,
        strikes.engine_gets(signal.SIGTERM),
        row(ANSWERED, ANSWERED, ANSWERED, CONTINUED, COMPLETED),
        costs_engine=True,
    ),
    Fault(
        "killed-choices",
        "is killed while the stream is one that cannot be continued (`n: 2`)",
        Side.ENGINE,
        strikes.engine_gets(signal.SIGKILL),
        row(ONLY_IN_STREAMS, ONLY_IN_STREAMS, ANSWERED, _INTERRUPTED, COMPLETED),
        costs_engine=True,
        kinds=(TWO_CHOICES,),
    ),
    Fault(
        "stands-still",
        "stands still (SIGSTOP), its connections open",
        Side.ENGINE,
        strikes.engine_gets(signal.SIGSTOP),
        row(ANSWERED_LATER, ANSWERED_LATER, ANSWERED_LATER, CONTINUED_LATER, COMPLETED_LATER),
        costs_engine=True,
        model={"first_byte_timeout_s": 1},
        afterwards=strikes.engine_comes_to,
    ),
    Fault(
        "silent",
        "accepts connections and is silent",
        Side.ENGINE,
        strikes.engine_fails_by("silent"),
        before_the_reply(ANSWERED_LATER),
        befalls_new=True,
        costs_engine=True,
        model={"first_byte_timeout_s": 1},
        afterwards=strikes.engine_comes_to,
    ),
    Fault(
        "silent-stream",
        "goes silent within the stream",
        Side.ENGINE,
        strikes.engine_fails_by("silent_after_tokens=5"),
        in_the_stream(CONTINUED_LATER),
        befalls_new=True,
    ),
    Fault(
        "refuses",
        "refuses connections",
        Side.ENGINE,
        strikes.engine_fails_by("refuse_connections"),
        row(ANSWERED, ANSWERED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        costs_engine=True,
    ),
    Fault(
        "answers-503",
        "answers 503",
        Side.ENGINE,
        strikes.engine_fails_by("status_503"),
        before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "shutting-down",
        "answers 500 `cannot schedule new futures after shutdown`",
        Side.ENGINE,
        strikes.engine_fails_by("shutting_down_500"),
        before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "garbage",
        "answers with something that is not HTTP",
        Side.ENGINE,
        strikes.engine_fails_by("garbage"),
        before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "cut-head",
        "answers with half a head",
        Side.ENGINE,
        strikes.engine_fails_by("cut_head"),
        before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "error-event",
        "ends the stream with an error event and `[DONE]`",
        Side.ENGINE,
        strikes.engine_fails_by("error_after_tokens=5"),
        in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "bare-done",
        "ends the stream with `[DONE]` and no finish reason",
        Side.ENGINE,
        strikes.engine_fails_by("done_after_tokens=5"),
        in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "closes",
        "closes the stream's connection",
        Side.ENGINE,
        strikes.engine_fails_by("close_after_tokens=5"),
        in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "resets",
        "resets the stream's connection",
        Side.ENGINE,
        strikes.engine_fails_by("reset_after_tokens=5"),
        in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "gpu-memory",
        "runs out of GPU memory while it works",
        Side.ENGINE,
        strikes.engine_fails_by("out_of_memory_after_tokens=5"),
        in_the_stream(CONTINUED),
        befalls_new=True,
        costs_engine=True,
    ),
)
