# SPDX-License-Identifier: Apache-2.0
"""What the gateway keeps may vanish while it runs: engines start nevertheless."""

import shutil
import stat
from pathlib import Path

from tests.gateway import running_gateway
from tests.integration.test_gateway import config, model


async def test_a_state_folder_that_vanishes_is_made_anew_or_replaced_and_engines_start(tmp_path: Path) -> None:
    one_at_a_time = config(gpus=1, models={name: model(name) for name in ("a", "b")})
    async with running_gateway(tmp_path, one_at_a_time) as gateway:
        state = tmp_path / "state"
        assert (await gateway.chat("a"))[0] == 200
        shutil.rmtree(state)
        assert (await gateway.chat("b"))[0] == 200
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        state.rename(tmp_path / "aside")
        state.touch()
        assert (await gateway.chat("a"))[0] == 200
        assert (await gateway.event("state_dir_unusable"))["folder"] == str(state)
        async with gateway.http.get("/health") as reply:
            health = await reply.json()
        assert health["status"] == "degraded"
        assert "is not a folder" in health["problems"][0]
        assert (await gateway.status())["problems"] == health["problems"]
