"""`driftd deadletters list` and `show`: what a person and a program get to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition
from detectors.errors import InvalidInput
from monitor.cli import app
from monitor.deadletters_cli import beginning_of

ORDERS = Partition("orders", 0)
SETTINGS = """
database: sqlite:///{folder}/driftd.db
models:
  orders:
    source: {{kind: files, path: orders.jsonl}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and a database with three dead letters of one model and one of another."""
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path))
    letters = [
        DeadLetter(ORDERS, 7, 1_772_438_400_000, "bad_json", "Not JSON.", b"[red]{broken", 12),
        DeadLetter(ORDERS, 8, -1, "bad_value", "/v is text.", b'{"v": "a"}', 10, row=2),
        DeadLetter(ORDERS, 9, -1, "bad_json", "Not JSON.", b"\x00\xff\x10\x1b[2J", 4096),
    ]
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        store.commit(Checkpoint("orders", [Advance(ORDERS, None, 10, 0, 10, 3, 0)], dead_letters=letters))
        store.commit(Checkpoint("gone", [Advance(ORDERS, None, 10, 0, 10, 1, 0)], dead_letters=letters[:1]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*words: str) -> str:
    result = CliRunner().invoke(app, ["deadletters", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_counts_by_reason_and_ends_with_the_newest(folder: Path) -> None:
    lines = [line.split() for line in said("list", "--model", "orders").splitlines()]
    assert lines[1:3] == [["orders", "bad_json", "2", "2"], ["orders", "bad_value", "1", "1"]]
    assert [line[4] for line in lines[5:]] == ["orders/0/7", "orders/0/8#2", "orders/0/9"]
    assert lines[5][-1] == "[red]{broken"
    assert "\x1b" not in said("list") and "00ff101b" in said("list")
    assert [line.split()[0] for line in said("list", "--limit", "1").splitlines()[6:]] == ["4"]


def test_a_program_gets_everything(folder: Path) -> None:
    found = json.loads(said("list", "--model", "orders", "--reason", "bad_json", "--json"))
    assert found["reasons"] == [{"model": "orders", "reason": "bad_json", "stored": 2, "counted": 2}]
    first, second = found["letters"]
    assert (first["payload"], first["offset"], first["row"], first["time_ms"]) == (
        "[red]{broken",
        7,
        None,
        1772438400000,
    )
    assert (second["payload_hex"], second["time_ms"]) == ("00ff101b5b324a", None)


def test_one_letter_is_shown_whole(folder: Path) -> None:
    shown = said("show", "2")
    assert "orders/0/8#2" in shown and shown.endswith('\n{"v": "a"}\n')
    assert json.loads(said("show", "2", "--json"))["reason"] == "bad_value"


def test_a_letter_that_is_not_there_is_an_input_error(folder: Path) -> None:
    for words in (["show", "99"], ["retry", "--id", "99"], ["retry", "--model", "no_such"]):
        result = CliRunner().invoke(app, ["deadletters", *words])
        assert isinstance(result.exception, InvalidInput), words


def test_a_retry_asks_first_and_leaves_models_without_settings_alone(folder: Path) -> None:
    result = CliRunner().invoke(app, ["deadletters", "retry"])
    assert isinstance(result.exception, InvalidInput) and "--dry-run" in result.exception.hint
    assert "gone stay" in result.stderr


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"plain text", "plain text"),
        (b"two\nlines", "two lines"),
        ("grå ".encode() * 20, "grå " * 14 + "grå…"),
        (b"\xff\xfe\x00\x01\x02", "fffe000102"),
        (b"", ""),
    ],
)
def test_the_beginning_of_a_payload_is_text_or_hex(payload: bytes, expected: str) -> None:
    assert beginning_of(payload, 60) == expected
