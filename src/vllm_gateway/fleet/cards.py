# SPDX-License-Identifier: Apache-2.0
"""What is known of each model beside its name: what an engine has said of it, and before that what was asked for."""

from collections.abc import Callable, Mapping, Sequence

from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.fleet.engines import vllm
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.routing import ModelCard


class Cards:
    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._said: dict[str, tuple[object, Mapping[str, ModelCard]]] = {}  # by model: what it meant, and what was said

    def learn(self, one: Instance, listed: Mapping[str, ModelCard]) -> None:
        """`listed`: by the engine of the instance, by name."""
        settings = self._settings()
        model = settings.models.get(one.model)
        if model is None or not (one.external or one.spec_hash == vllm.spec_hash(one.model, model, settings)):
            return  # it is on its way out, and the next one may be another
        kept = {name: listed[name] for name in (one.model, *model.adapters) if name in listed}
        self._said[one.model] = (self._meaning(one.model, model), kept)

    def of(self, model: str, name: str) -> ModelCard:
        """`name`: the model itself, or an adapter of it."""
        settings = self._settings()
        configured = settings.models[model]
        meaning, said = self._said.get(model, (None, {}))
        if name in said and meaning == self._meaning(model, configured):
            return said[name]
        if name != model or configured.endpoints:
            return ModelCard()
        return ModelCard(configured.repository, max_model_len(configured.engine_arguments))

    def _meaning(self, name: str, model: Model) -> object:
        """While it stays the same, so does what engines have said."""
        return model.endpoints or vllm.spec_hash(name, model, self._settings())


def max_model_len(arguments: Sequence[str]) -> int | None:
    """As it is asked for, if it is a plain number: of one given twice, the last counts."""
    found: int | None = None
    for index, argument in enumerate(arguments):
        name, is_joined, value = argument.partition("=")
        if name.replace("_", "-") == "--max-model-len":
            given = value if is_joined else "".join(arguments[index + 1 : index + 2])
            found = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else None
    return found or None
