# SPDX-License-Identifier: Apache-2.0
"""One request on its way from instance to instance: a place on each, and what came of it."""

import asyncio
from collections.abc import Callable
from functools import lru_cache

from vllm_gateway.api.cors import OF_ENGINES
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.failures import MOST_HUNG, NOBODY_GOT_IT, Failures
from vllm_gateway.api.forms import id_headers
from vllm_gateway.api.giving_up import is_clients_fault, is_dead, is_giving_up
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.terms import Terms
from vllm_gateway.bodies.payload import Payload
from vllm_gateway.relay import Carried, Instructions, NoStream, OwnHeaders, Rename, UpstreamFailed, own_headers
from vllm_gateway.routing import Demand, Refusal
from vllm_gateway.scheduling import InstanceView, ModelQueue, NotAgain, Outcome, Refused, RequestInfo

_NOT_ITS_FAULT = frozenset({"request_timeout", "shortage", "relay_closed", "event_too_long", "refused"})
"""These say nothing about an instance: another one would have done the same."""

_NO_FAILURES = Failures()
_ID = "%id"


@lru_cache(maxsize=64)
def _own_headers(path: str) -> tuple[frozenset[bytes], str]:
    """Their names, with what no engine's reply keeps, and the lines for _ID."""
    own = own_headers(id_headers(path, _ID), withheld=OF_ENGINES)
    return own.names, own.lines.decode()


class LastTryFailed(ApiError):
    """An instance has failed the request, and no other one gets it."""


def outcome_of(failure: UpstreamFailed) -> Outcome:
    """What it says about the instance that there was no reply."""
    if failure.reason == "redirected":
        return Outcome.CLIENT_ERROR
    return Outcome.CLIENT_GONE if failure.reason in _NOT_ITS_FAULT else Outcome.UNREACHABLE


