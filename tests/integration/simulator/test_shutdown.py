# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: at once by default, after what is in flight with `--shutdown-timeout`, never with the fault."""

import signal

from tests.integration.simulator.launcher import Launcher
from tests.integration.simulator.test_faults import read_events
from tests.waiting import until, until_refused
from vllm_gateway.simulator.engine import DEAD_MESSAGE
from vllm_gateway.simulator.gpu_memory import SimulatedGpus


async def test_by_default_streams_end_with_an_error_event_at_once(launcher: Launcher) -> None:
    engine = await launcher.ready()
    reply = await engine.stream()
    await reply.content.readline()
    engine.terminate()
    events = await read_events(reply)
    assert events[-2]["error"]["message"] == DEAD_MESSAGE
    assert events[-1] == "[DONE]"
    assert await engine.exit_status() == 0


async def test_with_a_timeout_streams_finish_and_new_requests_are_turned_away(launcher: Launcher) -> None:
    engine = await launcher.ready("--shutdown-timeout=30")
    reply = await engine.stream(max_tokens=300)
    await reply.content.readline()
    engine.terminate()
    await engine.says("Shutting down")
    status, answer = await engine.complete()
    assert (status, answer["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
    async with engine.client.get("/health") as health:
        assert health.status == 200
    events = await read_events(reply)
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert await engine.exit_status() == 0


async def test_a_timeout_that_runs_out_cuts_what_is_left(launcher: Launcher) -> None:
    engine = await launcher.ready("--shutdown-timeout=0.1")
    reply = await engine.stream()
    engine.terminate()
    events = await read_events(reply)
    assert events[-2]["error"]["message"] == DEAD_MESSAGE
    assert await engine.exit_status() == 0


async def test_a_slow_stop_holds_the_memory_and_refuses_connections(gpus: SimulatedGpus, launcher: Launcher) -> None:
    engine = await launcher.ready(stop_s=30)
    engine.terminate()
    await engine.says("Shutting down")
    await until_refused(engine.url)
    assert gpus.gpus()[0].used_mib > 0
    engine.process.send_signal(signal.SIGKILL)
    await engine.exit_status()
    assert gpus.gpus()[0].used_mib == 0


async def test_sigterm_can_be_ignored(launcher: Launcher) -> None:
    engine = await launcher.ready(faults="ignore_sigterm")
    engine.terminate()
    await until(lambda: "SIGTERM is ignored" in engine.log)
    assert (await engine.complete())[0] == 200


async def test_the_reply_says_which_instance_answered(launcher: Launcher) -> None:
    engine = await launcher.ready(name="left")
    async with engine.client.get("/health") as reply:
        assert reply.headers["x-simulated-instance"] == "left"
