# SPDX-License-Identifier: Apache-2.0
"""Which instance keeps a response: engines keep them in their memory, and clients ask for them by their ids alone.

An id is learned from the first bytes of the reply that brings it. What is known is bounded, and gone with the gateway.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from vllm_gateway.api.attempts import Attempts, outcome_of
from vllm_gateway.api.body import Large
from vllm_gateway.api.cors import OF_ENGINES
from vllm_gateway.api.errors import KINDS, ApiError
from vllm_gateway.api.forms import id_headers
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.terms import Terms
from vllm_gateway.bodies.payload import Body
from vllm_gateway.relay import Carried, Client, Instructions, Relay, Rename, UpstreamFailed, own_headers
from vllm_gateway.routing import Demand
from vllm_gateway.scheduling import InstanceView, Outcome, Queues, RequestInfo
from vllm_gateway.telemetry.cut import cut

PATH = "/v1/responses"
MOST = 10_000
"""So many responses are remembered, the latest ones."""

_KEPT = re.compile(r"/v1/responses/([A-Za-z0-9._~-]{1,128})(?:/cancel)?")
_ID = re.compile(rb'\{\s*+"id"\s*+:\s*+"([A-Za-z0-9._~-]{1,128})"')
_ENOUGH_BYTES = 2048  # of a reply, to find its id in
_GONE = "the instance that kept it has ended, or sleeps, and no other one has it"
_UNKNOWN = f"the gateway knows where the last {MOST} are that it has passed on since it began"
_PREVIOUS = "previous_response_id"
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


def response_in(path: str) -> str | None:
    """The id of the response that a path is about."""
    found = _KEPT.fullmatch(path)
    return None if found is None or found[1] == "render" else found[1]


def previous_in(body: Body, large: Large | None) -> str | None:
    """The response that a request goes on from; None if there is none, or nobody can read it."""
    try:
        if large is not None:
            return _text(large.outline.raw(_PREVIOUS)) if _PREVIOUS in large.outline.spans else None
        if _PREVIOUS.encode() not in body:
            return None
        return _text(_fields(body)[_PREVIOUS])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None


class _Home(NamedTuple):
    model: str
    instance_id: str
    caller: str
    rename: Rename | None  # how the model was called when it was asked for


class KeptResponses:
    def __init__(self, queues: Queues, relay: Relay, demand: Demand, models: Callable[[], Iterable[str]]) -> None:
        """`models`: that are served."""
        self._queues = queues
        self._relay = relay
        self._demand = demand
        self._models = models
        self._homes: OrderedDict[str, _Home] = OrderedDict()
        self.by_caller = False
        """Whether callers are known by their keys: then each finds only what was made for it."""

    def learner(self, attempts: Attempts) -> "Learner":
        return Learner(self, attempts)

    def remember(self, response_id: str, view: InstanceView, caller: str, rename: Rename | None = None) -> None:
        self._homes[response_id] = _Home(view.model, view.instance_id, caller, rename)
        self._homes.move_to_end(response_id)
        if len(self._homes) > MOST:
            self._homes.popitem(last=False)

    def place_of(self, response_id: str, caller: str) -> InstanceView:
        """The instance that keeps it. Raises ApiError."""
        home = self._homes.get(response_id)
        if home is None or (self.by_caller and home.caller != caller):
            return self._only_one(response_id, is_foreign=home is not None)
        queue = self._queues.of(home.model) if home.model in self._models() else None
        view = next((one for one in queue.views if one.instance_id == home.instance_id), None) if queue else None
        if view is not None:
            return view
        if self._queues.lists(home.instance_id):
            text = f"The instance that keeps {cut(response_id)!r} is being checked. Try again."
            raise ApiError("instance_failed", text, retry_after_s=1.0)
        raise _not_found(response_id, _GONE)

    def home_of(self, response_id: str | None, request: RequestInfo) -> str | None:
        """The id of the instance that keeps what a request goes on from; None if it is not known. Raises ApiError."""
        home = None if response_id is None else self._homes.get(response_id)
        if home is None:
            return None  # an engine says itself what it does not have
        assert response_id is not None
        if self.by_caller and home.caller != request.client:
            raise _not_found(response_id, _UNKNOWN)
        if home.model != request.model:
            raise _not_found(response_id, f"it is {cut(home.model)}'s")
        if not self._queues.lists(home.instance_id):
            raise _not_found(response_id, _GONE)
        return home.instance_id

    def _only_one(self, response_id: str, *, is_foreign: bool) -> InstanceView:
        """Nothing is known of it; but if only one instance runs, that must have it."""
        views = [view for model in self._models() for view in self._queues.of(model).views]
        if len(views) == 1 and not is_foreign:
            return views[0]
        raise _not_found(response_id, _UNKNOWN)

    async def ask(
        self, client: Client, body: Body, caller: str, progress: Progress, terms: Mapping[str, Terms]
    ) -> Carried:
        """Carries a request about a response to the instance that keeps it. It takes no place: nothing is generated.

        `terms`: by model. Raises ApiError or ClientGone.
        """
        response_id = response_in(progress.path)
        assert response_id is not None
        view = self.place_of(response_id, caller)
        progress.model, progress.instance, progress.attempts = view.model, view.name, 1
        of_model = terms[view.model]
        ids = id_headers(progress.path, progress.request_id)
        own = own_headers(ids, for_client=progress.cors.lines, withheld=OF_ENGINES)
        deadline = None if of_model.request_s is None else progress.began + of_model.request_s
        home = self._homes.get(response_id)
        instructions = Instructions(of_model.limits, own, deadline, rename=home.rename if home else None)
        try:
            carried = await self._relay.carry(client, view.address, body, instructions)
        except UpstreamFailed as failure:
            if outcome_of(failure) is Outcome.UNREACHABLE:
                self._demand.suspect(view.instance_id, failure.reason)
            code = failure.reason if failure.reason in KINDS else "instance_failed"
            text = f"The instance that keeps the response did not answer ({failure.reason}). Try again."
            raise ApiError(code, text, retry_after_s=1.0) from None
        except ValueError as error:
            raise ApiError("bad_request", f"The request cannot be passed on: {error}") from None
        progress.show(carried)
        return carried


class Learner:
    """Looks for the id at the begin of a reply."""

    __slots__ = ("_attempts", "_id", "_kept", "_seen")

    def __init__(self, kept: KeptResponses, attempts: Attempts) -> None:
        self._kept = kept
        self._attempts = attempts
        self._seen: bytes | None = b""  # None: enough
        self._id: str | None = None

    def watch(self, data: bytes) -> None:
        if self._seen is None:
            return
        self._seen += data[:_ENOUGH_BYTES]
        found = _ID.search(self._seen)
        if found is not None:
            self._id = found[1].decode()
            self.settle()
        if found is not None or len(self._seen) >= _ENOUGH_BYTES:
            self._seen = None

    def settle(self) -> None:
        """The instance at hand has it: another one perhaps than at the reply's begin."""
        if self._id is not None:
            attempts = self._attempts
            self._kept.remember(self._id, attempts.instance, attempts.info.client, attempts.rename)


def _not_found(response_id: str, why: str) -> ApiError:
    text = f"No response {cut(response_id)!r} can be found: {why}. Send the conversation itself."
    return ApiError("response_not_found", text, param="response_id")
