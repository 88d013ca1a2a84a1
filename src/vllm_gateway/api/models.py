# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/models`: what clients may ask for."""

import secrets
import time
from collections.abc import Callable

from aiohttp import web

from vllm_gateway.api.answers import as_json
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.names import ModelNames
from vllm_gateway.routing import ModelCard

PATH = "/v1/models"


class Models:
    """The list of all, and each by its name, in vLLM's form. What is not known is null."""

    def __init__(
        self, names: ModelNames, state_of: Callable[[str], str], card_of: Callable[[str, str], ModelCard]
    ) -> None:
        """`state_of`: a model's state in one word. `card_of`: what is known of a model, or of an adapter of it."""
        self._names = names
        self._state_of = state_of
        self._card_of = card_of
        self._created = int(time.time())
        self._permission = {"id": f"modelperm-{secrets.token_hex(8)}", "object": "model_permission",
                            "created": self._created, "allow_create_engine": False, "allow_sampling": True,
                            "allow_logprobs": True, "allow_search_indices": False, "allow_view": True,
                            "allow_fine_tuning": False, "organization": "*", "group": None,
                            "is_blocking": False}  # fmt: skip

    def answer(self, request: web.BaseRequest, progress: Progress) -> web.Response:
        """Raises ApiError model_not_found."""
        name = request.rel_url.path.removeprefix(PATH).removeprefix("/")
        if name:
            return as_json(self._object(name if self._names.knows(name) else name.removesuffix("/")), progress)
        return as_json({"object": "list", "data": [self._object(one) for one in self._names.listed()]}, progress)

    def _object(self, name: str) -> dict[str, object]:
        """Of a model, by its own name or an alias, or of an adapter, whose parent is its model."""
        model, served_as = self._names.resolve(name)
        card = self._card_of(model, served_as)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm-gateway",
            "root": card.root,
            "parent": None if served_as == model else model,
            "max_model_len": card.max_model_len,
            "permission": [self._permission],
            "state": self._state_of(model),
            "aliases": self._names.aliases_of(model) if name == model else [],
        }
