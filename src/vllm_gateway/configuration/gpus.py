# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the GPUs that the configuration names, and with models that no such GPU can hold."""

from collections.abc import Iterator, Sequence

from vllm_gateway.configuration.draft import Draft
from vllm_gateway.configuration.parallelism import BadSize
from vllm_gateway.configuration.settings import Settings


def find_wrong_gpus(draft: Draft, settings: Settings) -> None:
    """Of `gpus.devices`; what NVML lists shows at the start."""
    gpus = settings.gpus
    if not gpus.devices:
        return
    first: dict[str, int] = {}
    for index, gpu_id in enumerate(gpus.ids):
        if gpu_id in first:
            message = (
                f"GPU {first[gpu_id]} has the id '{gpu_id}', too; give each its own (without one, it is the index)"
            )
            draft.complain(("gpus", "devices", index, "id"), message)
        first.setdefault(gpu_id, index)
    for setting, entry, message in gpus.unknown(list(enumerate(gpus.ids))):
        draft.complain(("gpus", setting, entry), message)


def find_missing_gpus(draft: Draft, settings: Settings) -> None:
    """Where the configuration names the GPUs; what NVML lists shows at the start."""
    there, left = len(settings.gpus.devices), settings.gpus.left
    for name, model in settings.models.items():
        try:
            needed = 0 if model.endpoints else model.gpu_count
        except BadSize as error:
            draft.complain(("models", name, "engine_arguments", error.index), str(error))
            continue
        if there and needed > left:
            masks = "" if left == there else f", of which `gpus.only` and `gpus.except` leave {left}"
            message = f"an instance needs {needed} GPUs, and `gpus.devices` has {there}{masks}"
            draft.complain(("models", name, "tensor_parallel_size"), message)


def too_large(settings: Settings, totals_mib: Sequence[int]) -> Iterator[str]:
    """Where it stands, and what is wrong, of models that fit on none of the GPUs that have so much memory in all."""
    margin = settings.gpus.margin_mib
    rooms = sorted((total - margin for total in totals_mib), reverse=True)
    for name, model in settings.models.items():
        if model.endpoints or model.gpu_count > len(rooms):
            continue  # which is said elsewhere
        room = rooms[model.gpu_count - 1]
        has = "the largest GPU has" if model.gpu_count == 1 else f"the {model.gpu_count}. largest GPU has"
        less = f"{has} {max(room, 0)} MiB for models ({room + margin} MiB, gpus.margin_mib {margin})"
        if room <= 0:
            yield f"models.{name}: there is no room for any model: {less}"
        elif (model.footprint_mib or 0) > room:
            yield f"models.{name}.footprint_mib: {model.footprint_mib} MiB never fit: {less}"
