# SPDX-License-Identifier: Apache-2.0
"""The lab from the command line: `python -m tests.lab prepare | up | down [--purge] | env | gpus [COUNTxMIB]`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time

from tests.lab import gpus, lab, packages
from tests.lab.errors import LabUnavailableError
from tests.lab.place import Place


def main() -> int:
    arguments = _parse()
    try:
        place = Place.from_environment()
        match arguments.command:
            case "prepare":
                lab.prepare()
                packages.install(packages.PROXIES)
            case "up":
                _up(place)
            case "down":
                lab.down_with_neighbours(place, purge=arguments.purge)
            case "env":
                _print_environment(lab.up(place))
            case "gpus":
                if arguments.machine or not place.gpu_directory.exists():
                    gpus.reset(place.gpu_directory, *(arguments.machine or ()))
                print(gpus.table(place.gpu_directory))
    except LabUnavailableError as error:
        print(f"The lab cannot run here: {error}", file=sys.stderr)
        return 1
    return 0


def _up(place: Place) -> None:
    started = time.monotonic()
    running = lab.up(place)
    print(f"# {place.directory} is up after {time.monotonic() - started:.1f} s", file=sys.stderr)
    _print_environment(running)


def _print_environment(running: lab.Lab) -> None:
    """For `eval "$(python -m tests.lab env)"`."""
    for name, value in {**running.environment, "LAB_IMAGE": running.image}.items():
        print(f"export {name}={shlex.quote(value)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="install what is missing, so that no test needs the network outside")
    commands.add_parser("up", help="start what does not run yet, print the environment")
    down = commands.add_parser("down", help="stop it and what killed test runs left; images stay for the next time")
    down.add_argument("--purge", action="store_true", help="remove images and state too")
    commands.add_parser("env", help='the environment for a gateway: eval "$(python -m tests.lab env)"')
    machine = commands.add_parser("gpus", help="show the simulated GPUs, or make others")
    machine.add_argument("machine", nargs="?", type=_machine, metavar="COUNTxMIB", help="such as 2x81920")
    return parser.parse_args()


def _machine(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError("write COUNTxMIB, such as 2x81920")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
