# SPDX-License-Identifier: Apache-2.0
"""The process runtime with real children: they start, are heard, end, and leave nobody behind."""

import asyncio
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import children
from tests.waiting import until
from vllm_gateway.configuration.loading import ENVIRONMENT
from vllm_gateway.configuration.settings import Process
from vllm_gateway.fleet.runtimes import Launch, Running, RuntimeDown, StartError, descendants, process
from vllm_gateway.fleet.runtimes.descendants import own_name
from vllm_gateway.fleet.runtimes.process import ProcessRuntime
from vllm_gateway.fleet.runtimes.sockets import EngineSockets

Make = Callable[[str], Awaitable[ProcessRuntime]]

HOLD = "\nimport time\nwhile True: time.sleep(60)"
# Tells through a fifo, given as the first argument, that the script got as far as this.
TELL = "\nimport sys, os\nopen(sys.argv[1], 'w').write(f'{os.getpid()} ')"


def launch(*arguments: str, gpu_ids: tuple[str, ...] = ()) -> Launch:
    return Launch("vllm_server_m_instance_1", "m", 1, "", arguments, {"FLAVOUR": "mint"}, gpu_ids, 100, "spec")


@pytest.fixture
async def make(sockets: EngineSockets) -> AsyncIterator[Make]:
    """Makes opened runtimes whose engine is a Python script."""
    made: list[ProcessRuntime] = []

    async def make(script: str) -> ProcessRuntime:
        made.append(ProcessRuntime(Process(command=(sys.executable, "-u", "-c", script)), "/gpus", sockets=sockets))
        await made[-1].open()
        return made[-1]

    yield make
    for runtime in made:
        await runtime.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "told"
    os.mkfifo(path)
    return path


async def told(fifo: Path) -> list[int]:
    """The process ids that were written into the fifo, once all writers closed it."""
    return [int(pid) for pid in (await asyncio.to_thread(fifo.read_text)).split()]


async def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool((await asyncio.to_thread(select.select, [process], [], [], 10))[0])
    finally:
        os.close(process)


async def test_the_engine_gets_no_variables_of_the_gateway(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in ENVIRONMENT if name.startswith("VLLM_")]:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    runtime = await make("import os; print(*(name for name in os.environ if name.startswith('VLLM_')))")
    running = await runtime.start(launch())
    assert (await runtime.wait(running.handle)).log_tail == ("VLLM_LOGGING_LEVEL",)


async def test_the_engine_gets_its_address_gpus_and_environment(make: Make) -> None:
    names = "FLAVOUR CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES SIM_NAME SIMULATED_GPU_DIR"
    script = f"import os, sys; print(*sys.argv[1:]); print(*(os.environ[name] for name in '{names}'.split()))"
    runtime = await make(script)
    running = await runtime.start(launch("--model", "m", gpu_ids=("GPU-a", "GPU-b")))
    ended = await runtime.wait(running.handle)
    assert ended.code == 0
    assert ended.log_tail == (
        f"--model m --uds {running.address.path}",
        "mint GPU-a,GPU-b GPU-a,GPU-b vllm_server_m_instance_1 /gpus",
    )


async def test_all_waiters_hear_how_it_ended(make: Make) -> None:
    runtime = await make("print('torch.OutOfMemoryError: CUDA out of memory.'); raise SystemExit(3)")
    running = await runtime.start(launch())
    first, second = await asyncio.gather(runtime.wait(running.handle), runtime.wait(running.handle))
    assert first == second == await runtime.wait(running.handle)
    assert (first.code, first.out_of_memory) == (3, True)


async def test_a_waiter_that_gives_up_does_not_disturb_the_others(make: Make, fifo: Path) -> None:
    runtime = await make(TELL + HOLD)
    running = await runtime.start(launch(str(fifo)))
    await told(fifo)
    impatient, patient = (asyncio.create_task(runtime.wait(running.handle)) for _ in range(2))
    await asyncio.wait({impatient}, timeout=0)
    impatient.cancel()
    os.kill(int(running.handle), signal.SIGKILL)
    assert (await patient).code == -signal.SIGKILL


