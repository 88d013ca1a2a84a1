# SPDX-License-Identifier: Apache-2.0
"""Which GPUs the gateway may use: as the configuration says, and the variables that CUDA programs obey."""

from collections.abc import Callable, Mapping, Sequence

from vllm_gateway.allocator.probe import GpuProbe, GpuReading, ProbeError
from vllm_gateway.configuration.settings import Gpus, names_gpu

_ALL = ("", "all")
_NONE = ("none", "void")


class MaskedProbe:
    """The GPUs of another probe that are not masked. A mask names them by index (in PCI order) or by UUID."""

    def __init__(
        self,
        probe: GpuProbe,
        gpus: Gpus,
        environ: Mapping[str, str] | None = None,
        tell: Callable[[str, str], None] = lambda gpu, problem: None,
    ) -> None:
        """`tell` hears once of each entry of the configuration that names no GPU."""
        self._probe = probe
        self._gpus = gpus
        self._environ = environ or {}
        self._tell = tell
        self.unknown: Mapping[str, str] = {}  # what is wrong with it, by the setting

    def read(self) -> list[GpuReading]:
        found = self._probe.read()
        if not any(gpu.problem for gpu in found):  # one that fell off the bus may be the one
            self._look_for_unknown(found)
        left = list(_visible_to_cuda(_given(found, self._environ), found, self._environ))
        left = [gpu for gpu in left if self._gpus.leaves(gpu.index, gpu.gpu_id)]
        if found and not left:
            seen = ", ".join(f"{gpu.index} ({gpu.gpu_id})" for gpu in found)
            masks = "`gpus.only`, `gpus.except`, CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES"
            raise ProbeError(f"{masks} leave none of the GPUs: {seen}. Correct them.")
        return left

    def _look_for_unknown(self, found: Sequence[GpuReading]) -> None:
        entries = self._gpus.unknown([(gpu.index, gpu.gpu_id) for gpu in found])
        unknown = {f"gpus.{setting}.{number}": problem for setting, number, problem in entries}
        for place in unknown.keys() - self.unknown.keys():
            self._tell(place, unknown[place])
        self.unknown = unknown


def _given(found: Sequence[GpuReading], environ: Mapping[str, str]) -> Sequence[GpuReading]:
    """What the container toolkit was asked for. Where it has done it, others are not listed, and indices have moved."""
    text = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if text in _ALL or text in _NONE:
        return found
    entries = _entries(text)
    return found if len(found) <= len(entries) else [gpu for gpu in found if _names(entries, gpu)]


def _visible_to_cuda(
    given: Sequence[GpuReading], found: Sequence[GpuReading], environ: Mapping[str, str]
) -> Sequence[GpuReading]:
    """As CUDA reads it: what follows an entry that names nothing does not count."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return given
    entries: list[str] = []
    for entry in _entries(text):
        if not any(_names([entry], gpu) for gpu in found):
            break
        entries.append(entry)
    return [gpu for gpu in given if _names(entries, gpu)]


def _entries(text: str) -> list[str]:
    return [entry for entry in (part.strip() for part in text.split(",")) if entry]


def _names(entries: Sequence[str], gpu: GpuReading) -> bool:
    return names_gpu(entries, gpu.index, gpu.gpu_id)
