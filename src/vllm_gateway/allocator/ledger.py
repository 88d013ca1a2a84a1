# SPDX-License-Identifier: Apache-2.0
"""What is held where right now: a plan promises memory that is still on its way back, a launch may not use it yet."""

from collections.abc import Collection, Iterable, Sequence

from vllm_gateway.allocator.types import Gpu, Resident


def held_mib(gpu_id: str, residents: Iterable[Resident]) -> int:
    """The MiB that `residents` hold on one GPU, those that are leaving included."""
    return sum(resident.mib for resident in residents if gpu_id in resident.gpu_ids)


def fits_now(
    gpu_ids: Collection[str],
    mib: int,
    gpus: Sequence[Gpu],
    residents_launched: Collection[Resident],
    margin_mib: int = 0,
) -> bool:
    """Whether `mib` more fit on each of `gpu_ids` beside all that were launched and are not yet gone.

    An unknown GPU, or one with a problem, has no room.
    """
    by_id = {gpu.gpu_id: gpu for gpu in gpus if gpu.problem is None}
    for gpu_id in gpu_ids:
        gpu = by_id.get(gpu_id)
        if gpu is None:
            return False
        if held_mib(gpu_id, residents_launched) + mib > gpu.total_mib - margin_mib - gpu.foreign_mib:
            return False
    return True