async def test_stop_lets_the_engine_say_goodbye(make: Make, fifo: Path) -> None:
    goodbye = "import signal\ndef bye(*_): print('bye'); raise SystemExit(0)\nsignal.signal(signal.SIGTERM, bye)"
    runtime = await make(goodbye + TELL + HOLD)
    running = await runtime.start(launch(str(fifo)))
    await told(fifo)
    waiting = asyncio.create_task(runtime.wait(running.handle))
    await asyncio.wait({waiting}, timeout=0)
    await runtime.stop(running.handle, 30)
    ended = await waiting
    assert (ended.code, ended.log_tail) == (0, ("bye",))
    await runtime.stop(running.handle, 30)
    await runtime.remove(running.handle)


async def test_stop_kills_an_engine_that_does_not_listen(make: Make, fifo: Path) -> None:
    runtime = await make("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" + TELL + HOLD)
    running = await runtime.start(launch(str(fifo)))
    await told(fifo)
    waiting = asyncio.create_task(runtime.wait(running.handle))
    await asyncio.wait({waiting}, timeout=0)
    await runtime.stop(running.handle, 0.1)
    assert (await waiting).code == -signal.SIGKILL


async def start_unseen(runtime: ProcessRuntime, fifo: Path) -> tuple[Running, int]:
    """An engine with a worker; nobody has asked for its processes."""
    running = await runtime.start(launch(str(fifo)))
    (worker,) = set(await told(fifo)) - {int(running.handle)}
    return running, worker


async def start_with_worker(runtime: ProcessRuntime, fifo: Path) -> tuple[Running, int]:
    running, worker = await start_unseen(runtime, fifo)
    assert await runtime.pids(running.handle) == {int(running.handle), worker}
    return running, worker


async def test_remove_ends_the_workers_too(make: Make, fifo: Path) -> None:
    runtime = await make(WORKER_BEHIND_A_PIPE)
    running, worker = await start_with_worker(runtime, fifo)
    await runtime.remove(running.handle)
    assert await gone(worker)
    assert await runtime.pids(running.handle) == frozenset()


async def test_workers_do_not_outlive_an_engine_that_died(make: Make, fifo: Path) -> None:
    runtime = await make(WORKER_BEHIND_A_PIPE)
    running, worker = await start_with_worker(runtime, fifo)
    os.kill(int(running.handle), signal.SIGKILL)
    assert (await runtime.wait(running.handle)).code == -signal.SIGKILL
    assert await gone(worker)


# The engine names its worker and itself in one write, so that the fifo's reader sees both.
WORKER_BEHIND_A_PIPE = (
    "import os, sys, time\n"
    "worker = os.fork()\n"
    "if worker: open(sys.argv[1], 'w').write(f'{os.getpid()} {worker}')" + HOLD
)

# A worker that leads a session of its own, has lost its parent, and holds no output of the engine's: as Ray's do.
DAEMON = (
    """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        while not os.path.exists(sys.argv[1] + ".go"): time.sleep(0.01)
        open(sys.argv[1], "w").write(f"{os.getppid()} {os.getpid()}")
        while True: time.sleep(60)
    os._exit(0)
os.wait()
open(sys.argv[1] + ".go", "w")
"""
    + HOLD
)


async def start_with_daemon(runtime: ProcessRuntime, fifo: Path) -> tuple[Running, int]:
    running = await runtime.start(launch(str(fifo)))
    parent, daemon = await told(fifo)
    assert parent != int(running.handle)
    assert daemon in await runtime.pids(running.handle), "its memory is the engine's"
    return running, daemon


