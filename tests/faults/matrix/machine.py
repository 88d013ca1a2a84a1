# SPDX-License-Identifier: Apache-2.0
"""Faults of what it all stands on: Docker, containers, GPUs."""

import signal

from tests.faults import strikes
from tests.faults.faults import Fault, Side, Stage
from tests.faults.matrix.rows import always, row
from tests.faults.outcomes import ANSWERED, COMPLETED, CONTINUED, UNDISTURBED, answered, mostly

_WHEN_BACK = answered("answered when Docker is back, by the same engine")
_ANEW = answered("answered when Docker is back, by a new engine")
_OR_ERROR = mostly("the same, or one clear error if it was tried too often before")

FAULTS = (
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
        always(UNDISTURBED),
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
    ),
    Fault(
        "docker-killed",
        "Docker is killed (SIGKILL) and started anew, and its containers end",
        Side.MACHINE,
        strikes.docker_restarts(signal.SIGKILL, live_restore=False),
        row(_ANEW, _OR_ERROR, _OR_ERROR, _OR_ERROR, COMPLETED),
        stage=Stage.DOCKER_RESTARTS,
        afterwards=strikes.new_engines_run,
    ),
    Fault(
        "strangers",
        "strangers take all GPU memory that is free",
        Side.MACHINE,
        strikes.strangers_take_the_memory,
        always(UNDISTURBED),
        stage=Stage.DOCKER,
        afterwards=strikes.strangers_leave,
    ),
    Fault(
        "gpu-lost",
        "a GPU falls off the bus (NVML)",
        Side.MACHINE,
        strikes.gpu_falls_off,
        always(UNDISTURBED),
        stage=Stage.DOCKER,
        afterwards=strikes.gpu_comes_back,
    ),
    Fault(
        "driver-reload",
        "the GPUs' driver is reloaded: NVML fails as a whole",
        Side.MACHINE,
        strikes.driver_goes,
        always(UNDISTURBED),
        stage=Stage.DOCKER,
        afterwards=strikes.driver_comes_back,
    ),
)
