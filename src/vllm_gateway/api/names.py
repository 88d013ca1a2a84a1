# SPDX-License-Identifier: Apache-2.0
"""Which model a client means by a name."""

from collections.abc import Mapping

from vllm_gateway.api.errors import ApiError


class ModelNames:
    """Every name and alias, and the model that it stands for."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.configure(names)

    def configure(self, names: Mapping[str, str]) -> None:
        self._names = names

    def models(self) -> list[str]:
        return sorted(set(self._names.values()))

    def model_of(self, name: str) -> str:
        """Raises ApiError model_not_found."""
        model = self._names.get(name)
        if model is None:
            there = ", ".join(self.models()) or "none"
            text = f"No model named {name!r}. This gateway serves: {there}."
            raise ApiError("model_not_found", text, param="model")
        return model
