# SPDX-License-Identifier: Apache-2.0
"""The Docker runtime against a real Docker engine: containers start, die, are adopted, and strangers are left alone."""

import asyncio
import io
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from tests.docker.registry import serving_image
from tests.lab.gate import Gate
from tests.lab.lab import Lab
from tests.waiting import LIMIT_S, until
from vllm_gateway.configuration.settings import Docker, Log
from vllm_gateway.fleet.runtimes import Launch, Progress, RuntimeDown, StartError, docker_client
from vllm_gateway.fleet.runtimes.docker import DockerRuntime
from vllm_gateway.fleet.runtimes.docker_output import ContainerLog
from vllm_gateway.fleet.runtimes.output import Outputs
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.routing import Address
from vllm_gateway.telemetry import log
from vllm_gateway.telemetry.secrets import Secrets

# Listens before it says so, and ends as it is told by the one who connects: with that exit status.
ENGINE = """
import socket, sys
if "--uds" in sys.argv:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[sys.argv.index("--uds") + 1])
    listening.listen()
else:
    listening = socket.create_server(("0.0.0.0", int(sys.argv[sys.argv.index("--port") + 1])))
print("\\033[1mlistening\\033[0m", file=sys.stderr, flush=True)
while True:
    told = listening.accept()[0].recv(100)
    if told:
        print("told to end", flush=True)
        sys.exit(int(told))
"""


def settings(**changes: Any) -> Docker:
    return Docker.model_validate({"pull": "never"} | changes)


@pytest.fixture
def owner() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def image(lab: Lab, docker: aiodocker.Docker, owner: str) -> AsyncIterator[str]:
    """The lab's image, with Python instead of the engine: the first argument is a script."""
    name = f"{owner}:latest"
    plain = await docker.containers.create({"Image": lab.image})
    await plain.commit(repository=owner, tag="latest", config={"Entrypoint": ["python3", "-u", "-c"]})
    await plain.delete(force=True)
    yield name
    await docker.images.delete(name, force=True)


@pytest.fixture
async def gate(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    gate = Gate(lab.docker_host, Path("/tmp") / f"{uuid.uuid4().hex[:12]}.sock")
    await gate.open()
    monkeypatch.setenv("DOCKER_HOST", gate.url)
    yield gate
    await gate.shut()


@pytest.fixture
def outputs() -> Outputs:
    return Outputs(Secrets())


@pytest.fixture
async def runtime(
    gate: Gate, image: str, owner: str, docker: aiodocker.Docker, sockets: EngineSockets, *, outputs: Outputs
) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(settings(ipc="private", shm_mib=64), owner, sockets=sockets, outputs=outputs)
    await runtime.open()
    yield runtime
    await runtime.close()
    for left in await docker.containers.list(all=1, filters={"label": [f"vllm-gateway.owner={owner}"]}):
        await left.delete(force=True)


def launch(owner: str, image: str, script: str = ENGINE, **changes: Any) -> Launch:
    given: dict[str, Any] = {
        "name": f"{owner}_gemma3-4B_instance_2",
        "model": "gemma3-4B",
        "number": 2,
        "image": image,
        "arguments": (script,),
        "environment": {"FLAVOUR": "mint"},
        "gpu_ids": (),
        "footprint_mib": 4096,
        "spec_hash": "abc",
    }
    return Launch(**(given | changes))


async def listening(docker: aiodocker.Docker, handle: str) -> None:
    async for line in docker.containers.container(handle).log(stdout=True, stderr=True, follow=True):
        if "listening" in line:
            return
    raise AssertionError("the engine ended before it listened")


async def tell_to_end(address: Address, code: int) -> None:
    if address.path:
        _, writer = await asyncio.open_unix_connection(address.path)
    else:
        _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(str(code).encode())
    await writer.drain()
    writer.close()


async def test_an_engine_is_reached_by_its_socket_and_its_end_is_told(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image))
    waiting = [asyncio.create_task(runtime.wait(running.handle)) for _ in range(2)]
    await listening(docker, running.handle)
    assert Path(running.address.path).is_socket()
    assert await runtime.pids(running.handle)
    await tell_to_end(running.address, 3)
    async with asyncio.timeout(LIMIT_S):
        first, second = await asyncio.gather(*waiting)
    assert first == second == await runtime.wait(running.handle)
    assert (first.code, first.out_of_memory, first.log_tail) == (3, False, ("listening", "told to end"))
    assert await runtime.pids(running.handle) == frozenset()


