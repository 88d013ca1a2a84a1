# SPDX-License-Identifier: Apache-2.0
"""The table: fault x phase -> what is promised. The tests and the page in docs/reliability.md are made from it."""

import signal
from collections.abc import Iterator

from tests.faults import strikes
from tests.faults.faults import Fault, Side, Stage
from tests.faults.outcomes import (
    ANSWERED,
    ANSWERED_LATER,
    COMPLETED,
    COMPLETED_LATER,
    CONTINUED,
    CONTINUED_LATER,
    CUT,
    CUT_AND_ADOPTED,
    LEFT,
    SERVED,
    UNDISTURBED,
    CannotHappen,
    Promise,
    answered,
    error,
    mostly,
    refused,
)
from tests.faults.phases import Phase
from tests.faults.requests import TWO_CHOICES
from tests.faults.scene import Scene


def row(queued: Promise, connecting: Promise, before: Promise, stream: Promise, end: Promise) -> dict[Phase, Promise]:
    return dict(zip(Phase, (queued, connecting, before, stream, end), strict=True))


_TOO_LATE = CannotHappen("its status has been sent")
_ONLY_IN_STREAMS = CannotHappen("nothing is streamed yet")
_SAID_ALL = CannotHappen("the engine has said all")
_NO_INSTANCE = CannotHappen("there is no instance")

_WHEN_BACK = answered("answered when Docker is back, by the same engine")
_ANEW = answered("answered when Docker is back, by a new engine")
_OR_ERROR = mostly("the same, or one clear error if it was tried too often before")


def _before_the_reply(promise: Promise) -> dict[Phase, Promise]:
    return row(promise, promise, promise, _TOO_LATE, _TOO_LATE)


def _in_the_stream(promise: Promise) -> dict[Phase, Promise]:
    return row(_ONLY_IN_STREAMS, _ONLY_IN_STREAMS, _ONLY_IN_STREAMS, promise, _SAID_ALL)


def _at_the_start(promise: Promise) -> dict[Phase, Promise]:
    return row(promise, _NO_INSTANCE, _NO_INSTANCE, _NO_INSTANCE, _NO_INSTANCE)


