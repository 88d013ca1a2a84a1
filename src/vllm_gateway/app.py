# SPDX-License-Identifier: Apache-2.0
"""The composition root: the one place that builds everything and joins it together."""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from vllm_gateway.allocator.footprints import FootprintStore
from vllm_gateway.allocator.mask import MaskedProbe
from vllm_gateway.allocator.nvml import NvmlProbe
from vllm_gateway.allocator.probe import SimulatedProbe, StaticProbe
from vllm_gateway.api.buffers import buffered_bytes
from vllm_gateway.api.gate import FOR_THE_GATE, Gate
from vllm_gateway.api.guests import bounds_of
from vllm_gateway.api.inference import Inference
from vllm_gateway.api.journal import Journal
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.paths import CarriedPaths
from vllm_gateway.api.server import Api
from vllm_gateway.api.terms import shortest, terms_of
from vllm_gateway.bodies.limits import BodyLimits
from vllm_gateway.configuration.known_secrets import learn_settings
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.configuration.state_dir import State
from vllm_gateway.control.logs import Logs
from vllm_gateway.control.routes import Control
from vllm_gateway.control.status import DecisionsPage, Status
from vllm_gateway.control.status_page import status_of
from vllm_gateway.fleet.engine_keys import EngineKeys
from vllm_gateway.fleet.engines.vllm_paths import CLIENT_PATHS, MEDIA_TYPES
from vllm_gateway.fleet.fleet import Fleet
from vllm_gateway.fleet.predecessor import (
    CannotTakeOver,
    Predecessor,
    ToldToBoth,
    WithPredecessor,
    Work,
    in_flight_of,
    known_as,
)
from vllm_gateway.fleet.runtimes import Runtime
from vllm_gateway.fleet.runtimes.docker import DockerRuntime
from vllm_gateway.fleet.runtimes.output import Outputs
from vllm_gateway.fleet.runtimes.process import ProcessRuntime
from vllm_gateway.fleet.runtimes.sockets import EngineSockets, fits
from vllm_gateway.relay import Relay
from vllm_gateway.scheduling import (
    Change,
    Decision,
    Decisions,
    InstanceView,
    Placement,
    Queues,
    QueueSettings,
    RequestInfo,
    make_strategy,
)
from vllm_gateway.scheduling.poison import REMEMBERED_S
from vllm_gateway.telemetry import events, log
from vllm_gateway.telemetry.secrets import Secrets
from vllm_gateway.telemetry.trace import TraceRecorder


