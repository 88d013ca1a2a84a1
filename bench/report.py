# SPDX-License-Identifier: Apache-2.0
"""Tables for people, out of a run's results: plain text for the terminal, Markdown for docs/performance.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.goals import GOALS
from bench.results import Measured, Results
from bench.rows import FLAT, MEMORY, PLAIN, STREAMS, Row

BEGIN, END = "<!-- written by `make bench`: begin -->", "<!-- end -->"
_HOLDS = {True: "yes", False: "**no**", None: "?"}
Line = Sequence[str]


def text_table(rows: Iterable[Row], results: Results) -> str:
    lines: list[Line] = [("work", *_HEAD)]
    for row in rows:
        lines += [(row.name, *_cells(name, measured)) for name, measured in results.rows[row.name].items()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*texts, *_failures(rows, results)])


def markdown(results: Results) -> str:
    machine = ", ".join([*results.machine.values()][:3])
    extent = f"{results.rounds} interleaved rounds of {results.seconds:g} s"
    parts = [
        f"{results.date}, {machine}. {extent}; median (least-most).",
        "### What is aimed at",
        _markdown_table(
            ("work", "target", "measured", "holds"),
            [(goal.work, goal.target, (found := goal.judge(results)).measured, _HOLDS[found.holds]) for goal in GOALS],
        ),
    ]
    for row in (*PLAIN, STREAMS):
        if row.name in results.rows:
            lines = [_cells(name, measured) for name, measured in results.rows[row.name].items()]
            parts += [f"### {_capital(row.title)}", _markdown_table(_HEAD, lines), *_failures([row], results)]
    if STREAMS.name in results.rows:
        parts += ["### Delay of a token on the way from the backend to the reader, 384 streams", _delays(results)]
    if MEMORY.name in results.rows:
        parts += [f"### {_capital(MEMORY.title)}", _memory(results), *_failures([MEMORY], results)]
    if FLAT.name in results.rows:
        lines = [_cells(name, measured) for name, measured in results.rows[FLAT.name].items()]
        head = [name.replace("nginx", "1 instance") for name in _HEAD]
        parts += [f"### {_capital(FLAT.title)}", _markdown_table(head, lines), *_failures([FLAT], results)]
    there = [(name, text) for name, text in results.versions.items() if name not in results.missing]
    versions = [*there, *((name, f"not measured: {why}") for name, why in results.missing.items())]
    parts += ["### Versions", _markdown_table(("proxy", "version"), [*versions, ("Python", results.machine["python"])])]
    return "\n\n".join(parts)


def write_into(page: Path, text: str) -> None:
    """Puts the text between the page's two marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the line {BEGIN} or {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


_HEAD = ("proxy", "CPU us each", "x nginx", "core busy", "each/s", "p99 ms")


def _cells(name: str, measured: Measured) -> Line:
    late = "delay_p99_ms" if measured.spread("delay_p99_ms") else "p99_ms"
    return (
        name,
        _spread(measured, "cpu_us", "{:,.1f}"),
        _spread(measured, "ratio", "{:.2f}"),
        _median(measured, "busy", "{:.0%}"),
        _median(measured, "per_s", "{:,.0f}"),
        _median(measured, late, "{:.2f}"),
    )


def _delays(results: Results) -> str:
    head = ("proxy", "p50 ms", "p99 ms", "p99 beyond direct, ms", "first byte p50 ms", "first byte p99 ms")
    metrics = ("delay_p50_ms", "delay_p99_ms", "added_p99_ms", "first_byte_p50_ms", "first_byte_p99_ms")
    return _markdown_table(
        head,
        [
            (name, *(_spread(measured, metric, "{:.2f}") for metric in metrics))
            for name, measured in results.rows[STREAMS.name].items()
        ],
    )


def _memory(results: Results) -> str:
    return _markdown_table(
        ("proxy", "KiB a stream", "idle MiB"),
        [
            (name, _spread(measured, "kib_per_stream", "{:.1f}"), _median(measured, "idle_mib", "{:.0f}"))
            for name, measured in results.rows[MEMORY.name].items()
            if name != "direct"
        ],
    )


def _failures(rows: Iterable[Row], results: Results) -> list[str]:
    failed = [
        f"{name} failed in {row.name}: {measured.failed}."
        for row in rows
        for name, measured in results.rows.get(row.name, {}).items()
        if measured.failed
    ]
    return [*failed, *(f"{name} is missing: {why}." for name, why in results.missing.items())]


def _spread(measured: Measured, metric: str, form: str) -> str:
    found = measured.spread(metric)
    if found is None:
        return "failed" if measured.failed else "-"
    if found.least == found.most:
        return form.format(found.median)
    return f"{form.format(found.median)} ({form.format(found.least)}-{form.format(found.most)})"


def _median(measured: Measured, metric: str, form: str) -> str:
    found = measured.median(metric)
    return "-" if found is None else form.format(found)


def _markdown_table(head: Line, lines: Iterable[Line]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
