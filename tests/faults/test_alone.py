# SPDX-License-Identifier: Apache-2.0
"""Faults that befall the gateway itself, or need one of another make: each cell has one of its own."""

from pathlib import Path

import pytest

from tests.faults.faults import Fault, Stage, play
from tests.faults.outcomes import Outcome
from tests.faults.phases import Phase
from tests.faults.scene import a_scene
from tests.faults.stages import configuration, model, played
from tests.gateway import running_gateway


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.ALONE))
async def test_what_is_promised(tmp_path: Path, fault: Fault, phase: Phase, outcome: Outcome) -> None:
    config = {**configuration({"m": model(fault)}), **fault.settings}
    async with (
        running_gateway(tmp_path, config, may_be_killed=True) as gateway,
        a_scene(gateway, "m", instances=fault.instances, kinds=fault.kinds) as scene,
    ):
        await play(scene, fault, phase)
        outcome.check(scene)
        await fault.afterwards(scene)
