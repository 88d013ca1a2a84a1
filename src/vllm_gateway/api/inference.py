# SPDX-License-Identifier: Apache-2.0
"""One inference request, whoever read it: body -> model -> queue -> an instance, and another one if that fails."""

import asyncio
from functools import partial

from vllm_gateway.api.body import wanted
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.names import ModelNames
from vllm_gateway.relay import Carried, Client, Relay, UpstreamFailed, own_headers
from vllm_gateway.routing import Demand
from vllm_gateway.scheduling import InstanceView, ModelQueue, Outcome, Queues, Refused, RequestInfo
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
        recorder: TraceRecorder | None = None,
    ) -> None:
        self._names = names
        self._queues = queues
        self._relay = relay
        self._demand = demand
        self._recorder = recorder
        self.stopping = False

    def check_open(self) -> None:
        """Raises ApiError while the gateway shuts down; to be asked before a body is read."""
        if self.stopping:
            raise ApiError("stopping", "The gateway is shutting down. Try again.", retry_after_s=1.0)

    async def serve(self, client: Client, body: bytes, caller: str, progress: Progress) -> Carried:
        """Returns when the reply is with the client. Raises ApiError or ClientGone if none has begun."""
        info = RequestInfo(progress.request_id, "", progress.path, False, body, client.raw_headers, caller)
        found = wanted(body, info.header("content-type") or "")
        assert found.model
        info.model = progress.model = self._names.model_of(found.model)
        info.stream = progress.stream = bool(found.stream)
        queue = self._queues.of(info.model)
        failed: frozenset[str] = frozenset()
        while True:
            instance = await self._place(queue, info, failed, progress)
            try:
                return await self._try(client, info, instance, queue, progress)
            except UpstreamFailed as failure:
                self._demand.suspect(instance.instance_id, failure.reason)
                if not (failure.retryable and queue.may_try_again(progress.attempts)):
                    text = f"The instance that had the request failed before it answered ({failure.reason}). Try again."
                    raise ApiError("instance_failed", text, retry_after_s=queue.retry_after_s()) from None
                failed |= {instance.instance_id}

    async def settle(self, client: Client, carried: Carried) -> None:
        """To be awaited between a reply and the next request of its connection."""
        await self._relay.settle(client, carried)

    async def _place(
        self, queue: ModelQueue, info: RequestInfo, failed: frozenset[str], progress: Progress
    ) -> InstanceView:
        loop = asyncio.get_running_loop()
        waits_since = loop.time()
        try:
            instance = await queue.acquire(info, failed, waited_s=progress.queue_s)
        except Refused as refused:
            raise ApiError.of(refused.refusal) from None
        finally:
            progress.queue_s += loop.time() - waits_since
        progress.attempts += 1
        progress.instance = instance.name
        return instance

    async def _try(
        self, client: Client, info: RequestInfo, instance: InstanceView, queue: ModelQueue, progress: Progress
    ) -> Carried:
        outcome = Outcome.CLIENT_GONE
        own = own_headers((("X-Request-Id", info.request_id),))
        placement = queue.placement
        length = ReplyLength() if self._recorder is not None else None
        try:
            carried = await self._relay.carry(
                client,
                instance.host,
                instance.port,
                info.body,
                extra_request_headers=own,
                extra_reply_headers=own,
                began=partial(placement.first_byte, info, instance) if placement.wants_first_byte else None,
                watch=length.watch if length is not None else None,
            )
            progress.status = carried.status
            progress.first_byte_s, progress.bytes_out = carried.first_byte_s, carried.bytes_sent
            outcome = _outcome(carried)
            progress.outcome = carried.broken or "ok"
            if length is not None and carried.status == 200:
                self._note(info, progress.began, length)
        except UpstreamFailed:
            outcome = Outcome.UNREACHABLE
            raise
        except ValueError as error:
            outcome = Outcome.CLIENT_ERROR
            raise ApiError("bad_request", f"The request cannot be passed on: {error}") from None
        finally:
            queue.release(instance, info, outcome)
        return carried

    def _note(self, info: RequestInfo, arrived_s: float, length: ReplyLength) -> None:
        assert self._recorder is not None
        prompt = info.prompt
        self._recorder.record(
            arrived_s=arrived_s,
            model=info.model,
            prompt_tokens=prompt.tokens,
            blocks=prompt.blocks,
            block_tokens=prompt.block_tokens,
            reply_tokens=length.tokens,
        )


def _outcome(carried: Carried) -> Outcome:
    if carried.broken:
        return Outcome.CLIENT_GONE if carried.broken.startswith("client") else Outcome.BROKEN
    if carried.status >= 500:
        return Outcome.SERVER_ERROR
    return Outcome.CLIENT_ERROR if carried.status >= 400 else Outcome.OK
