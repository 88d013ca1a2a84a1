# SPDX-License-Identifier: Apache-2.0
"""The lab as a whole: a real Docker engine whose containers see simulated GPUs, up and down again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import base_image, dockerd, gpus, images, machine, nvml, packages
from tests.lab.docker_api import DockerApi
from tests.lab.errors import LabUnavailableError
from tests.lab.place import Place
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

_AT_ONCE = 32
"""Labs of test runs, and of the workers of each."""


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that is up."""

    place: Place
    image: str
    started_here: bool
    """False when it was up before: whoever started it takes it down."""

    @property
    def docker_host(self) -> str:
        return f"unix://{self.place.socket}"

    @property
    def gpu_dir(self) -> Path:
        return self.place.gpu_directory

    @property
    def environment(self) -> dict[str, str]:
        """What a gateway under test needs in its environment, before it starts."""
        library_path = [str(self.place.library_directory), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "DOCKER_HOST": self.docker_host,
            "SIMULATED_GPU_DIR": str(self.gpu_dir),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, library_path)),
        }

    def reset_gpus(self, count: int = gpus.DEFAULT_COUNT, total_mib: int = gpus.DEFAULT_MIB) -> SimulatedGpus:
        return gpus.reset(self.gpu_dir, count, total_mib)

    def containers(self, label: str | None = None) -> list[dict[str, Any]]:
        """All containers, those that ended too, as the engine lists them; `label` is `key` or `key=value`."""
        listed: list[dict[str, Any]] = DockerApi(self.place.socket).get("/containers/json", all="true")
        if label is None:
            return listed
        key, _, value = label.partition("=")
        return [one for one in listed if key in one["Labels"] and value in ("", one["Labels"][key])]

    def networks(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = DockerApi(self.place.socket).get("/networks")
        return listed

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """Containers and networks that come within the block are removed at its end."""
        containers_before = {one["Id"] for one in self.containers()}
        networks_before = {one["Id"] for one in self.networks()}
        try:
            yield
        finally:
            docker = DockerApi(self.place.socket)
            for container in self.containers():
                if container["Id"] not in containers_before:
                    docker.delete(f"/containers/{container['Id']}", force="true", v="true")
            for network in self.networks():
                if network["Id"] not in networks_before and network["Name"] not in dockerd.OWN_NETWORKS:
                    docker.delete(f"/networks/{network['Id']}")


def prepare() -> None:
    """What any lab needs of the machine and of the network outside, once."""
    machine.require_root()
    with machine.locked():
        packages.install_missing()
        machine.mount_cgroups()
        base_image.archive()


def up(place: Place) -> Lab:
    """Safe to call again, and from two processes at once; raises LabUnavailableError when the machine cannot."""
    machine.require_root()
    with place.locked():
        place.directory.mkdir(parents=True, exist_ok=True)
        prepare()
        nvml.build_library(place.library_directory)
        if not place.gpu_directory.joinpath("gpus").exists():
            gpus.reset(place.gpu_directory)
        docker = DockerApi(place.socket)
        was_up = docker.answers()
        if was_up and not dockerd.is_in_this_network(place):  # left by a test run that was killed
            dockerd.stop(place)
            was_up = False
        if not was_up:
            dockerd.start(place)
        return Lab(place, images.make_missing(docker), started_here=not was_up)


def down_with_neighbours(place: Place, *, purge: bool = False) -> None:
    """Those too that test runs left which were killed; not those that one has at this moment."""
    down(place, purge=purge)
    for neighbour in map(place.neighbour, range(2, _AT_ONCE + 1)):
        if neighbour.directory.exists():
            with neighbour.claimed() as is_ours:
                if is_ours:
                    down(neighbour, purge=purge)


def down(place: Place, *, purge: bool = False) -> None:
    """Nothing runs and nothing is mounted afterwards. The images stay for the next time, unless purged."""
    machine.require_root()
    with place.locked():
        if not place.directory.exists():
            return
        dockerd.stop(place)
        if purge:
            shutil.rmtree(place.directory)


@contextmanager
def for_this_run(preferred: Place, *, own_network: bool = False) -> Iterator[Lab]:
    """The preferred lab, or while another test run has that one, a neighbour. Left as it was found: up or down.

    Who has a network of its own always gets a neighbour: the preferred lab is that of the machine's network.
    """
    for number in range(2 if own_network else 1, _AT_ONCE + 1):
        place = preferred.neighbour(number)
        with place.claimed() as is_ours:
            if not is_ours:
                continue
            lab = up(place)
            try:
                yield lab
            finally:
                if lab.started_here:
                    down(place)
            return
    raise LabUnavailableError(f"{_AT_ONCE} labs are in use already")
