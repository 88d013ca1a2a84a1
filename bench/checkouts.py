# SPDX-License-Identifier: Apache-2.0
"""The gateway of a checkout: one that is there, or a revision that is checked out for the comparison."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import ROOT, WORK, CannotMeasure
from bench.processes import Address
from bench.targets import Gateway, Launch

# Its own benchmark writes its configuration: another version's settings may have other names.
_LAUNCH = """
import dataclasses, json, sys
from pathlib import Path
from bench.processes import Address
from bench.targets import Gateway
folder, port, backends = json.load(sys.stdin)
launch = Gateway().launch(Path(folder), port, [Address(*backend) for backend in backends])
json.dump(dataclasses.asdict(launch), sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A target as `Gateway` is, started as the benchmark of that checkout would start it."""

    name: str
    folder: Path
    models: int = 1

    @property
    def python(self) -> Path:
        return self.folder / ".venv/bin/python"

    def version(self) -> str:
        return Gateway(self.name, self.python.with_name("vllm-gateway")).version()

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        asked = json.dumps((str(folder), port, [(one.host, one.port) for one in backends]))
        done = subprocess.run(
            [self.python, "-c", _LAUNCH],
            cwd=self.folder,
            input=asked,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise CannotMeasure(f"{self.folder} cannot start its gateway: {done.stderr.strip()[-300:]}")
        return Launch(**json.loads(done.stdout))


def this_one() -> Checkout:
    return Checkout("this", ROOT)


def other_one(against: str, say: Callable[[str], None]) -> Checkout:
    """A folder, or else a revision of this repository, in a worktree of its own with its own environment."""
    if Path(against).is_dir():
        return Checkout("other", Path(against).resolve())
    commit = _commit(against)
    folder = WORK / "checkouts" / commit[:12]
    if not folder.exists():
        say(f"checking {against} out into {folder}")
        _run("git", "-C", str(ROOT), "worktree", "prune")
        _run("git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(folder), commit)
    if not (folder / ".venv/.installed").exists():
        say(f"make setup in {folder}")
        _run("make", "-C", str(folder), "setup", f"PYTHON={sys.executable}")
    return Checkout("other", folder)


def _commit(revision: str) -> str:
    asked = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"{revision} is neither a folder nor a revision of this repository")
    return done.stdout.strip()


def _run(*argv: str) -> None:
    outer_make = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in outer_make}
    done = subprocess.run(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    if done.returncode:
        raise CannotMeasure(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}")
