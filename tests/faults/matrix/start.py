# SPDX-License-Identifier: Apache-2.0
"""Faults of starts: nothing of the model is ready, and its requests wait."""

from tests.faults import strikes
from tests.faults.faults import Fault, Side, Stage
from tests.faults.matrix.rows import at_the_start
from tests.faults.outcomes import SERVED, SERVED_AT_LAST, error, event, for_now
from tests.faults.requests import STREAMS
from tests.faults.scene import Scene

_START_FAILED = error("model_start_failed", "503 `model_start_failed` with the reason in short, at once")
_FAILED_IN_STREAM = event("model_start_failed", "an error event `model_start_failed`; until then comments")
_NO_ROOM = error("no_room", "503 `no_room` with the reason, at once; served as soon as there is room")

FAULTS = (
    Fault(
        "bad-argument",
        "fails: an argument that the engine does not know",
        Side.START,
        strikes.nothing,
        at_the_start(_START_FAILED),
        model={"engine_arguments": ["--no-such-option"]},
    ),
    Fault(
        "start-memory",
        "fails: too little GPU memory",
        Side.START,
        strikes.nothing,
        at_the_start(_START_FAILED),
        model={"engine_arguments": ["--max-model-len", "100000000"]},
    ),
    Fault(
        "start-estimate",
        "fails: too little GPU memory, by an estimate of the gateway's",
        Side.START,
        strikes.nothing,
        at_the_start(SERVED_AT_LAST),
        stage=Stage.ALONE,
        model={"footprint_mib": None, "repository": "test/a-50m"},
        environment={"SIM_WEIGHTS_MIB": "4000"},
        settings={"gpus": {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 24_000}] * 2}},
        afterwards=strikes.footprint_was_corrected,
    ),
    Fault(
        "start-crash",
        "fails: the engine crashes while it loads",
        Side.START,
        strikes.nothing,
        at_the_start(_START_FAILED),
        environment={"SIM_FAULTS": "crash_during_load"},
    ),
    Fault(
        "start-keepalive",
        "fails, with `cold_start: keepalive`",
        Side.START,
        strikes.nothing,
        at_the_start(_FAILED_IN_STREAM),
        model={"cold_start": "keepalive"},
        environment={"SIM_LOAD_S": "20", "SIM_FAULTS": "crash_during_load=1.5"},
        kinds=STREAMS,
    ),
    Fault(
        "start-hangs",
        "hangs",
        Side.START,
        strikes.nothing,
        at_the_start(for_now("model_start_failed", "503 `model_start_failed` after `start_timeout_s`")),
        stage=Stage.ALONE,
        environment={"SIM_FAULTS": "hang_during_load"},
        settings={"start_timeout_s": 1},
    ),
    Fault(
        "start-backoff",
        "has failed before, and is not tried again at once",
        Side.START,
        strikes.start_has_failed,
        at_the_start(for_now("model_start_failed", "503 `model_start_failed` with the reason, at once")),
        model={"engine_arguments": ["--no-such-option"]},
    ),
    Fault(
        "docker-away-start",
        "waits: Docker is away for a while",
        Side.START,
        strikes.docker_goes_away_for_a_while,
        at_the_start(SERVED),
        stage=Stage.DOCKER,
        afterwards=Scene.started,
    ),
    Fault(
        "driver-reload-start",
        "has no room: the GPUs' driver is reloaded",
        Side.START,
        strikes.driver_goes,
        at_the_start(_NO_ROOM),
        stage=Stage.DOCKER,
        afterwards=strikes.and_it_is_served(strikes.driver_comes_back),
    ),
    Fault(
        "strangers-start",
        "has no room: strangers hold the GPUs' memory",
        Side.START,
        strikes.strangers_take_the_memory,
        at_the_start(_NO_ROOM),
        stage=Stage.DOCKER,
        afterwards=strikes.and_it_is_served(strikes.strangers_leave),
    ),
    Fault(
        "image-missing",
        "fails: the image is not there",
        Side.START,
        strikes.nothing,
        at_the_start(error("model_start_failed", "503 `model_start_failed` with the reason in short, at once")),
        stage=Stage.DOCKER,
        model={"image": "no-such/image:1"},
    ),
)
