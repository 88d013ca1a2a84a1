# SPDX-License-Identifier: Apache-2.0
"""The clients of a soak: each sends one request after the other, of a random kind, and some behave badly."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping

import aiohttp

from tests.faults.requests import KINDS, Request

TOKENS = (2, 20, 60)
HANGS_AFTER_S = 60.0
_LEAVES, _IS_SLOW = 0.08, 0.05
_MOST_PATIENCE_S = 5.0

Answers = Mapping[tuple[str, int], tuple[object, ...]]
"""(kind, tokens) -> what an undisturbed request is told."""


class Load:
    """`outcomes` counts what became of the requests; `bad` tells of those that must not have ended so."""

    def __init__(
        self, http: aiohttp.ClientSession, models: list[str], answers: Answers, randomness: random.Random
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.bad: list[str] = []
        self.ids: list[str] = []
        self.answered: set[str] = set()
        """Of requests whose client stayed to the end."""
        self._http = http
        self._models = models
        self._answers = answers
        self._random = randomness

    async def client(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            asked_to_wait_s = await self._one()
            await asyncio.sleep(min(asked_to_wait_s, _MOST_PATIENCE_S) + self._random.uniform(0, 0.1))

    async def _one(self) -> float:
        """Returns how long the client was told to wait."""
        chance, choose = self._random.random(), self._random.choice
        kind, tokens, model = choose(list(KINDS)), choose(TOKENS), choose(self._models)
        request_id = f"soak-{len(self.ids)}"
        self.ids.append(request_id)
        pause_s = 0.05 if _LEAVES <= chance < _LEAVES + _IS_SLOW else 0.0
        headers = {"X-Request-Id": request_id}
        request = Request(self._http, model, kind, tokens=tokens, headers=headers, pause_s=pause_s)
        if chance < _LEAVES:
            await asyncio.wait({request.task}, timeout=self._random.uniform(0, 0.5))
            if not request.task.done():
                await request.leave()
                self.outcomes["client left"] += 1
                return 0.0
        self.answered.add(request_id)
        _, pending = await asyncio.wait({request.task}, timeout=HANGS_AFTER_S)
        if pending:
            await request.leave()
            self._is_bad("hung", request_id, request)
        elif error := request.task.exception():
            self._is_bad(f"not understood: {error!r}", request_id, request)
        else:
            self._count(request_id, request, self._answers[kind, tokens])
        return request.said.retry_after_s

    def _count(self, request_id: str, request: Request, answer: tuple[object, ...]) -> None:
        said = request.said
        if said.answer == answer:
            self.outcomes["answered"] += 1
        elif said.cut is not None:
            self._is_bad("connection broken", request_id, request)
        elif said.error is not None:
            place = "error event" if said.status == 200 else f"status {said.status}"
            self.outcomes[f"{place}: {said.error.get('code')}"] += 1
        else:
            self._is_bad("wrong answer", request_id, request)

    def _is_bad(self, why: str, request_id: str, request: Request) -> None:
        self.outcomes[f"BAD: {why}"] += 1
        self.bad.append(f"{request_id} ({request.kind}): {why}: {request.said}")