class Attempts:
    """Between two calls the request has a place on no instance, or on `instance`."""

    __slots__ = (
        "_demand",
        "_failures",
        "_goodbye",
        "_placed_at",
        "_tries",
        "body",
        "deadline",
        "home",
        "info",
        "instance",
        "own",
        "progress",
        "queue",
        "rename",
        "terms",
        "watch",
    )

    def __init__(
        self,
        info: RequestInfo,
        queue: ModelQueue,
        demand: Demand,
        terms: Terms,
        progress: Progress,
        *,
        body: Payload,
        rename: Rename | None,
        goodbye: Callable[[], Refusal],
    ) -> None:
        """`body` goes on to the instance. `goodbye`: what the client is told when the gateway ends."""
        self._demand = demand
        self._goodbye = goodbye
        self._failures: Failures | None = None
        self._placed_at = 0.0
        self._tries = 0  # instances that got the request
        self.info = info
        self.body = body
        self.queue = queue
        self.terms = terms
        self.progress = progress
        names, lines = _own_headers(progress.path)
        self.own = OwnHeaders(names, lines.replace(_ID, info.request_id).encode(), progress.cors.lines)
        self.deadline = None if terms.request_s is None else progress.began + terms.request_s
        self.watch: Callable[[bytes], None] | None = None  # is shown the reply
        self.rename = rename
        self.home: str | None = None  # the only instance that can serve it
        self.instance: InstanceView

    def instructions(self) -> Instructions:
        """For the relay, at this try; at the last one the client gets what there is."""
        return Instructions(
            self.terms.limits,
            self.own,
            self.deadline,
            began=self.queue.began(self.instance, self.info),
            watch=self.watch,
            rename=self.rename,
            only_here=self.home is not None,
            has_given_up=self._has_given_up,
        )

    def _has_given_up(self, status: int, body: bytes) -> bool:
        """At the last try the client gets what there is."""
        failures = self._some_failures()
        failures.blames_client = is_clients_fault(status, body)
        failures.lives = not is_dead(body)
        return self.has_tries_left and is_giving_up(status, body)

    @property
    def has_tries_left(self) -> bool:
        hung = self._failures.hung if self._failures is not None else 0
        return self.home is None and hung < MOST_HUNG and self.queue.has_tries_left(self._tries)

    @property
    def reason(self) -> str:
        """Why the last instance failed."""
        return self._failures.reason if self._failures is not None else ""

    def _some_failures(self) -> Failures:
        if self._failures is None:
            self._failures = Failures()
        return self._failures

    def place_at_once(self) -> InstanceView | None:
        """As `place`, while nothing has failed the request; None: a place has to be waited for."""
        if self._failures is not None or self.home is not None:
            return None
        instance = self.queue.acquire_at_once(self.info)
        if instance is not None:
            self._begin(instance, instance.last_used or 0.0)
        return instance

    async def place(self) -> InstanceView:
        """Waits for a place on an instance; `release` gives it back. Raises ApiError."""
        progress = self.progress
        loop = asyncio.get_running_loop()
        waits_since = loop.time()
        try:
            if self.home is not None:
                acquired = self.queue.acquire_at(self.home, self.info)
            else:
                past = self._failures or _NO_FAILURES
                acquired = self.queue.acquire(
                    self.info, past.failed, never=past.never, lost=past.lost, waited_s=progress.queue_s
                )
            async with asyncio.timeout_at(self.deadline):
                instance = await acquired
        except Refused as refused:
            raise ApiError.of(refused.refusal) from None
        except NotAgain:
            raise self._last_try_failed() from None
        except TimeoutError:
            progress.limit_reached("request_timeout")
            raise self.late() from None
        finally:
            now = loop.time()
            progress.queue_s += now - waits_since
        self._begin(instance, now)
        return instance

    def _begin(self, instance: InstanceView, now: float) -> None:
        self.instance, self._placed_at = instance, now
        self._tries += 1
        self.progress.attempts += 1
        self.progress.instance = instance.name

    def release(self, outcome: Outcome) -> None:
        self.queue.release(self.instance, self.info, outcome)

    def note(self, carried: Carried) -> Outcome:
        """What came of a reply that has begun."""
        self.progress.show(carried)
        if carried.broken:
            self.progress.limit_reached(carried.broken)
            ours = carried.broken in _NOT_ITS_FAULT or carried.broken.startswith("client")
            return Outcome.CLIENT_GONE if ours else Outcome.BROKEN
        if carried.status < 400:
            return Outcome.OK
        blames_client = self._failures is not None and self._failures.blames_client
        return Outcome.SERVER_ERROR if carried.status >= 500 and not blames_client else Outcome.CLIENT_ERROR

    def check_again(self, failure: UpstreamFailed) -> None:
        """Raises ApiError if the request is not to be tried again."""
        reason = failure.reason
        self.check_open(reason)
        self.progress.limit_reached(reason)
        if reason == "request_timeout":
            raise self.late()
        if reason == "redirected":
            raise ApiError("engine_redirect", "The engine wants the request elsewhere, which is not followed.")
        if isinstance(failure, NoStream):
            self._some_failures().lives = not is_dead(failure.body)
        self.suspect(reason)
        if not (failure.retryable and self.has_tries_left):
            raise self._last_try_failed()

    def check_open(self, reason: str) -> None:
        """Raises ApiError if it is the gateway that ends, or lacks something, and no instance that failed."""
        if reason == "relay_closed":
            raise ApiError.of(self._goodbye())
        if reason == "shortage":
            text = "The gateway may open no more files or connections at the moment. Try again."
            raise ApiError("shortage", text, retry_after_s=1.0)

    def suspect(self, reason: str) -> None:
        """The instance that had the request last failed it."""
        self._tries -= reason in NOBODY_GOT_IT
        ran_s = asyncio.get_running_loop().time() - self._placed_at
        self._some_failures().add(reason, self.instance.instance_id, ran_s)
        self._demand.suspect(self.instance.instance_id, reason)

    def late(self) -> ApiError:
        """What the client is told when its request has taken too long."""
        text = f"The request was not answered within {self.terms.request_s} s (timeouts.request_s)."
        return ApiError("request_timeout", text, retry_after_s=self.queue.retry_after_s())

    def _last_try_failed(self) -> LastTryFailed:
        limits, reason = self.terms.limits, self.reason
        texts = {
            "connect_timeout": f"No connection to an instance within {limits.connect_s:g} s (timeouts.connect_s).",
            "first_byte_timeout": f"An instance said nothing for {limits.first_byte_s} s (timeouts.first_byte_s).",
        }
        failed = f"The instance that had the request failed before it answered ({reason}). Try again."
        if self._failures is not None and self._failures.hung >= MOST_HUNG:
            failed = f"{self._failures.hung} engines hung while they had this request; no other one is given it."
        code = reason if reason in texts else "instance_failed"
        return LastTryFailed(code, texts.get(reason, failed), retry_after_s=self.queue.retry_after_s())