async def test_who_has_left_the_engines_group_ends_with_it(make: Make, fifo: Path) -> None:
    runtime = await make(DAEMON)
    running, daemon = await start_with_daemon(runtime, fifo)
    await runtime.stop(running.handle, 30)
    assert await gone(daemon)
    assert await runtime.pids(running.handle) == frozenset()


async def test_who_has_left_the_group_of_an_engine_that_died_is_removed_with_it(make: Make, fifo: Path) -> None:
    runtime = await make(DAEMON)
    running, daemon = await start_with_daemon(runtime, fifo)
    os.kill(int(running.handle), signal.SIGKILL)
    await runtime.wait(running.handle)
    await runtime.remove(running.handle)
    assert await gone(daemon)


# A worker with nothing of the engine's: neither its mark, nor its session, nor its group.
STRANGE_WORKER = (
    "import os, subprocess, sys, time\n"
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={}, "
    "start_new_session=True)\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {worker.pid}')" + HOLD
)


async def test_who_has_lost_the_mark_is_known_by_where_it_came_from(make: Make, fifo: Path) -> None:
    runtime = await make(STRANGE_WORKER)
    running, worker = await start_with_worker(runtime, fifo)
    os.kill(int(running.handle), signal.SIGKILL)
    await runtime.wait(running.handle)
    await runtime.remove(running.handle)
    assert await gone(worker)