async def test_what_the_container_is_made_of(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image))
    made = await docker.containers.container(running.handle).show()
    host = made["HostConfig"]
    assert made["Config"]["Cmd"][1:] == ["--uds", "/run/vllm-gateway/engine.sock"]
    assert "FLAVOUR=mint" in made["Config"]["Env"]
    assert (host["Init"], host["ShmSize"], host["RestartPolicy"]["Name"]) == (True, 64 * 1024 * 1024, "no")


async def test_what_a_container_says_of_its_secrets_is_masked(runtime: DockerRuntime, owner: str, image: str) -> None:
    """Those that it was given, by whichever gateway: this one knows them from the container alone."""
    script = "import os, sys; print(dict(os.environ)['HF_TOKEN'], 'x' * 40000 + os.environ['HF_TOKEN'], sys.argv[1:3])"
    given = {"HF_TOKEN": "hf_0123456789abcdef", "PROXY": "http://me:proxy-pass@host"}
    running = await runtime.start(
        launch(owner, image, environment=given, arguments=(script, "--some-key", "key-9876543210"))
    )
    (line,) = (await runtime.wait(running.handle)).log_tail
    assert line.startswith("*** xxx")
    running = await runtime.start(
        launch(
            owner, image, environment=given, arguments=("import sys; sys.exit(str(sys.argv))", "--a-key", "key-9876")
        )
    )
    (line,) = (await runtime.wait(running.handle)).log_tail
    assert "'--a-key', '***'" in line


COUNTS = """
import itertools, sys, time
for n in itertools.count():
    print(n, file=(sys.stdout, sys.stderr)[n % 2], flush=True)
    time.sleep(0.01)
"""


async def test_all_pieces_of_a_long_line_are_read(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image, "print('a' * 20_000 + 'b' * 20_000 + 'c')"))
    await runtime.wait(running.handle)
    log = ContainerLog(running.handle)
    said = b"".join([piece async for piece in log.pieces(docker)])
    assert (said.count(b"a"), said.count(b"b"), said.rstrip()[-1:]) == (20_000, 20_000, b"c")
    assert [piece async for piece in log.pieces(docker)] == [], "none of them again"
    await runtime.remove(running.handle)


async def test_all_that_a_container_writes_is_read_once_also_while_docker_is_away(
    runtime: DockerRuntime, gate: Gate, docker: aiodocker.Docker, owner: str, image: str, *, outputs: Outputs
) -> None:
    made = launch(owner, image, COUNTS)
    running = await runtime.start(made)
    waiting = [asyncio.create_task(runtime.wait(running.handle)) for _ in range(2)]

    def wrote(count: int) -> bool:
        return (output := outputs.get(made.name)) is not None and output.end >= count

    await until(lambda: wrote(20))
    await gate.shut()
    await asyncio.sleep(0.3)
    await gate.open()
    output = outputs.get(made.name)
    assert output is not None
    before = output.end
    await until(lambda: wrote(before + 100))
    await docker.containers.container(running.handle).kill(signal="SIGKILL")
    async with asyncio.timeout(LIMIT_S):
        ended, _ = await asyncio.gather(*waiting)
    lines = output.since(output.first)
    assert lines == [str(number) for number in range(len(lines))]
    assert ended.log_tail[-1] == lines[-1], "its last line, too"
    assert not output.running
    await runtime.wait(running.handle)
    await runtime.remove(running.handle)
    assert len(lines) == output.end, "and none of it again"


async def test_the_engine_sees_its_gpus(runtime: DockerRuntime, lab: Lab, owner: str, image: str) -> None:
    lab.reset_gpus(2)
    script = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])"
    running = await runtime.start(launch(owner, image, script, gpu_ids=("1", "0")))
    assert (await runtime.wait(running.handle)).log_tail == ("1,0",)


