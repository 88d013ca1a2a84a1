# SPDX-License-Identifier: Apache-2.0
"""Two releases by one configuration file, one footprint file and one environment, as an upgrade finds them."""

import io
import subprocess
import tarfile
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_take_over import taking_over

_ROOT = Path(__file__).parents[2]


class NoHistoryError(Exception):
    """The release cannot be had here. The text says why."""


def export(release: str, folder: Path) -> Path:
    """The files of a release, from the history of this repository. Raises NoHistoryError."""
    git = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT)]
    try:
        done = subprocess.run(
            [*git, "archive", release, "src", "strategies", "config"], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        raise NoHistoryError(
            f"{release}, the release before this one, is not in the history here: clone with all of it ({said})"
        ) from error
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@dataclass(frozen=True, slots=True)
class Releases:
    """Starts gateways of both, each for as long as its block, in place of another one or where none is."""

    previous: Path
    """The files of the release before."""
    folder: Path
    environment: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)

    def old(self, *, over: GatewayProcess | None = None) -> AbstractAsyncContextManager[GatewayProcess]:
        return self._gateway(over, self.previous / "src")

    def new(self, *, over: GatewayProcess | None = None) -> AbstractAsyncContextManager[GatewayProcess]:
        return self._gateway(over, None)

    def _gateway(
        self, over: GatewayProcess | None, release: Path | None
    ) -> AbstractAsyncContextManager[GatewayProcess]:
        arguments = taking_over(over) if over else []
        return running_gateway(self.folder, self.settings, self.environment, arguments=arguments, release=release)
