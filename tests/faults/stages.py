# SPDX-License-Identifier: Apache-2.0
"""The configurations of the gateways under test, and the cells of each as parameters of its tests."""

from typing import Any

import pytest

from tests.faults.faults import Fault, Stage
from tests.faults.matrix import cells
from tests.faults.outcomes import CannotHappen
from tests.faults.phases import Phase
from tests.faults.scene import FOOTPRINT_MIB, GPU_RESERVED_MIB, PLACES
from tests.lab.lab import Lab

FAST = {"SIM_LOAD_S": "0.1", "SIM_WEIGHTS_MIB": "100", "SIM_TOKENS_PER_S": "500"}


def model_name(fault: Fault, phase: Phase) -> str:
    """One for all phases; where a fault costs an instance, one for each: back-offs are a model's."""
    return f"{fault.id}-{phase.name.lower()}" if fault.costs_engine else fault.id


def model(fault: Fault) -> dict[str, Any]:
    return {
        "repository": f"test/{fault.id}",
        "environment": {**FAST, **fault.environment},
        "footprint_mib": FOOTPRINT_MIB,
        "instances": 2,
        "max_in_flight": PLACES,
        **fault.model,
    }


def configuration(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """There is room for all of them: nothing is evicted."""
    device = {"name": "Simulated GPU", "memory_mib": FOOTPRINT_MIB * (len(models) + 1)}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "simulated", "devices": [device] * 2, "margin_mib": 0, "min_resident_s": 0},
        "retry": {"floor": 1000},  # cells come faster than the requests of any client that the budget is made for
        "models": models,
    }


def configuration_for(fault: Fault) -> dict[str, Any]:
    """For all phases."""
    pinned = fault.stage is Stage.DOCKER  # strangers take the GPUs' memory: nobody is to make way for who finds none
    models = {model_name(fault, phase): {"pinned": pinned, **model(fault)} for phase in fault.promises}
    return {**configuration(models), **fault.settings}


def in_docker(config: dict[str, Any], lab: Lab) -> dict[str, Any]:
    """The same, with engines in the lab's containers, on the lab's GPUs."""
    lab.reset_gpus(2, config["gpus"]["devices"][0]["memory_mib"] + GPU_RESERVED_MIB)
    return {
        **config,
        "runtime": "docker",
        "docker": {"image": lab.image, "pull": "never"},
        "gpus": {"margin_mib": 0, "min_resident_s": 0},
    }


def played(stage: Stage) -> list[Any]:
    """(fault, phase, outcome) of every cell that can happen."""
    return [
        pytest.param(fault, phase, promise, id=f"{fault.id}, {phase.value}")
        for fault, phase, promise in cells(stage)
        if not isinstance(promise, CannotHappen)
    ]
