# SPDX-License-Identifier: Apache-2.0
"""What .ci/run says at its end: how each target closed, and as the last line pytest's own with all of them added up."""

import re
import sys
from collections import Counter
from pathlib import Path

CLOSING = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in ([\d.]+)s\b.*$", re.MULTILINE)
IN_ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")


def main(folder: Path, targets: list[str]) -> int:
    """`folder` has what each of them printed. Each ends with pytest; one that got no further is an error."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for target in targets:
        closings = list(CLOSING.finditer((folder / f"{target}.log").read_text(encoding="utf-8", errors="replace")))
        if not closings:
            print(f"make {target}: ended before its tests did")
            counts["error"] += 1
            continue
        closing = closings[-1]
        print(f"make {target}: {closing[0].strip('= ')}")
        for count in closing[1].split(", "):
            number, what = count.split()
            counts[what if what in IN_ORDER else what.removesuffix("s")] += int(number)
        seconds += float(closing[2])
    plural = {what: "s" if what in ("warning", "error") and counts[what] > 1 else "" for what in IN_ORDER}
    said = ", ".join(f"{counts[what]} {what}{plural[what]}" for what in IN_ORDER if counts[what])
    print(f"===== {said} in {seconds:.2f}s =====")
    return 1 if counts["failed"] or counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
