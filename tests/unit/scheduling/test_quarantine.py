# SPDX-License-Identifier: Apache-2.0
"""What was on an instance when it died is tried again apart, and who ends the next one alone is refused."""

import asyncio
from collections.abc import Awaitable

import pytest

from tests.unit.scheduling.bench import Bench, request
from tests.waiting import until
from vllm_gateway.scheduling import InstanceView, Lost, Outcome, Refused, RequestInfo, quarantine
from vllm_gateway.scheduling.poison import MOST, REMEMBERED_S, KnownBodies


class Scene:
    """Requests on instances of a bench; each comes again when its instance has died."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.on: dict[str, InstanceView] = {}
        self.ends: dict[str, asyncio.Future[Outcome]] = {}
        self.refused: dict[str, str] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.infos: dict[str, RequestInfo] = {}
        self.ran_s: dict[str, float] = {}

    async def come(self, *names: str) -> None:
        self.tasks += [asyncio.create_task(self._one(name)) for name in names]
        await until(lambda: all(name in self.on for name in names))

    async def _one(self, name: str) -> None:
        info = self.infos[name] = request(name)
        info.body = f"body of {name}".encode()
        failed: frozenset[str] = frozenset()
        lost: Lost | None = None
        while True:
            try:
                view = self.on[name] = await self.bench.queue.acquire(info, failed, lost=lost)
            except Refused as refused:
                self.refused[name] = refused.refusal.code
                return
            self.ends[name] = asyncio.get_running_loop().create_future()
            outcome = await self.ends[name]
            del self.on[name]
            self.bench.queue.release(view, info, outcome)
            if outcome is not Outcome.UNREACHABLE:
                return
            failed |= {view.instance_id}
            lost = Lost(view.instance_id, self.ran_s.get(name, 0.1), failed)

    def there(self, instance: str) -> set[str]:
        return {name for name, view in self.on.items() if view.instance_id == instance}

    async def die(self, instance: str, *left: str) -> None:
        """`left` are the instances there are then."""
        lost = self.there(instance)
        self.bench.publish(instance, *left, places=9, suspects=[instance])
        for name in lost:
            self.ends[name].set_result(Outcome.UNREACHABLE)
        await until(lambda: not self.there(instance) and self.bench.queue.waiting >= len(lost))
        self.bench.publish(*left, places=9)

    def begin(self, name: str) -> None:
        """Its reply has begun."""
        began = self.bench.queue.began(self.on[name], self.infos[name])
        assert began is not None
        began()

    async def end(self) -> None:
        async def nobody_left() -> bool:
            for name in self.on:
                if not self.ends[name].done():
                    self.ends[name].set_result(Outcome.OK)
            return all(task.done() for task in self.tasks)

        await until(nobody_left)
        assert self.bench.queues.unfinished == 0
        assert self.bench.queue.quarantined == 0
        await asyncio.gather(*self.tasks)


@pytest.fixture
async def scene() -> Scene:
    bench = Bench(size=100)
    bench.publish("i1", places=9)
    return Scene(bench)


async def test_the_youngest_goes_first_and_alone_and_the_next_when_its_reply_has_begun(scene: Scene) -> None:
    await scene.come("a", "b", "c")
    scene.ran_s = {"a": 0.5, "b": 0.3, "c": 0.4}
    await scene.die("i1", "i2")
    await until(lambda: scene.there("i2") == {"b"})
    assert scene.bench.queue.quarantined == 2
    scene.begin("b")
    await until(lambda: scene.there("i2") == {"b", "c"})
    scene.ends["c"].set_result(Outcome.OK)
    await until(lambda: scene.there("i2") == {"b", "a"})
    await scene.end()
    assert not scene.bench.condemned


async def test_who_ends_the_second_one_alone_is_refused_and_the_others_go_free(scene: Scene) -> None:
    await scene.come("innocent", "poison")
    scene.ran_s = {"innocent": 0.1, "poison": 0.2}
    await scene.die("i1", "i2", "i3")
    await until(lambda: len(scene.on) == 1)
    ward = scene.on["innocent"].instance_id
    scene.begin("innocent")
    await until(lambda: scene.there(ward) == {"innocent", "poison"})
    await scene.die(ward, *{"i2", "i3"} - {ward})
    await until(lambda: scene.refused == {"poison": "poison_request"})
    assert scene.bench.condemned == ["poison"]
    await until(lambda: "innocent" in scene.on)
    await scene.come("other")
    await scene.end()


async def test_once_it_is_known_who_it_was_the_others_wait_no_longer(scene: Scene) -> None:
    await scene.come("poison", *"abc")
    scene.ran_s = {"poison": 0.05}
    await scene.die("i1", "i2", "i3")
    await until(lambda: list(scene.on) == ["poison"])
    ward = scene.on["poison"].instance_id
    assert scene.bench.queue.quarantined == 3
    await scene.die(ward, *{"i2", "i3"} - {ward})
    await until(lambda: len(scene.on) == 3)
    assert scene.bench.queue.quarantined == 0
    await scene.end()
    assert scene.refused == {"poison": "poison_request"}


async def test_who_was_alone_when_the_first_one_died_is_tried_again(scene: Scene) -> None:
    await scene.come("a")
    await scene.die("i1", "i2")
    await until(lambda: scene.there("i2") == {"a"})
    await scene.end()
    assert not scene.bench.condemned


async def test_of_a_group_nobody_is_refused_and_each_is_tried_alone(scene: Scene) -> None:
    names = ("a", "b", "c")
    await scene.come(*names)
    scene.ran_s = dict.fromkeys(names, 60.0)
    await scene.die("i1", "i2")
    await until(lambda: len(scene.there("i2")) == 2)
    group = scene.there("i2")
    await scene.die("i2", "i3")
    await until(lambda: len(scene.there("i3")) == 1)
    assert scene.there("i3") < group
    await scene.end()
    assert not scene.bench.condemned


async def test_others_keep_away_from_the_ward(scene: Scene) -> None:
    await scene.come("a", "b")
    await scene.die("i1", "i2", "i3")
    await until(lambda: len(scene.on) == 1)
    (ward,) = {view.instance_id for view in scene.on.values()}
    await scene.come("x", "y", "z")
    assert len(scene.there(ward)) == 1
    await scene.end()


async def test_the_only_instance_is_kept_for_a_while_only(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "KEPT_S", 0.3)
    await scene.come("a", "b")
    await scene.die("i1", "i2")
    await until(lambda: len(scene.there("i2")) == 1)
    scene.tasks.append(asyncio.create_task(scene._one("x")))
    await until(lambda: scene.bench.queue.waiting == 2)
    await until(lambda: "x" in scene.there("i2"))
    assert len(scene.there("i2")) == 2, "and the next suspect waits yet"
    await scene.die("i2", "i3")
    await until(lambda: len(scene.there("i3")) == 1)
    assert not scene.refused, "somebody else was there"
    await scene.end()


async def test_who_outlives_the_time_in_which_it_would_have_ended_it_makes_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MARGIN_S", 0.0)
    await scene.come("a", "b")
    await scene.die("i1", "i2")
    await until(lambda: len(scene.there("i2")) == 2)
    await scene.end()


async def test_what_runs_there_ends_before_the_trials_begin(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.come("a")
    scene.bench.publish("i2", "i1", places=9)
    await scene.come("x")
    assert scene.there("i2") == {"x"}
    await scene.die("i1", "i2")
    assert scene.bench.queue.quarantined == 1
    scene.ends["x"].set_result(Outcome.OK)
    await until(lambda: scene.there("i2") == {"a"})
    await scene.end()


async def test_a_suspect_that_lives_gives_its_requests_back_as_ever(scene: Scene) -> None:
    await scene.come("a")
    scene.bench.publish("i1", "i2", places=9, suspects=["i1"])
    scene.ends["a"].set_result(Outcome.UNREACHABLE)
    await until(lambda: scene.bench.queue.waiting == 1)
    assert not scene.there("i2"), "it may have died of it"
    scene.bench.publish("i1", "i2", places=9)
    await until(lambda: scene.there("i2") == {"a"})
    assert scene.bench.queue.quarantined == 0
    await scene.end()


async def test_nobody_waits_for_a_suspect_of_which_nothing_is_known(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_gateway.scheduling.queue.DECIDED_S", 0.1)
    await scene.come("a")
    scene.bench.publish("i1", "i2", places=9, suspects=["i1"])
    scene.ends["a"].set_result(Outcome.UNREACHABLE)
    await until(lambda: scene.there("i2") == {"a"})
    await scene.end()


async def test_the_same_of_the_same_client_is_refused_wherever_it_waits(scene: Scene) -> None:
    queue = scene.bench.queue

    async def again(client: str) -> Awaitable[InstanceView]:
        info = request("again", client)
        info.body = b"body of poison"
        return asyncio.create_task(queue.acquire(info))

    await scene.come("poison")
    await scene.die("i1", "i2")
    await until(lambda: scene.there("i2") == {"poison"})
    waits = await again("")
    await until(lambda: queue.waiting == 1)
    await scene.die("i2")
    scene.bench.publish("i3", places=9)
    with pytest.raises(Refused):
        await waits
    with pytest.raises(Refused):
        await (await again(""))
    view = await (await again("somebody else"))
    queue.release(view, request(), Outcome.OK)
    await scene.end()


async def test_engines_that_die_of_everything_are_not_the_requests_fault(scene: Scene) -> None:
    last = "i1"
    for number in range(5):
        name = f"r{number}"
        if not scene.there(last):
            scene.bench.publish(last, places=9)
        await scene.come(name)
        assert scene.there(last) >= {name}
        await scene.die(last)
        ward, last = f"w{number}", f"i{number + 2}"
        scene.bench.publish(ward, places=9)
        await until(lambda ward=ward, name=name: name in scene.there(ward))  # type: ignore[misc]
        await scene.die(ward)
        scene.bench.publish(last, places=9)
        await until(lambda name=name: name in scene.refused or name in scene.on)  # type: ignore[misc]
    assert sorted(scene.refused) == ["r0", "r1", "r2"]
    await scene.end()


async def test_a_ward_that_is_more_than_full_lets_nobody_in(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SETTLE_S", 0.0)
    await scene.come("a", "b", "c")
    scene.bench.elsewhere["i2"] = 10
    await scene.die("i1", "i2")
    assert not scene.there("i2")
    scene.bench.elsewhere.clear()
    scene.bench.queues.recount()
    await until(lambda: len(scene.there("i2")) == 1)
    await scene.end()


async def test_a_ward_that_is_full_of_the_innocent_is_left_for_another(scene: Scene) -> None:
    await scene.come("a", "b", "c")
    await scene.die("i1")
    scene.bench.publish("i2", "i3", places=1)
    await until(lambda: len(scene.on) == 1)
    (first,) = scene.on
    scene.begin(first)
    await until(lambda: len(scene.on) == 2)
    assert len({view.instance_id for view in scene.on.values()}) == 2
    await scene.end()


def test_what_is_known_is_forgotten_and_bounded() -> None:
    known: KnownBodies[str] = KnownBodies()
    bad, other = request("bad"), request("other")
    bad.body, other.body = b"abc", b"abd"
    known.add(bad, "bad", 0.0)
    assert known.get(bad, REMEMBERED_S - 1) == "bad"
    assert known.get(other, 1.0) is None
    assert known.get(bad, REMEMBERED_S) is None
    assert not known.any
    known.add(bad, "bad", 0.0)
    other.body = b"of another length"
    assert known.get(other, REMEMBERED_S) is None
    assert not known.any, "whoever asks"
    known.add(bad, "bad", 0.0)
    assert (known.pop(bad, 1.0), known.pop(bad, 1.0)) == ("bad", None)
    for length in range(2 * MOST):
        bad.body = b"a" * length
        known.add(bad, "bad", 0.0)
    assert len(known.any) == MOST


async def test_a_client_that_tries_again_by_itself_is_suspected(scene: Scene) -> None:
    """Of what could not be tried again: a reply that was cut."""
    queue = scene.bench.queue

    def cut_off() -> RequestInfo:
        info = request("again")
        info.body = b"body of poison"
        return info

    info = cut_off()
    view = await queue.acquire(info)
    scene.bench.publish("i1", "i2", "i3", places=9, suspects=["i1"])
    queue.release(view, info, Outcome.BROKEN)
    scene.bench.publish("i2", "i3", places=9)
    info = cut_off()
    view = await queue.acquire(info)
    await scene.come("other")
    assert scene.on["other"] is not view, "it is tried apart"
    queue.release(view, info, Outcome.BROKEN)
    scene.bench.publish("i2", "i3", places=9, suspects=[view.instance_id])
    scene.bench.publish(*{"i2", "i3"} - {view.instance_id}, places=9)
    assert scene.bench.condemned == ["again"]
    with pytest.raises(Refused):
        await queue.acquire(cut_off())
    await scene.end()


async def test_a_body_that_was_answered_after_all_is_not_suspected_later(scene: Scene) -> None:
    await scene.come("a")
    await scene.die("i1", "i2")
    await until(lambda: scene.there("i2") == {"a"})
    scene.ends["a"].set_result(Outcome.OK)
    await until(lambda: not scene.bench.queue._suspicion.cut.any)
    await scene.end()
