"""`driftd verdict`: what a person reads, and what a program gets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from connectors.database.rows import FoldResult, IncidentRow, NewTruth, ReferenceRow
from connectors.database.store import Store
from detectors.errors import InvalidInput
from monitor.cli import app
from monitor.operations import source_incident
from tests.contract.verdict_rows import verdict

SETTINGS = """
database: sqlite:///{folder}/driftd.db
references: {folder}/references
models:
  orders:
    source: {{kind: files, path: orders.jsonl}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
"""
MORE = """
  tickets:
    source: {kind: files, path: tickets.jsonl}
    spaces: {input: {embedder: {kind: vector, field: /v}}}
  claims:
    source: {kind: files, path: claims.jsonl}
    spaces: {input: {embedder: {kind: vector, field: /v}}}
"""
LAST = "Wrong answers cannot be seen without labels."


def drift(**more: Any) -> IncidentRow:
    values: dict[str, Any] = {
        "id": "a1b2c3d4e5f6",
        "model": "orders",
        "kind": "drift",
        "space": "input",
        "segment": "",
        "severity": "page",
        "status": "open",
        "opened_ms": 30_000,
        "onset_ms": 25_000,
        "updated_ms": 30_000,
        "resolved_ms": None,
        "revision": 1,
        "reference": 1,
        "title": "orders: input has drifted",
        "text": "",
        "detail": {},
    }
    return IncidentRow(**(values | more))


def fold(store: Store, model: str, next_block: int, *verdicts: Any, incidents: tuple[IncidentRow, ...] = ()) -> None:
    with store.begin_fold(model) as step:
        step.commit(FoldResult(next_block, [], [], [], list(incidents), [], verdicts=list(verdicts)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The database of a model that is fresh, and then degrades with an open drift."""
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    opened = Store.open(f"sqlite:///{tmp_path}/driftd.db")
    opened.migrate()
    lost = verdict(
        3,
        word="degraded",
        since_ms=30_000,
        low=0.76,
        high=0.903,
        floor=0.942,
        novel=0.1,
        reasons=("New content, and too few right answers.", LAST),
    )
    fold(opened, "orders", 4, verdict(0), verdict(1), verdict(2), lost, incidents=(drift(),))
    return opened


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["verdict", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words: str) -> str:
    error = CliRunner().invoke(app, ["verdict", *words]).exception
    assert isinstance(error, InvalidInput), error
    return f"{error.message} {error.hint}"


def test_a_person_reads_the_word_the_numbers_why_what_is_behind_it_and_what_to_do(store: Store) -> None:
    lines = run().stdout.splitlines()
    assert lines[0] == "orders: DEGRADED since 1970-01-01 00:00:30Z, for 10 seconds"
    text = "\n".join(lines)
    assert "estimated    76.0 % to 90.3 % right, 1,000 records without labels" in text
    assert "floor        94.2 % right: estimated below it" in text
    assert "Because\n  - New content, and too few right answers.\n" in text
    assert "a1b2c3d4e5f6  page  input has drifted, since 1970-01-01 00:00:25Z" in text
    assert "driftd explain a1b2c3d4e5f6" in text
    assert f"Not seen: {LAST} Bring true answers: driftd truth --file FILE" in text
    assert lines[-1].startswith("Next: roll back or train anew")
    assert "driftd verdict --model orders --retrain-hint lacking.jsonl" in lines[-1]


def test_a_fresh_model_needs_nothing(store: Store) -> None:
    fold(store, "orders", 5, verdict(4), incidents=(drift(status="resolved", resolved_ms=40_000),))
    text = run("--fail-on-alert").stdout
    assert text.startswith("orders: FRESH") and "Next" not in text and "Evidence" not in text


def test_an_alarming_verdict_ends_with_3_where_that_was_asked_for(store: Store) -> None:
    run("--fail-on-alert", code=3)
    run()
    fold(store, "orders", 5, verdict(4, word="watch"))
    run("--fail-on-alert")


def test_a_source_that_fails_makes_the_model_blind_whatever_was_judged_before(store: Store) -> None:
    row, told = source_incident("orders", problem="No broker.", lasting=False, since_ms=35_000, now_ms=36_000)
    store.open_incident(row, [("pager", told)])
    text = run("--fail-on-alert", code=3).stdout
    assert text.startswith("orders: BLIND since 1970-01-01 00:00:35Z")
    assert "- Its source cannot be read." in text and "the numbers are of before" in text
    assert text.index(row.id) < text.index("a1b2c3d4e5f6"), "what makes it blind stands first"
    then = run("--at", "1970-01-01T00:00:30Z").stdout
    assert then.startswith("orders: FRESH"), "then it was not blind"


def test_an_encoder_that_changed_explains_that_records_lag(store: Store) -> None:
    fold(
        store,
        "orders",
        5,
        incidents=(
            drift(id="e" * 12, kind="encoder_changed", title="orders: the encoder of input changed", onset_ms=50),
            drift(id="f" * 12, kind="lag", title="orders: it falls behind", onset_ms=40),
        ),
    )
    text = run().stdout
    assert text.startswith("orders: ENCODER CHANGED since 1970-01-01 00:00:00Z")
    assert "- The encoder of input changed." in text and text.index("e" * 12) < text.index("f" * 12)


def test_a_program_gets_every_number_and_null_for_what_is_not_known(store: Store) -> None:
    (found,) = json.loads(run("--json").stdout)
    assert (found["verdict"], found["alarming"], found["since_ms"]) == ("degraded", True, 30_000)
    assert found["reasons"] == ["New content, and too few right answers."] and found["unseen"].startswith(LAST)
    assert found["judged"]["low"] == 0.76 and found["judged"]["realised"] is None
    assert [row["id"] for row in found["incidents"]] == ["a1b2c3d4e5f6"]


def test_of_several_models_the_worst_stands_first(store: Store, tmp_path: Path) -> None:
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path) + MORE)
    store.add_reference(ReferenceRow("claims", "input", 1, "/nowhere", 1, 1, "0", 0, active=True))
    listed = run()
    lines = listed.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["degraded", "too few records", "learning"]
    assert "76.0 % to 90.3 %" in lines[1] and "There is no reference of input yet." in lines[3]
    assert "driftd verdict --model NAME" in listed.stderr
    assert run("--model", "claims").stdout.startswith("claims: TOO FEW RECORDS\n")
    assert "orders|tickets|claims" in refused("--model", "other")


