# SPDX-License-Identifier: Apache-2.0
"""What a newcomer does first: the README's commands, in its order, on the demo that it starts."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.gateway import running_gateway
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_the_first_steps(tmp_path: Path) -> None:
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text(encoding="utf-8"))
    demo["state_dir"] = str(tmp_path / "state")
    demo["memory_footprint_file"] = str(tmp_path / "footprints.json")
    (curl,) = [
        text for text in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if text.startswith("curl")
    ]
    (client,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    async with running_gateway(tmp_path, demo) as gateway:
        curl, client = (text.replace("http://127.0.0.1:8000", gateway.url) for text in (curl, client))
        answering = set()
        for _ in range(2):
            answer = await run("sh", "-c", curl)
            assert "200 OK" in answer
            answering |= set(re.findall(r"x-simulated-instance: (\S+)", answer))
        await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
        async with asyncio.timeout(LIMIT_S):  # a new instance gets its share gradually
            while len(answering) < 2:
                answering |= set(re.findall(r"x-simulated-instance: (\S+)", await run("sh", "-c", curl)))
        assert (await run(sys.executable, "-c", client)).strip()
        shown = await run(sys.executable, "-m", "vllm_gateway.cli", "status", "--url", gateway.url)
        assert re.search(r"^gemma3-4B +ready +1/2 .* no room: needs 14000 MiB on 1 GPU;", shown, re.MULTILINE)
        assert re.search(r"^qwen2.5 +ready +1/1", shown, re.MULTILINE)
