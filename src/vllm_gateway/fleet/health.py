# SPDX-License-Identifier: Apache-2.0
"""Asks engines for their health, and whom they serve."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from vllm_gateway.fleet.engines.calls import CallFailed, CannotCall, NoAnswer, call
from vllm_gateway.routing import Address, ModelCard

POLL_S = 0.05
_LIMIT_S = 2.0
_NO_SUCH_PAGE = frozenset({404, 405, 501})
_LONGEST_ROOT = 4096
_MOST_TOKENS = 1 << 40


class _Model(msgspec.Struct):
    id: str
    root: object = None
    max_model_len: object = None

    def card(self) -> ModelCard:
        """Less what is no root or length: engines of other kinds may mean something else by these names."""
        root, length = self.root, self.max_model_len
        return ModelCard(
            root if isinstance(root, str) and len(root) <= _LONGEST_ROOT else None,
            length if type(length) is int and 0 < length <= _MOST_TOKENS else None,
        )


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models).decode


@dataclass(frozen=True, slots=True)
class Ailment:
    """Why an engine does not pass. `silent`: it neither answers nor refuses, as one that is paused or hangs."""

    why: str
    silent: bool = False


async def passes(address: Address) -> bool:
    return await ailment(address) is None


async def ailment(address: Address, limit_s: float = _LIMIT_S) -> Ailment | None:
    """None: it passes."""
    while True:
        try:
            status = (await call(address, "/health", limit_s=limit_s)).status
            return None if status == 200 else Ailment(f"its health check gets status {status}")
        except CannotCall:
            await asyncio.sleep(POLL_S)  # that says nothing of the engine
        except NoAnswer:
            return Ailment(f"its health check gets no answer within {limit_s:g} s", silent=True)
        except CallFailed as error:
            return Ailment(f"its health check fails: {error}")


async def models(address: Address) -> Mapping[str, ModelCard] | None:
    """What the engine lists, by name; None: it does not say."""
    found = await listed(address)
    return None if isinstance(found, Ailment) else found


async def listed(address: Address) -> Mapping[str, ModelCard] | Ailment | None:
    """What the engine lists, by name; None: it has no such page; an ailment: what it sends is no list."""
    try:
        answer = await call(address, "/v1/models", limit_s=_LIMIT_S)
    except CallFailed as error:
        return Ailment(f"its list of models cannot be read: {error}")
    if answer.status in _NO_SUCH_PAGE:
        return None
    if answer.status != 200:
        return Ailment(f"its list of models gets status {answer.status}")
    try:
        return {one.id: one.card() for one in _models(answer.body).data}
    except (ValueError, RecursionError):
        return Ailment("what it sends as its list of models (/v1/models) is none")
