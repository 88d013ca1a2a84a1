# SPDX-License-Identifier: Apache-2.0
"""Which requests may have ended instances, as far as a queue has to do with it: who has to wait, and who is refused."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling.poison import KnownBodies, refusal_of
from vllm_gateway.scheduling.quarantine import Lost, Quarantine
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo
from vllm_gateway.scheduling.waiting import Refused, Waiter

MOST_CONDEMNED = 3
CONDEMNED_IN_S = 60.0
_BROKE_OFF = frozenset({Outcome.UNREACHABLE, Outcome.BROKEN})
_FAILURES = _BROKE_OFF | {Outcome.SERVER_ERROR}


class Suspicion:
    """`poison` is what is refused, `cut` what an instance broke off: if that comes anew, its client tries again.

    Most of the time there is nothing in them, nor in `quarantine`, which is to be seen before anything is asked.
    """

    __slots__ = (
        "_condemned",
        "_free",
        "_guilty",
        "_look_again",
        "_model",
        "_serve",
        "_waiting",
        "cut",
        "poison",
        "quarantine",
    )

    def __init__(
        self,
        model: str,
        *,
        guilty: Callable[[RequestInfo, InstanceView], None],
        free: Callable[[Waiter], None],
        waiting: Callable[[], Iterable[Waiter]],
        serve: Callable[[], None],
    ) -> None:
        """`guilty` hears of each request that ends instances, `free` of those that wait and are not suspected any more.

        `waiting`: all who have been on an instance before; `serve` is called when some of them may have a place.
        """
        self.quarantine: Quarantine[Waiter] = Quarantine(self._condemn)
        self.poison: KnownBodies[Refusal] = KnownBodies()
        self.cut: KnownBodies[Lost] = KnownBodies()
        self._condemned: deque[float] = deque(maxlen=MOST_CONDEMNED)  # when
        self._model = model
        self._guilty = guilty
        self._free = free
        self._waiting = waiting
        self._serve = serve
        self._look_again: asyncio.TimerHandle | None = None

    def check(self, request: RequestInfo) -> None:
        """Raises Refused."""
        if refusal := self.poison.get(request, asyncio.get_running_loop().time()):
            raise Refused(refusal)

    def is_refused(self, waiter: Waiter) -> bool:
        refusal = self.poison.get(waiter.request, asyncio.get_running_loop().time())
        if refusal is not None:
            waiter.refuse(refusal)
        return refusal is not None

    def of_earlier_try(self, request: RequestInfo) -> Lost | None:
        """What has become of the same request of the same client, which the gateway could not try again."""
        return self.cut.pop(request, asyncio.get_running_loop().time())

    def ended(self, view: InstanceView, request: RequestInfo, outcome: Outcome, ran_s: float) -> None:
        """To be called if it failed, or there is anything in here."""
        now = asyncio.get_running_loop().time()
        if outcome in _BROKE_OFF:
            self.cut.add(request, Lost(view.instance_id, ran_s, frozenset({view.instance_id})), now)
        elif self.cut.any:
            self.cut.pop(request, now)
        self.quarantine.ended(view, request, now, failed=outcome in _FAILURES)

    def serve(self, views: Sequence[InstanceView], place: Callable[[Waiter, InstanceView], None]) -> None:
        """Lets those in whose turn it is. `views`: the instances there are."""
        loop, quarantine = asyncio.get_running_loop(), self.quarantine
        while group := quarantine.let_in(views, loop.time()):
            assert quarantine.ward is not None
            view = quarantine.ward.view
            for waiter in group:
                if waiter.place.done():
                    quarantine.ended(view, waiter.request, loop.time(), failed=False)
                else:
                    place(waiter, view)
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        if quarantine.again_at is not None:
            self._look_again = loop.call_at(quarantine.again_at, self._serve)

    def _condemn(self, request: RequestInfo, view: InstanceView, free: Sequence[Waiter]) -> None:
        """Whoever waits with the same is refused, too. Where engines die of everything, nobody is."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_believed = len(self._condemned) < MOST_CONDEMNED or now - self._condemned[0] > CONDEMNED_IN_S
        self._condemned.append(now)
        for waiter in free:
            self._free(waiter)
        if is_believed:
            self.poison.add(request, refusal_of(self._model), now)
            self._guilty(request, view)
            for waiter in [*self._waiting(), *self.quarantine]:
                self.is_refused(waiter)
        loop.call_soon(self._serve)
