"""What `driftd fraud` and the report say of fraud scores, from a store filled like a worker and a fold fill it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from connectors.database.rows import (
    Advance,
    Checkpoint,
    FoldResult,
    FraudHit,
    IncidentRow,
    KeptRecord,
    LabelledRecord,
    LabelSpan,
    NewLabel,
    ReadingRow,
    ReferenceRow,
    SummaryDelta,
)
from connectors.database.store import Store
from connectors.records import Partition
from dashboards.report import render
from detectors.errors import InvalidInput
from monitor.checks import diagnose
from monitor.cli import app
from monitor.fraud_report import FraudFacts, fraud_facts, in_words
from monitor.pipeline import EVERYTHING
from monitor.record_counts import FraudCounts, RecordCounts
from monitor.reporting import report_of
from monitor.settings import Settings, load_settings

CARDS = Partition("cards", 0)
DAY_MS = 86_400_000
START_MS = 1_772_409_600_000  # midnight
BLOCK_MS = 3_600_000
A_DAY = 24  # blocks
RECORDS = 1_000  # of a block
SETTINGS = """
database: sqlite:///{folder}/driftd.db
references: {folder}/references
models:
  cards:
    source: {{kind: files, path: "{folder}/cards.jsonl"}}
    record: {{id: /id, time: /ts}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v, encoding: list}}}}}}
    drift: {{block: 1h}}
    fraud: {{review: 0.001, entity: /card}}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "driftd.yaml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    return load_settings(path)


@pytest.fixture
def store(tmp_path: Path, settings: Settings) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'driftd.db'}") as store:
        store.migrate()
        yield store


def kept(offset: int, *, day: int, hit: bool, detail: dict[str, Any] | None = None) -> KeptRecord:
    """One record in ten minutes of a day: an alert to come, or one of the review sample."""
    time_ms = START_MS + day * DAY_MS + offset % 100 * 600_000
    evidence: dict[str, Any] = {"probability": 0.9 if hit else 0.01, "basis": "contrast and model", "cases": 7}
    evidence |= {"entity": f"{offset % 5:016x}"} | ({} if hit else {"review": True}) | (detail or {})
    return KeptRecord(
        CARDS,
        offset,
        time_ms,
        "fraud",
        time_ms // BLOCK_MS,
        f"r{offset}",
        "fraud" if hit else "review",
        5.0 + offset / 1000 if hit else 0.3,
        1e-5 if hit else 0.5,
        1,
        -1,
        None,
        None,
        {},
        {},
        labels=3,
        detail=evidence,
    )


def filled(store: Store, rows: list[KeptRecord], *, days: int = 2) -> None:
    """Write two days of blocks with these kept rows; the hits among them become alerts."""
    first = START_MS // BLOCK_MS
    counts = RecordCounts(RECORDS, 0, {}, {}, FraudCounts(RECORDS, 1, {0: RECORDS})).to_bytes()
    blocks = range(first, first + days * A_DAY)
    deltas = [SummaryDelta("", EVERYTHING, block, 0, CARDS, 0, counts) for block in blocks]
    store.commit(
        Checkpoint(
            "cards",
            [Advance(CARDS, None, 48_000, START_MS + days * DAY_MS, 48_000, 0, 0)],
            summaries=deltas,
            kept=rows,
            spans=[LabelSpan(CARDS, 0, 3, 1)],
        )
    )
    merged = [replace(delta, partition=Partition("", -1), first_offset=-1) for delta in deltas]
    hits = [FraudHit("fraud", CARDS, row.offset, 0, row.score, 0.9, 3, {}) for row in rows if row.reason == "fraud"]
    wave = IncidentRow(
        id="w1",
        model="cards",
        kind="fraud_wave",
        space="fraud",
        segment="",
        severity="page",
        status="open",
        opened_ms=START_MS + DAY_MS,
        onset_ms=START_MS + DAY_MS,
        updated_ms=START_MS + DAY_MS,
        resolved_ms=None,
        revision=1,
        reference=1,
        title="A wave of fraud",
        text="Many hits.",
        detail={},
    )
    reading = [_reading(first + days * A_DAY - 1)]
    with store.begin_fold("cards") as fold:
        fold.deltas(below_block=first + days * A_DAY)
        fold.commit(FoldResult(first + days * A_DAY, merged, [], reading, [wave], [], hits=hits))


def _reading(block: int) -> ReadingRow:
    start_ms = block * BLOCK_MS
    return ReadingRow(
        "input",
        EVERYTHING,
        block,
        start_ms,
        start_ms + BLOCK_MS,
        "level",
        0,
        0,
        6,
        4,
        1,
        0,
        start_ms,
        None,
        1,
        False,
        False,
    )


