# SPDX-License-Identifier: Apache-2.0
"""The supervisor under any order of events: what must hold after each of them."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.fleet.simulation import FleetInTheHead, spec
from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.adoption import gone
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.fleet.sick import LOOKED_AT
from vllm_gateway.routing import Address

MODELS = ("small", "pair", "wide", "pinned", "new")
GPU_MIB = 100
HOST_MIB = 200
SPECS = (
    spec("small", 2, idle_timeout_s=30.0),
    spec("pair", 3, image="image"),
    spec("wide", gpu_count=2, idle_timeout_s=100.0),
    spec("pinned", pinned=True, idle_timeout_s=30.0),
    spec("new", 2, image="image"),
)
PICK = st.integers(min_value=0, max_value=99)


class AnyFleet(RuleBasedStateMachine):
    """Engines that do anything at any time, and clients that come and go. IllegalTransition would end the run."""

    specs: tuple[ModelSpec, ...] = SPECS
    footprints: Mapping[str, int] = {"small": 30, "pair": 45, "wide": 60, "pinned": 20, "new": 80}

    @initialize(
        gpus=st.integers(min_value=1, max_value=3), young_s=st.sampled_from([0.0, 60.0]), takes_over=st.booleans()
    )
    def begin(self, gpus: int, young_s: float, takes_over: bool) -> None:
        self.young_s, self.count = young_s, gpus
        self.fleet = FleetInTheHead(
            *self.specs,
            gpus=gpus,
            gpu_mib=GPU_MIB,
            footprints=dict(self.footprints),
            unknown=["new"],
            min_resident_s=young_s,
            host_mib=HOST_MIB,
        )
        if takes_over:
            self.take_over()

    def take_over(self) -> None:
        """From a gateway that has requests on instances which this one has no use for."""
        self.fleet.activity.alone = False
        self.fleet.adopt("pair", "gpu0", 45, spec_hash="earlier")
        self.fleet.adopt("left out", "gpu0", 40)
        self.hear(e.Inherited([gone("left out")]))

    @rule()
    def the_other_gateway_ends(self) -> None:
        if not self.fleet.activity.alone:
            self.fleet.activity.alone = True
            self.fleet.activity.busy.clear()

    def hear(self, event: e.Event) -> None:
        for effect in self.fleet.hear(event):
            match effect:
                case e.Stop(instance_id):
                    one = self.fleet.registry.get(instance_id)
                    assert one is not None and one.launched
                    assert not self.fleet.activity.in_flight(instance_id), "a busy instance was stopped"
                    for gpu_id in one.gpu_ids:
                        assert not self.on(gpu_id, State.STARTING, launched=True), "stopped beside a start"
                        assert not any(other.moving for other in self.on(gpu_id, *State)), "stopped beside a sleep"
                case e.Start(instance_id) | e.Wake(instance_id):
                    one = self.fleet.registry.get(instance_id)
                    assert one is not None and one.launched
                    self.fits_what_is_free(one)
                    self.nothing_else_changes(one)
                case e.Sleep(instance_id):
                    one = self.fleet.registry.get(instance_id)
                    assert one is not None and one.moving
                    assert not self.fleet.activity.in_flight(instance_id), "a busy instance was put to sleep"
                    self.nothing_else_changes(one)
                case e.Refuse(model, _):
                    self.hear(e.Unwanted(model))
                case e.FetchImage(model, image):
                    assert (model, image) in self.fetching()
                case e.LeaveImage(model, image):
                    assert (model, image) not in self.fetching(), "and nobody would hear of it"
                case _:
                    pass

    def nothing_else_changes(self, one: Instance) -> None:
        for gpu_id in one.gpu_ids:
            others = [other for other in self.on(gpu_id, *State, launched=True) if other is not one]
            assert not any(other.moving for other in others), "beside a sleep or a wake"
            assert not any(other.state is State.STARTING for other in others), "beside a start"
            ending = [other for other in others if other.state in (State.STOPPING, State.FAILED)]
            assert all(other.stuck for other in ending), "beside a stop or a removal"

    def fits_what_is_free(self, one: Instance) -> None:
        for gpu in self.fleet.supervisor.gpus:
            if gpu.gpu_id in one.gpu_ids:
                assert gpu.problem is None
                held = sum(other.held_mib for other in self.on(gpu.gpu_id, *State))
                assert held <= gpu.total_mib - gpu.foreign_mib, "started into memory that others hold"

    def on(self, gpu_id: str, *states: State, launched: bool = False) -> list[Instance]:
        return [
            one
            for one in self.fleet.registry
            if gpu_id in one.gpu_ids and one.state in states and (one.launched or not launched)
        ]

    def pick(self, which: int, *states: State) -> Instance | None:
        those = [one for one in self.fleet.registry if one.state in states and one.launched]
        return those[which % len(those)] if those else None

    @rule(model=st.sampled_from(MODELS), requests=st.integers(min_value=1, max_value=3))
    def a_request_waits(self, model: str, requests: int) -> None:
        if self.fleet.registry.table().of(model):
            return  # it is served at once
        self.fleet.activity.waits[model] = requests
        self.hear(e.Wanted(model))

    @rule(model=st.sampled_from(MODELS))
    def the_last_client_leaves(self, model: str) -> None:
        if self.fleet.activity.waits.get(model):
            self.fleet.activity.waits[model] = 0
            self.hear(e.Unwanted(model))

    def fetching(self) -> list[tuple[str, str]]:
        models = self.fleet.supervisor.models
        return [(name, state.image.fetching) for name, state in models.items() if state.image.fetching]

    @rule(which=PICK, there=st.booleans())
    def a_pull_comes_to_its_end(self, which: int, there: bool) -> None:
        if pulls := self.fetching():
            model, image = pulls[which % len(pulls)]
            self.hear(e.ImageFetched(model, image) if there else e.ImageNotFetched(model, image, "no", "no such image"))

    @rule(which=PICK, busy=st.booleans(), measured_mib=st.sampled_from([None, 35, 80]))
    def becomes_ready(self, which: int, busy: bool, measured_mib: int | None) -> None:
        if one := self.pick(which, State.STARTING):
            self.hear(e.Launched(one.instance_id, Running(one.name, Address("127.0.0.1", 8000))))
            self.hear(e.BecameReady(one.instance_id, measured_mib))
            self.serves_those_who_wait(one, busy)

    def serves_those_who_wait(self, one: Instance, busy: bool) -> None:
        if self.fleet.activity.waits.get(one.model):
            self.fleet.activity.waits[one.model] = 0
            self.fleet.activity.busy[one.instance_id] = int(busy and one.state is State.READY)
            self.fleet.activity.used[one.instance_id] = self.fleet.now
            self.hear(e.Unwanted(one.model))

    @rule(which=PICK, busy=st.booleans(), measured_mib=st.sampled_from([None, 3, 12]))
    def does_as_it_was_told(self, which: int, busy: bool, measured_mib: int | None) -> None:
        those = [one for one in self.fleet.registry if one.moving]
        if not those:
            return
        one = those[which % len(those)]
        if one.state is State.FALLING_ASLEEP:
            self.fleet.activity.used.pop(one.instance_id, None)
            self.hear(e.FellAsleep(one.instance_id, measured_mib))
        else:
            self.hear(e.WokeUp(one.instance_id))
            self.serves_those_who_wait(one, busy)

    @rule(which=PICK)
    def does_not_do_as_it_was_told(self, which: int) -> None:
        if those := [one for one in self.fleet.registry if one.moving]:
            self.hear(e.NotMoved(those[which % len(those)].instance_id, "500"))

    @rule(which=PICK)
    def takes_a_request(self, which: int) -> None:
        one = self.pick(which, State.READY)
        if one and not one.suspect:
            self.fleet.activity.busy[one.instance_id] = 1
            self.fleet.activity.used[one.instance_id] = self.fleet.now

    @rule(which=PICK)
    def finishes_its_requests(self, which: int) -> None:
        if one := self.pick(which, State.READY, State.DRAINING, State.FALLING_ASLEEP):
            self.fleet.activity.busy[one.instance_id] = 0
            if one.state is not State.READY:
                self.hear(e.Drained(one.instance_id))

    @rule(which=PICK)
    def dies(self, which: int) -> None:
        if one := self.pick(which, *(state for state in State if state is not State.FAILED)):
            self.hear(e.Died(one.instance_id, "killed", ("RuntimeError: a word",), 137))
            self.fleet.activity.busy[one.instance_id] = 0

    @rule(which=PICK)
    def starts_with_too_little(self, which: int) -> None:
        one = self.pick(which, State.STARTING)
        if one and one.model == "new":
            self.hear(e.Died(one.instance_id, "exit status 1", ("torch.OutOfMemoryError: CUDA out of memory.",), 1))

    @rule(model=st.sampled_from(MODELS))
    def an_operator_wants_it_tried_again(self, model: str) -> None:
        self.hear(e.Retry(model))

    @rule(
        without=st.sets(st.sampled_from(["small", "pair", "wide", "new"]), max_size=2),
        spec_hash=st.sampled_from(["hash", "other"]),
        instances=st.integers(min_value=1, max_value=3),
    )
    def the_configuration_changes(self, without: set[str], spec_hash: str, instances: int) -> None:
        kept = [one for one in self.specs if one.name not in without]
        changed = [
            replace(one, spec_hash=spec_hash, image=f"image {spec_hash}", instances=instances)
            if one.name == "pair"
            else one
            for one in kept
        ]
        for name in without:
            self.fleet.activity.waits[name] = 0
        self.reconfigure(*changed)

    def reconfigure(self, *specs: ModelSpec) -> None:
        policy = Policy(margin_mib=0, min_resident_s=self.young_s, host_mib=HOST_MIB)
        self.hear(e.Reconfigured({one.name: one for one in specs}, policy, start_timeout_s=600, sick_limit_s=60))

    @rule(foreign_mib=st.sampled_from([0, 0, 25, 90]), problem=st.sampled_from([None, None, "fell off the bus"]))
    def the_first_gpu_is_read(self, foreign_mib: int, problem: str | None) -> None:
        gpus = [Gpu(f"gpu{index}", index, "Simulated", GPU_MIB) for index in range(self.count)]
        self.hear(e.GpusRead([replace(gpus[0], foreign_mib=foreign_mib, problem=problem), *gpus[1:]]))

    @rule(which=PICK)
    def is_gone(self, which: int) -> None:
        if one := self.pick(which, State.STOPPING, State.FAILED):
            self.hear(e.Gone(one.instance_id))

    @rule(which=PICK)
    def cannot_be_ended(self, which: int) -> None:
        if one := self.pick(which, State.STOPPING, State.FAILED):
            self.hear(e.Stuck(one.instance_id, "device or resource busy"))

    @rule(away=st.booleans())
    def the_runtime_goes_or_comes_back(self, away: bool) -> None:
        self.fleet.runtime_away = away

    @rule(which=PICK, cleared=st.booleans())
    def is_suspected(self, which: int, cleared: bool) -> None:
        if one := self.pick(which, State.READY, State.DRAINING):
            self.hear(e.Suspected(one.instance_id, "connection reset"))
            self.hear(e.Cleared(one.instance_id) if cleared else e.Died(one.instance_id, "no answer"))

    @rule(which=PICK, how=st.sampled_from(["misses", "hangs", "answers", "works"]))
    def is_looked_at(self, which: int, how: str) -> None:
        if one := self.pick(which, *LOOKED_AT):
            for _ in range(2 if how == "misses" else 0):
                self.hear(e.Missed(one.instance_id, "no answer"))
            if how == "hangs":
                self.hear(e.Hung(one.instance_id, "nothing moves"))
            elif how == "answers":
                self.hear(e.Cleared(one.instance_id))
            elif how == "works":
                self.hear(e.Works(one.instance_id))

    @rule(seconds=st.sampled_from([0.5, 5.0, 50.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        serving = {one.instance_id: one for one in self.fleet.registry if one.state is State.READY}
        sick = {one.instance_id for one in serving.values() if one.sick is not None}
        self.fleet.now += seconds
        self.hear(e.Tick())
        ended = [one for one in serving.values() if one.state is State.FAILED]
        assert all(one.instance_id in sick for one in ended), "one that answers is not ended"
        assert len({one.model for one in ended}) == len(ended), "one replacement a model at a time"
        for one in ended:
            those = [other.instance_id for other in serving.values() if other.model == one.model]
            assert len(those) == 1 or 2 * len(sick.intersection(those)) <= len(those)
        if not self.fleet.runtime_away:
            self.clients_wait_for_no_start_that_nobody_wants()

    def clients_wait_for_no_start_that_nobody_wants(self) -> None:
        fleet, models = self.fleet, self.fleet.supervisor.models
        for one in [one for one in fleet.registry if one.waits_for_room and fleet.activity.waiting(one.model)]:
            others = [other for gpu_id in one.gpu_ids for other in self.on(gpu_id, State.STARTING, launched=True)]
            if others and not any(fleet.activity.in_flight(other_id) for other_id in one.evicts):
                wanted = [other for other in others if fleet.now - models[other.model].waited_for_at < 2]
                assert wanted or any(other.adopted or models[other.model].spec.pinned for other in others)

    @invariant()
    def the_books_hold(self) -> None:
        for gpu in self.fleet.supervisor.gpus:
            here = [one for one in self.fleet.registry if gpu.gpu_id in one.gpu_ids]
            assert sum(one.held_mib for one in here) <= GPU_MIB, "memory that is really taken"
            assert sum(one.promised_mib for one in here) <= GPU_MIB, "memory that is promised"
        assert sum(one.host_mib for one in self.fleet.registry) <= HOST_MIB, "memory of the machine"

    @invariant()
    def one_start_at_a_time_on_a_gpu(self) -> None:
        for gpu in self.fleet.supervisor.gpus:
            starting = self.on(gpu.gpu_id, State.STARTING, launched=True)
            assert len(starting) + sum(one.moving for one in self.on(gpu.gpu_id, *State)) <= 1

    @invariant()
    def names_are_unique_and_nobody_has_too_many(self) -> None:
        names = [one.name for one in self.fleet.registry]
        assert len(set(names)) == len(names)
        for state in self.fleet.supervisor.models.values():
            live = [one for one in self.fleet.of(state.spec.name) if not one.leaving and not one.resting]
            changing = len({one.spec_hash for one in live}) > 1  # one more while another replaces it
            assert len(live) <= state.spec.instances + changing

    @invariant()
    def nothing_of_a_model_that_is_gone_stays(self) -> None:
        for state in self.fleet.supervisor.models.values():
            those = self.fleet.of(state.spec.name)
            assert not state.removed or all(one.leaving or one.moving for one in those)

    @invariant()
    def a_pinned_model_is_never_put_away(self) -> None:
        assert all(one.state in (State.STARTING, State.READY, State.FAILED) for one in self.fleet.of("pinned"))

    @invariant()
    def only_what_is_ready_is_routed(self) -> None:
        for routes in self.fleet.registry.table().routes.values():
            for route in routes:
                one = self.fleet.registry.get(route.instance_id)
                assert one is not None and one.state is State.READY
                assert route.suspect is (one.suspect or one.sick is not None)

    def teardown(self) -> None:
        """Whatever has happened: when everybody behaves again, everything that fits is served in the end."""
        if not hasattr(self, "fleet"):
            return
        self.the_other_gateway_ends()
        self.fleet.runtime_away = False
        for one in list(self.fleet.registry):
            self.hear(e.Cleared(one.instance_id))
            self.hear(e.Works(one.instance_id))
        self.the_first_gpu_is_read(0, None)
        self.reconfigure(*self.specs)
        for model in ("small", "pinned"):
            self.fleet.activity.busy.clear()
            self.take_a_turn()
            for _ in MODELS:
                if not self.fleet.of(model, State.READY) and not self.fleet.activity.waiting(model):
                    self.fleet.activity.waits[model] = 1  # who was refused asks again
                    self.hear(e.Wanted(model))
                    self.come_to_rest()
                if not self.fleet.of(model, State.READY):
                    self.take_a_turn()
            assert self.fleet.of(model, State.READY), f"{model} waits for ever"

    def take_a_turn(self) -> None:
        """Time for a quantum and any back-off to pass; requests are served where something is ready."""
        for model in MODELS:
            if self.fleet.of(model, State.READY):
                self.fleet.activity.waits[model] = 0  # an instance that was reprieved serves them, too
        self.fleet.now += 400
        self.hear(e.Tick())
        self.come_to_rest()

    def come_to_rest(self) -> None:
        for _ in range(100):
            if not self.goes_on():
                self.hear(e.Tick())
                if not self.goes_on():
                    return
        raise AssertionError("the fleet never comes to rest")

    def goes_on(self) -> bool:
        """One thing that is under way comes to its end, if there is one."""
        if one := self.pick(0, State.STOPPING, State.FAILED):
            self.hear(e.Gone(one.instance_id))
        elif any(one.moving for one in self.fleet.registry):
            self.does_as_it_was_told(0, False, None)
        elif self.pick(0, State.STARTING):
            self.becomes_ready(0, False, None)
        elif self.fetching():
            self.a_pull_comes_to_its_end(0, there=True)
        else:
            return False
        return True


class SleepyFleet(AnyFleet):
    """The same, where nearly everybody sleeps rather than is stopped, and two hardly ever fit together."""

    specs = tuple(replace(one, sleeps=not one.pinned, instances=min(one.instances, 2)) for one in SPECS)
    footprints: Mapping[str, int] = {"small": 50, "pair": 65, "wide": 60, "pinned": 10, "new": 80}

    @rule(model=st.sampled_from(MODELS), steps=st.integers(min_value=1, max_value=6))
    def a_request_waits_for_a_while(self, model: str, steps: int) -> None:
        self.a_request_waits(model, 1)
        for _ in range(steps):
            self.goes_on()


TestAnyFleet = AnyFleet.TestCase
TestSleepyFleet = SleepyFleet.TestCase
TestAnyFleet.settings = TestSleepyFleet.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
