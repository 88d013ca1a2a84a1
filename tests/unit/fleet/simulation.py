# SPDX-License-Identifier: Apache-2.0
"""A fleet without engines: drives the supervisor by events, keeps a clock, and obeys its effects on command."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import Footprint, ModelSpec
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.fleet.supervisor import Supervisor
from vllm_gateway.routing import Address, Refusal


@dataclass
class SimulatedActivity:
    """What the request side would say."""

    waits: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    alone: bool = True

    def waiting(self, model: str) -> int:
        return self.waits.get(model, 0)

    def in_flight(self, instance_id: str) -> int:
        return self.busy.get(instance_id, 0)

    def last_used(self, instance_id: str) -> float | None:
        return self.used.get(instance_id)

    def heard_at(self, instance_id: str) -> float | None:
        return self.heard.get(instance_id)


def spec(name: str, instances: int = 1, **more: object) -> ModelSpec:
    values: dict[str, object] = {
        "spec_hash": "hash",
        "gpu_count": 1,
        "max_in_flight": 8,
        "idle_timeout_s": 0.0,
        "pinned": False,
        "uses_gpu_memory": True,
    }
    return ModelSpec(name=name, instances=instances, **{**values, **more})  # type: ignore[arg-type]


class FleetInTheHead:
    """Every effect is kept in `effects`; nothing is carried out but what a test says."""

    def __init__(
        self,
        *specs: ModelSpec,
        gpus: int = 1,
        gpu_mib: int = 100,
        footprints: dict[str, int] | None = None,
        unknown: Sequence[str] = (),
        min_resident_s: float = 0.0,
        host_mib: int = 1000,
    ) -> None:
        self.now = 1000.0
        self.runtime_away = False
        self.host_mib = host_mib
        self.activity = SimulatedActivity()
        self.registry = ContainerRegistry("vllm_server")
        self.unknown = set(unknown)
        self.footprints = footprints or {}
        self.effects: list[e.Effect] = []
        self.refusals: list[tuple[str, Refusal]] = []
        self.supervisor = Supervisor(
            specs={one.name: one for one in specs},
            registry=self.registry,
            activity=self.activity,
            footprint_of=self._footprint_of,
            policy=Policy(margin_mib=0, min_resident_s=min_resident_s, host_mib=host_mib),
            start_timeout_s=600,
            sick_limit_s=60,
            journal=lambda *_, **__: None,
        )
        self.hear(e.GpusRead([Gpu(f"gpu{i}", i, "Simulated", gpu_mib) for i in range(gpus)]))

    def _footprint_of(self, model: str, gpus: Sequence[Gpu]) -> Footprint:
        return Footprint(self.footprints.get(model, 60), known=model not in self.unknown)

    def hear(self, event: e.Event) -> list[e.Effect]:
        effects = self.supervisor.on(event, self.now, runtime_away=self.runtime_away)
        for effect in effects:
            if isinstance(effect, e.Refuse):
                self.refusals.append((effect.model, effect.refusal))
                self.activity.waits[effect.model] = 0
            if isinstance(effect, e.KeepFootprint | e.CorrectFootprint):
                self.unknown.discard(effect.model)
                self.footprints[effect.model] = effect.mib
        self.effects += effects
        return effects

    def want(self, model: str, requests: int = 1) -> list[e.Effect]:
        self.activity.waits[model] = requests
        return self.hear(e.Wanted(model))

    def leave(self, model: str) -> list[e.Effect]:
        self.activity.waits[model] = 0
        return self.hear(e.Unwanted(model))

    def reconfigure(self, *specs: ModelSpec, min_resident_s: float = 0.0) -> list[e.Effect]:
        policy = Policy(margin_mib=0, min_resident_s=min_resident_s, host_mib=self.host_mib)
        return self.hear(e.Reconfigured({one.name: one for one in specs}, policy, start_timeout_s=600, sick_limit_s=60))

    def ready(self, one: Instance, measured_mib: int | None = None) -> list[e.Effect]:
        """It becomes ready, and the requests of its model are served."""
        self.hear(e.Launched(one.instance_id, Running(one.name, Address("127.0.0.1", 8000))))
        self.activity.waits[one.model] = 0
        self.activity.used[one.instance_id] = self.now
        return self.hear(e.BecameReady(one.instance_id, measured_mib))

    def woken(self, one: Instance) -> list[e.Effect]:
        """Its engine is awake, and the requests of its model are served."""
        self.activity.waits[one.model] = 0
        self.activity.used[one.instance_id] = self.now
        return self.hear(e.WokeUp(one.instance_id))

    def asleep(self, one: Instance, measured_mib: int | None = None) -> list[e.Effect]:
        """Its engine sleeps, and the request side has forgotten it."""
        self.activity.used.pop(one.instance_id, None)
        return self.hear(e.FellAsleep(one.instance_id, measured_mib))

    def run(self, model: str) -> Instance:
        """Asks for a model, and plays everything until one of its instances is ready."""
        self.want(model)
        for _ in range(20):
            for effect in list(self.effects):
                if isinstance(effect, e.Stop | e.Remove) and self.registry.get(effect.instance_id):
                    self.hear(e.Gone(effect.instance_id))
            for one in [one for one in self.registry if one.moving]:
                if one.state is State.FALLING_ASLEEP:
                    self.asleep(one)
                else:
                    self.woken(one)
            if ready := self.of(model, State.READY):
                return ready[0]
            for one in self.of(model, State.STARTING):
                if one.launched:
                    self.ready(one)
                    return one
        raise AssertionError(f"{model} does not start")

    def adopt(self, model: str, gpu_id: str, mib: int, spec_hash: str = "hash", *, age_s: float = 0.0) -> Instance:
        """Started by another gateway, which has a request there."""
        number = self.registry.free_number(model)
        one = Instance(
            self.registry.new_id(),
            self.registry.name_of(model, number),
            model,
            number,
            spec_hash,
            max_in_flight=8,
            gpu_ids=(gpu_id,),
            reserved_mib=mib,
            adopted=True,
            launched=True,
            launched_at=self.now,
            age_s=age_s,
        )
        self.activity.busy[one.instance_id] = 1
        return self.registry.add(one)

    def of(self, model: str, state: State | None = None) -> list[Instance]:
        return [one for one in self.registry.by_model(model) if state is None or one.state is state]

    def tick(self, seconds: float) -> list[e.Effect]:
        self.now += seconds
        return self.hear(e.Tick())


def started(effects: Sequence[e.Effect]) -> list[str]:
    return [effect.instance_id for effect in effects if isinstance(effect, e.Start)]


def told_to_sleep(effects: Sequence[e.Effect]) -> list[str]:
    return [effect.instance_id for effect in effects if isinstance(effect, e.Sleep)]


def told_to_wake(effects: Sequence[e.Effect]) -> list[str]:
    return [effect.instance_id for effect in effects if isinstance(effect, e.Wake)]


def stopped(effects: Sequence[e.Effect]) -> list[str]:
    return [effect.instance_id for effect in effects if isinstance(effect, e.Stop)]