_INTERRUPTED = error("stream_interrupted", "an error event `stream_interrupted`")
_START_FAILED = error("model_start_failed", "503 `model_start_failed` with the engine's own last lines, at once")
_NO_ROOM = error("no_room", "503 `no_room` with the reason, at once; served as soon as there is room")
_REFUSED = refused("stopping", "finished, or refused")
_STOPPING = error("stopping", "503 `stopping`")
_SAYS_GOODBYE = error("stopping", "an error event `stopping`")
_FINISHED = answered("finished before the gateway ends")

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
        row(_ONLY_IN_STREAMS, _ONLY_IN_STREAMS, ANSWERED, _INTERRUPTED, COMPLETED),
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
        _before_the_reply(ANSWERED_LATER),
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
        _in_the_stream(CONTINUED_LATER),
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
        _before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "shutting-down",
        "answers 500 `cannot schedule new futures after shutdown`",
        Side.ENGINE,
        strikes.engine_fails_by("shutting_down_500"),
        _before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "garbage",
        "answers with something that is not HTTP",
        Side.ENGINE,
        strikes.engine_fails_by("garbage"),
        _before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "cut-head",
        "answers with half a head",
        Side.ENGINE,
        strikes.engine_fails_by("cut_head"),
        _before_the_reply(ANSWERED),
        befalls_new=True,
    ),
    Fault(
        "error-event",
        "ends the stream with an error event and `[DONE]`",
        Side.ENGINE,
        strikes.engine_fails_by("error_after_tokens=5"),
        _in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "bare-done",
        "ends the stream with `[DONE]` and no finish reason",
        Side.ENGINE,
        strikes.engine_fails_by("done_after_tokens=5"),
        _in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "closes",
        "closes the stream's connection",
        Side.ENGINE,
        strikes.engine_fails_by("close_after_tokens=5"),
        _in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "resets",
        "resets the stream's connection",
        Side.ENGINE,
        strikes.engine_fails_by("reset_after_tokens=5"),
        _in_the_stream(CONTINUED),
        befalls_new=True,
    ),
    Fault(
        "gpu-memory",
        "runs out of GPU memory while it works",
        Side.ENGINE,
        strikes.engine_fails_by("out_of_memory_after_tokens=5"),
        _in_the_stream(CONTINUED),
        befalls_new=True,
        costs_engine=True,
    ),
    Fault(
        "bad-argument",
        "fails: an argument that the engine does not know",
        Side.START,
        strikes.nothing,
        _at_the_start(_START_FAILED),
        model={"engine_arguments": ["--no-such-option"]},
    ),
    Fault(
        "start-memory",
        "fails: too little GPU memory",
        Side.START,
        strikes.nothing,
        _at_the_start(_START_FAILED),
        model={"engine_arguments": ["--max-model-len", "100000000"]},
    ),
    Fault(
        "start-crash",
        "fails: the engine crashes while it loads",
        Side.START,
        strikes.nothing,
        _at_the_start(_START_FAILED),
        model={"environment": {"SIM_FAULTS": "crash_during_load"}},
    ),
    Fault(
        "client-leaves",
        "leaves",
        Side.CLIENT,
        strikes.clients_leave,
        row(LEFT, LEFT, LEFT, LEFT, LEFT),
    ),
    Fault(
        "client-stalls",
        "does not read its reply",
        Side.CLIENT,
        strikes.client_stops_reading,
        _in_the_stream(answered("its connection is closed at `timeouts.client_s`; other clients do not notice")),
        befalls_new=True,
        afterwards=strikes.stalled_client_is_cut_off,
    ),
    Fault(
        "gateway-sigterm",
        "is told to end (SIGTERM)",
        Side.GATEWAY,
        strikes.gateway_is_told_to_end,
        row(
            _FINISHED,
            _REFUSED,
            _FINISHED,
            _FINISHED,
            _FINISHED,
        ),
        stage=Stage.ALONE,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-drain",
        "is told to end, and requests take longer than `server.drain_timeout_s`",
        Side.GATEWAY,
        strikes.gateway_is_told_to_end,
        row(_STOPPING, _REFUSED, _STOPPING, _SAYS_GOODBYE, COMPLETED),
        stage=Stage.ALONE,
        server={"drain_timeout_s": 0.5},
        stays_held=True,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-take-over",
        "gives over to a new one (`--take-over`); engines in containers",
        Side.GATEWAY,
        strikes.gateway_gives_over,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        stage=Stage.DOCKER_ALONE,
        afterwards=Scene.gateway_died,
    ),
    Fault(
        "gateway-sigkill",
        "is killed (SIGKILL)",
        Side.GATEWAY,
        strikes.gateway_dies,
        row(CUT, CUT, CUT, CUT, CUT),
        stage=Stage.ALONE,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-sigkill-docker",
        "is killed; engines in containers",
        Side.GATEWAY,
        strikes.gateway_dies,
        row(CUT_AND_ADOPTED, CUT_AND_ADOPTED, CUT_AND_ADOPTED, CUT_AND_ADOPTED, CUT_AND_ADOPTED),
        stage=Stage.DOCKER_ALONE,
        afterwards=Scene.gateway_died,
    ),
    Fault(
        "model-changes",
        "reads a configuration in which the model is another",
        Side.GATEWAY,
        strikes.model_changes,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        costs_engine=True,
        afterwards=strikes.replaced,
    ),
    Fault(
        "bad-configuration",
        "reads a configuration that is wrong",
        Side.GATEWAY,
        strikes.configuration_breaks,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
    ),
    Fault(
        "container-memory",
        "the container of an engine is killed for its memory",
        Side.MACHINE,
        strikes.container_runs_out_of_memory,
        row(ANSWERED, ANSWERED, ANSWERED, CONTINUED, COMPLETED),
        stage=Stage.DOCKER,
        costs_engine=True,
    ),
    Fault(
        "container-killed",
        "the container of an engine is killed",
        Side.MACHINE,
        strikes.engine_gets(signal.SIGKILL),
        row(ANSWERED, ANSWERED, ANSWERED, CONTINUED, COMPLETED),
        stage=Stage.DOCKER,
        costs_engine=True,
    ),
    Fault(
        "docker-away",
        "Docker goes away, and comes back",
        Side.MACHINE,
        strikes.docker_goes_away,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        stage=Stage.DOCKER,
        costs_engine=True,
        afterwards=strikes.docker_comes_back,
    ),
    Fault(
        "docker-keeps",
        "Docker restarts and keeps its containers (`live-restore`), but not the ports that it publishes",
        Side.MACHINE,
        strikes.docker_restarts(signal.SIGTERM, live_restore=True),
        row(_WHEN_BACK, _OR_ERROR, _OR_ERROR, _OR_ERROR, COMPLETED),
        stage=Stage.DOCKER_RESTARTS,
        afterwards=strikes.same_engines_go_on,
    ),
    Fault(
        "docker-restarts",
        "Docker restarts, and its containers end",
        Side.MACHINE,
        strikes.docker_restarts(signal.SIGTERM, live_restore=False),
        row(_ANEW, _OR_ERROR, _OR_ERROR, _OR_ERROR, COMPLETED),
        stage=Stage.DOCKER_RESTARTS,
        afterwards=strikes.new_engines_run,
        needs_calm=True,
    ),
    Fault(
        "docker-away-start",
        "waits: Docker is away for a while",
        Side.START,
        strikes.docker_goes_away_for_a_while,
        _at_the_start(SERVED),
        stage=Stage.DOCKER,
        befalls_new=True,
        afterwards=Scene.started,
    ),
    Fault(
        "driver-reload-start",
        "has no room: the GPUs' driver is reloaded",
        Side.START,
        strikes.driver_goes,
        _at_the_start(_NO_ROOM),
        stage=Stage.DOCKER,
        befalls_new=True,
        afterwards=strikes.driver_comes_back_and_it_is_served,
    ),
    Fault(
        "image-missing",
        "fails: the image is not there",
        Side.START,
        strikes.nothing,
        _at_the_start(error("model_start_failed", "503 `model_start_failed` that names the image, at once")),
        stage=Stage.DOCKER,
        model={"image": "no-such/image:1"},
    ),
    Fault(
        "gpu-lost",
        "a GPU falls off the bus (NVML)",
        Side.MACHINE,
        strikes.gpu_falls_off,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        stage=Stage.DOCKER,
        afterwards=strikes.gpu_comes_back,
    ),
    Fault(
        "driver-reload",
        "the GPUs' driver is reloaded: NVML fails as a whole",
        Side.MACHINE,
        strikes.driver_goes,
        row(UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        stage=Stage.DOCKER,
        afterwards=strikes.driver_comes_back,
    ),
)


def cells(stage: Stage | None = None) -> Iterator[tuple[Fault, Phase, Promise]]:
    for fault in FAULTS:
        if stage in (None, fault.stage):
            for phase, promise in fault.promises.items():
                yield fault, phase, promise