class Gateway:
    """Everything of one running gateway. Use `serving`."""

    def __init__(
        self,
        settings: Settings,
        simulated_gpu_dir: Path | None,
        emit: Callable[..., None],
        predecessor: Predecessor | None = None,
    ) -> None:
        self.settings = settings
        self._emit: Callable[..., None] = emit
        self._simulated_gpu_dir = simulated_gpu_dir
        placements = {name: self._placement(name, settings) for name in settings.models}
        footprints = FootprintStore(Path(settings.memory_footprint_file))
        for damage in filter(None, [footprints.load()]):
            emit(events.FOOTPRINT_FILE_DAMAGED, file=settings.memory_footprint_file, problem=str(damage))
        self._secrets = Secrets()
        self._secrets.learn_environment(os.environ)
        learn_settings(self._secrets, settings)
        log.mask_with(self._secrets.mask)
        self.outputs = Outputs(self._secrets)
        self._probe = self._make_probe(settings)
        self._state = State(settings, os.environ, fits, emit)
        self.fleet = Fleet(
            settings,
            self._runtime(),
            self._probe,
            footprints,
            emit,
            keys=EngineKeys(self._state.folder),
            mask=self._secrets.mask,
        )
        terms = terms_of(settings, MEDIA_TYPES)
        self.relay = Relay(shortest(terms), drop_request_headers=FOR_THE_GATE)
        self.queues = Queues(
            placements,
            self.fleet,
            _queue_settings(settings),
            departed=self._departed,
            health_changed=self._health_changed,
            guilty=self._guilty,
            elsewhere=partial(in_flight_of, predecessor, self.fleet.registry) if predecessor else lambda instance_id: 0,
            abandoned=lambda view, hung, ended: self.relay.abandon(view.address, hung=hung, ended=ended),
            heard_at=self.relay.heard_at,
        )
        self._predecessor = predecessor
        if predecessor is not None:
            predecessor.heard = self.queues.recount
        activity = WithPredecessor(self.queues, predecessor, self.fleet.registry) if predecessor else self.queues
        traffic = ToldToBoth(self.queues, predecessor) if predecessor else self.queues
        self.fleet.attach(traffic, activity, _measured(placements))
        self._names = ModelNames(names_of(settings), _adapters(settings), list_aliases=settings.server.list_aliases)
        self.recorder = self._trace_recorder(settings.record_trace, asyncio.get_running_loop().time())
        self.inference = Inference(
            names=self._names,
            queues=self.queues,
            relay=self.relay,
            demand=self.fleet,
            terms=terms,
            emit=emit,
            recorder=self.recorder,
            body_limits=_body_limits(settings),
        )
        self.inference.kept.by_caller = bool(settings.server.api_keys)
        journal = Journal(emit, log.write_line)
        control = Control(
            names=self._names,
            metrics=journal.metrics,
            status=self.status,
            retry=self.fleet.retry,
            decisions=self.decisions,
            logs=Logs(self.outputs, self._names, lambda: list(self.fleet.registry)),
        )
        self.api = Api(
            names=self._names,
            gate=Gate(settings.server),
            paths=CarriedPaths(_carried(settings)),
            bounds=bounds_of(settings),
            inference=self.inference,
            journal=journal,
            control=control,
            problems=self.problems,
            state_of=lambda model: self.status().models[model].state,
            card_of=self.fleet.cards.of,
            max_body=settings.server.max_body_mib << 20,
            max_buffered=buffered_bytes(settings.server.max_buffered_mib),
        )
        self._handed_over = False
        self._began = 0.0

    def _runtime(self) -> Runtime:
        """Raises OSError."""
        sockets = EngineSockets(self._state.engines(), self._state.engines)
        if self.settings.runtime == "process":
            simulated = str(self._simulated_gpu_dir) if self._simulated_gpu_dir else None
            return ProcessRuntime(
                self.settings.process, simulated, self._secrets, sockets=sockets, outputs=self.outputs
            )
        docker = self.settings.docker
        return DockerRuntime(docker, docker.container_prefix, self._secrets, sockets=sockets, outputs=self.outputs)

    def _make_probe(self, settings: Settings) -> MaskedProbe | None:
        if all(model.endpoints for model in settings.models.values()):
            return None
        gpus = settings.gpus
        if self._simulated_gpu_dir is not None:
            return MaskedProbe(SimulatedProbe(self._simulated_gpu_dir), gpus)
        if gpus.source == "static":
            return MaskedProbe(StaticProbe(gpus.devices), gpus)

        def tell(gpu: str, problem: str) -> None:
            self._emit(events.GPU_PROBLEM, gpu=gpu, problem=problem)

        return MaskedProbe(NvmlProbe(gpus.memory_mib), gpus, os.environ, tell)

    def _trace_recorder(self, file: str | None, now_s: float) -> TraceRecorder | None:
        """Raises OSError."""
        if file is None:
            return None
        try:
            return TraceRecorder(
                Path(file), now_s, lambda problem: self._emit(events.TRACE_INCOMPLETE, file=file, problem=problem)
            )
        except OSError as error:
            text = f"record_trace: {file} cannot be written ({error.strerror})"
            raise OSError(error.errno, text) from error

    def _placements(self, settings: Settings) -> dict[str, Placement]:
        """What a strategy has learned stays with it while nothing about it changes. Raises StrategyError."""
        return {
            name: self.queues.of(name).placement
            if _chooses_alike(name, self.settings, settings)
            else self._placement(name, settings)
            for name in settings.models
        }

    async def reconfigure(self, settings: Settings) -> None:
        """Ends only requests that wait for a model that is gone.

        Raises StrategyError, ProbeError or RuntimeDown, and whatever else fails, before anything changed.
        """
        placements = self._placements(settings)
        gate, paths, bounds = Gate(settings.server), CarriedPaths(_carried(settings)), bounds_of(settings)
        buffered = buffered_bytes(settings.server.max_buffered_mib)
        names, adapters = names_of(settings), _adapters(settings)
        terms, limits, queue_settings = (
            terms_of(settings, MEDIA_TYPES),
            _body_limits(settings),
            _queue_settings(settings),
        )
        self.fleet.check(settings)
        if self._probe is None and (probe := self._make_probe(settings)) is not None:
            await self.fleet.prepare(probe)
            self._probe = probe
        self.settings = settings
        learn_settings(self._secrets, settings)
        self.api.gate, self.api.paths, self.api.bounds = gate, paths, bounds
        self.inference.kept.by_caller = bool(settings.server.api_keys)
        self.api.configure(buffered)
        self._names.configure(names, adapters, list_aliases=settings.server.list_aliases)
        self.queues.configure(placements, queue_settings)
        self.inference.configure(terms, limits)
        self.relay.configure(shortest(terms))
        self.fleet.reconfigure(settings, _measured(placements))

    async def open(self) -> None:
        self._began = asyncio.get_running_loop().time()
        await self.fleet.open(in_use=self._predecessor is not None)

    async def hand_over(self) -> None:
        """Decides nothing about instances any more, and returns when nothing is under way. Raises CannotTakeOver."""
        if self.settings.runtime == "process" and self._probe is not None:
            raise CannotTakeOver(
                "its engines are child processes (`runtime: process`) and would end with it: stop it, and start anew"
            )
        try:
            await self.fleet.hand_over()
        except TimeoutError:
            raise CannotTakeOver("its instances do not come to rest; try again later") from None
        self._handed_over = True

    def take_back(self) -> None:
        """Nobody took over after all."""
        self.fleet.take_back()
        self._handed_over = False

    def give_back(self) -> None:
        """What was taken over from another gateway is its own again."""
        self._handed_over = True

    def work(self) -> Work:
        busy = {
            known_as(one): count for one in self.fleet.registry if (count := self.queues.in_flight(one.instance_id))
        }
        waiting = {name: count for name in self.settings.models if (count := self.queues.waiting(name))}
        return Work(busy, waiting)

    async def close(self) -> None:
        await self.fleet.close(stop=self.settings.docker.on_exit == "stop" and not self._handed_over)
        await self.relay.close()
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.close)

    def _placement(self, model: str, settings: Settings) -> Placement:
        """Raises StrategyError."""
        emit = self._emit
        clock = asyncio.get_running_loop().time
        directory = Path(settings.strategies_dir) if settings.strategies_dir else None
        keep, log_every = settings.decisions.keep, settings.decisions.log_every

        def failed(error: Exception) -> None:
            emit(events.STRATEGY_FAILED, strategy=settings.strategy_name(model), model=model, error=repr(error))

        def tell(decision: Decision) -> None:
            emit(
                events.ROUTING_DECISION,
                request_id=decision.request_id,
                model=model,
                instance=decision.instance,
                reason=decision.reason,
                scores=decision.scores,
            )

        return Placement(
            make_strategy(settings.strategy_of(model), directory, clock=clock),
            failed=failed,
            clock=clock,
            slow_start_s=settings.slow_start_s,
            decisions=Decisions(keep, log_every, tell) if keep or log_every else None,
        )

    def decisions(self, model: str) -> DecisionsPage:
        kept = self.queues.of(model).placement.decisions
        return DecisionsPage(model, self.settings.strategy_name(model), kept.latest() if kept else [])

    def _health_changed(self, view: InstanceView, change: Change) -> None:
        about = {"instance": view.name, "model": view.model, "reason": change.reason}
        if change.ejected:
            self._emit(events.INSTANCE_EJECTED, seconds=change.pause_s, **about)
        else:
            self._emit(events.INSTANCE_RESTORED, **about)

    def _guilty(self, request: RequestInfo, view: InstanceView) -> None:
        self._emit(
            events.POISON_REQUEST,
            instance=view.name,
            model=view.model,
            request_id=request.request_id,
            seconds=REMEMBERED_S,
        )

    def _departed(self, view: InstanceView) -> None:
        self.relay.forget(view.address)

    def problems(self) -> list[str]:
        """What is wrong with the machine."""
        has_engines = self._probe is not None
        masks = [f"{place}: {problem}" for place, problem in self._probe.unknown.items()] if self._probe else []
        return [*(self._state.problems if has_engines else []), *masks, *self.fleet.problems()]

    def status(self) -> Status:
        now = asyncio.get_running_loop().time()
        return status_of(self.settings, self.fleet, self.queues, self.problems(), now=now, uptime_s=now - self._began)


