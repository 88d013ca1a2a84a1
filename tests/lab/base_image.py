# SPDX-License-Identifier: Apache-2.0
"""Makes the file system of a small image with Python from the system's own packages: no registry has to be reached.

The packages are downloaded and unpacked, not installed: none of their scripts runs.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from tests.lab.errors import LabUnavailableError
from tests.lab.packages import apt_get
from tests.lab.shell import run

_WANTED = ("python3", "dash", "coreutils", "media-types")
_NOT_NEEDED = ("perl", "libperl", "libgdbm", "dpkg", "tar", "install-info", "mime-support", "mailcap", "debianutils")
"""Wanted by scripts that do not run here."""


def archive() -> Path:
    """The file system of the image as a tar file; kept for all labs, made again when this recipe changes."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    kept = Path(tempfile.gettempdir()) / f"vllm-gateway-lab-base-{recipe}.tar"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="vllm-gateway-lab-base-") as name:
            unfinished = Path(name) / "base.tar"
            _make(Path(name), unfinished)
            unfinished.rename(kept)
    return kept


def _make(directory: Path, result: Path) -> None:
    packages, root = directory / "packages", directory / "root"
    packages.mkdir()
    _download(packages)
    _lay_out(root)
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -C "$2" --keep-directory-symlink -xf -'
    for package in sorted(packages.glob("*.deb")):
        run("sh", "-c", unpack, "sh", package, root)
    _finish(root)
    run("tar", "-C", root, "-cf", result, ".")


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
