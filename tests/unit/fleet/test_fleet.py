# SPDX-License-Identifier: Apache-2.0
"""The loops that the gateway lives by go on whatever befalls one of their rounds."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.unit.fleet.broken_runtime import NOBODY, BrokenRuntime
from tests.unit.fleet.simulation import SimulatedActivity
from tests.waiting import until
from vllm_gateway.allocator.footprints import FootprintStore
from vllm_gateway.allocator.probe import GpuReading, ProbeError
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.fleet import endpoints as endpoints_module
from vllm_gateway.fleet import engine_metrics as metrics_module
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import fleet as fleet_module
from vllm_gateway.fleet import health
from vllm_gateway.fleet import memory as memory_module
from vllm_gateway.fleet.engine_keys import EngineKeys
from vllm_gateway.fleet.engines.vllm import spec_hash
from vllm_gateway.fleet.fleet import Fleet
from vllm_gateway.fleet.runtimes import Found
from vllm_gateway.routing import Address, EngineMetrics, Refusal, RoutingTable


class Probe:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs: threading.Event | None = None

    def read(self) -> list[GpuReading]:
        if self.hangs is not None:
            self.hangs.wait(10)
        if self.error is not None:
            raise self.error
        return [GpuReading("g0", 0, "card", 24576, 1000)]


class Requests:
    """The request side, which may have bugs of its own."""

    def __init__(self) -> None:
        self.table = RoutingTable()
        self.seen: set[str] = set()
        self.errors: list[Exception] = []

    def publish(self, table: RoutingTable) -> None:
        self.table = table

    def refuse(self, model: str, refusal: Refusal) -> None: ...

    def measured(self, instance_id: str, metrics: EngineMetrics) -> None:
        if self.errors:
            raise self.errors.pop()
        self.seen.add(instance_id)


class House:
    def __init__(self, fleet: Fleet, probe: Probe, requests: Requests, told: list[dict[str, Any]]) -> None:
        self.fleet, self.probe, self.requests, self.told = fleet, probe, requests, told
        self.ticks = 0
        self.tick_fails = False
        hear = fleet.supervisor.on

        def on(event: e.Event, now: float, *, runtime_away: bool = False) -> list[e.Effect]:
            self.ticks += isinstance(event, e.Tick)
            if self.tick_fails and isinstance(event, e.Tick):
                raise TypeError("'NoneType' object is not iterable")
            return hear(event, now, runtime_away=runtime_away)

        fleet.supervisor.on = on  # type: ignore[method-assign]

    def errors(self) -> list[str]:
        return [line["error"] for line in self.told if line["event"] == "unhandled_error"]

    async def ticks_go_on(self) -> None:
        before = self.ticks
        await until(lambda: self.ticks >= before + 5)


LISTS = {"now": '{"data": [{"id": "m"}]}'}


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    async def answer(request: web.BaseRequest) -> web.Response:
        texts = {"/metrics": "vllm:num_requests_running 1\n", "/v1/models": LISTS["now"]}
        return web.Response(text=texts.get(request.path, ""))

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def house(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(fleet_module, "TICK_S", 0.001)
    monkeypatch.setattr(fleet_module, "GPU_READ_S", 0.001)
    monkeypatch.setattr(fleet_module, "METRICS_AGAIN_S", 0.001)
    monkeypatch.setattr(metrics_module, "PACE_S", 0.2)
    monkeypatch.setattr(endpoints_module, "POLL_S", 0.001)
    monkeypatch.setattr(memory_module, "READ_LIMIT_S", 0.05)
    settings = Settings.model_validate({"models": {"m": {"endpoints": [engine]}}})
    probe, requests = Probe(), Requests()
    told: list[dict[str, Any]] = []

    def emit(event: Any, **fields: object) -> None:
        told.append({"event": event.name, **fields})

    fleet = Fleet(
        settings, BrokenRuntime(), probe, FootprintStore(tmp_path / "footprints.json"), emit, keys=EngineKeys(tmp_path)
    )
    fleet.attach(requests, SimulatedActivity(), ["m"])
    house = House(fleet, probe, requests, told)
    await fleet.open()
    yield house
    if probe.hangs:
        probe.hangs.set()
    await fleet.close()


async def test_a_decision_that_fails_costs_itself_alone(house: House) -> None:
    house.tick_fails = True
    await house.ticks_go_on()
    assert house.errors() == ["""TypeError("'NoneType' object is not iterable")"""], "told once"
    house.fleet.wanted("m")
    house.tick_fails = False
    await until(lambda: house.requests.table.of("m"))


async def test_a_driver_that_fails_or_hangs_holds_up_nothing_else(house: House) -> None:
    await until(lambda: house.fleet.supervisor.gpus)
    house.probe.error = TypeError("garbage")
    await until(house.fleet.problems)
    assert "garbage" in house.fleet.problems()[0]
    await house.ticks_go_on()
    house.probe.error, house.probe.hangs = None, threading.Event()
    await until(lambda: any("has not answered" in problem for problem in house.fleet.problems()))
    await house.ticks_go_on()
    house.probe.hangs.set()
    await until(lambda: not house.fleet.problems())
    assert not house.errors()


async def test_an_endpoint_is_followed_on_after_an_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await until(lambda: house.requests.table.of("m"))
    answers = health.ailment

    async def fails(address: Address) -> health.Ailment:
        raise ValueError("not an address")

    monkeypatch.setattr(health, "ailment", fails)
    await until(house.errors)
    assert house.requests.table.of("m")
    monkeypatch.setattr(health, "ailment", answers)
    (route,) = house.requests.table.of("m")
    house.fleet._hear(e.Died(route.instance_id, "its health check fails"))
    await until(lambda: house.requests.table.of("m"))


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ('{"data": [{"id": "other"}, {"id": "\\u001b[31m"}]}', "it serves \x1b[31m, other, and not m"),
        ('{"data": []}', "it serves no model, and not m"),
        (
            f'{{"data": [{", ".join(f"""{{"id": "n{n}"}}""" for n in range(9))}]}}',
            "it serves n0, n1, n2, n3, n4 and 4 more, and not m",
        ),
        ("", "what it sends as its list of models (/v1/models) is none"),
        ('{"data": [{"id": "m", "root": ' + "[" * 200_000, "what it sends as its list of models (/v1/models) is none"),
        ("x" * (2 << 20), "its list of models cannot be read: its reply is over 1 MiB"),
    ],
    ids=["others", "none", "many", "garbage", "deep", "long"],
)
async def test_an_endpoint_that_does_not_list_the_model_gets_no_requests(
    listed: str, why: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: house.requests.table.of("m"))
    (route,) = house.requests.table.of("m")
    monkeypatch.setitem(LISTS, "now", listed)
    house.fleet._hear(e.Died(route.instance_id, "its health check fails"))
    await until(lambda: house.fleet.unfit_endpoints("m"))
    told = [line for line in house.told if line["event"] == "endpoint_unfit"]
    assert [line["reason"] for line in told] == [why], "told once"
    assert house.fleet.unfit_endpoints("m") == f"{told[0]['endpoint']}: {why}"
    assert not house.requests.table.of("m")
    monkeypatch.setitem(LISTS, "now", '{"data": [{"id": "m"}]}')
    await until(lambda: house.requests.table.of("m"))
    assert house.fleet.unfit_endpoints("m") is None
    assert house.errors() == []


async def test_of_a_model_whose_endpoint_is_down_everybody_is_told_why(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: house.requests.table.of("m"))
    assert house.fleet.why_none("m") is None
    answers = health.ailment

    async def fails(address: Address) -> health.Ailment:
        return health.Ailment("its health check gets status 503")

    monkeypatch.setattr(health, "ailment", fails)
    await until(lambda: not house.requests.table.of("m"))
    why = "Its endpoint cannot be used: its health check gets status 503"
    assert house.fleet.why_none("m") == why
    assert f"m: {why}" in house.fleet.problems()
    told = [line for line in house.told if line["event"] in ("instance_failed", "endpoint_unfit")]
    assert [line["reason"] for line in told] == 2 * ["its health check gets status 503"]
    monkeypatch.setattr(health, "ailment", answers)
    await until(lambda: house.requests.table.of("m"))
    assert (house.fleet.why_none("m"), house.fleet.problems()) == (None, [])


async def test_engines_are_measured_on_after_an_error(house: House) -> None:
    house.requests.errors = [KeyError("x")]
    await until(lambda: house.requests.seen)
    assert house.errors() == ["KeyError('x')"]


class LeftBehind(BrokenRuntime):
    """One engine of an earlier gateway runs."""

    def __init__(self, spec_hash: str) -> None:
        super().__init__()
        self._found = [Found(NOBODY, NOBODY.handle, "vllm_server_a_instance_1", "a", 1, spec_hash, ("g0",), 6000)]

    async def find(self) -> list[Found]:
        return self._found


class Refusing(Requests):
    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    def refuse(self, model: str, refusal: Refusal) -> None:
        self.refused.append(model)


@pytest.mark.parametrize("runs", [True, False])
async def test_a_driver_that_fails_at_the_start_leaves_what_runs_to_be_served(
    runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "GPU_READ_S", 0.001)
    settings = Settings.model_validate({"models": {"a": {"repository": "a/a"}, "b": {"repository": "b/b-1b"}}})
    probe, requests, told = Probe(), Refusing(), list[str]()
    probe.error = ProbeError("the driver was updated. Reboot")
    runtime = LeftBehind(spec_hash("a", settings.models["a"], settings)) if runs else BrokenRuntime()
    footprints, keys = FootprintStore(tmp_path / "footprints.json"), EngineKeys(tmp_path)
    fleet = Fleet(settings, runtime, probe, footprints, lambda event, **_: told.append(event.name), keys=keys)
    fleet.attach(requests, SimulatedActivity(waits={"b": 1}))
    if not runs:
        with pytest.raises(ProbeError, match="Reboot"):
            await fleet.open()
        return
    await fleet.open()
    try:
        assert [one.name for one in fleet.registry] == ["vllm_server_a_instance_1"]
        assert "Reboot" in fleet.problems()[0]
        assert told.count("gpu_problem") == 1
        fleet.wanted("b")
        await until(lambda: "b" in requests.refused)
        assert "start" not in runtime.done
        probe.error = None
        await until(lambda: not fleet.problems())
        assert [(gpu.gpu_id, gpu.total_mib) for gpu in fleet.supervisor.gpus] == [("g0", 24576)]
    finally:
        await fleet.close()
