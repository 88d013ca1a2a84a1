# SPDX-License-Identifier: Apache-2.0
"""Faults of starts: nothing of the model is ready, and its requests wait."""

from tests.faults import strikes
from tests.faults.faults import Fault, Side, Stage
from tests.faults.matrix.rows import at_the_start
from tests.faults.outcomes import SERVED, error
from tests.faults.scene import Scene

_START_FAILED = error("model_start_failed", "503 `model_start_failed` with the engine's own last lines, at once")
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
        "start-crash",
        "fails: the engine crashes while it loads",
        Side.START,
        strikes.nothing,
        at_the_start(_START_FAILED),
        environment={"SIM_FAULTS": "crash_during_load"},
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
        afterwards=strikes.driver_comes_back_and_it_is_served,
    ),
    Fault(
        "image-missing",
        "fails: the image is not there",
        Side.START,
        strikes.nothing,
        at_the_start(error("model_start_failed", "503 `model_start_failed` that names the image, at once")),
        stage=Stage.DOCKER,
        model={"image": "no-such/image:1"},
    ),
)
