# SPDX-License-Identifier: Apache-2.0
"""The status page: what settings, fleet and queues know, put together for people and for programs."""

from collections.abc import Sequence

from vllm_gateway import __version__
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.control.status import GpuStatus, Health, HostMemory, ImagePull, InstanceStatus, ModelStatus, Status
from vllm_gateway.fleet.fleet import Fleet
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelState
from vllm_gateway.scheduling import Queues


def status_of(
    settings: Settings, fleet: Fleet, queues: Queues, problems: list[str], *, now: float, uptime_s: float
) -> Status:
    """`now` is the loop's time."""
    ordered = sorted(fleet.registry, key=lambda one: (one.model, one.number))
    instances = {one.name: _instance(one, settings, fleet, queues, now) for one in ordered}
    active: dict[str, list[str]] = {}
    for shown in instances.values():
        active.setdefault(shown.model, []).append(shown.name)
    return Status(
        version=__version__,
        uptime_s=round(uptime_s, 1),
        runtime=settings.runtime,
        problems=problems,
        parallel_model_config={name: model.instances for name, model in settings.models.items()},
        active_models_by_id=active,
        active_containers_by_name=instances,
        known_footprints_mib=dict(fleet.footprints.all()),
        gpus=[_gpu(gpu, fleet) for gpu in fleet.supervisor.gpus],
        host_memory=HostMemory(fleet.supervisor.policy.host_mib, sum(one.host_mib for one in fleet.registry)),
        models={name: _model(name, settings, fleet, queues, now) for name in settings.models},
    )


def _instance(one: Instance, settings: Settings, fleet: Fleet, queues: Queues, now: float) -> InstanceStatus:
    used = queues.last_used(one.instance_id) or one.used_at or None
    view = queues.view(one.instance_id)
    return InstanceStatus(
        name=one.name,
        model=one.model,
        number=one.number,
        state=one.state.value,
        why=one.why,
        waits_for=fleet.supervisor.waits_for(one),
        since_s=round(now - one.since, 1),
        address=str(one.running.address) if one.running else None,
        gpus=list(one.gpu_ids),
        reserved_mib=one.booked_mib,
        host_mib=one.host_mib,
        in_flight=view.in_flight if view else 0,
        max_in_flight=one.max_in_flight,
        total=view.total if view else 0,
        failures=view.failures if view else 0,
        health=_health(one, queues),
        trouble=fleet.supervisor.outlook(one, now),
        last_used_s_ago=None if used is None else round(now - used, 1),
        strategy=settings.strategy_name(one.model) if one.model in settings.models else "",
        external=one.external,
    )


def _gpu(gpu: Gpu, fleet: Fleet) -> GpuStatus:
    return GpuStatus(
        gpu.gpu_id,
        gpu.index,
        gpu.name,
        gpu.total_mib,
        sum(one.booked_mib for one in fleet.registry if gpu.gpu_id in one.gpu_ids),
        gpu.used_mib,
        gpu.foreign_mib,
        gpu.shared,
        gpu.problem,
    )


def _model(name: str, settings: Settings, fleet: Fleet, queues: Queues, now: float) -> ModelStatus:
    state = fleet.supervisor.models[name]
    pause_s = state.retry_at - now
    of_model = fleet.registry.by_model(name)
    sick = [one for one in of_model if one.state is State.READY and one.sick is not None]
    ready = sum(one.state is State.READY for one in of_model) - len(sick)
    starting = sum(one.state in (State.STARTING, State.WAKING) for one in of_model)
    sleeping = sum(one.resting for one in of_model)
    pull = _image_pull(name, fleet, now)
    counts = {"ready": ready, "starting": starting or pull, "sleeping": sleeping, "sick": sick}
    word = next((word for word, those in counts.items() if those), "stopped")
    queue = queues.of(name)
    model = settings.models[name]
    return ModelStatus(
        state=word,
        wanted=state.spec.instances,
        running=ready,
        starting=starting,
        sleeping=sleeping,
        queued=queue.waiting,
        served=queue.served,
        quarantined=queue.quarantined,
        retries_denied=queue.retries_denied,
        ejections=queue.ejections,
        strategy=settings.strategy_name(name),
        pinned=model.pinned,
        aliases=list(model.aliases),
        why_fewer=_why_fewer(state, sick, fleet, now) if ready + starting < state.spec.instances else None,
        image_pull=pull,
        last_error=state.last_error,
        failure_id=state.failure_id,
        log_tail=list(state.log_tail),
        retry_in_s=round(pause_s, 1) if pause_s > 0 else None,
        failures=state.failures,
    )


def _why_fewer(state: ModelState, sick: Sequence[Instance], fleet: Fleet, now: float) -> str | None:
    unfit = fleet.unfit_endpoints(state.spec.name)
    return (
        state.why_fewer_at(now)
        or unfit
        or "; ".join(f"{one.name}: {fleet.supervisor.outlook(one, now)}" for one in sick)
        or None
    )


def _image_pull(name: str, fleet: Fleet, now: float) -> ImagePull | None:
    found = fleet.pull_of(name)
    if found is None:
        return None
    image, pull = found
    far = pull.progress
    return ImagePull(
        image,
        round(now - pull.began, 1),
        status=far.status if far else None,
        percent=far.percent if far else None,
        done_mib=far.done_mib if far else None,
        total_mib=far.total_mib if far else None,
    )


def _health(one: Instance, queues: Queues) -> Health:
    if one.sick is not None:
        return "sick"
    if one.suspect:
        return "suspect"
    return "ejected" if queues.is_ejected(one.model, one.instance_id) else "healthy"
