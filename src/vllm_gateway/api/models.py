# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/models`: what clients may ask for."""

import time
from collections.abc import Callable

from aiohttp import web

from vllm_gateway.api.answers import as_json
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.names import ModelNames

PATH = "/v1/models"


class Models:
    """The list of all, and each by its name."""

    def __init__(self, names: ModelNames, state_of: Callable[[str], str]) -> None:
        """`state_of`: a model's state in one word."""
        self._names = names
        self._state_of = state_of
        self._created = int(time.time())

    def answer(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        """Raises ApiError model_not_found."""
        name = request.rel_url.path.removeprefix(PATH)
        if name:
            return as_json(self._object(self._names.served_as(name.removeprefix("/"))), progress)
        return as_json({"object": "list", "data": [self._object(one) for one in self._names.served()]}, progress)

    def _object(self, name: str) -> dict[str, object]:
        """Of a model, or of an adapter, whose parent is its model."""
        model = self._names.model_of(name)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm-gateway",
            "parent": None if name == model else model,
            "state": self._state_of(model),
            "aliases": self._names.aliases_of(model) if name == model else [],
        }
