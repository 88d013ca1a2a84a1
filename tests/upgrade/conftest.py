# SPDX-License-Identifier: Apache-2.0
"""The release before this one, and a place for what both keep."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upgrade import PREVIOUS_RELEASE
from tests.upgrade.releases import NoHistoryError, Releases, export


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files."""
    try:
        return export(PREVIOUS_RELEASE, tmp_path_factory.mktemp("previous"))
    except NoHistoryError as error:
        pytest.skip(str(error))


@pytest.fixture
def releases(previous: Path, tmp_path: Path) -> Iterator[Releases]:
    """They meet, and keep what they keep, where they do by default: no setting says where, as the old one has none."""
    with tempfile.TemporaryDirectory(prefix="vgl-") as short:  # the paths of sockets must be
        yield Releases(previous, tmp_path, {"TMPDIR": short, "XDG_STATE_HOME": short, "XDG_RUNTIME_DIR": ""})
