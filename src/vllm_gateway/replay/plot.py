# SPDX-License-Identifier: Apache-2.0
"""The distributions of the time to first token, one curve a strategy. Needs matplotlib, which nothing else does."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from vllm_gateway.replay.driver import Replay

_LEAST_S = 1e-3  # the axis is logarithmic


class PlotError(Exception):
    """No picture can be drawn here."""


def require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise PlotError("--plot needs matplotlib: pip install 'vllm-gateway[plot]'")


def plot(replays: Mapping[str, Replay], path: Path) -> None:
    """Writes the picture in the format that the file's name says. Raises OSError, ValueError."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, one in replays.items():
        times = sorted(max(_LEAST_S, served.ttft_s) for served in one.served if served.instance is not None)
        axes.step(times, [100 * (rank + 1) / len(times) for rank in range(len(times))], where="post", label=name)
    axes.set(xscale="log", xlabel="time to first token (s)", ylabel="requests (%)", ylim=(0, 100))
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)
