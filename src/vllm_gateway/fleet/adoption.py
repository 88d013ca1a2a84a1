# SPDX-License-Identifier: Apache-2.0
"""What becomes of the instances of an earlier gateway: those that match are taken over, the others removed."""

import time
from collections.abc import Callable, Mapping

from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.registry import ContainerRegistry, Leftover
from vllm_gateway.fleet.runtimes import Found, Running, Runtime, RuntimeDown
from vllm_gateway.telemetry import events


async def adopt(
    runtime: Runtime,
    registry: ContainerRegistry,
    specs: Mapping[str, ModelSpec],
    now: float,
    emit: Callable[..., None],
    *,
    in_use: bool,
) -> list[Instance]:
    """Those taken over, in the registry and yet to be found healthy. Raises RuntimeDown.

    `in_use`: the earlier gateway still sends requests to all that run. So all are taken over, and it is the
    supervisor that replaces or stops those which do not match, one by one, once they are idle.
    """
    adopted = []
    for found in await runtime.find():
        spec = specs.get(found.model)
        matches = spec and found.spec_hash == spec.spec_hash and _is_missing(registry, spec)
        if found.running and (in_use or (matches and found.problem is None)):
            adopted.append(registry.add(_instance(registry, found, found.running, spec or gone(found.model), now)))
            emit(events.INSTANCE_ADOPTED, instance=found.name, model=found.model)
        else:
            await _remove(runtime, registry, found, emit)
    return adopted


def gone(model: str) -> ModelSpec:
    """Stands for a model that is in the configuration no more: nothing of it is wanted."""
    return ModelSpec(
        model,
        instances=0,
        spec_hash="",
        gpu_count=1,
        max_in_flight=1,
        idle_timeout_s=0.0,
        pinned=False,
        uses_gpu_memory=True,
    )


async def follow(
    runtime: Runtime, registry: ContainerRegistry, specs: Mapping[str, ModelSpec], now: float
) -> list[Instance]:
    """What another gateway has started meanwhile, in the registry and yet to be found healthy. Raises RuntimeDown."""
    known = {one.running.handle for one in registry if one.running}
    names = {one.name for one in registry}
    return [
        registry.add(_instance(registry, found, found.running, specs[found.model], now))
        for found in await runtime.find()
        if found.running and found.handle not in known and found.name not in names and found.model in specs
    ]


async def remove_strangers(runtime: Runtime, registry: ContainerRegistry, emit: Callable[..., None]) -> None:
    """What no instance stands for: left by a start whose answer was lost, or a leftover. Raises RuntimeDown."""
    there = await runtime.find()
    for handle in registry.leftovers.keys() - {found.handle for found in there}:
        del registry.leftovers[handle]
    for found in there:
        handles = {one.running.handle for one in registry if one.running}
        being_started = {one.name for one in registry if one.running is None}
        if found.handle not in handles and found.name not in being_started:
            await _remove(runtime, registry, found, emit)


async def _remove(runtime: Runtime, registry: ContainerRegistry, found: Found, emit: Callable[..., None]) -> None:
    """One that withstands does not keep the others, nor the gateway."""
    try:
        await runtime.remove(found.handle)
    except RuntimeDown as error:
        if found.handle not in registry.leftovers:
            emit(events.INSTANCE_STUCK, instance=found.name, model=found.model, problem=str(error))
        registry.leftovers[found.handle] = Leftover(found.name, str(error))
    else:
        registry.leftovers.pop(found.handle, None)
        reason = {"reason": found.problem} if found.problem else {}
        emit(events.INSTANCE_REMOVED_STALE, instance=found.name, model=found.model, **reason)


def _is_missing(registry: ContainerRegistry, spec: ModelSpec) -> bool:
    return len(registry.by_model(spec.name)) < spec.instances


def _instance(registry: ContainerRegistry, found: Found, running: Running, spec: ModelSpec, now: float) -> Instance:
    return Instance(
        registry.new_id(),
        found.name,
        found.model,
        found.number,
        found.spec_hash,
        spec.max_in_flight,
        weight=spec.weight_of(found.number),
        gpu_ids=found.gpu_ids,
        reserved_mib=found.footprint_mib,
        since=now,
        why="adopted",
        launched=True,
        launched_at=now,
        adopted=True,
        age_s=max(time.time() - found.launched_at, 0.0) if found.launched_at else 0.0,
        running=running,
    )
