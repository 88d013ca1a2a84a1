# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_gateway.simulator MODEL [vLLM's options]`: starts one simulated engine."""

from __future__ import annotations

import asyncio
import os
import sys

from vllm_gateway.simulator.arguments import Arguments, parse_arguments
from vllm_gateway.simulator.faults import UnknownFaultError
from vllm_gateway.simulator.process import SimulatedEngineProcess
from vllm_gateway.simulator.settings import SimulationSettings


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    settings = SimulationSettings.from_environment(os.environ, model=arguments.model, eager=arguments.enforce_eager)
    sys.exit(asyncio.run(_run(arguments, settings)))


async def _run(arguments: Arguments, settings: SimulationSettings) -> int:
    try:
        process = SimulatedEngineProcess(arguments, settings)
    except UnknownFaultError as error:
        sys.exit(f"SIM_FAULTS: {error}")
    return await process.run()


if __name__ == "__main__":
    main()
