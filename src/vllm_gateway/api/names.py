# SPDX-License-Identifier: Apache-2.0
"""Which model a client means by a name."""

from collections.abc import Mapping

from vllm_gateway.api.errors import ApiError
from vllm_gateway.telemetry.cut import cut


class ModelNames:
    """Every name, alias and adapter, and the model that it stands for."""

    def __init__(
        self, names: Mapping[str, str], adapters: Mapping[str, str] | None = None, *, list_aliases: bool = True
    ) -> None:
        self.configure(names, adapters or {}, list_aliases=list_aliases)

    def configure(self, names: Mapping[str, str], adapters: Mapping[str, str], *, list_aliases: bool = True) -> None:
        """`names` are the models' own and their aliases."""
        self._adapters = adapters
        self._list_aliases = list_aliases
        self._names = {**names, **adapters}
        self._resolved = {name: (of, name if name in adapters else of) for name, of in self._names.items()}

    def served(self) -> list[str]:
        """What engines know by its name: models and adapters."""
        return sorted({*self._names.values(), *self._adapters})

    def listed(self) -> list[str]:
        """What a client is shown: each is a name to ask by."""
        return sorted(self._names) if self._list_aliases else self.served()

    def aliases_of(self, model: str) -> list[str]:
        """What else it is called; adapters are something else."""
        return [name for name, of in self._names.items() if of == model != name and name not in self._adapters]

    def knows(self, name: str) -> bool:
        return name in self._names

    def model_of(self, name: str) -> str:
        """Raises ApiError model_not_found."""
        model = self._names.get(name)
        if model is None:
            there = ", ".join(self.served()) or "none"
            text = f"No model named {cut(name)!r}. This gateway serves: {there}."
            raise ApiError("model_not_found", text, param="model")
        return model

    def resolve(self, name: str) -> tuple[str, str]:
        """The model, and what engines call it: they know adapters, but no aliases. Raises ApiError model_not_found."""
        return self._resolved.get(name) or (self.model_of(name), name)
