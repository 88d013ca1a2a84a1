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
) -> list[Instance]:
    """Those taken over, in the registry and yet to be found healthy. Raises RuntimeDown."""
    adopted = []
    for found in await runtime.find():
        spec = specs.get(found.model)
        if spec and found.running and found.spec_hash == spec.spec_hash and _is_missing(registry, spec):
            adopted.append(registry.add(_instance(registry, found, found.running, spec, now)))
            emit(events.INSTANCE_ADOPTED, instance=found.name, model=found.model)
        else:
            await runtime.remove(found.handle)
            emit(events.INSTANCE_REMOVED_STALE, instance=found.name, model=found.model)
    return adopted


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
