# SPDX-License-Identifier: Apache-2.0
"""What fits beside what: a plan counts on memory that is still on its way back, a launch may not use it yet."""

from collections.abc import Collection, Iterable, Sequence

from vllm_gateway.allocator.types import Gpu, Resident


def held_mib(gpu_id: str, residents: Iterable[Resident]) -> int:
    """The MiB that `residents` hold on one GPU, those that are leaving included."""
    return sum(resident.mib for resident in residents if gpu_id in resident.gpu_ids)


def fits_beside(
    residents: Collection[Resident], gpu_ids: Collection[str], mib: int, gpus: Sequence[Gpu], margin_mib: int
) -> bool:
    """Whether `mib` more fit on each of `gpu_ids` beside all of `residents`.

    An unknown GPU, or one with a problem, has no room.
    """
    by_id = {gpu.gpu_id: gpu for gpu in gpus if gpu.problem is None}
    for gpu_id in gpu_ids:
        gpu = by_id.get(gpu_id)
        if gpu is None or held_mib(gpu_id, residents) + mib > gpu.total_mib - margin_mib - gpu.foreign_mib:
            return False
    return True
