"""What a log line says, and what it never says."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from detectors.errors import InvalidInput
from monitor.log import RepeatingFailure, configure, describe, event

log = logging.getLogger("monitor.test")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_text_line_holds_time_level_event_and_fields(out: io.StringIO) -> None:
    configure("text", stream=out)
    log.info(event("reference built", model="m", version=1, share=0.25, done=True, by=None))
    line = out.getvalue()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z info reference built model=m version=1 share=0\.25 done=yes by=-\n",
        line,
    )


def test_a_value_with_spaces_quotes_or_line_ends_stays_one_quoted_field(out: io.StringIO) -> None:
    configure("text", stream=out)
    log.info(event("odd\nevent", a='say "hi"', b="x=1\nfake line", c="\x1b[31m", d=""))
    assert out.getvalue().count("\n") == 1
    line = out.getvalue()
    assert 'a="say \\"hi\\""' in line and 'b="x=1\\nfake line"' in line and 'd=""' in line
    assert "\x1b" not in line


def test_a_json_line_is_an_object_with_the_fields(out: io.StringIO) -> None:
    configure("json", stream=out)
    log.warning(event("sink refused", sink="pager", attempts=3, level="mine", places=["a", "b"], share=float("nan")))
    line = json.loads(out.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "sink refused",
        "logger": "monitor.test",
        "sink": "pager",
        "attempts": 3,
        "level_": "mine",
        "places": ["a", "b"],
        "share": "nan",
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_and_no_payload_reaches_a_line(out: io.StringIO, log_format: str) -> None:
    configure(log_format, stream=out)  # type: ignore[arg-type]
    payload = b"customer 4711"
    log.warning(
        event(
            "connect to kafka://anna:hunter2@broker/",
            url="https://anna:hunter2@example.org/x",
            password="hunter2",
            nested={"api_key": "hunter2"},
            secret_object=SecretStr("hunter2"),
            other=SecretStr("hunter2"),
            value=payload,
            vector=np.zeros((3, 4)),
        )
    )
    try:
        int(payload.decode())
    except ValueError:
        log.exception(event("decode failed"))
    log.warning("plain message to http://anna:hunter2@example.org/")
    text = out.getvalue()
    assert "hunter2" not in text and "4711" not in text
    assert "13 bytes" in text and "ndarray (3, 4)" in text and "ValueError" in text
    assert "test_no_secret_and_no_payload" in text  # the stack is there


def test_a_long_text_is_cut(out: io.StringIO) -> None:
    configure("text", stream=out)
    log.info(event("long", value="x" * 5000))
    assert len(out.getvalue()) < 700


def test_numpy_scalars_and_paths_are_plain_values(out: io.StringIO) -> None:
    configure("json", stream=out)
    log.info(event("numbers", n=np.int64(3), x=np.float32(0.5), path=Path("a/b")))
    line = json.loads(out.getvalue())
    assert (line["n"], line["x"], line["path"]) == (3, 0.5, "a/b")


def test_our_errors_are_described_by_their_text_and_foreign_ones_by_their_type() -> None:
    assert describe(InvalidInput("no file x", hint="Make it")) == "no file x Make it"
    assert describe(ValueError("customer 4711")) == "ValueError"
    assert describe(FileNotFoundError(2, "No such file or directory", "/tmp/x")) == (
        "FileNotFoundError: No such file or directory"
    )


def test_configuring_twice_gives_one_line_per_event_and_levels_hold(out: io.StringIO) -> None:
    configure("text", stream=io.StringIO())
    configure("text", level="warning", stream=out)
    log.info(event("quiet"))
    log.warning(event("loud"))
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("urllib3.connectionpool").warning("url=/hook?token=1")
    logging.getLogger("kafka.net.selector").warning("Task <...> ran for 0.162s")
    assert out.getvalue().count("\n") == 1 and "loud" in out.getvalue()


def test_logging_goes_to_the_standard_error_of_the_moment(capsys: pytest.CaptureFixture[str], out: io.StringIO) -> None:
    configure()
    log.info(event("hello"))
    assert "hello" in capsys.readouterr().err


def test_a_repeating_failure_is_logged_when_its_text_changes_and_then_counted(out: io.StringIO) -> None:
    configure("text", stream=out)
    failure = RepeatingFailure(log, "database unreachable")
    for _ in range(5):
        failure.happened("refused", model="m")
    failure.happened("timed out", model="m")
    failure.happened("timed out", model="m")
    assert failure.count == 7
    failure.over(model="m")
    failure.over(model="m")
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "warning database unreachable reason=refused count=1 model=m",
        'warning database unreachable reason="timed out" count=6 model=m',
        "info database unreachable: over failures=7 model=m",
    ]
    failure.happened("refused")
    assert out.getvalue().splitlines()[-1].endswith("reason=refused count=1")


def test_a_worker_stands_in_each_line_also_in_those_of_libraries(out: io.StringIO) -> None:
    configure("text", stream=out, worker=3)
    log.info(event("hello", model="m"))
    logging.getLogger("some.library").warning("slow: %d s", 5)
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == ["info hello worker=3 model=m", "warning slow: 5 s worker=3"]
