# SPDX-License-Identifier: Apache-2.0
"""Engines as child processes: for a machine without Docker, for development, and for the simulated engine.

Every engine leads a process group of its own, and its workers bear its mark, or were seen when they came, so that they
end with it wherever they have gone. If the gateway dies, however it dies, the kernel kills the engines and a small
guard process kills their workers, which hold the GPU memory; so there is never an instance of an earlier gateway to
adopt. If the guard is killed as well, the next gateway ends those workers.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm_gateway.configuration.settings import Process, Settings
from vllm_gateway.fleet.runtimes import Exit, Found, Launch, Progress, Running, RuntimeDown, StartError, descendants
from vllm_gateway.fleet.runtimes.descendants import Descendants, Mark
from vllm_gateway.fleet.runtimes.listener import EngineListens
from vllm_gateway.fleet.runtimes.output import Output, Outputs, says_out_of_memory
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.routing import Address
from vllm_gateway.telemetry.secrets import Secrets
from vllm_gateway.telemetry.shortage import is_shortage

_HOST = "127.0.0.1"
_CLOSE_GRACE_S = 3.0
_END_S = 3.0  # for what is killed to end
_SHOWN = 5
_DO_NOT_END = "cannot be killed: what they wait for is in the kernel, or they are another user's"
_LAST_OUTPUT_S = 1.0
_FIRST_LOOK_S, _LATER_S, _LAST_LOOK_S = 0.1, 1.3, 1.0  # at an engine's processes: each pause is so much longer
_NOT_FOR_ENGINES = re.compile(
    "VLLM_GATEWAY_.*|VLLM_IMAGE|VLLM_CONTAINER_PREFIX|VLLM_INACTIVITY_TIMEOUT|LISTEN_PID|LISTEN_FDS|LISTEN_FDNAMES"
)
"""The gateway's own: API keys and systemd's sockets are no business of engines, and vLLM warns of VLLM_ names that it
does not know."""

# Runs in the child, then becomes the engine: asks the kernel for SIGKILL when the gateway dies (prctl 1 is
# PR_SET_PDEATHSIG), and gives up if it died before that. A `preexec_fn` would do this in a fork of a process with
# threads, where anything but exec may deadlock. Python ignores SIGPIPE, and exec would hand that on.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""

# Runs beside the engines and hears of every group as it comes (+) and goes (-), and of every process of theirs that was
# seen (=, with when it began) or is no more (~). Its input ends with the gateway; then it looks for these, for their
# children, and for what bears the gateway's mark, until nothing is left.
_GUARD = """
import os, signal, sys, time
groups, seen = set(), {}
for line in sys.stdin:
    sign, numbers = line[0], [int(word) for word in line[1:].split()]
    if sign == "=":
        seen[numbers[0]] = numbers[1]
    elif sign == "~":
        seen.pop(numbers[0], None)
    else:
        (groups.add if sign == "+" else groups.discard)(numbers[0])
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
mark = os.fsencode(sys.argv[1])
for number in range(100):
    found, ours = False, set()
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent, *more = file.read().rpartition(b")")[2].split()
            began = int(more[17])
            if int(parent) in ours:
                seen[pid] = began
            if seen.get(pid) == began:
                ours.add(pid)
            else:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mark not in file.read():
                        continue
            if state not in (b"Z", b"X"):
                os.kill(pid, signal.SIGKILL)
                found = True
        except (OSError, ValueError, IndexError):
            pass
    if not found:
        break
    time.sleep(0.05)
