# SPDX-License-Identifier: Apache-2.0
"""Where a new gateway finds the one that runs: a socket in a folder that is this user's alone."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.configuration.state_dir import private_folder, wanted_folder
from vllm_gateway.service.leftovers import remove_dead_sockets
from vllm_gateway.service.unix_sockets import bind_unix, unlink_own
from vllm_gateway.telemetry import events

_BACKLOG = 16
_NAME = "vllm-gateway"


class ControlSocket:
    """Of the gateway on one port. The settings may name its path; else both sides know it by the user and the port."""

    def __init__(
        self,
        settings: Settings,
        port: int | None,
        emit: Callable[..., None],
        *,
        replaces_living: bool = False,
    ) -> None:
        """`port`: on which the gateway listens, where that is known already.

        `replaces_living`: a socket on which somebody listens, for he was taken over.
        """
        self._emit: Callable[..., None] = emit
        self._replaces_living = replaces_living
        self._told: set[tuple[Path, str]] = set()
        self._path: Path | None = None  # once it is open
        self._link: Path | None = None
        if settings.server.control_socket is not None:
            self._paths = [Path(settings.server.control_socket)]
            return
        number = settings.server.port if port is None else port
        of_user = os.environ.get("XDG_RUNTIME_DIR")
        shared = Path(of_user or tempfile.gettempdir())
        # Where others can take a name in the temporary folder first, there is still the user's own.
        elsewhere = [shared / f"{_NAME}-{os.getuid()}", wanted_folder(settings, os.environ)]
        folders = [shared / _NAME] if of_user else elsewhere
        self._paths = [folder / f"control-{number}.sock" for folder in folders]
        self._link = shared / f"{_NAME}-{os.getuid()}-{number}.sock"

    @property
    def paths(self) -> Sequence[Path]:
        """Where one that runs may be found, the best first. The last is that of the release before."""
        return self._paths if self._link is None else [*self._paths, self._link]

    def tell(self, path: Path, error: OSError) -> None:
        """What is wrong there; once, however often it is met."""
        problem = error.strerror or str(error)
        if (path, problem) not in self._told:
            self._told.add((path, problem))
            self._emit(events.CONTROL_SOCKET_PROBLEM, path=str(path), problem=problem)

    def open(self) -> socket.socket | None:
        """Listening; None if it can be nowhere yet."""
        for path in self._paths:
            try:
                if self._link is not None:
                    private_folder(path.parent, parents=path.parent.parent != self._link.parent)
                    remove_dead_sockets(path.parent, "control-*.sock")
                    remove_dead_sockets(self._link.parent, f"{_NAME}-{os.getuid()}-*.sock")
                listening = bind_unix(path, 0o600, replaces_living=self._replaces_living)
            except OSError as error:
                self.tell(path, error)
                if error.errno == errno.EADDRINUSE:
                    return None  # by a gateway of this user on the same port: who asks is to find the one or the other
                continue
            self._path = path
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            with contextlib.suppress(OSError):  # whoever lies there
                self._make_link(path)
            return listening
        return None

    def remove(self) -> None:
        """At the end of a gateway that nobody took over."""
        with contextlib.suppress(OSError):
            if self._path is not None:
                unlink_own(self._path)
            if self._link is not None and self._link.is_symlink() and self._link.readlink() == self._path:
                self._link.unlink()

    def _make_link(self, path: Path) -> None:
        """For the release before, should it take over from this one. Raises OSError."""
        if self._link is not None:
            if self._link.is_symlink() and self._link.lstat().st_uid == os.getuid():
                self._link.unlink()
            unlink_own(self._link)
            self._link.symlink_to(path)
