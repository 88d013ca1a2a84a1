# SPDX-License-Identifier: Apache-2.0
"""The folder of everything that the gateway keeps: where it is, and that nobody else can write there."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.telemetry import events

_NAME = "vllm-gateway"
_OF_THIS_USER = f"{_NAME}-{os.getuid()}"
_ENGINES = "engines"


@dataclass(frozen=True, slots=True)
class StateDir:
    """`problem`: why it is not the folder that it should be, but one that may not last."""

    folder: Path
    problem: str | None = None


def wanted_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """As configured; else systemd's for the service, else the user's."""
    if settings.state_dir is not None:
        return Path(settings.state_dir).expanduser().absolute()
    if of_service := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(of_service)
    if of_user := environ.get("XDG_STATE_HOME", ""):
        return Path(of_user, _NAME)
    return Path(os.path.expanduser("~"), ".local", "state", _NAME)


def open_state_dir(settings: Settings, environ: Mapping[str, str]) -> StateDir:
    """Makes it where it is missing. Raises OSError if not even the one for want of a better can be used."""
    try:
        return StateDir(private_folder(wanted_folder(settings, environ), parents=True))
    except OSError as error:
        return StateDir(private_folder(Path(tempfile.gettempdir(), _OF_THIS_USER)), str(error))


class State:
    """The folder while the gateway runs: should it vanish, it is made anew when it is needed, there or elsewhere."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        fits: Callable[[Path], bool],
        emit: Callable[..., None],
    ) -> None:
        """`fits`: as for `engines_folder`. Raises OSError if there can be none."""
        self._settings = settings
        self._environ = environ
        self._fits = fits
        self._emit: Callable[..., None] = emit
        self._now = StateDir(Path())
        self._look()

    @property
    def folder(self) -> Path:
        return self._now.folder

    @property
    def problems(self) -> list[str]:
        if self._now.problem is None:
            return []
        return [f"state_dir: {self._now.problem}; {self.folder} takes its place, and may not last"]

    def engines(self) -> Path:
        """For the sockets of engines, and there at this moment. Raises OSError."""
        self._look()
        return engines_folder(self.folder, self._fits)

    def _look(self) -> None:
        before, self._now = self._now, open_state_dir(self._settings, self._environ)
        if self._now.problem is not None and self._now != before:
            self._emit(
                events.STATE_DIR_UNUSABLE,
                folder=str(wanted_folder(self._settings, self._environ)),
                problem=self._now.problem,
                instead=str(self.folder),
            )


def engines_folder(state: Path, fits: Callable[[Path], bool]) -> Path:
    """For the sockets of engines: in `state`, or where `fits` says that paths are short enough. Raises OSError."""
    for around in (state, Path(tempfile.gettempdir(), _OF_THIS_USER), Path("/tmp", _OF_THIS_USER)):  # noqa: S108 - 0700
        if fits(around / _ENGINES):
            return private_folder(private_folder(around) / _ENGINES)
    text = f"The path {state / _ENGINES} is too long for the sockets of engines. Name a shorter one in `state_dir`."
    raise OSError(errno.ENAMETOOLONG, text)


def private_folder(folder: Path, *, parents: bool = False) -> Path:
    """Made for this user alone; one that is there must be this user's, and nobody else's to write. Raises OSError."""
    if parents:
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        there = folder.lstat() if not parents else folder.stat()
        if not stat.S_ISDIR(there.st_mode):
            raise NotADirectoryError(f"{folder} is not a folder") from None
        if there.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user") from None
        if there.st_mode & 0o022:
            raise PermissionError(f"{folder} can be written by other users: chmod go-w {folder}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written") from None
    return folder