def test_the_history_before_the_first_verdict_says_so(store: Store) -> None:
    looked = run("--history", "--at", "1970-01-01T00:00:00Z")
    assert (looked.exit_code, looked.stdout) == (0, "")
    assert "No block has been judged yet." in looked.stderr


def test_the_history_tells_each_change_and_how_long_it_lasted(store: Store) -> None:
    lines = run("--history").stdout.splitlines()
    assert [line.split()[2:7] for line in lines[1:]] == [
        ["orders", "fresh", "30", "seconds", "93.8"],
        ["orders", "degraded", "10", "seconds", "76.0"],
    ]
    assert len(run("--history", "--at", "1970-01-01T00:00:30Z").stdout.splitlines()) == 2
    changes = json.loads(run("--history", "--json").stdout)
    assert [(row["model"], row["word"], row["block"]) for row in changes] == [
        ("orders", "fresh", 0),
        ("orders", "degraded", 3),
    ]


def test_answers_that_come_late_are_told_with_their_delay(store: Store) -> None:
    store.add_truths(
        "orders",
        [
            NewTruth(f"r{n}", "yes", 7_200_000 + n, 1.0, f"o{n}", answer="yes", confidence=math.nan, event_ms=n)
            for n in range(9)
        ],
    )
    fold(store, "orders", 5, verdict(4, labels=9, realised=0.5, truths=9, reasons=("Why.", LAST)))
    assert "They come about 2 hours after their records." in " ".join(run().stdout.split())


@pytest.mark.parametrize(("name", "magic"), [("v.png", b"\x89PNG"), ("v.html", b"<!doctype html>")])
def test_the_picture_is_drawn_as_its_name_ends(store: Store, tmp_path: Path, name: str, magic: bytes) -> None:
    assert f"Wrote {name}." in run("--picture", name).stderr
    first = (tmp_path / name).read_bytes()
    assert first.startswith(magic) and not (tmp_path / f"{name}.part").exists()
    run("--picture", name)
    assert (tmp_path / name).read_bytes() == first


def test_a_picture_that_cannot_be_drawn_says_why(store: Store, tmp_path: Path) -> None:
    assert "A picture is a PNG or an HTML file, not v.gif" in refused("--picture", "v.gif")
    assert "cannot be written" in refused("--picture", "nowhere/v.png")
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path) + MORE)
    assert "nothing to draw" in refused("--picture", "v.png", "--model", "tickets")


def test_the_hint_and_its_options_belong_together(store: Store) -> None:
    assert "--retrain-hint" in refused("--since", "2026-01-01")
    assert "of now" in refused("--retrain-hint", "lacking.csv", "--history")