async def test_on_a_network_the_engine_is_reached_at_its_own_address(
    gate: Gate, docker: aiodocker.Docker, owner: str, image: str, sockets: EngineSockets
) -> None:
    network = await docker.networks.create({"Name": owner})
    runtime = DockerRuntime(settings(network=owner), owner, sockets=sockets)
    await runtime.open()
    try:
        running = await runtime.start(launch(owner, image, on_port=True, key="secret"))
        made = await docker.containers.container(running.handle).show()
        own = made["NetworkSettings"]["Networks"][owner]["IPAddress"]
        assert running.address == Address(own, 8000, key="secret")
        assert "VLLM_API_KEY=secret" in made["Config"]["Env"]
        assert list(made["NetworkSettings"]["Networks"]) == [owner]
        assert not made["HostConfig"]["PortBindings"]
        await runtime.remove(running.handle)
    finally:
        await runtime.close()
        await network.delete()


async def test_an_engine_on_a_port_is_alone_on_a_network_of_the_gateways_own(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image, on_port=True, key="secret"))
    try:
        made = await docker.containers.container(running.handle).show()
        assert list(made["NetworkSettings"]["Networks"]) == [f"{owner}_engines"]
        assert not made["HostConfig"]["PortBindings"]
        assert [there.running for there in await runtime.find()] == [running]
        waiting = asyncio.create_task(runtime.wait(running.handle))
        await listening(docker, running.handle)
        await tell_to_end(running.address, 3)
        assert (await waiting).code == 3
    finally:
        await runtime.remove(running.handle)
        await (await docker.networks.get(f"{owner}_engines")).delete()


