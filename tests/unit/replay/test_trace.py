# SPDX-License-Identifier: Apache-2.0
"""Reading traces: both formats, plain and compressed, and what is said of a file that is not one."""

import gzip
from pathlib import Path

import pytest

from vllm_gateway.replay.trace import TracedRequest, TraceError, read_trace

JSON = """\
{"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]}

{"timestamp": 1500.5, "input_length": 1, "output_length": 0, "hash_ids": []}
"""
CSV = "timestamp,input_length,output_length,hash_ids\n2000,700,5,7 8\n1500.5,1,0,\n"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "text"), [("t.jsonl", JSON), ("t.csv", CSV)])
def test_both_formats_say_the_same(tmp_path: Path, name: str, text: str, compressed: bool) -> None:
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    trace = read_trace(path)
    assert trace.requests == (TracedRequest(0.0, 1, 0, ()), TracedRequest(0.4995, 700, 5, (7, 8)))
    assert trace.block_tokens == 512
    assert trace.first(1).requests == trace.requests[:1]


def test_a_file_may_have_blocks_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,input_length,output_length,block_tokens\n0,5,5,128\n9,5,5,128\n", encoding="utf-8")
    assert read_trace(path).block_tokens == 128


GOOD = '{"timestamp": 0, "input_length": 9, "output_length": 5, "hash_ids": [1]}'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "holds no requests"),
        ("not JSON", "line 1: JSON is malformed"),
        ("[]", "line 1: it must be a mapping"),
        (f'{GOOD}\n{{"timestamp": 1}}', "line 2: input_length is missing"),
        (GOOD.replace("9", '"9"'), "line 1: input_length must be a whole number"),
        (GOOD.replace("9", "0"), "at least one token"),
        (GOOD.replace("5", "-5"), "output_length is -5"),
        (GOOD.replace('"timestamp": 0', '"timestamp": -1'), "timestamp is -1"),
        (GOOD.replace("[1]", "[1, 2]"), "2 hash_ids for 9 tokens in blocks of 512"),
        (GOOD.replace("}", ', "block_tokens": 0}'), "block_tokens is 0"),
        (GOOD + "\n" + GOOD.replace("}", ', "block_tokens": 16}'), "line 2: block_tokens is 16"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(TraceError, match=words):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: no column timestamp, input_length, output_length"),
        ("timestamp,input_length\n1,2\n", "line 1: no column output_length"),
        ("timestamp,input_length,output_length\n1,2,x\n", "line 2: .*output_length"),
        ("timestamp,input_length,output_length,hash_ids\n1,2,3,1 b\n", "line 2: .*hash_ids"),
        ("timestamp,input_length,output_length\n1,2\n", "line 2: .*output_length"),
        ("timestamp,input_length,output_length\n", "holds no requests"),
    ],
)
def test_a_bad_table_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=words):
        read_trace(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no gzip", id="no gzip"),
        pytest.param(gzip.compress(GOOD.encode())[:-9], id="cut off"),
        pytest.param(gzip.compress(b"\xff\xfe"), id="not UTF-8"),
    ],
)
def test_a_damaged_file_is_an_error_of_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(path)


def test_of_several_models_one_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(GOOD.replace("}", f', "model": "{name}"}}') + "\n" for name in "aba"), encoding="utf-8")
    assert len(read_trace(path, "a").requests) == 2
    with pytest.raises(TraceError, match="several models; choose one with --model: a, b"):
        read_trace(path)
    with pytest.raises(TraceError, match="no requests of model 'c', but of a, b"):
        read_trace(path, "c")