async def test_who_has_no_mark_ends_with_an_engine_that_is_stopped_before_anybody_looked(
    make: Make, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_FIRST_LOOK_S", 600.0)
    runtime = await make(STRANGE_WORKER)
    running, worker = await start_unseen(runtime, fifo)
    await runtime.stop(running.handle, 30)
    assert await gone(worker)


async def test_who_has_no_mark_is_seen_without_being_asked_for(make: Make, fifo: Path) -> None:
    runtime = await make(STRANGE_WORKER)
    running, worker = await start_unseen(runtime, fifo)
    await until(lambda: worker in runtime._descendants.of(own_name()))
    os.kill(int(running.handle), signal.SIGKILL)
    await runtime.wait(running.handle)
    await runtime.remove(running.handle)
    assert await gone(worker)


async def test_the_guard_ends_who_has_no_mark(make: Make, fifo: Path) -> None:
    runtime = await make(STRANGE_WORKER)
    _, worker = await start_with_worker(runtime, fifo)
    assert runtime._guard is not None
    assert runtime._guard.stdin is not None
    runtime._guard.stdin.close()  # as it is when the gateway is killed
    await runtime._guard.wait()
    assert await gone(worker)


async def test_what_does_not_end_is_named_and_stays_known(
    make: Make, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = await make(DAEMON)
    running, daemon = await start_with_daemon(runtime, fifo)
    with monkeypatch.context() as helpless:
        helpless.setattr(descendants, "kill", lambda process: None)
        helpless.setattr(process, "_END_S", 0.1)
        with pytest.raises(RuntimeDown, match=rf"process {daemon} \(python.*, \d+ MiB of the machine's memory\)"):
            await runtime.stop(running.handle, 1)
        assert await runtime.pids(running.handle) == {daemon}
    await runtime.stop(running.handle, 1)
    assert await gone(daemon)


GATEWAY = """
import asyncio, sys
from pathlib import Path
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.fleet.runtimes import Launch
from vllm_gateway.fleet.runtimes.process import ProcessRuntime
from vllm_gateway.configuration.settings import Process

async def main():
    sockets = EngineSockets(Path(sys.argv[3]))
    runtime = ProcessRuntime(Process(command=(sys.executable, "-c", sys.argv[1])), None, sockets=sockets)
    await runtime.open()
    await runtime.wait((await runtime.start(Launch("n", "m", 1, "", (sys.argv[2],), {}, (), 1, "s"))).handle)

asyncio.run(main())
"""


async def test_engines_die_with_a_gateway_that_was_killed(fifo: Path, tmp_path: Path) -> None:
    arguments = (GATEWAY, WORKER_BEHIND_A_PIPE, str(fifo), str(tmp_path))
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", *arguments)
    engine, worker = await told(fifo)
    gateway.kill()
    await gateway.wait()
    assert await gone(engine)
    assert await gone(worker)


async def test_daemons_die_with_a_gateway_that_was_killed(fifo: Path, tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", GATEWAY, DAEMON, str(fifo), str(tmp_path))
    _, daemon = await told(fifo)
    gateway.kill()
    await gateway.wait()
    assert await gone(daemon)


async def test_daemons_of_a_gateway_that_was_killed_with_its_guard_are_found(
    make: Make, fifo: Path, tmp_path: Path
) -> None:
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", GATEWAY, DAEMON, str(fifo), str(tmp_path))
    _, daemon = await told(fifo)
    guard = next(pid for pid in children(gateway.pid) if b"killpg" in Path(f"/proc/{pid}/cmdline").read_bytes())
    runtime = await make("pass")

    async def found() -> list[str]:
        handles = [one.handle for one in await runtime.find()]
        return [handle for handle in handles if handle.split("-")[1] == str(gateway.pid)]

    assert not await found(), "its gateway lives"
    os.kill(guard, signal.SIGKILL)
    gateway.kill()
    await gateway.wait()
    for handle in await found():
        await runtime.remove(handle)
    assert await gone(daemon)


async def test_close_ends_every_engine(make: Make, fifo: Path) -> None:
    runtime = await make(TELL + HOLD)
    started = []
    for _ in range(2):
        started.append(await runtime.start(launch(str(fifo))))
        await told(fifo)
    assert started[0].address != started[1].address
    await runtime.close()
    assert [await gone(int(running.handle)) for running in started] == [True, True]
    assert await runtime.find() == []


async def test_a_missing_command_names_the_setting(sockets: EngineSockets) -> None:
    runtime = ProcessRuntime(Process(command=("no-such-engine", "serve")), None, sockets=sockets)
    with pytest.raises(StartError, match=r"no-such-engine.*`process\.command`"):
        await runtime.start(launch())


async def test_an_engine_on_a_port_is_told_apart_from_others_that_listen_there(make: Make, fifo: Path) -> None:
    script = "\nimport socket, sys\nport = int(sys.argv[-1])\nheld = socket.create_server(('127.0.0.1', port))"
    runtime = await make(script + TELL + HOLD)
    running = await runtime.start(replace(launch(str(fifo)), on_port=True, key="k"))
    await told(fifo)
    guard = running.address.guard
    assert guard is not None
    assert guard.holds()
    assert running.address.key == "k"
    assert "k" not in repr(running).split("Address")[1]
    await runtime.stop(running.handle, 1)
    assert not guard.holds()
    with socket.create_server((running.address.host, running.address.port)):
        assert not guard.holds()


async def test_what_a_worker_of_the_engine_listens_on_is_the_engines(make: Make, fifo: Path) -> None:
    script = (
        "\nimport os, socket, sys\nheld = socket.create_server(('127.0.0.1', int(sys.argv[-1])))"
        "\nif os.fork() != 0: held.close(); os.wait()"
    )
    runtime = await make(script + TELL + HOLD)
    running = await runtime.start(replace(launch(str(fifo)), on_port=True))
    await told(fifo)
    assert running.address.guard is not None
    assert running.address.guard.holds()


async def test_no_folder_for_a_socket_is_said_and_none_is_left(make: Make, sockets: EngineSockets) -> None:
    runtime = await make("print('over')")
    running = await runtime.start(launch())
    folder = Path(running.address.path).parent
    await runtime.wait(running.handle)
    await runtime.remove(running.handle)
    assert not folder.exists()
    folder.parent.chmod(0o700)
    folder.parent.rename(folder.parent.with_suffix(".gone"))
    try:
        with pytest.raises(StartError, match="no place for the engine's socket"):
            await runtime.start(launch())
    finally:
        folder.parent.with_suffix(".gone").rename(folder.parent)
