# SPDX-License-Identifier: Apache-2.0
"""The life of each instance, from its start to the return of its memory: tasks that tell what they see."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import health
from vllm_gateway.fleet.endings import advice_on, reason_of
from vllm_gateway.fleet.engines import vllm_sleep
from vllm_gateway.fleet.health import POLL_S
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.memory import GpuMemory, Used
from vllm_gateway.fleet.runtimes import Launch, Running, Runtime, RuntimeDown, StartError
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.routing import ModelCard
from vllm_gateway.telemetry.secrets import mask_urls

RUNTIME_BACK_S = 30.0  # how long a start waits for a runtime that does not answer
RUNTIME_POLL_S = 0.5
LONGEST_PAUSE_S = 15.0  # between two attempts to end an instance that the runtime cannot end
ERROR_PAUSE_S = 5.0
LATE_S = 15.0  # when the runtime takes longer to end an instance, others wait for it no more
MARGIN_S = 5.0  # and beyond the engine's own time
PATIENCE_S = 1.0  # with the health check of a suspect


class _AnotherModel(Exception):
    """What listens at the instance's address is not what was started."""


class Lives:
    def __init__(
        self,
        *,
        runtime: Runtime,
        memory: GpuMemory,
        tasks: Tasks,
        hear: Callable[[e.Event], None],
        learned: Callable[[Instance, Mapping[str, ModelCard]], None],
        mask: Callable[[str], str] = mask_urls,
    ) -> None:
        """`learned` is told what an engine lists. `mask` takes the secrets out of what others say."""
        self._mask = mask
        self._runtime = runtime
        self._memory = memory
        self._tasks = tasks
        self._hear = hear
        self._learned = learned
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._used_before: dict[str, Used] = {}
        self._moving: set[str] = set()  # instances that are started, stopped, put to sleep or woken right now
        self._rest = asyncio.Event()
        self._in_charge = asyncio.Event()  # cleared: what cannot be ended is another gateway's to end
        self._in_charge.set()

    def start(self, one: Instance, launch_of: Callable[[Instance], Launch]) -> None:
        self._watches[one.instance_id] = self._tasks.spawn(self._surely_heard(one, self._start(one, launch_of)))

    def watch(self, one: Instance, running: Running) -> None:
        """Of an instance that runs already."""
        self._watches[one.instance_id] = self._tasks.spawn(self._surely_heard(one, self._until_death(one, running)))

    def stop(self, one: Instance, grace_s: float) -> None:
        self._tasks.spawn(self._surely_ended(one, partial(self._stop, one, grace_s)))

    def sleep(self, one: Instance) -> None:
        self._tasks.spawn(self._surely_heard(one, self._sleep(one)))

    def wake(self, one: Instance) -> None:
        self._tasks.spawn(self._surely_heard(one, self._wake(one)))

    def remove(self, one: Instance) -> None:
        self._tasks.spawn(self._surely_ended(one, partial(self._remove, one)))

    async def _surely_ended(self, one: Instance, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """An error that nobody foresaw does not leave it half ended."""
        with self._move(one):
            while True:
                try:
                    return await work()
                except Exception as error:
                    self._tasks.tell(error, f"ending {one.name}")
                    self._hear(e.Stuck(one.instance_id, self._mask(repr(error))))
                await self._pause(one, ERROR_PAUSE_S)

    async def _surely_heard(self, one: Instance, life: Coroutine[Any, Any, None]) -> None:
        """An error that nobody foresaw ends the instance too: nobody watches it any more."""
        try:
            await life
        except Exception as error:
            self._hear(e.Died(one.instance_id, "an error of the gateway", detail=self._mask(repr(error))))
            raise

    async def hand_over(self) -> None:
        """Returns when nothing is being started, stopped, put to sleep or woken. What cannot be ended stays so."""
        self._in_charge.clear()
        while self._moving:
            self._rest.clear()
            await self._rest.wait()

    def take_back(self) -> None:
        """What could not be ended is tried again."""
        self._in_charge.set()

    async def _pause(self, one: Instance, seconds: float) -> None:
        """Between two attempts to end it, in which another gateway may take over."""
        self._moving.discard(one.instance_id)
        self._rest.set()
        await asyncio.sleep(seconds)
        await self._in_charge.wait()
        self._moving.add(one.instance_id)

    @contextmanager
    def _move(self, one: Instance) -> Iterator[None]:
        self._moving.add(one.instance_id)
        try:
            yield
        finally:
            self._moving.discard(one.instance_id)
            self._rest.set()

    def check(self, one: Instance) -> None:
        self._tasks.spawn(self._surely_heard(one, self._check(one)))

    async def _start(self, one: Instance, launch_of: Callable[[Instance], Launch]) -> None:
        launch = launch_of(one)
        self._used_before[one.instance_id] = await self._memory.used()
        try:
            with self._move(one):
                running = await self._start_soon(launch)
        except (StartError, RuntimeDown) as error:
            self._hear(e.Died(one.instance_id, "its engine could not be launched", detail=self._mask(str(error))))
            return
        self._hear(e.Launched(one.instance_id, running))
        await self._until_death(one, running)

    async def _start_soon(self, launch: Launch) -> Running:
        """A runtime that is only being restarted costs a delay. Raises StartError, RuntimeDown."""
        began = asyncio.get_running_loop().time()
        while True:
            try:
                return await self._runtime.start(launch)
            except RuntimeDown:
                if asyncio.get_running_loop().time() - began > RUNTIME_BACK_S:
                    raise
            await asyncio.sleep(RUNTIME_POLL_S)

    async def _until_death(self, one: Instance, running: Running) -> None:
        """Polls its health until it is ready, and notices its death at any time."""
        death = asyncio.create_task(self._runtime.wait(running.handle))
        try:
            while not death.done() and not await self._is_up(one, running):
                await asyncio.wait([death], timeout=POLL_S)
            ended = await death
        except _AnotherModel as error:
            self._hear(e.Died(one.instance_id, str(error)))
            return
        finally:
            death.cancel()
        reason, advice = reason_of(ended), advice_on(ended)
        detail = f"{reason}; {advice}" if advice else ""
        self._hear(e.Died(one.instance_id, reason, ended.log_tail, ended.code, detail))

    async def _is_up(self, one: Instance, running: Running) -> bool:
        """Tells it. One that an earlier gateway had put to sleep is healthy, and would let requests hang.

        What that one has left behind may refuse, as it has yet to load; if it says nothing, it is not well.
        """
        with suppress(RuntimeDown):
            await self._runtime.open_way(running)
        ailment = await health.ailment(running.address)
        served = None if ailment is not None else await health.models(running.address)
        if served is None:
            if one.adopted and (ailment is None or ailment.silent):
                self._hear(e.Missed(one.instance_id, self._mask(ailment.why) if ailment else "it lists no models"))
            return False
        if one.model not in served:
            raise _AnotherModel(f"the engine serves {', '.join(sorted(served)) or 'no model'}, not {one.model}")
        self._learned(one, served)
        asleep = await vllm_sleep.is_sleeping(running.address) if one.adopted else False
        if asleep:
            self._hear(e.FellAsleep(one.instance_id, await self._memory.kept_asleep(one, {})))
        elif asleep is not None:
            self._hear(e.BecameReady(one.instance_id, await self._measured(one)))
        return asleep is not None

    async def _sleep(self, one: Instance) -> None:
        assert one.running is not None
        try:
            with self._move(one):
                before = await self._memory.used()
                await vllm_sleep.fall_asleep(one.running.address)
                kept_mib = await self._memory.kept_asleep(one, before)
        except vllm_sleep.NotMovedError as error:
            self._hear(e.NotMoved(one.instance_id, self._mask(str(error))))
        else:
            self._hear(e.FellAsleep(one.instance_id, kept_mib))

    async def _wake(self, one: Instance) -> None:
        assert one.running is not None
        try:
            with self._move(one):
                await vllm_sleep.wake_up(one.running.address)
        except vllm_sleep.NotMovedError as error:
            self._hear(e.NotMoved(one.instance_id, self._mask(str(error))))
        else:
            self._hear(e.WokeUp(one.instance_id))

    async def look_for_the_woken(self, one: Instance) -> None:
        """Tells of a sleeper that another gateway has woken."""
        if one.running and await vllm_sleep.is_sleeping(one.running.address) is False:
            self._hear(e.WokeUp(one.instance_id))

    async def _measured(self, one: Instance) -> int | None:
        return await self._memory.measure(one, self._used_before.get(one.instance_id, {})) if one.discovery else None

    async def _check(self, one: Instance) -> None:
        """A suspect that refuses is treated as dead: it is removed, and another one takes its place. One that is
        silent may only be paused: whoever watches it goes on.

        That costs more than some patience. While the runtime is away the way to an engine may be away with it
        (published ports are), and what is removed could not be replaced; once it is back, the way is, a little later.
        """
        assert one.running is not None
        clock = asyncio.get_running_loop().time
        patient_until, was_away = clock() + PATIENCE_S, False
        while (ailment := await health.ailment(one.running.address)) is not None:
            if one.state is not State.READY:
                return
            if ailment.silent:
                self._hear(e.Missed(one.instance_id, self._mask(ailment.why)))
                return
            was_away = was_away or self._runtime.problem is not None
            if clock() >= patient_until:
                is_away = await self._is_away(one.running)
                if not (is_away or was_away):
                    self._hear(e.Died(one.instance_id, "its health check fails", detail=self._mask(ailment.why)))
                    return
                patient_until, was_away = clock() + PATIENCE_S, is_away
            await asyncio.sleep(POLL_S)
        self._hear(e.Cleared(one.instance_id))

    async def _is_away(self, running: Running) -> bool:
        try:
            await self._runtime.pids(running.handle)
        except RuntimeDown:
            return True
        return False

    async def _stop(self, one: Instance, grace_s: float) -> None:
        if one.running is None:
            await self._end_watch(one)
        if one.running is not None:
            with self._told_if_late(one, LATE_S):
                pids = await self._memory.pids(one)
            before, late_s = await self._memory.used(), max(LATE_S, grace_s + MARGIN_S)
            await self._surely(one, partial(self._runtime.stop, one.running.handle, grace_s), late_s)
            await self._memory.back(one, pids, before)
        self._forget(one)

    async def _remove(self, one: Instance) -> None:
        if one.running is None:
            await self._end_watch(one)
        if one.running is not None and not one.external:
            await self._surely(one, partial(self._runtime.remove, one.running.handle), LATE_S)
            await self._memory.back(one, frozenset(), {})
        self._forget(one)

    async def _end_watch(self, one: Instance) -> None:
        """A start that has not come to an instance yet leaves nothing."""
        watch = self._watches.get(one.instance_id)
        if watch and not watch.done():
            watch.cancel()
            with self._told_if_late(one, LATE_S):
                await asyncio.wait({watch})

    async def _surely(self, one: Instance, end: Callable[[], Coroutine[Any, Any, None]], late_s: float) -> None:
        """Until then the instance may still be there, and its memory with it: it stays in the books."""
        pause_s = RUNTIME_POLL_S
        while True:
            try:
                with self._told_if_late(one, late_s):
                    return await end()
            except RuntimeDown as error:
                away = self._runtime.problem is not None
                if not away:
                    self._hear(e.Stuck(one.instance_id, self._mask(str(error))))
            await self._pause(one, pause_s)
            pause_s = RUNTIME_POLL_S if away else min(2 * pause_s, LONGEST_PAUSE_S)

    @contextmanager
    def _told_if_late(self, one: Instance, late_s: float) -> Iterator[None]:
        """Others need not wait for the runtime: neither to start where there is room, nor to take over."""

        def tell() -> None:
            if self._runtime.problem is None:
                self._hear(e.Stuck(one.instance_id, f"the runtime has not answered for {late_s:g} s"))
                self._moving.discard(one.instance_id)
                self._rest.set()

        timer = asyncio.get_running_loop().call_later(late_s, tell)
        try:
            yield
        finally:
            timer.cancel()

    def _forget(self, one: Instance) -> None:
        watch = self._watches.pop(one.instance_id, None)
        if watch and watch is not asyncio.current_task():
            watch.cancel()
        self._used_before.pop(one.instance_id, None)
        self._hear(e.Gone(one.instance_id))
