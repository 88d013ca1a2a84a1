# SPDX-License-Identifier: Apache-2.0
"""One inference request, whoever read it: body -> model -> queue -> an instance, and another one if that fails."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec

from vllm_gateway.api import kept
from vllm_gateway.api.attempts import Attempts, outcome_of
from vllm_gateway.api.body import (
    Large,
    in_utf8,
    is_json_in_python,
    large_with_model,
    looked_through,
    wanted,
    with_model,
)
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.media_types import check_media_type
from vllm_gateway.api.names import ModelNames
from vllm_gateway.api.streamed import StreamedRequest
from vllm_gateway.api.terms import Terms
from vllm_gateway.bodies.forms import is_form
from vllm_gateway.bodies.limits import BodyLimits, is_large
from vllm_gateway.bodies.payload import Body, Payload
from vllm_gateway.bodies.turns import Turns
from vllm_gateway.relay import Carried, Client, Relay, Rename, UpstreamFailed
from vllm_gateway.routing import Demand, Refusal
from vllm_gateway.scheduling import Outcome, Queues, RequestInfo
from vllm_gateway.streams import TYPED, Asked, Known, Told, Tracker, Typed, asked
from vllm_gateway.telemetry.trace import ReplyLength, TraceRecorder


class Inference:
    """Carries requests to the models; knows no routes, no keys and no server."""

    def __init__(
        self,
        *,
        names: ModelNames,
        queues: Queues,
        relay: Relay,
        demand: Demand,
        terms: Mapping[str, Terms],
        emit: Callable[..., None],
        recorder: TraceRecorder | None = None,
        body_limits: BodyLimits | None = None,
    ) -> None:
        self.body_limits = body_limits or BodyLimits()
        self._turns = Turns()
        self._names = names
        self._queues = queues
        self._relay = relay
        self._demand = demand
        self._recorder = recorder
        self._terms = terms  # by model
        self._emit: Callable[..., None] = emit
        self.kept = kept.KeptResponses(queues, relay, demand, lambda: self._terms)
        self.return_at: float | None = None
        """Once the gateway shuts down: the time of the loop at which a client should come to the next one."""

    def configure(self, terms: Mapping[str, Terms], body_limits: BodyLimits) -> None:
        """For the requests that come from now on."""
        self._terms = terms
        self.body_limits = body_limits

    @property
    def stopping(self) -> bool:
        return self.return_at is not None

    def goodbye(self) -> Refusal:
        """What clients are told when the gateway ends."""
        wait_s = (self.return_at or 0.0) - asyncio.get_running_loop().time()
        return Refusal("stopping", "The gateway is shutting down. Try again.", retry_after_s=wait_s)

    def check_open(self) -> None:
        """Raises ApiError while the gateway shuts down; to be asked before a body is read."""
        if self.stopping:
            raise ApiError.of(self.goodbye())

    async def serve(self, client: Client, body: Body, caller: str, progress: Progress) -> Carried:
        """Returns when the reply is with the client. Raises ApiError or ClientGone if none has begun."""
        content_type = client.content_type
        if body[:2] != b'{"' and not is_form(content_type):
            body = in_utf8(body)
        info = RequestInfo(progress.request_id, "", progress.path, False, body, client.raw_headers, caller)
        large = None
        found = None
        if not is_large(body):
            try:
                found = wanted(body, content_type, self.body_limits)
            except ApiError:
                if not is_json_in_python(body, content_type):
                    raise
        if found is None:
            large = await looked_through(body, content_type, self.body_limits, self._turns)
            found = large.wanted
            info.outline = large.outline
        assert found.model
        model, served_as = self._names.resolve(found.model)
        info.model = progress.model = model
        terms = self._terms[model]
        taken = terms.media_types.get(info.path)
        if content_type != taken and taken is not None:
            check_media_type(info.path, content_type, taken)
        payload: Payload | None = None
        rename: Rename | None = None
        if found.model != served_as:
            rename = Rename(served_as, found.model) if terms.echo_aliases else None
            if large is None:
                info.body = with_model(body, content_type, served_as, self.body_limits)
            else:
                payload = large_with_model(body, large, served_as)
                info.fields.model = msgspec.Raw(msgspec.json.encode(served_as))
        info.stream = progress.stream = bool(found.stream)
        attempts = Attempts(
            info,
            self._queues.of(model),
            self._demand,
            terms,
            progress,
            body=payload or info.body,
            rename=rename,
            goodbye=self.goodbye,
        )
        if self._recorder is not None or info.path == kept.PATH:
            return await self._watched(client, attempts, large)
        return await self._answer(client, attempts, large)

    async def ask(self, client: Client, body: Body, caller: str, progress: Progress) -> Carried:
        """As `serve`, for a request about a response that an instance keeps."""
        return await self.kept.ask(client, body, caller, progress, self._terms)

    async def _watched(self, client: Client, attempts: Attempts, large: Large | None) -> Carried:
        """A reply of which something is to be known afterwards: its length, or the name under which it is kept."""
        length = None if self._recorder is None else ReplyLength()
        learner = None
        if attempts.info.path == kept.PATH:
            attempts.home = self.kept.home_of(kept.previous_in(attempts.info.body, large), attempts.info)
            learner = self.kept.learner(attempts)
        watches: list[Callable[[bytes], None]] = [one.watch for one in (length, learner) if one is not None]
        attempts.watch = partial(_show_all, watches)
        try:
            carried = await self._answer(client, attempts, large)
        finally:
            if learner is not None:
                learner.settle()
        if self._recorder is not None and length is not None and carried.status == 200:
            self._record(self._recorder, attempts, length)
        return carried

    def _answer(self, client: Client, attempts: Attempts, large: Large | None) -> Coroutine[Any, Any, Carried]:
        info = attempts.info
        told = self._told(client, attempts, large) if info.stream else None
        if told is None:
            return self._plain(client, attempts)
        return self._streamed(client, told, attempts).serve()

    @staticmethod
    def _told(client: Client, attempts: Attempts, large: Large | None) -> Told | None:
        """Who follows the stream that is asked for; nobody, if it is of another kind."""
        info, terms = attempts.info, attempts.terms
        types = TYPED.get(info.path)
        if types is not None:
            if is_form(client.content_type):
                return None
            return Typed(types, attempts.body, target=client.target, max_event_bytes=terms.max_event_bytes)
        wish = asked(info.path, info.body) if large is None else Inference._in_large(attempts, large)
        return None if wish is None else Tracker(wish, terms.resume, terms.max_event_bytes)

    @staticmethod
    def _in_large(attempts: Attempts, large: Large) -> Asked | None:
        info = attempts.info
        fields = large.outline.fields()
        fields["model"] = info.fields.model
        prompt = large.outline.lists.get("prompt")
        body = attempts.body if isinstance(attempts.body, tuple) else (memoryview(attempts.body),)
        return asked(info.path, b"", Known(fields, body, max(1, prompt.elements) if prompt else 1))

    async def _plain(self, client: Client, attempts: Attempts) -> Carried:
        """A reply that is passed on as it comes."""
        while True:
            instance = attempts.place_at_once() or await attempts.place()
            outcome = Outcome.CLIENT_GONE
            try:
                carried = await self._relay.carry(client, instance.address, attempts.body, attempts.instructions())
                outcome = attempts.note(carried)
                return carried
            except UpstreamFailed as failure:
                outcome = outcome_of(failure)
                attempts.check_again(failure)
            except ValueError as error:
                outcome = Outcome.CLIENT_ERROR
                raise ApiError("bad_request", f"The request cannot be passed on: {error}") from None
            finally:
                attempts.release(outcome)

    def _streamed(self, client: Client, told: Told, attempts: Attempts) -> StreamedRequest:
        return StreamedRequest(
            client, told, attempts, self._relay, starting=partial(self._starting, attempts), emit=self._emit
        )

    def _starting(self, attempts: Attempts) -> str:
        """What a request waits for, for its client."""
        model = attempts.info.model
        if attempts.queue.views:
            return f"waiting for {model}"
        share = self._demand.start_share(model)
        return f"starting {model}" if share is None else f"starting {model}, {round(share * 100)} %"

    async def settle(self, client: Client, carried: Carried) -> None:
        """To be awaited between a reply and the next request of its connection."""
        await self._relay.settle(client, carried)

    @staticmethod
    def _record(recorder: TraceRecorder, attempts: Attempts, length: ReplyLength) -> None:
        prompt = attempts.info.prompt
        recorder.record(
            arrived_s=attempts.progress.began,
            model=attempts.info.model,
            prompt_tokens=prompt.tokens,
            blocks=prompt.blocks,
            block_tokens=prompt.block_tokens,
            reply_tokens=length.tokens,
        )


def _show_all(watches: list[Callable[[bytes], None]], data: bytes) -> None:
    for watch in watches:
        watch(data)
