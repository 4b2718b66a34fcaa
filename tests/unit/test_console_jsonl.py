"""The console and JSONL sinks: what a person reads, and a file that survives crashes, full disks and rotation."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest

from connectors.console import ConsoleSink
from connectors.jsonl import JsonlSettings, JsonlSink
from connectors.notification import Notification
from detectors.errors import SinkError
from tests.senders import NOTE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def note(name: str) -> Notification:
    return dataclasses.replace(NOTE, id=name)


def test_console_prints_when_how_urgent_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink()
    sink.send(NOTE)
    sink.send(dataclasses.replace(NOTE, status="resolved", ends_ms=1_700_000_060_000, title="over"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "2023-11-14 22:13:20Z PAGE     triage: traffic changed",
        "    It changed.",
        "2023-11-14 22:14:20Z RESOLVED over",
        "    It changed.",
    ]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["plain", "terminal"])
def test_console_shows_control_characters_and_markup_as_text(stream: io.StringIO) -> None:
    evil = "[red]x[/red] \x1b]0;title\x07 a\r\nb\u202ec"
    ConsoleSink(stream).send(dataclasses.replace(NOTE, title=evil, text=evil))
    text = stream.getvalue()
    assert "[red]x[/red]" in text and "\\u001b]0;title\\u0007" in text and "\\u202e" in text
    assert "\x1b]" not in text and "\r" not in text
    assert text.count("\n") == 2


def test_console_uses_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, plain = Terminal(), io.StringIO()
    ConsoleSink(terminal).send(NOTE)
    ConsoleSink(plain).send(NOTE)
    assert "\x1b[" in terminal.getvalue() and "\x1b[" not in plain.getvalue()


def test_console_says_when_its_stream_is_closed() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(SinkError, match="cannot be written") as got:
        ConsoleSink(stream).send(NOTE)
    assert got.value.retryable


def test_console_says_when_its_encoding_lacks_a_character() -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.raises(SinkError, match="ascii") as got:
        ConsoleSink(ascii_only).send(dataclasses.replace(NOTE, title="größer"))
    assert not got.value.retryable and "PYTHONIOENCODING" in got.value.hint


@pytest.mark.parametrize("fsync", [False, True])
def test_jsonl_appends_one_object_a_line_with_every_field(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = JsonlSettings(path=path, fsync=fsync).build()
    sink.send(NOTE)
    sink.send(dataclasses.replace(NOTE, id="note-2", text="two\nlines \ud800 ü"))
    sink.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == dataclasses.asdict(NOTE)
    assert second["text"] == "two\nlines \ud800 ü"


def test_jsonl_ends_the_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_bytes(b'{"id": "old"}\n{"id": "cut sh')
    sink = JsonlSink(path)
    sink.send(note("new"))
    sink.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"id": "old"}', '{"id": "cut sh'] and json.loads(lines[2])["id"] == "new"


def test_jsonl_follows_its_name_when_the_file_is_rotated_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = JsonlSink(path)
    sink.send(note("a"))
    path.rename(tmp_path / "alerts.jsonl.1")
    sink.send(note("b"))
    sink.send(note("c"))
    path.unlink()
    sink.send(note("d"))
    path.rename(tmp_path / "alerts.jsonl.2")
    path.touch()  # some rotations make the new file themselves
    sink.send(note("e"))
    sink.close()
    assert lines_of(tmp_path / "alerts.jsonl.1") == ["a"]
    assert lines_of(tmp_path / "alerts.jsonl.2") == ["d"]
    assert lines_of(path) == ["e"]


def test_jsonl_shares_a_file_with_another_process(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    one, two = JsonlSink(path), JsonlSink(path)
    for index in range(10):
        (one, two)[index % 2].send(note(str(index)))
    one.close()
    two.close()
    assert lines_of(path) == [str(index) for index in range(10)]


def test_jsonl_names_the_missing_folder_and_goes_on_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "alerts.jsonl"
    sink = JsonlSink(path)
    for call in (lambda: sink.send(NOTE), sink.check):
        with pytest.raises(SinkError, match="there is no folder") as got:
            call()
        assert got.value.retryable and got.value.hint == f"Make it: mkdir -p {path.parent}"
    path.parent.mkdir()
    assert sink.check() == f"jsonl {path}"
    assert not path.exists(), "check made the file"
    sink.send(NOTE)
    sink.close()
    assert lines_of(path) == ["note-1"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_jsonl_says_that_the_disk_is_full() -> None:
    with pytest.raises(SinkError, match="No space left on device") as got:
        JsonlSink(Path("/dev/full")).send(NOTE)
    assert got.value.retryable and "Free space" in got.value.hint


def test_jsonl_refuses_a_folder(tmp_path: Path) -> None:
    for call in (lambda: JsonlSink(tmp_path).send(NOTE), JsonlSink(tmp_path).check):
        with pytest.raises(SinkError, match="Is a directory") as got:
            call()
        assert not got.value.retryable


def test_jsonl_leaks_no_open_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    sink = JsonlSink(tmp_path / "alerts.jsonl")
    for index in range(5):
        sink.send(note(str(index)))
        (tmp_path / "alerts.jsonl").unlink()
    sink.close()
    sink.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
