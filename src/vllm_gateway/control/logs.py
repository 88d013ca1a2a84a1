# SPDX-License-Identifier: Apache-2.0
"""What engines wrote, as pages: all that is kept of an instance, or that and what it goes on to write."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import hdrs, web

from vllm_gateway.api.answers import as_json, name_server, only_get
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.names import ModelNames
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.runtimes.output import MOST_LINES, Output, Outputs
from vllm_gateway.telemetry.cut import cut

INSTANCES, LOGS = "/gateway/instances/", "/logs"
_ALL = "all"
_YES_OR_NO: Mapping[str, bool] = {"true": True, "1": True, "": True, "false": False, "0": False}
_PIECE = 64 * 1024
_SLOW_S = 30.0  # for a reader to take a piece
_LOOK_AGAIN_S = 0.5  # whether one that has yet to start does, or is gone
_HEADERS = {
    hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class KeptLog:
    """`state`: as the status has it, or `ended`. `lines`: those that are kept."""

    instance: str
    model: str
    state: str
    lines: int


@dataclass(frozen=True, slots=True)
class LogsPage:
    """`GET /gateway/logs?model=`: of which instances there is something to read."""

    logs: list[KeptLog]


class _TooSlow(Exception):
    """A reader that does not take the lines as fast as they come."""


class Logs:
    def __init__(self, outputs: Outputs, names: ModelNames, instances: Callable[[], list[Instance]]) -> None:
        self._outputs = outputs
        self._names = names
        self._instances = instances

    async def list(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        only_get(request)
        name = request.rel_url.query.get("model")
        model = self._names.model_of(name) if name else None
        kept = {name: KeptLog(name, one.model, "ended", one.kept) for name, one in self._outputs.items()}
        for one in self._instances():
            if not one.external:
                output = self._outputs.get(one.name)
                kept[one.name] = KeptLog(one.name, one.model, one.state.value, output.kept if output else 0)
        return as_json(LogsPage([kept[one] for one in sorted(kept) if model in (None, kept[one].model)]), progress)

    async def show(self, request: web.BaseRequest, progress: Progress) -> web.StreamResponse:
        only_get(request)
        name = request.rel_url.path.removeprefix(INSTANCES).removesuffix(LOGS)
        query = request.rel_url.query
        tail, follows = _tail(query.get("tail", _ALL)), query.get("follow", "false").lower()
        if follows not in _YES_OR_NO:
            raise ApiError("bad_request", "follow is true or false.", param="follow")
        output = self._outputs.get(name)
        if output is None:
            self._check(name)
        headers = {**_HEADERS, **progress.headers}
        if not _YES_OR_NO[follows] or request.method == hdrs.METH_HEAD:
            lines = [*output.since(output.first), *output.unfinished] if output else []
            return web.Response(
                text="".join(f"{line}\n" for line in lines[max(len(lines) - tail, 0) :]), headers=headers
            )
        response = web.StreamResponse(headers=headers)
        name_server(response)
        await response.prepare(request)
        try:
            await self._follow(name, tail, response, progress)
        except _TooSlow:
            progress.outcome = "client_stalled"
            if request.transport is not None:
                request.transport.abort()
        return response

    def _check(self, name: str) -> None:
        """Raises ApiError for one that has no log, and will have none."""
        one = next((one for one in self._instances() if one.name == name), None)
        if one is None:
            text = f"No instance {cut(name)!r} runs, or has run lately. GET /gateway/logs lists those there are."
            raise ApiError("not_found", text, param="name")
        if one.external:
            text = f"The gateway did not start {cut(name)!r}: what it writes is where it was started."
            raise ApiError("not_found", text, param="name")

    async def _follow(self, name: str, tail: int, response: web.StreamResponse, progress: Progress) -> None:
        """Until the instance ends, or the gateway does. Raises _TooSlow."""
        output: Output | None = None
        place = 0
        while not self._outputs.closed:
            if output is None or not output.running:
                there = self._outputs.get(name)
                if there is not None and there is not output:
                    place = max(there.first, there.end - tail) if output is None else there.first
                output = there
            if output is not None and place < output.end:
                if place < output.first:
                    raise _TooSlow
                lines, place = output.since(place), output.end
                text = "".join(f"{line}\n" for line in lines).encode()
                await _write(text, response, progress, partial(_is_kept, output, place))
            elif output is not None and output.running:
                await output.news()
            elif not self._is_to_run(name):
                return
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(output.news() if output else asyncio.sleep(_LOOK_AGAIN_S), _LOOK_AGAIN_S)

    def _is_to_run(self, name: str) -> bool:
        return any(one.name == name and not one.leaving for one in self._instances())


def _is_kept(output: Output, place: int) -> bool:
    return place >= output.first


async def _write(data: bytes, response: web.StreamResponse, progress: Progress, in_time: Callable[[], bool]) -> None:
    """In pieces: what a reader has not taken is not in memory twice. Raises _TooSlow."""
    for begin in range(0, len(data), _PIECE):
        piece = data[begin : begin + _PIECE]
        began = asyncio.get_running_loop().time()
        writing = asyncio.ensure_future(response.write(piece))
        try:
            while not (await asyncio.wait({writing}, timeout=_LOOK_AGAIN_S))[0]:
                if not in_time() or asyncio.get_running_loop().time() - began > _SLOW_S:
                    raise _TooSlow
            writing.result()
        finally:
            writing.cancel()
        progress.bytes_out += len(piece)


def _tail(text: str) -> int:
    """Raises ApiError."""
    if text == _ALL:
        return MOST_LINES
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError("bad_request", f"tail is a number of lines, or {_ALL}.", param="tail")
    return int(text)
