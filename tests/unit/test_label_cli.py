"""`driftd label`: one label, files of them, and the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import DriftdError, InvalidInput
from monitor.cli import app
from monitor.document_cli import in_words
from monitor.joining import Took
from monitor.remembered import pack

P0 = Partition("orders", 0)
SETTINGS = """
database: sqlite:///{folder}/driftd.db
models:
  pay:
    source: {{kind: files, path: orders.jsonl}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
    fraud: {{}}
  tickets:
    source: {{kind: files, path: tickets.jsonl}}
    spaces: {{text: {{embedder: {{kind: vector, field: /v}}}}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and a database that remembers the records t0 to t9."""
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        remember(store, [f"t{n}" for n in range(10)])
    return tmp_path


def remember(store: Store, ids: list[str]) -> None:
    n = len(ids)
    row = pack(
        P0,
        0,
        offsets=np.arange(n),
        rows=np.zeros(n, np.int64),
        time_ms=np.arange(n),
        ids=ids,
        entities=None,
        probability=np.zeros(n, np.float32),
        p_value=np.ones(n),
        vectors=np.zeros((n, 2), np.float32),
        signals=np.zeros((n, 1), np.float32),
        version=0,
    )
    store.commit(Checkpoint("pay", [Advance(P0, None, n, n, n, 0, 0)], remembered=[row]))


def run(*words: str, code: int = 0, stdin: bytes | None = None) -> Any:
    result = CliRunner().invoke(app, ["label", *words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def labels(folder: Path) -> list[tuple[str, str, int]]:
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        return [(row.said.record_id, row.said.label, row.version) for row in store.all_labels("pay")]


def test_one_label_is_said_in_words(folder: Path) -> None:
    said = run("--id", "t3", "--as", "fraud", "--by", "eve", "--source", "chargeback").stderr
    assert said == "t3 is fraud, says eve (chargeback): it counts from now on.\n"
    assert "it waits for its record" in run("--id", "unknown", "--as", "legit").stderr
    assert labels(folder) == [("t3", "fraud", 1), ("unknown", "cleared", 0)]


def test_the_same_decision_at_the_same_time_is_known(folder: Path) -> None:
    words = ("--id", "t3", "--as", "fraud", "--by", "eve", "--time", "2026-01-31T12:00:00Z")
    run(*words)
    assert "that was known already" in run(*words).stderr
    # Without a time it is said anew: the last word counts.
    for word in ("cleared", "fraud", "cleared"):
        assert "it counts from now on" in run("--id", "t3", "--as", word).stderr
    assert [label for _, label, _ in labels(folder)] == ["fraud", "cleared", "fraud", "cleared"]


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.csv", "cases.json", "-"])
def test_a_file_counts_once_however_often_and_with_more_lines_at_its_end(folder: Path, name: str) -> None:
    def content(n: int) -> bytes:
        rows = [{"id": f"t{number}", "label": "fraud" if number % 2 else "cleared"} for number in range(n)]
        if name.endswith(".csv"):
            lines = ["\ufeffID,Label,note", *(f'{row["id"]},{row["label"]},"a, b"' for row in rows)]
            return "\r\n".join(lines).encode()
        if name.endswith(".json"):
            return json.dumps(rows, indent=1).encode()
        return b"\n\n".join(json.dumps(row).encode() for row in rows)

    def take(n: int) -> str:
        if name == "-":
            return str(run("-", stdin=content(n)).stderr)
        (folder / name).write_bytes(content(n))
        return str(run(name).stderr)

    assert take(4) == "4 count from now on.\n"
    assert take(4) == "0 count from now on, 4 were known.\n"
    assert take(12) == "6 count from now on, 4 were known, 2 wait for their records.\n"
    assert len(labels(folder)) == 12


def test_lines_that_are_no_labels_are_named_and_the_others_are_taken(folder: Path) -> None:
    (folder / "cases.jsonl").write_text('{"id": "t1", "label": "fraud"}\n{"id": "t2"}\nnonsense\n')
    said = run("cases.jsonl", code=1).stderr
    assert said.startswith("1 counts from now on.\n  Line 2: label is missing; expected fraud or cleared.\n  Line 3: ")
    assert "2 lines are no labels (1 unknown_label, 1 bad_json)." in said
    found = json.loads(run("cases.jsonl", "--json", code=1).stdout)
    assert {name: found[name] for name in ("new", "repeated", "bad")} == {"new": 0, "repeated": 1, "bad": 2}
    assert labels(folder) == [("t1", "fraud", 1)]


def test_labels_are_listed(folder: Path) -> None:
    assert "No labels." in run("list").stderr
    run("--id", "t3", "--as", "fraud", "--by", "eve")
    run("--id", "t4", "--as", "cleared")
    run("--id", "unknown", "--as", "fraud")
    shown = run("list")
    assert "since version 1" in shown.stdout and "waits for its record" in shown.stdout
    assert "3 labels in all: 2 count, 1 wait" in shown.stderr
    rows = json.loads(run("list", "--id", "t3", "--json").stdout)
    assert [(row["record"], row["by"], row["version"], row["position"]["offset"]) for row in rows] == [
        ("t3", "eve", 1, 3)
    ]
    assert [row["record"] for row in json.loads(run("list", "--waiting", "--json").stdout)] == ["unknown"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Which label"),
        (("--id", "t1"), "Which label"),
        (("--id", "t1", "--as", "perhaps"), "label is 'perhaps'"),
        (("--id", "t1", "--as", "fraud", "--time", "soon"), "time is 'soon'"),
        (("cases.jsonl", "--id", "t1"), "A file says of each record"),
        (("list", "--as", "fraud"), "takes --id"),
        (("no-such-file",), "cannot be read: No such file"),
        (("--id", "t1", "--as", "fraud", "--model", "tickets"), "no model tickets that scores fraud"),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        run(*words)
    assert isinstance(caught.value, DriftdError)


def test_a_table_without_the_two_columns_is_refused(folder: Path) -> None:
    (folder / "cases.csv").write_text("txn,verdict\nt1,fraud\n")
    with pytest.raises(InvalidInput, match="txn, verdict; expected id and label"):
        run("cases.csv")
    (folder / "cases.csv").write_text("")
    assert run("cases.csv").stderr == "There are no labels in cases.csv.\n"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_may_have_semicolons_or_tabs_and_blanks_around_its_cells(folder: Path, mark: str) -> None:
    lines = [
        mark.join(row) for row in (("id", ' "Label" ', "source"), ("t1", " fraud", "Analyst"), (" t2 ", "cleared"))
    ]
    (folder / "cases.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert run("cases.csv").stderr == "2 count from now on.\n"
    assert labels(folder) == [("t1", "fraud", 1), ("t2", "cleared", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label\nt1,fraud\n".encode("utf-16"), "UTF-16"),
        (b"\x00\xd3\rx\xff, \r\n\x8f", "names the columns"),
        (b"id,label\nt1,fraud\nt2," + b"x" * 200_000, "Line 3 is no CSV"),
    ],
)
def test_what_is_no_table_is_said_and_leaves_no_traceback(folder: Path, content: bytes, message: str) -> None:
    (folder / "cases.csv").write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        run("cases.csv")
    assert caught.value.hint


def test_one_line_that_is_no_label_is_one_line(folder: Path) -> None:
    (folder / "cases.csv").write_text("id,label\nt1\n")
    assert "\n1 line is no label (1 unknown_label).\n" in run("cases.csv", code=1).stderr


def test_numbers_of_labels_read_as_a_sentence() -> None:
    assert in_words(Took(98, 2, 97)) == "97 count from now on, 2 were known, 1 waits for its record."
    assert in_words(Took(1, 1, 1)) == "1 counts from now on, 1 was known."
