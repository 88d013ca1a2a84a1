# SPDX-License-Identifier: Apache-2.0
"""Least tokens: the fewest prompt and output tokens outstanding. Right when prompts differ much and share little."""

from collections.abc import Sequence

from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, Scoring


class LeastTokens(Scoring):
    name = "least_tokens"

    def __init__(self) -> None:
        super().__init__()
        self._outstanding: dict[str, int] = {}

    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        return [self._outstanding.get(one.instance_id, 0) / one.weight for one in instances]

    def placed(self, request: RequestInfo, instance: InstanceView) -> None:
        self._add(instance, _tokens(request))

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self._add(instance, -_tokens(request))

    def departed(self, instance_id: str) -> None:
        self._outstanding.pop(instance_id, None)

    def _add(self, instance: InstanceView, tokens: int) -> None:
        self._outstanding[instance.instance_id] = self._outstanding.get(instance.instance_id, 0) + tokens


def _tokens(request: RequestInfo) -> int:
    return request.prompt.tokens + request.output_tokens
