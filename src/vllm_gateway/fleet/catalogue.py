# SPDX-License-Identifier: Apache-2.0
"""What the settings and the measured footprints say of each model: its spec, its footprint, its launch."""

import os
from collections.abc import Sequence
from pathlib import Path

from vllm_gateway.allocator.estimate import estimate_mib, parameters_mib
from vllm_gateway.allocator.footprints import FootprintStore, footprint_key
from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.fleet.engine_keys import EngineKeys
from vllm_gateway.fleet.engines import vllm
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.models import Footprint, ModelSpec
from vllm_gateway.fleet.runtimes import Launch


def host_memory_mib() -> int:
    """What this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


class Catalogue:
    def __init__(self, settings: Settings, footprints: FootprintStore, keys: EngineKeys) -> None:
        self.settings = settings
        self.footprints = footprints
        self._keys = keys

    def policy(self) -> Policy:
        gpus = self.settings.gpus
        host_mib = self.settings.host_memory_mib
        return Policy(
            gpus.margin_mib,
            gpus.min_resident_s,
            gpus.max_swap_wait_s,
            host_mib=host_memory_mib() // 2 if host_mib is None else host_mib,
        )

    def specs(self, settings: Settings | None = None) -> dict[str, ModelSpec]:
        """Of other settings than those that count, if some are given."""
        settings = settings or self.settings
        return {
            name: ModelSpec(
                name,
                len(model.endpoints) or model.instances,
                vllm.spec_hash(name, model, settings),
                model.gpu_count,
                model.max_in_flight or settings.max_in_flight,
                settings.idle_timeout_s if model.idle_timeout_s is None else model.idle_timeout_s,
                model.pinned,
                uses_gpu_memory=not model.endpoints,
                footprint_mib=model.footprint_mib,
                weights=model.weights,
                sleeps=model.sleep != "off",
                parameters_mib=None if model.sleep == "off" else parameters_mib(str(model.repository), self._cache),
                image=vllm.image_of(model, settings) if settings.runtime == "docker" and not model.endpoints else "",
            )
            for name, model in settings.models.items()
        }

    def footprint_of(self, name: str, gpus: Sequence[Gpu]) -> Footprint:
        model = self.settings.models[name]
        if model.footprint_mib:
            return Footprint(model.footprint_mib, known=True)
        if known := self.footprints.get(self.footprint_key(name, gpus)):
            return Footprint(known, known=True)
        smallest = min((gpu.total_mib for gpu in gpus), default=0)
        return Footprint(
            estimate_mib(str(model.repository), self._cache, model.shards, smallest),
            known=False,
        )

    @property
    def _cache(self) -> Path | None:
        folder = self.settings.docker.cache_dir
        return Path(folder) if folder else None

    def footprint_key(self, name: str, gpus: Sequence[Gpu]) -> str:
        model = self.settings.models[name]
        gpu_name = gpus[0].name if gpus else "no GPU"
        image = vllm.image_of(model, self.settings)
        return footprint_key(str(model.repository), image, vllm.arguments(name, model, share=None), gpu_name)

    def launch_of(self, one: Instance, gpus: Sequence[Gpu]) -> Launch:
        model = self.settings.models[one.model]
        totals = [gpu.total_mib for gpu in gpus if gpu.gpu_id in one.gpu_ids]
        on_port = self.settings.engine_on_port(one.model)
        share = one.reserved_mib / min(totals) if totals else None
        return Launch(
            name=one.name,
            model=one.model,
            number=one.number,
            image=vllm.image_of(model, self.settings),
            arguments=vllm.arguments(one.model, model, share=share),
            environment=vllm.environment(model, self.settings),
            gpu_ids=one.gpu_ids,
            footprint_mib=one.reserved_mib,
            spec_hash=one.spec_hash,
            on_port=on_port,
            key=vllm.own_key(model) or (self._keys.of(one.name) if on_port else ""),
        )
