# SPDX-License-Identifier: Apache-2.0
"""One request for a stream, up to its last event: begun by one instance, and continued by others if that fails."""

import asyncio
from collections.abc import Callable

import orjson

from vllm_gateway.api.attempts import Attempts, LastTryFailed, outcome_of
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.forms import engines_event
from vllm_gateway.api.journal import Progress
from vllm_gateway.relay import Carried, Client, ClientGone, ClientStream, NoStream, Relay, UpstreamFailed
from vllm_gateway.scheduling import Outcome
from vllm_gateway.streams import Ask, Finish, GiveUp, Told, comment, next_step
from vllm_gateway.telemetry import events

QUIET_S = 1.0
"""How long a stream waits for its instance before its client gets a sign of life."""
COMMENT_EVERY_S = 5.0
_NOT_ITS_FAULT = frozenset({"relay_closed", "request_timeout"})


class StreamedRequest:
    """The client sees one stream, or one error."""

    def __init__(
        self,
        client: Client,
        told: Told,
        attempts: Attempts,
        relay: Relay,
        *,
        starting: Callable[[], str],
        emit: Callable[..., None],
    ) -> None:
        """Raises ClientGone. `starting` says in a few words what a request waits for."""
        self._attempts = attempts
        self._relay = relay
        self._starting = starting
        self._emit: Callable[..., None] = emit
        self._told = told
        self._stream = ClientStream(client, told, attempts.own, attempts.rename)
        self._next = Ask(client.target, told.body, told)
        self._timer: asyncio.TimerHandle  # of the next sign of life
        self._cut_by: dict[str, object] | None = None  # what is known of the failure after which another one goes on

    async def serve(self) -> Carried:
        """Returns when the reply is with the client. Raises ApiError or ClientGone if nothing of it is."""
        stream = self._stream
        try:
            return await self._parts()
        except ApiError as error:
            if not stream.begun:
                raise
            if isinstance(error, LastTryFailed) and self._told.begun:
                error = self._interrupted(self._attempts.reason, "no other instance goes on")
            return self._end_with(error.event(self._attempts.progress, self._told.number), error.code)
        except ClientGone:
            if not stream.begun:
                raise
            return self._shown("client_gone")
        except BaseException:
            if stream.begun:
                stream.transport.abort()  # else the client would wait for the rest
                self._shown("cancelled")
            raise

    async def _parts(self) -> Carried:
        attempts, stream = self._attempts, self._stream
        while True:
            await self._place()
            if self._cut_by is not None:
                attempts.progress.continued += 1
                self._emit(events.STREAM_CONTINUED, **self._cut_by, how=self._next.how)
                self._cut_by = None
            try:
                carried = await self._part(self._next)
            except UpstreamFailed as failure:
                if isinstance(failure, NoStream) and (failure.status < 500 or not self._told.begun):
                    return self._refused(failure)
                attempts.check_again(failure)
                continue
            if carried.broken is None or not stream.begun or stream.transport.is_closing():
                return carried
            self._go_on(carried.broken)
            if stream.ended:
                return self._shown(None)

    async def _place(self) -> None:
        """Waits for an instance; the client hears of it if it is to be kept alive."""
        if self._attempts.place_at_once() is not None:
            return
        if not self._attempts.terms.keepalive:
            await self._attempts.place()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(QUIET_S, self._tell, loop)
        try:
            await self._attempts.place()
        finally:
            self._timer.cancel()

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(COMMENT_EVERY_S, self._tell, loop)
        stream = self._stream
        if not stream.begun:
            stream.begin()
        if not stream.is_slow:
            stream.write(comment(self._starting()))

    async def _part(self, ask: Ask) -> Carried:
        """What one instance has to say."""
        attempts, stream = self._attempts, self._stream
        instance = attempts.instance
        outcome = Outcome.CLIENT_GONE
        stream.follower = ask.stream
        try:
            carried = await self._relay.carry_on(stream, instance.address, ask.path, ask.body, attempts.instructions())
            outcome = attempts.note(carried)
            if self._told.refused and outcome is Outcome.OK:
                outcome = Outcome.CLIENT_ERROR
        except NoStream as failure:
            outcome = Outcome.SERVER_ERROR if failure.status >= 500 else Outcome.CLIENT_ERROR
            raise
        except UpstreamFailed as failure:
            outcome = outcome_of(failure)
            raise
        except ValueError as error:
            outcome = Outcome.CLIENT_ERROR
            raise ApiError("bad_request", f"The request cannot be passed on: {error}") from None
        finally:
            attempts.release(outcome)
        return carried

    def _go_on(self, reason: str) -> None:
        """The stream was cut before its end. Raises ApiError if nobody can go on, or nobody may."""
        attempts, told = self._attempts, self._told
        if not told.is_finished:
            attempts.check_open(reason)
            if reason == "request_timeout":
                raise attempts.late()
        if reason == "event_too_long":
            raise self._too_long()
        if reason == "refused":
            raise self._interrupted(reason, "the other instance refused to go on")
        if reason not in _NOT_ITS_FAULT:
            attempts.suspect(reason)
        step = next_step(told)
        if isinstance(step, Finish):
            self._stream.write(step.events)
            self._stream.end()
            return
        if isinstance(step, Ask) and attempts.has_tries_left:
            self._next = step
            self._cut_by = self._known(reason)
            return
        again = "it has failed too often" if attempts.home is None else "no other instance has what it goes on from"
        raise self._interrupted(reason, step.why if isinstance(step, GiveUp) else again)

    def _refused(self, failure: NoStream) -> Carried:
        """An engine does not want the request, and the client has a head that says otherwise."""
        if self._told.begun:
            raise self._interrupted(failure.reason, "the other instance refused to go on")
        return self._end_with(_refusal(failure, self._attempts.progress), failure.reason)

    def _too_long(self) -> ApiError:
        """Another instance would say the same."""
        self._emit(events.STREAM_INTERRUPTED, **self._known("event_too_long"), why="an event over the limit")
        limit = self._attempts.terms.max_event_bytes >> 20
        text = f"The engine sent an event that is too long to be passed on (server.max_event_mib is {limit})."
        return ApiError("event_too_long", text)

    def _interrupted(self, reason: str, why: str) -> ApiError:
        self._emit(events.STREAM_INTERRUPTED, **self._known(reason), why=why)
        code = reason if reason in ("idle_timeout", "first_byte_timeout") else "stream_interrupted"
        text = f"The instance failed within the stream ({reason}), which cannot be continued: {why}. Ask again."
        return ApiError(code, text)

    def _known(self, reason: str) -> dict[str, object]:
        info = self._attempts.info
        return {
            "request_id": info.request_id,
            "model": info.model,
            "instance": self._attempts.instance.name,
            "reason": reason,
            "tokens": self._told.tokens,
        }

    def _end_with(self, event: bytes, code: str) -> Carried:
        """The client's last event is an error, and no other end follows that looks like success."""
        self._stream.write(event)
        self._stream.end()
        return self._shown(code)

    def _shown(self, broken: str | None) -> Carried:
        carried = self._stream.carried(broken)
        self._attempts.progress.show(carried)
        return carried


def _refusal(failure: NoStream, progress: Progress) -> bytes:
    """The engine's own error as an event."""
    try:
        body = orjson.loads(failure.body)
        if isinstance(body, dict) and "error" in body:
            return engines_event(body, progress.form)
    except (ValueError, TypeError, AttributeError):
        pass
    said = failure.body[:500].decode("utf-8", "replace")
    return ApiError("instance_failed", f"The engine answered with status {failure.status}: {said}").event(progress, 0)
