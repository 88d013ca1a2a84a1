# SPDX-License-Identifier: Apache-2.0
"""The log's promises: one valid JSON object a line, levels, bound context, and never a wait."""

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.waiting import LIMIT_S
from vllm_gateway.api.journal import Journal, Progress
from vllm_gateway.configuration.settings import Log
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.telemetry import events, log
from vllm_gateway.telemetry.secrets import Secrets, mask_urls


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    out = io.StringIO()
    log.configure(Log(format="json"), out, strict=True)
    yield out
    log.shutdown()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    assert log.flush()
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_valid_by_the_table(stream: io.StringIO) -> None:
    log.get_logger().emit(events.INSTANCE_READY, instance="a-1", model="a", seconds=1.5, address="127.0.0.1:1")
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert events.validate(line) == []


def test_context_is_on_every_line(stream: io.StringIO) -> None:
    logger = log.get_logger(model="a").bind(request_id="r1")
    logger.emit(events.IDLE_STOP, seconds=3)
    (line,) = lines(stream)
    assert (line["model"], line["request_id"]) == ("a", "r1")
    assert events.validate(line) == []


def test_strict_refuses_fields_that_the_table_lacks(stream: io.StringIO) -> None:
    with pytest.raises(ValueError, match="unknown field 'adress'"):
        log.get_logger().emit(events.GATEWAY_READY, address="x", adress="x")
    with pytest.raises(ValueError, match="'address' is missing"):
        log.get_logger().emit(events.GATEWAY_READY)
    assert lines(stream) == []


def test_lines_below_the_level_are_left_out() -> None:
    out = io.StringIO()
    log.configure(Log(level="warning", format="json"), out)
    log.get_logger().emit(events.GATEWAY_READY, address="x")
    log.get_logger().emit(events.MODEL_NO_ROOM, model="a", reason="full")
    log.write_line(b'{"event":"request_finished"}')
    assert [line["event"] for line in lines(out)] == ["model_no_room"]
    log.shutdown()


def test_early_lines_wait_for_the_configuration() -> None:
    log.shutdown()
    log.get_logger().emit(events.PARALLEL_MODELS_CONFIG, models={"early": 1})
    out = io.StringIO()
    log.configure(Log(format="json"), out)
    assert {"early": 1} in [line.get("models") for line in lines(out)]
    log.shutdown()


def test_console_lines_have_no_colours_off_a_terminal() -> None:
    out = io.StringIO()
    log.configure(Log(format="console"), out)
    log.get_logger().emit(events.GATEWAY_READY, address="here")
    log.write_line(b'{"timestamp":"t","level":"info","event":"request_finished","status":200,"model":null}')
    assert log.flush()
    text = out.getvalue()
    assert "gateway_ready" in text
    assert "address=here" in text
    assert "status=200" in text
    assert "model" not in text
    assert "\x1b" not in text
    log.shutdown()


def test_values_of_any_type_can_be_logged(stream: io.StringIO) -> None:
    log.get_logger().emit(events.UNHANDLED_ERROR, error=KeyError("x"), where=Path("/p"))
    assert lines(stream)[0]["error"] == "KeyError('x')" or lines(stream)[0]["error"] == "'x'"


def test_a_reader_that_does_not_read_never_makes_the_gateway_wait() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader:
        with os.fdopen(writing, "wb") as pipe:
            log.configure(Log(format="json"), pipe)
            for _ in range(2_000):
                log.write_line(b"x" * 200)
            assert not log.flush(0.05), "the pipe is full"
            log.shutdown(0.05)
            (writer,) = (thread for thread in threading.enumerate() if thread.name == "log-writer")
            late = threading.Thread(target=reader.read)
            late.start()
            writer.join(10)
            assert not writer.is_alive()
        late.join(10)


def test_a_process_writes_everything_before_it_ends() -> None:
    program = (
        "from vllm_gateway.configuration.settings import Log; from vllm_gateway.telemetry import events, log\n"
        "log.configure(Log())\n"
        "for n in range(3000): log.get_logger().emit(events.GATEWAY_READY, address=str(n))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=LIMIT_S)
    assert [orjson.loads(line)["address"] for line in done.stdout.splitlines()] == [str(n) for n in range(3000)]


@pytest.fixture
def token() -> Iterator[str]:
    secrets = Secrets()
    secrets.learn(["hf_0123456789abcdef"])
    log.mask_with(secrets.mask)
    yield "hf_0123456789abcdef"
    log.mask_with(mask_urls)


def raised(token: str) -> Exception:
    try:
        try:
            raise LookupError(f"no answer to {token}")
        except LookupError as error:
            raise ValueError({"Env": [f"HF_TOKEN={token}"]}) from error
    except ValueError as error:
        return error


async def test_no_error_of_ours_shows_a_secret(stream: io.StringIO, token: str) -> None:
    logger = log.get_logger()
    Tasks(logger.emit).tell(raised(token), f"reading {token}")
    Journal(logger.emit, log.write_line).failed(raised(token), Progress("r", "POST", "/v1/x", 0.0))
    logger.emit(events.CONFIG_RELOAD_FAILED, problems=[f"HF_TOKEN: {token}"])
    logger.emit(events.RUNTIME_DOWN, runtime="docker", problem=f"http://me:{token}@host does not answer")
    found = lines(stream)
    assert [line["event"] for line in found] == ["unhandled_error"] * 2 + ["config_reload_failed", "runtime_down"]
    assert token not in stream.getvalue()
    assert all("LookupError: no answer to ***" in str(line["traceback"]) for line in found[:2])


def test_nor_does_what_libraries_log(capsys: pytest.CaptureFixture[str], token: str) -> None:
    assert logging.lastResort is not None
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "never retrieved: %s", (token,), None)
    record.exc_info = (ValueError, raised(token), None)
    logging.lastResort.handle(record)
    said = capsys.readouterr().err
    assert said.startswith("never retrieved: ***")
    assert "HF_TOKEN=***" in said
    assert token not in said


class Sulky:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    ("odd", "text"),
    [(1 << 64, "18446744073709551616"), (10**5000, "<int>"), ("a\ud800", "a\\ud800"), (Sulky(), "<Sulky>")],
    ids=["beyond 64 bits", "beyond what Python writes", "no character", "no text"],
)
def test_a_value_that_cannot_be_written_becomes_its_text(form: str, odd: object, text: str) -> None:
    out = io.StringIO()
    log.configure(Log.model_validate({"format": form}), out)
    for value in (odd, [odd], {"deep": [odd]}):
        log.get_logger().emit(events.CONFIG_NEEDS_RESTART, settings=value)
    assert log.flush()
    log.shutdown()
    said = out.getvalue().replace("\\\\", "\\")
    assert said.count("config_needs_restart") == said.count(text) == 3
