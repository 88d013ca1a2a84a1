# SPDX-License-Identifier: Apache-2.0
"""Engines that run and do not answer, or do not work, on real processes: spared, waited for, replaced."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.engines import engine_pids, engines_of_somebody_else, set_faults
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.waiting import until

QUICK = {"every_s": 0.2, "timeout_s": 0.3, "replace_after_s": 600}


@asynccontextmanager
async def instances_of_a(
    folder: Path, count: int, health: dict[str, Any], **more: Any
) -> AsyncIterator[GatewayProcess]:
    settings = config(models={"a": model("a", instances=count)}, health={**QUICK, **health}, **more)
    async with running_gateway(folder, settings) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == count)
        yield gateway


async def engines(gateway: GatewayProcess) -> list[tuple[str, str, int]]:
    """Name, address and process of each."""
    pids = engine_pids(gateway.process.pid)
    page = await gateway.status()
    return [(one["name"], one["address"], pids[one["address"]]) for one in page["active_containers_by_name"].values()]


async def health_of(gateway: GatewayProcess, name: str) -> str:
    page = await gateway.status()
    return str(page["active_containers_by_name"][name]["health"])


async def test_one_that_stops_for_a_while_gets_no_requests_and_comes_back(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 2, {}) as gateway:
        (name, _, pid), (other, _, _) = await engines(gateway)
        os.kill(pid, signal.SIGSTOP)
        said = await gateway.event("instance_sick", instance=name, hung=False)
        assert "no answer within 0.3 s" in said["reason"]
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(6)))
        assert {headers["x-simulated-instance"] for _, headers, _ in answers} == {other}
        page = await gateway.status()
        shown = page["active_containers_by_name"][name]
        assert shown["health"] == "sick"
        assert "it is replaced in" in shown["trouble"]
        os.kill(pid, signal.SIGCONT)
        await gateway.event("instance_well", instance=name)
        answers = [await gateway.chat("a") for _ in range(4)]
        assert {headers["x-simulated-instance"] for _, headers, _ in answers} == {name, other}
        assert not gateway.events("instance_failed")


async def test_requests_that_wait_for_its_first_byte_go_elsewhere(tmp_path: Path) -> None:
    retry = {"floor": 0, "budget": 0}  # what a silent one had to do is no repetition
    async with instances_of_a(tmp_path, 2, {}, retry=retry) as gateway:
        (name, address, pid), (other, other_address, _) = await engines(gateway)
        for each in (address, other_address):
            await set_faults(each, "hold_after_tokens=0")
        asked = [asyncio.create_task(gateway.chat("a", max_tokens=4 + n)) for n in range(4)]
        streams = [asyncio.create_task(streamed(gateway)) for _ in range(4)]
        await gateway.until(lambda page: page["active_containers_by_name"][name]["in_flight"] >= 3)
        os.kill(pid, signal.SIGSTOP)
        await gateway.event("instance_sick", instance=name)
        await gateway.until(lambda page: page["active_containers_by_name"][other]["in_flight"] == 8)
        await set_faults(other_address)
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 4
        assert all(
            text.rstrip().endswith("data: [DONE]") and "error" not in text for text in await asyncio.gather(*streams)
        )
        os.kill(pid, signal.SIGCONT)


async def streamed(gateway: GatewayProcess) -> str:
    body = {"model": "a", "prompt": "x", "max_tokens": 4, "stream": True}
    async with gateway.http.post("/v1/completions", json=body) as reply:
        return await reply.text()


async def test_alone_its_requests_wait_for_it(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 1, {}) as gateway:
        ((name, _, pid),) = await engines(gateway)
        os.kill(pid, signal.SIGSTOP)
        before = asyncio.create_task(gateway.chat("a"))
        await gateway.event("instance_sick", instance=name)
        after = asyncio.create_task(gateway.chat("a"))
        await gateway.until(lambda page: page["models"]["a"]["queued"] == 1)
        os.kill(pid, signal.SIGCONT)
        assert [(await one)[0] for one in (before, after)] == [200, 200]
        assert not gateway.events("instance_failed")


async def test_one_that_does_not_answer_is_replaced_after_its_limit_and_its_requests_are_answered(
    tmp_path: Path,
) -> None:
    async with instances_of_a(tmp_path, 1, {"replace_after_s": 1}) as gateway:
        ((name, _, pid),) = await engines(gateway)
        os.kill(pid, signal.SIGSTOP)
        assert (await gateway.chat("a"))[0] == 200
        said = await gateway.event("instance_failed", instance=name)
        assert "its health check gets no answer" in said["reason"]
        await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_while_more_than_half_looks_sick_none_is_replaced_and_it_says_so(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 2, {"replace_after_s": 10}) as gateway:
        both = await engines(gateway)
        for _, _, pid in both:
            os.kill(pid, signal.SIGSTOP)
        await gateway.event("model_looks_sick", model="a", sick=2, instances=2)
        async with gateway.http.get("/health") as reply:
            assert "2 of 2 instances look sick" in await reply.text()
        for _, _, pid in both:
            os.kill(pid, signal.SIGCONT)
        await gateway.event("instance_well", count=2)
        assert (await gateway.chat("a"))[0] == 200


async def test_one_whose_replies_go_on_is_alive_whatever_its_health_check_says(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 2, {"replace_after_s": 0.5}) as gateway:
        (name, address, _), (_, other, _) = await engines(gateway)
        for each in (address, other):
            await set_faults(each, "never_healthy")
        long = {"model": "a", "prompt": "x", "max_tokens": 1500, "stream": True, "ignore_eos": True}
        async with (
            gateway.http.post("/v1/completions", json=long) as one,
            gateway.http.post("/v1/completions", json=long) as two,
        ):
            texts = await asyncio.gather(one.text(), two.text())
        assert all(text.rstrip().endswith("data: [DONE]") for text in texts)
        assert not gateway.events("instance_sick", instance=name), "it had work all the while"
        await gateway.event("instance_sick", count=2)


async def test_a_request_that_has_waited_in_vain_is_not_sent_there_again_alone_or_not(tmp_path: Path) -> None:
    settings = config(
        models={name: model(name, instances=count, first_byte_timeout_s=0.5) for name, count in (("a", 1), ("b", 2))},
        gpus=3,
    )
    async with running_gateway(tmp_path, settings) as gateway:
        for name, count in (("a", 1), ("b", 2)):
            await gateway.chat(name)
            await gateway.until(lambda page, name=name, count=count: page["models"][name]["running"] == count)  # type: ignore[misc]
        for _, address, _ in await engines(gateway):
            await set_faults(address, "hold_after_tokens=0")
        for name, count in (("a", 1), ("b", 2)):
            status, _, answer = await gateway.chat(name)
            assert (status, answer["error"]["code"]) == (504, "first_byte_timeout")
            assert (await gateway.event("request_finished", model=name, status=504))["attempts"] == count
        assert not gateway.events("instance_failed")


async def test_one_of_two_that_hangs_behind_a_green_health_check_is_replaced(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 2, {"stall_s": 1}) as gateway:
        (name, address, pid), (other, _, _) = await engines(gateway)
        await asyncio.gather(*(gateway.chat("a") for _ in range(4)))
        await set_faults(address, "core_hangs")
        asked = [asyncio.create_task(gateway.chat("a")) for _ in range(4)]
        streams = [asyncio.create_task(streamed(gateway)) for _ in range(4)]
        said = await gateway.event("instance_sick", instance=name, hung=True)
        assert "nothing moved" in said["reason"]
        assert "/v1/completions: no answer" in said["reason"]
        assert "a small one failed too" in said["reason"]
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 4
        assert all(text.rstrip().endswith("data: [DONE]") for text in await asyncio.gather(*streams))
        await gateway.event("instance_failed", instance=name)
        await until(lambda: not Path(f"/proc/{pid}").exists())
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        assert not gateway.events("instance_sick", instance=other)


async def test_alone_too_and_its_requests_are_answered_by_its_successor(tmp_path: Path) -> None:
    async with instances_of_a(tmp_path, 1, {"stall_s": 1}) as gateway:
        ((name, address, _),) = await engines(gateway)
        await set_faults(address, "core_hangs")
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(3)))
        assert [status for status, _, _ in answers] == [200] * 3
        assert gateway.events("instance_failed", instance=name)


async def test_it_is_found_though_no_client_waits_so_long(tmp_path: Path) -> None:
    settings = config(models={"a": model("a", first_byte_timeout_s=0.3)}, health={**QUICK, "stall_s": 2})
    async with running_gateway(tmp_path, settings) as gateway:
        await gateway.chat("a")
        ((name, address, _),) = await engines(gateway)
        await set_faults(address, "core_hangs")
        while not gateway.events("instance_sick", instance=name, hung=True):
            status, _, _ = await gateway.chat("a")
            assert status in (200, 504)
        await gateway.event("instance_failed", instance=name)
        assert (await gateway.chat("a"))[0] == 200


async def test_a_busy_one_whose_counters_move_is_never_touched(tmp_path: Path) -> None:
    slow = model("a", engine_arguments=["--max-num-seqs", "1"])  # whoever comes next waits for long
    async with running_gateway(tmp_path, config(models={"a": slow}, health={**QUICK, "stall_s": 0.5})) as gateway:
        await gateway.chat("a")
        answers = await asyncio.gather(*(gateway.chat("a", max_tokens=1000, ignore_eos=True) for _ in range(3)))
        assert [status for status, _, _ in answers] == [200] * 3
        assert not gateway.events("instance_sick")


async def test_an_engine_of_somebody_else_that_hangs_is_spared_and_comes_back(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as urls:
        settings = {"runtime": "process", "models": {"a": {"endpoints": urls}}, "health": {**QUICK, "stall_s": 1}}
        async with running_gateway(tmp_path, settings) as gateway:
            await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
            address = urls[0].removeprefix("http://")
            await set_faults(address, "core_hangs")
            answers = await asyncio.gather(*(gateway.chat("a") for _ in range(4)))
            assert [status for status, _, _ in answers] == [200] * 4
            name = (await gateway.event("instance_sick", hung=True))["instance"]
            assert name.endswith(address)
            page = await gateway.status()
            assert "once it works" in page["active_containers_by_name"][name]["trouble"]
            await set_faults(address)
            await gateway.event("instance_well", instance=name)
            assert not gateway.events("instance_failed")


async def test_a_request_that_was_on_two_engines_when_they_hung_is_not_given_a_third(tmp_path: Path) -> None:
    hangs = {**FAST, "SIM_FAULTS": "core_hangs"}
    models = {"a": {**model("a"), "environment": hangs}}
    async with running_gateway(tmp_path, config(models=models, health={**QUICK, "stall_s": 0.5})) as gateway:
        status, _, answer = await gateway.chat("a")
        assert (status, answer["error"]["code"]) == (502, "instance_failed")
        assert "2 engines hung" in answer["error"]["message"]
        assert (await gateway.event("request_finished", status=502))["attempts"] == 2
        assert len(gateway.events("instance_sick", hung=True)) == 2


async def test_who_waits_for_endpoints_that_are_down_is_told_so(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    settings = {"runtime": "process", "queue_timeout_s": 1, "models": {"a": {"endpoints": [url]}}}
    async with running_gateway(tmp_path, settings) as gateway:
        await gateway.event("endpoint_unfit", endpoint=url)
        status, _, answer = await gateway.chat("a")
        assert (status, answer["error"]["code"]) == (503, "queue_timeout")
        why = "Its endpoint cannot be used: its health check fails"
        assert answer["error"]["message"] == f"No instance of a was free within 1 s (queue_timeout_s). {why}."
        page = await gateway.status()
        assert page["problems"] == [f"a: {why}"]
        assert page["models"]["a"]["why_fewer"].startswith(f"{url}: its health check fails: ConnectionRefusedError")
