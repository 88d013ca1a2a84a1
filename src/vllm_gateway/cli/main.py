# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: signals from the first moment on, and the exit status.

What takes time to import is imported where it is needed.
"""

import os
import signal
import sys
from collections.abc import Sequence

from vllm_gateway.service import first_signals

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_NOBODY_READS = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    try:
        if given[:1] == ["serve"]:
            first_signals.hear()
        try:
            return _run(given)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:  # before or after the gateway's own handling of it
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
        return EXIT_NOBODY_READS


def _run(argv: Sequence[str]) -> int:
    from vllm_gateway.cli.parser import parse

    arguments = parse(argv)
    status: int = arguments.run(arguments)
    return status
