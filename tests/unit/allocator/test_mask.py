# SPDX-License-Identifier: Apache-2.0
"""A GPU that is masked is none of the gateway's."""

import pytest

from vllm_gateway.allocator.mask import MaskedProbe
from vllm_gateway.allocator.probe import GpuReading, ProbeError
from vllm_gateway.configuration.settings import Gpus

MACHINE = [GpuReading(f"GPU-{letter}{letter}", index, "card", 24576) for index, letter in enumerate("abcd")]


class Machine:
    def __init__(self, readings: list[GpuReading]) -> None:
        self._readings = readings

    def read(self) -> list[GpuReading]:
        return self._readings


def left(only: str = "", without: str = "", there: int = 4, **environ: str) -> list[int]:
    probe = MaskedProbe(
        Machine(MACHINE[:there]), Gpus.model_validate({"only": only.split(), "except": without.split()}), environ
    )
    return [gpu.index for gpu in probe.read()]


def test_the_configuration_names_them_by_index_or_uuid() -> None:
    assert left() == [0, 1, 2, 3]
    assert left(only="0 GPU-cc") == [0, 2]
    assert left(without="GPU-aa 3") == [1, 2]
    assert left(only="0 1", without="1") == [0]


@pytest.mark.parametrize(
    ("mask", "indices"),
    [("1", [1]), ("2,0", [0, 2]), (" GPU-bb , 3", [1, 3]), ("GPU-c", [2]), ("1,9,2", [1]), ("1,-1,2", [1])],
)
def test_cudas_own_mask(mask: str, indices: list[int]) -> None:
    assert left(CUDA_VISIBLE_DEVICES=mask) == indices


@pytest.mark.parametrize("mask", ["", "-1", "NoDevFiles", "7"])
def test_a_mask_that_leaves_none_is_said(mask: str) -> None:
    with pytest.raises(ProbeError, match="CUDA_VISIBLE_DEVICES"):
        left(CUDA_VISIBLE_DEVICES=mask)
    with pytest.raises(ProbeError, match=r"gpus\.only"):
        left(only="GPU-x")


def test_the_mask_of_the_container_toolkit_counts_where_it_has_not_been_applied() -> None:
    assert left(NVIDIA_VISIBLE_DEVICES="2,3") == [2, 3]
    assert left(NVIDIA_VISIBLE_DEVICES="GPU-dd") == [3]
    assert left(NVIDIA_VISIBLE_DEVICES="3", there=1) == [0], "in a container: there it is the first and only one"
    assert left(NVIDIA_VISIBLE_DEVICES="all") == left(NVIDIA_VISIBLE_DEVICES="void") == [0, 1, 2, 3]
    assert left(NVIDIA_VISIBLE_DEVICES="1,2", CUDA_VISIBLE_DEVICES="2,3") == [2]


def test_what_names_no_gpu_is_told_once() -> None:
    told: list[tuple[str, str]] = []
    gpus = Gpus.model_validate({"only": ["0", "7", "GPU-no"]})
    probe = MaskedProbe(Machine(MACHINE[:1]), gpus, None, lambda gpu, problem: told.append((gpu, problem)))
    assert len(probe.read()) == len(probe.read()) == 1
    problem = "there is no GPU '{}'; there are: 0 (GPU-aa)"
    known = {"gpus.only.1": problem.format("7"), "gpus.only.2": problem.format("GPU-no")}
    assert sorted(told) == sorted(known.items())
    assert probe.unknown == known