"""


@dataclass(frozen=True, slots=True)
class _Child:
    process: asyncio.subprocess.Process
    mark: Mark
    listens_on: str | int  # the path of a socket, or a port
    ended: asyncio.Task[Exit]


class ProcessRuntime:
    """Starts the engine's command on this machine. The handle is the process id, which is the group's id too."""

    def __init__(
        self,
        settings: Process,
        simulated_gpu_dir: str | None,
        secrets: Secrets | None = None,
        *,
        sockets: EngineSockets,
        outputs: Outputs | None = None,
    ) -> None:
        self._secrets = secrets or Secrets()
        self._outputs = outputs or Outputs(self._secrets)
        self._command = _command_of(settings)
        self._simulated_gpu_dir = simulated_gpu_dir
        self._sockets = sockets
        self._children: dict[str, _Child] = {}
        self._guard: asyncio.subprocess.Process | None = None
        self._next_look: asyncio.Task[Mapping[Mark, frozenset[int]]] | None = None
        self._looked_at = 0.0
        self._descendants = Descendants()
        self._told: Mapping[int, int] = {}  # the guard: of those that were seen, and when each began
        self._name = descendants.own_name()
        self._started = 0

    async def open(self) -> None:
        await asyncio.to_thread(self._sockets.sweep)
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _GUARD, f"{descendants.VARIABLE}={self._name} "),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def close(self) -> None:
        stops = (self.stop(handle, _CLOSE_GRACE_S) for handle in list(self._children))
        await asyncio.gather(*stops, return_exceptions=True)  # what does not end is left to the guard
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()

    @property
    def problem(self) -> str | None:
        return None

    @property
    def unanswered(self) -> list[str]:
        return []

    async def returned(self) -> None:
        """It is never away."""
        await asyncio.Event().wait()

    def reconfigure(self, settings: Settings) -> None:
        self._command = _command_of(settings.process)

    async def find(self) -> list[Found]:
        """Workers of an earlier gateway that was killed, and its guard with it."""
        orphans = await asyncio.to_thread(descendants.orphans)
        return [Found(None, str(mark), mark.name, mark.model, 0, "", (), 0) for mark in orphans]

    async def fetch(self, image: str, told: Callable[[Progress], None]) -> None: ...

    async def start(self, launch: Launch) -> Running:
        """What the gateway itself lacks is no failure of the start."""
        try:
            return await self._start(launch)
        except OSError as error:
            if not is_shortage(error):
                raise
            raise RuntimeDown(f"the gateway cannot start a process: {error}") from error

    async def _start(self, launch: Launch) -> Running:
        self._started += 1
        mark = Mark(self._name, self._started, launch.name, launch.model)
        environment = {**self._environment(launch), **descendants.environment(mark)}
        self._secrets.learn_environment(environment)
        program = shutil.which(self._command[0], path=environment.get("PATH"))
        if program is None:
            raise StartError(
                f"The engine's command {self._command[0]!r} was not found. Install it where the gateway runs, "
                "or name another in `process.command`."
            )
        listens_on = self._place_for(launch)
        reading = writing = -1
        try:
            reading, writing = os.pipe()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
                *(program, *self._command[1:], *launch.arguments, *_options(listens_on)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            if reading >= 0:
                os.close(reading)
            self._forget(listens_on)
            if is_shortage(error):
                raise
            raise StartError(f"The engine's command (`process.command`) could not be started: {error}") from error
        finally:
            if writing >= 0:
                os.close(writing)
        self._descendants.claim(process.pid, mark)
        self._tell_guard("+", process.pid)
        ended = asyncio.create_task(self._follow(process, reading, launch), name=f"follow {launch.name}")
        self._children[str(process.pid)] = _Child(process, mark, listens_on, ended)
        return Running(str(process.pid), _address(listens_on, process.pid, launch.key))

    async def open_way(self, running: Running) -> None:
        """It is open: engines are this user's. Whom one has started before it listens is seen before it is ready."""
        if running.address.path and os.access(running.address.path, os.F_OK):
            with contextlib.suppress(OSError):
                await self.pids(running.handle)

    def _place_for(self, launch: Launch) -> str | int:
        """Raises StartError."""
        if launch.on_port:
            return _free_port(frozenset(child.listens_on for child in self._children.values()))
        try:
            return str(self._sockets.make())
        except OSError as error:
            if is_shortage(error):
                raise
            raise StartError(f"There is no place for the engine's socket: {error}") from error

    def _forget(self, listens_on: str | int) -> None:
        if isinstance(listens_on, str):
            self._sockets.remove(listens_on)

    async def wait(self, handle: str) -> Exit:
        child = self._children.get(handle)
        if child is None:
            return Exit(-signal.SIGKILL)
        return await asyncio.shield(child.ended)

    async def stop(self, handle: str, grace_s: float) -> None:
        child = self._children.get(handle)
        if child is None:
            return
        if child.process.returncode is None:
            with contextlib.suppress(OSError):
                await self.pids(handle)  # while they have their parents
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        await asyncio.wait({child.ended}, timeout=grace_s)
        await self.remove(handle)

    async def remove(self, handle: str) -> None:
        child = self._children.get(handle)
        mark = child.mark if child else Mark.read(handle)
        if mark is None:
            return
        if child is not None and not child.ended.done():
            _kill_group(child.process.pid)
            await asyncio.wait({child.ended})
        if left := await asyncio.to_thread(self._descendants.end, mark, _END_S):
            raise RuntimeDown(f"{', '.join(map(str, left[:_SHOWN]))} of it {_DO_NOT_END}")
        if child is not None:
            self._children.pop(handle, None)
            self._forget(child.listens_on)

    async def pids(self, handle: str) -> frozenset[int]:
        child = self._children.get(handle)
        if child is None:
            return frozenset()
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look())
        return (await asyncio.shield(self._next_look)).get(child.mark, frozenset())

    async def _look(self) -> Mapping[Mark, frozenset[int]]:
        """One for all who ask at the same time; whoever asks once it has begun gets the next one."""
        self._next_look = None
        self._looked_at = asyncio.get_running_loop().time()
        found = await asyncio.to_thread(self._descendants.look)
        self._tell_guard_who_is_there()
        return found

    async def _keep_looking(self, handle: str) -> None:
        """Who has no mark is known if it was seen while its parent lived: most come soon after the start."""
        clock, pause_s = asyncio.get_running_loop().time, _FIRST_LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            if clock() - self._looked_at > pause_s / 2:
                with contextlib.suppress(OSError):
                    await self.pids(handle)
            pause_s = min(pause_s * _LATER_S, _LAST_LOOK_S)

    def _tell_guard_who_is_there(self) -> None:
        there = self._descendants.of(self._name)
        for pid in self._told.keys() - there.keys():
            self._tell_guard("~", pid)
        for pid, began in there.items():
            if self._told.get(pid) != began:
                self._tell_guard("=", pid, began)
        self._told = there

    async def _follow(self, process: asyncio.subprocess.Process, pipe: int, launch: Launch) -> Exit:
        """Reads what the engine says until it ends; workers it leaves behind are killed, for they hold GPU memory.

        The pipe is ours, not asyncio's, whose `wait()` may not return while a worker still holds the output open.
        """
        with self._outputs.of_engine(launch.name, launch.model) as output:
            reading = asyncio.create_task(_read_into(output, pipe))
            looking = asyncio.create_task(self._keep_looking(str(process.pid)))
            try:
                code = await process.wait()
            finally:
                looking.cancel()
                await asyncio.wait({looking})
            _kill_group(process.pid)
            self._tell_guard("-", process.pid)
            await asyncio.wait({reading}, timeout=_LAST_OUTPUT_S)
            reading.cancel()
            await asyncio.wait({reading})
            tail = output.lines()
        return Exit(code, says_out_of_memory(tail), log_tail=tail)

    def _tell_guard(self, sign: str, *numbers: int) -> None:
        if self._guard is not None and self._guard.stdin is not None and not self._guard.stdin.is_closing():
            self._guard.stdin.write(f"{sign}{' '.join(map(str, numbers))}\n".encode())

    def _environment(self, launch: Launch) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not _NOT_FOR_ENGINES.fullmatch(name)}
        environment = {**inherited, **launch.environment, "SIM_NAME": launch.name}
        if launch.key:
            environment["VLLM_API_KEY"] = launch.key
        if launch.gpu_ids:
            environment["CUDA_VISIBLE_DEVICES"] = environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(launch.gpu_ids)
        if self._simulated_gpu_dir is not None:
            environment["SIMULATED_GPU_DIR"] = self._simulated_gpu_dir
        return environment


def _command_of(settings: Process) -> tuple[str, ...]:
    simulated = settings.command == ("simulated",)
    return (sys.executable, "-m", "vllm_gateway.simulator") if simulated else settings.command


async def _read_into(output: Output, pipe: int) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
    )
    try:
        while data := await reader.read(65536):
            output.feed(data)
    finally:
        transport.close()


def _options(listens_on: str | int) -> tuple[str, ...]:
    return ("--uds", listens_on) if isinstance(listens_on, str) else ("--host", _HOST, "--port", str(listens_on))


def _address(listens_on: str | int, session: int, key: str) -> Address:
    if isinstance(listens_on, str):
        return Address(path=listens_on, key=key)
    return Address(_HOST, listens_on, key=key, guard=EngineListens(session, listens_on))


def _free_port(taken: frozenset[str | int]) -> int:
    """A port nobody listens on, nor an engine that has yet to bind the one it was given."""
    while True:
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