def names_of(settings: Settings) -> dict[str, str]:
    """Every name and alias, and its model."""
    return {alias: name for name, model in settings.models.items() for alias in (name, *model.aliases)}


def _carried(settings: Settings) -> list[tuple[str, str]]:
    """Methods and paths."""
    extra = [entry.rpartition(" ") for entry in settings.server.extra_paths]
    return [*CLIENT_PATHS, *[(method or "POST", path) for method, _, path in extra]]


def _adapters(settings: Settings) -> dict[str, str]:
    """Every adapter, and its model."""
    return {adapter: name for name, model in settings.models.items() for adapter in model.adapters}


def _body_limits(settings: Settings) -> BodyLimits:
    server = settings.server
    return BodyLimits(server.max_body_fields, server.max_body_messages, server.max_body_items, server.max_body_depth)


def _queue_settings(settings: Settings) -> QueueSettings:
    return QueueSettings(
        settings.queue_size, settings.queue_timeout_s, settings.priorities, settings.retry, settings.ejection
    )


def _measured(placements: Mapping[str, Placement]) -> frozenset[str]:
    """The models whose strategies want to know the engines' metrics."""
    return frozenset(name for name, placement in placements.items() if placement.wants_metrics)


def _chooses_alike(model: str, old: Settings, new: Settings) -> bool:
    def parts(settings: Settings) -> tuple[object, ...]:
        return settings.strategy_of(model), settings.strategies_dir, settings.slow_start_s, settings.decisions

    return model in old.models and model in new.models and parts(old) == parts(new)
