# SPDX-License-Identifier: Apache-2.0
"""Faults of engines, starts and clients: a gateway outlives them in all phases, and finds itself as it was."""

import pytest

from tests.faults.faults import Fault, Stage, play
from tests.faults.outcomes import Outcome
from tests.faults.phases import Phase
from tests.faults.scene import a_scene
from tests.faults.stages import model_name, played
from tests.gateway import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.SHARED))
async def test_what_is_promised(gateway: GatewayProcess, fault: Fault, phase: Phase, outcome: Outcome) -> None:
    async with a_scene(gateway, model_name(fault, phase), instances=fault.instances, kinds=fault.kinds) as scene:
        await play(scene, fault, phase)
        outcome.check(scene)
        await fault.afterwards(scene)
