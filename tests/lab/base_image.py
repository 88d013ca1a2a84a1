# SPDX-License-Identifier: Apache-2.0
"""Makes a small image with Python from the system's own packages: no registry has to be reached.

The packages are downloaded and unpacked, not installed: none of their scripts runs.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.lab.docker_api import DockerApi
from tests.lab.errors import LabUnavailableError
from tests.lab.packages import apt_get
from tests.lab.shell import run

_WANTED = ("python3", "dash", "coreutils", "media-types")
_NOT_NEEDED = ("perl", "libperl", "libgdbm", "dpkg", "tar", "install-info", "mime-support", "mailcap", "debianutils")
"""Wanted by scripts that do not run here."""


def import_base_image(docker: DockerApi, repository: str, tag: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        packages, root = directory / "packages", directory / "root"
        packages.mkdir()
        _download(packages)
        _lay_out(root)
        for package in sorted(packages.glob("*.deb")):
            run(
                "sh",
                "-c",
                'dpkg-deb --fsys-tarfile "$1" | tar -C "$2" --keep-directory-symlink -xf -',
                *("sh", package, root),
            )
        _finish(root)
        _import(docker, root, {"fromSrc": "-", "repo": repository, "tag": tag})


def _download(directory: Path) -> None:
    try:
        apt_get("download", "-q", "-o", "APT::Sandbox::User=root", *_with_dependencies(), directory=directory)
    except LabUnavailableError:  # no package lists yet, or old ones
        apt_get("update", "-q")
        apt_get("download", "-q", "-o", "APT::Sandbox::User=root", *_with_dependencies(), directory=directory)


def _with_dependencies() -> list[str]:
    relations = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    listed = run("apt-cache", "depends", "--recurse", *(f"--no-{relation}" for relation in relations), *_WANTED)
    names = [line for line in listed.splitlines() if line[:1].isalnum()]
    return [name for name in names if not name.startswith(_NOT_NEEDED) and ":" not in name]


def _lay_out(root: Path) -> None:
    """The directories that no package brings, and /bin, /lib, ... as the links into /usr that they are today."""
    for name in ("dev", "etc", "proc", "root", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _finish(root: Path) -> None:
    """What the packages' scripts would have done."""
    shell = root / "usr/bin/sh"
    if not shell.is_symlink():
        shell.symlink_to("dash")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name in ("doc", "man", "locale", "lintian", "info"):
        run("rm", "-rf", root / "usr/share" / name)


def _import(docker: DockerApi, root: Path, query: dict[str, str]) -> None:
    changes = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1"
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        docker.send_tar("/images/create", tar.stdout, {**query, "changes": changes})