@pytest.mark.parametrize("user", ["root", "4711"])
async def test_an_engine_of_any_user_is_reached_by_its_socket(
    runtime: DockerRuntime, docker: aiodocker.Docker, image: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a gateway that is not root, the way is opened inside the container."""
    owner = image.partition(":")[0]
    plain = await docker.containers.create({"Image": image})
    await plain.commit(repository=owner, tag="user", config={"User": user, "Entrypoint": ["python3", "-u", "-c"]})
    await plain.delete(force=True)
    try:
        running = await runtime.start(launch(owner, f"{owner}:user"))
        await listening(docker, running.handle)
        path = Path(running.address.path)
        assert not path.stat().st_mode & 0o022
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
        await runtime.open_way(running)
        assert path.stat().st_mode & 0o022 == 0o022
        await runtime.remove(running.handle)
        assert not path.parent.exists()
    finally:
        await docker.images.delete(f"{owner}:user", force=True)


async def test_an_engine_can_use_a_cache_of_another_user_and_has_no_other_powers(
    runtime: DockerRuntime, owner: str, image: str
) -> None:
    script = """
import os
os.mkdir("/tmp/a", 0o700); os.chown("/tmp/a", 4711, 4711)
open("/tmp/a/b", "w").close(); os.chmod("/tmp/a", 0o755)
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(int(status["CapEff"], 16), status["NoNewPrivs"].strip())
"""
    running = await runtime.start(launch(owner, image, script))
    ended = await runtime.wait(running.handle)
    assert ended.log_tail == (f"{1 << 0 | 1 << 1 | 1 << 3} 1",), "CHOWN, DAC_OVERRIDE, FOWNER"


async def test_a_container_of_the_release_before_is_found_where_it_is_published(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    before: dict[str, Any] = {
        "Image": image,
        "Cmd": [ENGINE, "--host", "0.0.0.0", "--port", "8000"],
        "ExposedPorts": {"8000/tcp": {}},
        "HostConfig": {"PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}},
        "Labels": {
            "vllm-gateway.owner": owner,
            "vllm-gateway.model": "gemma3-4B",
            "vllm-gateway.instance": "2",
            "vllm-gateway.spec": "abc",
        },
    }
    made = await docker.containers.run(before, name=f"{owner}_gemma3-4B_instance_2")
    (there,) = await runtime.find()
    assert there.running is not None
    assert (there.handle, there.spec_hash, there.running.address.host) == (made.id, "abc", "127.0.0.1")
    await listening(docker, there.handle)
    waiting = asyncio.create_task(runtime.wait(there.handle))
    await tell_to_end(there.running.address, 4)
    assert (await waiting).code == 4
    await runtime.remove(there.handle)
    assert await runtime.find() == []


async def test_a_container_of_an_image_that_carries_the_labels_on_is_never_touched(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    engine = await runtime.start(launch(owner, image))
    await docker.containers.container(engine.handle).commit(repository=owner, tag="committed")
    somebodys = await docker.containers.run({"Image": f"{owner}:committed", "Cmd": ["import time; time.sleep(600)"]})
    try:
        assert [there.handle for there in await runtime.find()] == [engine.handle]
        await runtime.stop(somebodys.id, 0)
        await runtime.remove(somebodys.id)
        assert (await somebodys.show())["State"]["Running"]
    finally:
        await somebodys.delete(force=True)
        await docker.images.delete(f"{owner}:committed", force=True)


async def test_a_later_gateway_finds_what_runs_and_what_ended(runtime: DockerRuntime, owner: str, image: str) -> None:
    kept = await runtime.start(launch(owner, image))
    ended = await runtime.start(launch(owner, image, "print('over')", name=f"{owner}_gemma3-4B_instance_1", number=1))
    await runtime.wait(ended.handle)
    found = {there.handle: there for there in await runtime.find()}
    assert set(found) == {kept.handle, ended.handle}
    there = found[kept.handle]
    assert (there.running, there.name) == (kept, f"{owner}_gemma3-4B_instance_2")
    assert (there.model, there.number, there.spec_hash) == ("gemma3-4B", 2, "abc")
    assert (there.gpu_ids, there.footprint_mib) == ((), 4096)
    assert found[ended.handle].running is None


async def test_stop_and_remove_leave_nothing_and_may_be_repeated(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    stopped = await runtime.start(launch(owner, image))
    waiting = asyncio.create_task(runtime.wait(stopped.handle))
    await listening(docker, stopped.handle)
    await runtime.stop(stopped.handle, 5)
    async with asyncio.timeout(LIMIT_S):
        assert (await waiting).code == 143
    removed = await runtime.start(launch(owner, image))
    await runtime.remove(removed.handle)
    assert await runtime.find() == []
    await runtime.stop(stopped.handle, 5)
    await runtime.remove(removed.handle)


async def test_a_death_while_docker_was_away_is_noticed(
    runtime: DockerRuntime, docker: aiodocker.Docker, gate: Gate, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image))
    await listening(docker, running.handle)
    waiting = asyncio.create_task(runtime.wait(running.handle))
    await asyncio.wait({waiting}, timeout=0)
    await gate.shut()
    with pytest.raises(RuntimeDown):
        await runtime.find()
    await tell_to_end(running.address, 7)
    await docker.containers.container(running.handle).wait()
    assert not waiting.done()
    await gate.open()
    async with asyncio.timeout(LIMIT_S):
        assert (await waiting).code == 7


async def test_deaths_after_a_gap_are_noticed_at_once(
    runtime: DockerRuntime, docker: aiodocker.Docker, gate: Gate, owner: str, image: str
) -> None:
    running = await runtime.start(launch(owner, image))
    await listening(docker, running.handle)
    waiting = asyncio.create_task(runtime.wait(running.handle))
    await gate.shut()
    await gate.open()
    assert [there.handle for there in await runtime.find()] == [running.handle]
    await tell_to_end(running.address, 9)
    async with asyncio.timeout(LIMIT_S):
        assert (await waiting).code == 9


async def test_our_own_leftover_makes_room_for_its_successor(runtime: DockerRuntime, owner: str, image: str) -> None:
    first = await runtime.start(launch(owner, image))
    second = await runtime.start(launch(owner, image))
    assert [there.handle for there in await runtime.find()] == [second.handle] != [first.handle]


async def test_a_stranger_is_never_touched(
    runtime: DockerRuntime, docker: aiodocker.Docker, owner: str, image: str
) -> None:
    wanted = launch(owner, image)
    stranger = await docker.containers.run({"Image": image, "Cmd": [ENGINE, "--port", "1"]}, name=wanted.name)
    try:
        with pytest.raises(StartError, match=wanted.name):
            await runtime.start(wanted)
        await runtime.stop(stranger.id, 0)
        await runtime.remove(stranger.id)
        assert await runtime.find() == []
        assert (await stranger.show())["State"]["Running"]
    finally:
        await stranger.delete(force=True)


async def test_an_absent_image_says_what_to_do(runtime: DockerRuntime, owner: str) -> None:
    with pytest.raises(StartError, match=r"no-such-image.*docker pull"):
        await runtime.fetch("no-such-image:1", print)
    with pytest.raises(StartError, match=r"No such image"):
        await runtime.start(launch(owner, "no-such-image:1"))
    assert await runtime.find() == []


async def test_an_image_is_pulled_and_the_log_says_how_far(
    gate: Gate, owner: str, docker: aiodocker.Docker, sockets: EngineSockets
) -> None:
    out = io.StringIO()
    log.configure(Log(format="json"), out, strict=True)
    runtime = DockerRuntime(settings(pull="missing"), owner, sockets=sockets)
    await runtime.open()
    try:
        async with serving_image(f"{owner}:1", os.urandom(8 << 20)) as registry:
            heard: list[Progress] = []
            await runtime.fetch(registry.name, heard.append)
            running = await runtime.start(launch(owner, registry.name))
            await runtime.remove(running.handle)
            await docker.images.delete(registry.name, force=True)
    finally:
        await runtime.close()
        log.shutdown()
    told = [json.loads(line) for line in out.getvalue().splitlines() if '"image_pull' in line]
    assert [line["event"] for line in (told[0], told[-1])] == ["image_pull_started", "image_pulled"]
    progress = [line for line in told if line["event"] == "image_pull_progress"]
    assert progress
    assert progress[0]["total_mib"] == 8
    assert (heard[-1].percent, heard[-1].total_mib) == (100, 8)


async def test_a_pull_in_which_nothing_moves_has_a_limit_and_one_that_is_cancelled_ends(
    gate: Gate, owner: str, sockets: EngineSockets
) -> None:
    runtime = DockerRuntime(settings(pull="missing", pull_stall_s=1), owner, sockets=sockets)
    patient = DockerRuntime(settings(pull="missing"), owner, sockets=sockets)
    await runtime.open()
    await patient.open()
    try:
        async with serving_image(f"{owner}:1", os.urandom(1 << 20)) as registry:
            registry.goes_on.clear()
            with pytest.raises(StartError, match=r"did not move for 1 s .*docker pull"):
                await runtime.fetch(registry.name, print)
            pull = asyncio.create_task(patient.fetch(registry.name, print))
            await until(lambda: registry.pulls == 2)  # Docker goes on with none that somebody still waits for
            pull.cancel()
            await asyncio.wait({pull})
            assert pull.cancelled()
            with pytest.raises(StartError, match="did not move"):
                await runtime.fetch(registry.name, print)
            assert registry.pulls == 3
            registry.goes_on.set()
    finally:
        await runtime.close()
        await patient.close()


async def test_a_start_that_docker_does_not_answer_has_a_limit(
    runtime: DockerRuntime, gate: Gate, owner: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_client, "DO_S", 0.5)
    gate.holds = r"POST \S*/containers/"
    with pytest.raises(RuntimeDown, match="in time"):
        await runtime.start(launch(owner, image))
    assert await runtime.find() == []


async def test_a_missing_network_is_said_at_once_and_a_failed_start_leaves_no_container(
    gate: Gate, image: str, owner: str, sockets: EngineSockets
) -> None:
    out = io.StringIO()
    log.configure(Log(format="json"), out, strict=True)
    runtime = DockerRuntime(settings(network="no-such-network"), owner, sockets=sockets)
    await runtime.open()
    try:
        assert log.flush()
        assert '"event":"docker_network_missing","network":"no-such-network"' in out.getvalue()
        with pytest.raises(StartError, match=r"docker network create"):
            await runtime.start(launch(owner, image))
        assert await runtime.find() == []
    finally:
        await runtime.close()
        log.shutdown()


async def test_without_docker_opening_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sockets: EngineSockets
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(RuntimeDown, match=r"none\.sock"):
        await DockerRuntime(settings(), "nobody", sockets=sockets).open()
