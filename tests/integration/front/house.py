# SPDX-License-Identifier: Apache-2.0
"""The request side of a gateway as it is served, over instances that follow a script; no fleet behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Never

import orjson
from aiohttp import web

from tests.integration.relay.wire import Message, Peer
from tests.waiting import LIMIT_S, until
from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.api.gate import FOR_THE_GATE, Gate
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.inference import Inference
from vllm_gateway.api.journal import Journal
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.paths import CarriedPaths
from vllm_gateway.api.server import Api
from vllm_gateway.api.terms import Terms
from vllm_gateway.configuration.api_keys import NamedKey
from vllm_gateway.configuration.settings import Retry, Server
from vllm_gateway.fleet.engines.vllm_paths import CLIENT_PATHS
from vllm_gateway.relay import Limits, Relay
from vllm_gateway.routing import Address, Route, RoutingTable
from vllm_gateway.scheduling import Queues, QueueSettings, Scheduler
from vllm_gateway.scheduling.placement import Placement
from vllm_gateway.strategies.round_robin import RoundRobin
from vllm_gateway.telemetry.trace import TraceRecorder

MAX_BODY = 1 << 20
BODY = b'{"model":"m"}'
BOUNDS = Bounds()
LANES = {"fast": b"", "aiohttp": b"X-Not-Plain: \xc3\xa9\r\n"}
"""A header that decides which lane a request goes through."""


def a_request(
    body: bytes = BODY, *, lane: str = "fast", headers: bytes = b"", target: str = "/v1/chat/completions"
) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: gateway\r\n".encode() + LANES[lane] + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class NoFleet:
    """What the request side says to the fleet."""

    heard: list[str] = field(default_factory=list)

    def wanted(self, model: str) -> None:
        self.heard.append(f"wanted {model}")

    def unwanted(self, model: str) -> None:
        self.heard.append(f"unwanted {model}")

    def why_none(self, model: str) -> str | None:
        return None

    def start_share(self, model: str) -> float | None:
        return None

    def expected_start_s(self, model: str) -> float:
        return 1.0

    def drained(self, instance_id: str) -> None:
        self.heard.append(f"drained {instance_id}")

    def suspect(self, instance_id: str, reason: str) -> None:
        self.heard.append(f"suspect {instance_id} {reason}")


class NoPages:
    """No route but those of inference."""

    def page(self, path: str) -> None:
        return None


@dataclass
class House:
    api: Api
    door: FrontDoor
    queues: Queues
    relay: Relay
    runner: web.ServerRunner
    fleet: NoFleet
    lines: list[dict[str, object]]
    events: list[str]
    port: int = 0
    peers: list[Peer] = field(default_factory=list)

    def publish(self, ports: Sequence[int], max_in_flight: int = 100) -> None:
        routes = tuple(Route(f"i{port}", f"m-{port}", "m", Address("127.0.0.1", port), max_in_flight) for port in ports)
        self.queues.publish(RoutingTable({"m": routes}))

    async def connect(self, *, receive_buffer: int | None = None) -> Peer:
        peer = await Peer.connect(self.port, receive_buffer=receive_buffer)
        self.peers.append(peer)
        return peer

    async def ask(self, request: bytes) -> Message:
        return await (await self.connect()).ask(request)

    async def line(self, index: int = 0) -> dict[str, object]:
        """The access line of a request, once it is there."""
        await until(lambda: len(self.lines) > index)
        return self.lines[index]

    @property
    def connections(self) -> list[Any]:
        """Of both lanes."""
        return [*self.door.visitors, *self.door.connections]


def _never(*_: object) -> Never:
    raise AssertionError("not asked for here")


@contextlib.asynccontextmanager
async def house(
    *ports: int,
    keys: Sequence[str | NamedKey] = (),
    server: Mapping[str, Any] = MappingProxyType({}),
    limits: Limits | None = None,
    max_in_flight: int = 100,
    bounds: Bounds = BOUNDS,
    stall_s: float = 60.0,
    max_body: int = MAX_BODY,
    max_buffered: int = 1 << 30,
    drain_s: float = 1.0,
    same_after_s: float = 1.0,
    opened: bool = True,
    extra_paths: Sequence[tuple[str, str]] = (("POST", "/v1/x"),),
    strategy: Scheduler | None = None,
    recorder: TraceRecorder | None = None,
    terms: Mapping[str, Any] = MappingProxyType({}),
) -> AsyncIterator[House]:
    lines: list[dict[str, object]] = []
    events: list[str] = []
    names = ModelNames({"m": "m", "alias": "m"})
    fleet = NoFleet()
    journal = Journal(lambda event, **_: events.append(event.name), lambda line: lines.append(orjson.loads(line)))
    queues = Queues(
        {"m": Placement(strategy or RoundRobin(), failed=_never, clock=asyncio.get_running_loop().time)},
        fleet,
        QueueSettings(size=10, timeout_s=5.0, retry=Retry(same_after_s=same_after_s)),
        departed=lambda view: None,
        health_changed=lambda view, change: None,
    )
    async with Relay(limits, drop_request_headers=FOR_THE_GATE) as relay:
        of_models = {"m": Terms(limits or Limits(), **terms)}
        inference = Inference(
            names=names,
            queues=queues,
            relay=relay,
            demand=fleet,
            terms=of_models,
            emit=journal.emit,
            recorder=recorder,
        )
        api = Api(
            names=names,
            gate=Gate(Server(**{"hosts": ("gateway", "x"), "api_keys": tuple(keys), **server})),
            paths=CarriedPaths([*CLIENT_PATHS, *extra_paths]),
            inference=inference,
            journal=journal,
            control=NoPages(),
            problems=list,
            state_of=_never,
            card_of=_never,
            max_body=max_body,
            max_buffered=max_buffered,
            bounds=replace(bounds, stall_s=stall_s),
        )
        if opened:
            api.opened.set()
        door = FrontDoor(api)
        runner = web.ServerRunner(door, shutdown_timeout=drain_s)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made = House(api, door, queues, relay, runner, fleet, lines, events, runner.addresses[0][1])
        made.publish(ports, max_in_flight)
        try:
            yield made
        finally:
            for peer in made.peers:
                await peer.close()
            async with asyncio.timeout(LIMIT_S):
                await runner.cleanup()
            assert not door.visitors
            assert "unhandled_error" not in events