def label(row: KeptRecord, said: str, *, source: str = "analyst", at: int = 0) -> NewLabel:
    known = LabelledRecord(
        CARDS,
        row.offset,
        0,
        row.time_ms,
        "",
        b"",
        b"",
        0.9,
        row.p_value,
        3,
        "alert" if row.reason == "fraud" else "review",
        1.0,
    )
    return NewLabel(row.id, said, START_MS + at, source, 1.0, "ann", f"{row.id}-{said}-{source}", known)  # type: ignore[arg-type]


def facts_of(settings: Settings, store: Store) -> FraudFacts:
    facts = fraud_facts(settings, store, "cards", now_ms=START_MS + 10 * DAY_MS)
    assert facts is not None
    return facts


def test_precision_and_recall_come_from_what_analysts_answered(settings: Settings, store: Store) -> None:
    alerts = [kept(offset, day=offset % 2, hit=True) for offset in range(10)]
    reviews = [kept(offset, day=offset % 2, hit=False) for offset in range(100, 140)]
    filled(store, [*alerts, *reviews])
    said = [label(row, "fraud") for row in alerts[:4]] + [label(row, "cleared") for row in alerts[4:8]]
    store.add_labels("cards", [*said, *(label(row, "cleared") for row in reviews[:30])])

    facts = facts_of(settings, store)

    assert facts.whole is not None
    assert facts.whole.alerted.records == 10
    assert facts.whole.alerted.answered == 8
    assert facts.whole.found.precision.value == 0.5
    assert facts.whole.rest.records == 2 * A_DAY * RECORDS - 10
    assert (facts.whole.rest.asked, facts.whole.rest.answered, facts.whole.rest.fraud) == (40, 30, 0)
    assert facts.whole.found.recall.low < 0.1 < 1.0 == facts.whole.found.recall.value
    assert (facts.whole.found.unanswered_alerts, facts.whole.found.unanswered_reviews) == (2, 10)
    assert [period.alerted.records for period in facts.periods] == [5, 5]
    assert facts.labels.version == 38
    assert facts.labels.in_force == 3
    said = "35 of them are not in force in every partition yet: each takes them up with its next records."
    assert said in in_words(facts)


def test_a_chargeback_alone_is_no_answer_but_overrules_one(settings: Settings, store: Store) -> None:
    rows = [kept(offset, day=0, hit=True) for offset in range(3)]
    filled(store, rows)
    store.add_labels(
        "cards",
        [
            label(rows[0], "fraud", source="chargeback"),
            label(rows[1], "cleared"),
            label(rows[1], "fraud", source="chargeback", at=5),
            label(rows[2], "cleared"),
        ],
    )

    facts = facts_of(settings, store)

    assert facts.whole is not None
    assert (facts.whole.alerted.answered, facts.whole.alerted.fraud) == (2, 1)
    assert (facts.confirmed, facts.confirmed_alerted) == (2, 2)
    assert facts.labels.contradicting == 1


def test_entities_count_once_a_day(settings: Settings, store: Store) -> None:
    rows = [kept(offset, day=0, hit=True) for offset in range(10)]  # five cards, twice each
    filled(store, rows)
    store.add_labels("cards", [label(rows[0], "cleared"), label(rows[5], "fraud"), label(rows[1], "cleared")])

    (day,) = facts_of(settings, store).entities

    assert (day.found.entities, day.found.fraud, day.found.cleared, day.found.unanswered) == (5, 1, 1, 3)


def test_hits_show_their_nearest_cases_and_marks_what_they_moved(settings: Settings, store: Store) -> None:
    mark = kept(500, day=0, hit=True)
    cases = {"nearest_cases": [{"record": "r1", "label": 1, "distance": 0.25}], "interval": [0.7, 0.99]}
    moved = {"cleared_by": {"record": mark.id, "label": 1}, "contributions": {"usual": -4.0, "cleared": -1.5}}
    filled(store, [kept(2, day=0, hit=True, detail=cases), mark, kept(3, day=1, hit=True, detail=moved)])
    store.add_labels("cards", [label(mark, "cleared")])

    facts = facts_of(settings, store)

    shown = {hit.record_id: hit for hit in facts.hits}
    assert [(case.record_id, case.distance) for case in shown["r2"].cases] == [("r1", 0.25)]
    assert (shown["r2"].low, shown["r2"].answer, shown["r500"].answer) == (0.7, "", "cleared")
    (effect,) = facts.marks
    assert (effect.record_id, effect.by, effect.records, effect.hits, effect.most) == ("r500", "ann", 1, 1, 1.5)
    assert not effect.withdrawn


def test_the_words_begin_with_what_is_open(settings: Settings, store: Store) -> None:
    filled(store, [kept(1, day=0, hit=True)])
    store.add_labels("cards", [replace(label(kept(9, day=0, hit=True), "fraud"), known=None)])

    words = in_words(facts_of(settings, store))

    assert words[0].startswith("A wave of fraud, since 2026-03-03")
    assert "contrast and model, with 7 confirmed cases" in words[1]
    assert any(line.startswith("Labels whose record is not known: 1.") for line in words)
    assert any("No analyst has answered 1 alert and" in line for line in words)


