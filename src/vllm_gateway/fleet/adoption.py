# SPDX-License-Identifier: Apache-2.0
"""What becomes of the instances of an earlier gateway: those that match are taken over, the others removed."""

from collections.abc import Callable, Mapping

from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Found, Running, Runtime
from vllm_gateway.telemetry import events


async def adopt(
    runtime: Runtime,
    registry: ContainerRegistry,
    specs: Mapping[str, ModelSpec],
    now: float,
    emit: Callable[..., None],
    *,
    keep_outdated: bool,
) -> list[Instance]:
    """Those taken over, in the registry and yet to be found healthy. Raises RuntimeDown.

    `keep_outdated`: those with other settings too, since they are in use; the supervisor replaces them one by one.
    """
    adopted = []
    for found in await runtime.find():
        spec = specs.get(found.model)
        matches = spec and (keep_outdated or found.spec_hash == spec.spec_hash)
        if spec and found.running and matches and _is_missing(registry, spec):
            adopted.append(registry.add(_instance(registry, found, found.running, spec, now)))
            emit(events.INSTANCE_ADOPTED, instance=found.name, model=found.model)
        else:
            await runtime.remove(found.handle)
            emit(events.INSTANCE_REMOVED_STALE, instance=found.name, model=found.model)
    return adopted


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
    """What a start left behind whose answer was lost. Raises RuntimeDown."""
    for found in await runtime.find():
        handles = {one.running.handle for one in registry if one.running}
        being_started = {one.name for one in registry if one.running is None}
        if found.handle not in handles and found.name not in being_started:
            await runtime.remove(found.handle)
            emit(events.INSTANCE_REMOVED_STALE, instance=found.name, model=found.model)


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
        running=running,
    )
