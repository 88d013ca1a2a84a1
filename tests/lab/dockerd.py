# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the lab's own Docker engine, beside any other that the machine may run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests import own_network
from tests.lab import machine, processes
from tests.lab.docker_api import DockerApi, DockerApiError
from tests.lab.errors import LabUnavailableError
from tests.lab.place import Place
from tests.lab.shell import SYSTEM_PATH, run

_HOOK_DIRECTORY = Path(__file__).parent / "hook"
OWN_NETWORKS = ("bridge", "host", "none")
_START_LIMIT_S = 90.0
_STOP_LIMIT_S = 15.0


def is_in_this_network(place: Place) -> bool:
    """Elsewhere its ports are out of reach."""
    pid = processes.pid_in(place.dockerd_pid_file)
    return pid is not None and own_network.of(pid) == own_network.of()


def start(place: Place) -> None:
    machine.add_bridge(place)
    _end_leftovers(place)
    configure(place)
    launch(place)


def configure(place: Place, *, live_restore: bool = False) -> None:
    """`live_restore`: containers outlive the engine. One that runs already is told to read it."""
    place.config_file.write_text(json.dumps({**_configuration(place), "live-restore": live_restore}, indent=2))
    pid = processes.pid_in(place.dockerd_pid_file)
    if pid is not None and processes.belongs_to(place, pid):
        processes.kill(pid, signal.SIGHUP)
        docker = DockerApi(place.socket)
        processes.wait_until(lambda: docker.get("/info")["LiveRestoreEnabled"] == live_restore, _STOP_LIMIT_S)


def end(place: Place, number: signal.Signals) -> None:
    """The engine alone, not what the lab runs in it; a killed one leaves pid files, for which the next would wait."""
    pid = processes.pid_in(place.dockerd_pid_file)
    assert pid is not None
    assert processes.belongs_to(place, pid)
    processes.kill(pid, number)
    assert processes.wait_until(lambda: not processes.belongs_to(place, pid), _STOP_LIMIT_S)
    containerd = processes.pid_in(place.containerd_pid_file)
    if containerd is not None:
        processes.end(place, containerd, limit_s=_STOP_LIMIT_S)
    for file in (place.dockerd_pid_file, place.containerd_pid_file):
        file.unlink(missing_ok=True)


def launch(place: Place) -> None:
    """Beside containers that may be there."""
    # setsid --fork: the engine outlives this process and is no child of it.
    run(
        *("sh", "-c", 'log=$1; shift; exec setsid --fork nohup dockerd "$@" >"$log" 2>&1', "sh", place.dockerd_log),
        *("--config-file", place.config_file),
        # Where the machine has a containerd already, dockerd uses it: not under the names of the machine's Docker.
        *("--containerd-namespace", place.bridge, "--containerd-plugins-namespace", f"{place.bridge}-plugins"),
        environment={
            "PATH": f"{_HOOK_DIRECTORY}{os.pathsep}{SYSTEM_PATH}",
            "SIMULATED_GPU_DIR": str(place.gpu_directory),
        },
    )
    _wait_for_answer(place)


def stop(place: Place) -> None:
    """Everything goes: containers, networks, the engine and what a killed engine left behind."""
    remove_containers_and_networks(place)
    for file in (place.dockerd_pid_file, place.containerd_pid_file):
        pid = processes.pid_in(file)
        if pid is not None:
            processes.end(place, pid, limit_s=_STOP_LIMIT_S)
    _end_leftovers(place)
    machine.unmount_below(place)
    machine.remove_bridges(place)
    place.socket.unlink(missing_ok=True)


def remove_containers_and_networks(place: Place) -> None:
    """Does nothing when the engine does not answer."""
    docker = DockerApi(place.socket)
    if not docker.answers():
        return
    for container in docker.get("/containers/json", all="true"):
        docker.delete(f"/containers/{container['Id']}", force="true", v="true")
    for network in docker.get("/networks"):
        if network["Name"] not in OWN_NETWORKS:
            docker.delete(f"/networks/{network['Id']}")


def _configuration(place: Place) -> dict[str, object]:
    return {
        "hosts": [f"unix://{place.socket}"],
        "data-root": str(place.data_root),
        "exec-root": str(place.exec_root),
        "pidfile": str(place.dockerd_pid_file),
        "bridge": place.bridge,
        # Published ports go through docker-proxy: no firewall rules, which engines in one network namespace share.
        "iptables": False,
        "ip6tables": False,
        "ip-masq": False,
        "ip-forward": False,
        "log-opts": {"max-size": "5m"},
    }


def _end_leftovers(place: Place) -> None:
    """What outlives a killed engine: its containers, for which the next one would wait, and pid files.

    Where the pid in such a file looks alive (reused, or not collected yet), dockerd waits for it in vain.
    """
    for container in processes.containers_of_lab(place):
        processes.kill(container, signal.SIGKILL)
    for pid in processes.of_lab(place):
        processes.end(place, pid, limit_s=_STOP_LIMIT_S)
    place.dockerd_pid_file.unlink(missing_ok=True)
    place.containerd_pid_file.unlink(missing_ok=True)


def _wait_for_answer(place: Place) -> None:
    docker = DockerApi(place.socket, timeout_s=5)
    seen = False

    def answers_or_died() -> bool:
        nonlocal seen
        running = any(processes.of_lab(place))
        died = seen and not running
        seen = seen or running
        return died or docker.answers()

    processes.wait_until(answers_or_died, _START_LIMIT_S)
    try:
        docker.get("/info")
    except DockerApiError as error:
        last_lines = "\n".join(place.dockerd_log.read_text(errors="replace").splitlines()[-8:])
        raise LabUnavailableError(f"dockerd did not start:\n{last_lines}") from error