def test_before_the_first_record_it_says_so(settings: Settings, store: Store) -> None:
    facts = facts_of(settings, store)

    assert facts.whole is None
    assert in_words(facts)[0] == "No record is kept yet. There are 0 labels, 0 of which count."


def test_a_reference_from_before_the_fraud_settings_is_named(settings: Settings, store: Store, tmp_path: Path) -> None:
    def said() -> tuple[bool, bool]:
        (found,) = [finding for finding in diagnose(settings) if finding.name == "model cards, fraud scores"]
        words = in_words(facts_of(settings, store))[0].startswith("No record is scored as fraud: the reference has no")
        return found.ok, words

    assert said() == (True, False)  # there is no reference yet
    store.add_reference(reference_row("input"))
    assert said() == (False, True)
    belongs_to = {
        "format": "driftd fraud parts",
        "format_version": 1,
        "reference_checksum": reference_row("input").checksum,
    }
    (tmp_path / "fraud.json").write_text(json.dumps(belongs_to))
    store.add_reference(reference_row("fraud", path=str(tmp_path)))
    assert said() == (True, False)


def reference_row(space: str, *, path: str = "nowhere") -> ReferenceRow:
    return ReferenceRow("cards", space, 1, path, 100, 4, "the input's", START_MS, active=True)


def test_explaining_a_record_that_was_not_kept_says_so(settings: Settings, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no incident r77, and no record of that id was kept") as caught:
        CliRunner().invoke(app, ["explain", "r77", "-s", str(tmp_path / "driftd.yaml")], catch_exceptions=False)
    assert "docs/scores.md" in caught.value.hint


def test_the_command_prints_words_tables_and_json(settings: Settings, store: Store, tmp_path: Path) -> None:
    rows = [kept(offset, day=offset % 2, hit=True) for offset in range(4)]
    filled(store, rows)
    store.add_labels("cards", [label(rows[0], "fraud"), label(rows[1], "cleared")])
    path = str(tmp_path / "driftd.yaml")

    words = CliRunner().invoke(app, ["fraud", "-s", path])
    data = CliRunner().invoke(app, ["fraud", "-s", path, "--model", "cards", "--json"])

    assert words.exit_code == 0, words.output
    assert "cards, space input" in words.output
    assert "Precision of the alerts 50 % (" in words.output
    assert "analyst" in words.output
    (facts,) = json.loads(data.stdout)
    assert facts["whole"]["found"]["precision"]["value"] == 0.5
    assert facts["labels"]["sources"] == [{"source": "analyst", "fraud": 1, "cleared": 1}]
    assert facts["said"][0].startswith("A wave of fraud")


def test_the_report_shows_it_all_and_lets_no_text_act(settings: Settings, store: Store) -> None:
    evil = "<script>alert('x')</script>"
    mark = kept(500, day=0, hit=True)
    cases = {
        "nearest_cases": [{"record": evil, "label": 1, "distance": 0.25}],
        "interval": [0.7, 0.99],
        "distance_to_normal": 1.5,
        "rules": {"large": False},
        "cleared_by": {"record": mark.id, "label": 1},
        "contributions": {"usual": -4.0, "cleared": -1.5},
    }
    filled(store, [replace(kept(2, day=1, hit=True, detail=cases), id=evil), mark, kept(700, day=0, hit=False)])
    store.add_labels("cards", [label(mark, "cleared"), label(kept(700, day=0, hit=False), "fraud")])

    page = render(report_of(settings, store, "cards", now_ms=START_MS + 10 * DAY_MS))

    for title in ("labels", "precision, recall, prevalence", "precision by entity", "the most suspicious alerts"):
        assert f"Fraud: {title}" in page
    assert "Fraud: waves, floods, changes" in page
    assert "A wave of fraud" in page
    assert "Fraud: false-alarm marks" in page
    assert "missed by large" in page
    assert page.count('<circle class="share"') == 3  # only the first day has answers
    assert evil not in page
    assert page.count("<script>") == 1


def test_alerts_of_fraud_are_no_outliers_in_the_counts(settings: Settings, store: Store) -> None:
    filled(store, [kept(1, day=0, hit=True)])

    assert (store.totals("cards").kept, store.totals("cards").flagged) == (1, 0)


def test_the_report_of_a_model_without_fraud_scores_says_nothing_of_them(settings: Settings, store: Store) -> None:
    filled(store, [])
    plain = settings.model_copy(
        update={"models": {"cards": settings.models["cards"].model_copy(update={"fraud": None})}}
    )

    assert report_of(plain, store, "cards").fraud is None
    assert "Fraud" not in render(report_of(plain, store, "cards")).replace("A wave of fraud", "")


def test_a_model_that_is_not_there_is_refused(settings: Settings, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["fraud", "-s", str(tmp_path / "driftd.yaml"), "--model", "orders"])

    assert isinstance(refused.exception, InvalidInput)
    assert "--model cards" in refused.exception.hint
