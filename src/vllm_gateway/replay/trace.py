# SPDX-License-Identifier: Apache-2.0
"""Traffic as hashes and lengths: the format of the Mooncake traces (JSON lines) and the same as CSV, plain or .gz."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import msgspec

from vllm_gateway.bodies.words import dotted, words
from vllm_gateway.files.plain import open_plain

BLOCK_TOKENS = 512  # of the published traces
CSV_COLUMNS = ("timestamp", "input_length", "output_length")


class TraceError(Exception):
    """The file is not a trace. The text names the file, the line and what is wrong there."""


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request; equal leading `blocks` are a shared prefix."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """In order of arrival, the first at 0; never empty."""

    requests: tuple[TracedRequest, ...]
    block_tokens: int

    def first(self, count: int | None) -> "Trace":
        return self if count is None else Trace(self.requests[:count], self.block_tokens)


class _Row(msgspec.Struct):
    timestamp: float  # ms
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    model: str = ""


def read_trace(path: Path, model: str | None = None) -> Trace:
    """Reads `FILE.jsonl`, `FILE.csv` or either with `.gz`; of the rows that name a model, those of `model`.

    Raises TraceError, OSError.
    """
    compressed = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if compressed else path.suffix
    read = _csv_rows if kind == ".csv" else _json_rows
    try:
        with open_plain(path) as file:
            raw = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if compressed else file
            with io.TextIOWrapper(raw, "utf-8", newline="") as text:
                return _trace(path, read(path, text), model)
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None


def _trace(path: Path, rows: Iterable[tuple[int, _Row]], model: str | None) -> Trace:
    read: list[_Row] = []
    models: dict[str, None] = {}
    for line, row in rows:
        if problem := _problem(row, read[0].block_tokens if read else row.block_tokens):
            raise TraceError(f"{path}, line {line}: {problem}")
        models[row.model] = None
        if model is None or row.model == model:
            read.append(row)
    if not read:
        there = ", ".join(filter(None, models)) or "no model by name: leave out --model"
        told = f" of model {model!r}, but of {there}" if models else ""
        raise TraceError(f"{path} holds no requests{told}")
    if model is None and len(models) > 1:
        raise TraceError(f"{path} holds requests of several models; choose one with --model: {', '.join(models)}")
    read.sort(key=lambda row: row.timestamp)
    begin = read[0].timestamp
    requests = (
        TracedRequest((row.timestamp - begin) / 1000, row.input_length, row.output_length, row.hash_ids) for row in read
    )
    return Trace(tuple(requests), read[0].block_tokens)


def _problem(row: _Row, block_tokens: int) -> str | None:
    if not 0 <= row.timestamp < float("inf"):
        return f"timestamp is {row.timestamp}, not milliseconds from the start"
    if row.input_length < 1:
        return f"input_length is {row.input_length}; a prompt has at least one token"
    if row.output_length < 0:
        return f"output_length is {row.output_length}"
    if row.block_tokens < 1 or row.block_tokens != block_tokens:
        return f"block_tokens is {row.block_tokens}; it is one positive number for the whole file"
    if len(row.hash_ids) > -(-row.input_length // block_tokens):
        return f"{len(row.hash_ids)} hash_ids for {row.input_length} tokens in blocks of {block_tokens}"
    return None


def _json_rows(path: Path, text: IO[str]) -> Iterator[tuple[int, _Row]]:
    decode = msgspec.json.Decoder(_Row).decode
    for line, content in enumerate(text, start=1):
        if not content.strip():
            continue
        try:
            yield line, decode(content)
        except msgspec.MsgspecError as error:
            raise TraceError(f"{path}, line {line}: {_said(error)}") from None


def _csv_rows(path: Path, text: IO[str]) -> Iterator[tuple[int, _Row]]:
    """Columns as in the JSON lines, named in the first row; `hash_ids` are separated by blanks and may be left out."""
    table = csv.DictReader(text)
    missing = [name for name in CSV_COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}, line 1: no column {', '.join(missing)}")
    for cells in table:
        given = {name: cell for name, cell in cells.items() if cell}
        values = {**given, "hash_ids": (given.get("hash_ids") or "").split()}
        try:
            yield table.line_num, msgspec.convert(values, _Row, strict=False)
        except (msgspec.MsgspecError, csv.Error) as error:
            raise TraceError(f"{path}, line {table.line_num}: {_said(error)}") from None


def _said(error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    at, text = words(error)
    return f"{dotted(at)} {text}" if at else f"it {text}"
