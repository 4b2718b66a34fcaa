"""From a file to what people are told of fraud: a wave in groups, alerts within the budget, a flood; the same again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from connectors.database.rows import IncidentRow, KeptRecord, LabelledRecord, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from monitor.app import build_workers, open_store
from monitor.cli import app
from monitor.explain import explain, tables_of
from monitor.fraud_explain import explain_record, lines_of, tables_of_hit
from monitor.settings import Settings

START_MS = 1_772_438_400_000
EVERY_MS, BASELINE, NORMAL = 40, 8_000, 16_000
D = 6
CAMPAIGN = np.array([4.0, 4.0, 0.0, 0.0, 0.0, 0.0])
OTHER = np.array([0.0, 0.0, -5.0, 0.0, 4.0, 0.0])
WAVE_AT = BASELINE + 12_000
FLOOD_AT = BASELINE + 4_000  # the first record of a block


def records() -> list[dict[str, Any]]:
    """Normal records; after 20,000 of them, two campaigns within two minutes."""
    chance = np.random.default_rng(4)
    x = chance.normal(size=(BASELINE + NORMAL, D))
    amount = chance.exponential(40.0, len(x))
    names = np.full(len(x), "normal", object)
    at = WAVE_AT + chance.choice(1_500, 200, replace=False)
    x[at[:150]] = CAMPAIGN + chance.normal(0, 0.1, (150, D))
    x[at[150:]] = OTHER + chance.normal(0, 0.1, (50, D))
    names[at[:150]], names[at[150:]] = "campaign", "other"
    burst = FLOOD_AT + np.arange(0, 200, 2)
    x[burst], names[burst] = 0.3, "copy"
    return [
        {
            "id": f"{names[row]}-{row}",
            "ts": START_MS + EVERY_MS * row,
            "v": vector,
            "amount": round(float(amount[row]), 2),
            "card": f"c{row % 500}",
            "country": "de" if names[row] != "normal" or row % 10 == 0 else "fr",
        }
        for row, vector in enumerate(x.round(3).tolist())
    ]


def settings_for(folder: Path, **more: Any) -> Settings:
    return Settings(
        database=f"sqlite:///{folder / 'driftd.db'}",
        references=folder / "references",
        models={
            "cards": {
                "source": {"kind": "files", "path": str(folder.parent / "stream.jsonl")},
                "record": {
                    "id": "/id",
                    "time": "/ts",
                    "segments": {"country": "/country"},
                    "keep": ["/amount"],
                },
                "spaces": {
                    "input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list", "geometry": "standard"}}
                },
                "reference": {"collect": BASELINE},
                "drift": {"block": 10},
                "fraud": {
                    "fields": {"amount": "/amount"},
                    "entity": "/card",
                    "alpha": 0.005,
                    "review": 0.002,
                    "rules": {"large": {"field": "amount", "above": 1_000_000.0}},
                    "alerts": {"most": 25, "every": "5m"},
                },
            }
        },
        sinks={"log": {"kind": "jsonl", "path": str(folder / "log.jsonl")}},
        **more,
    )


@dataclass
class Run:
    """What a database holds after a run."""

    incidents: list[IncidentRow]
    kept: list[KeptRecord]
    settings: Settings


def label(store: Store) -> None:
    """Five confirmed cases of the campaign, which came as records of their own."""
    chance = np.random.default_rng(11)
    vectors = (CAMPAIGN + chance.normal(0, 0.1, (5, D))).astype("<f4")
    known = [
        LabelledRecord(
            partition=Partition("", 0),
            offset=-1,
            row=0,
            event_ms=START_MS,
            entity="",
            vector=vector.tobytes(),
            signals=np.array([3.0, np.nan, np.nan, 40.0], "<f4").tobytes(),
            probability=float("nan"),
            p_value=float("nan"),
            scored_with=0,
            selected="",
            chance=float("nan"),
        )
        for vector in vectors
    ]
    store.add_labels(
        "cards",
        [
            NewLabel(f"case-{row}", "fraud", START_MS - 86_400_000, "chargeback", 1.0, "bank", f"test/{row}", known=one)
            for row, one in enumerate(known)
        ],
    )


def run(folder: Path, *, labelled: bool = True, **more: Any) -> Run:
    folder.mkdir()
    settings = settings_for(folder, **more)
    with open_store(settings) as store:
        if labelled:
            label(store)
        (worker,) = build_workers(settings, store)
        worker.start()
        clock = 0.0
        while not worker.step(START_MS + 10_000_000, clock).finished:
            clock += 1.0
        worker.close_blocks_at_end(START_MS)
        worker.source.close()
        worker.close()
        with store.begin_fold("cards") as fold:
            kept = fold.kept("fraud", 1, from_block=0, to_block=2**40, most=10**6, order="time")
        incidents = [row for row in store.incidents(model="cards") if row.kind not in ("drift", "outlier_rate")]
    return Run(incidents, kept, settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waves")
    with (folder / "stream.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records())
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> Run:
    return run(folder / "first")


def test_a_wave_is_one_incident_that_shows_its_groups_and_the_nearest_confirmed_case(done: Run) -> None:
    (wave,) = [row for row in done.incidents if row.kind == "fraud_wave"]
    assert START_MS + EVERY_MS * (WAVE_AT - 300) < wave.onset_ms < START_MS + EVERY_MS * (WAVE_AT + 3_000)
    cause: Any = wave.detail["cause"]
    first, second = cause["groups"][:2]
    assert first["record"].startswith("campaign-")
    assert first["size"] > 100
    assert second["record"].startswith("other-")
    assert second["size"] >= 2
    assert first["case"]["record"].startswith("case-")
    assert first["case"]["source"] == "chargeback"
    assert first["case"]["time_ms"] == START_MS - 86_400_000
    assert first["segments"] == [{"segment": "country=de", "share": 1.0}]
    assert first["entities"] > 20
    assert first["missed_by"] == {"large": first["size"]}
    assert "would be usual" in wave.title
    assert f"of them resemble record {first['record']}" in wave.text
    assert "the nearest confirmed case is record case-" in wave.text
    assert "rule large would have missed" in wave.text


def test_a_flood_is_one_warning_with_its_size_and_an_example(done: Run) -> None:
    (flood,) = [row for row in done.incidents if row.kind == "flood"]
    assert flood.severity == "warn"
    assert flood.onset_ms == START_MS + EVERY_MS * FLOOD_AT
    cause: Any = flood.detail["cause"]
    assert cause["groups"][0]["record"].startswith("copy-")
    assert "100 near-identical records in one block" in flood.title
    assert "1 group in one block, the largest of 100 records" in flood.text
    with open_store(done.settings) as store:
        ((_, columns, rows),) = tables_of(explain(done.settings, store, flood.id))
    assert dict(zip(columns, rows[0], strict=True))["like"].startswith("copy-")


def test_alerts_stay_within_the_budget_and_are_the_most_suspicious(done: Run) -> None:
    flagged = [row for row in done.kept if row.flagged]
    times = np.array(sorted(row.time_ms for row in flagged))
    assert max(np.searchsorted(times, times + 300_000) - np.arange(len(times))) <= 25
    assert all(row.reason == "fraud" for row in flagged)
    names = {row.id.partition("-")[0] for row in flagged}
    assert "campaign" in names


def test_the_same_records_give_the_same_alerts_and_incidents_however_they_are_cut(done: Run, folder: Path) -> None:
    again = run(folder / "again", checkpoint={"every": 0.5, "poll_records": 700})
    assert [(row.id, row.flagged, row.score) for row in again.kept] == [
        (row.id, row.flagged, row.score) for row in done.kept
    ]
    assert again.incidents == done.incidents


def test_without_labels_a_wave_of_the_strange_is_told_without_a_case(folder: Path) -> None:
    plain = run(folder / "plain", labelled=False)
    (wave,) = [row for row in plain.incidents if row.kind == "fraud_wave"]
    assert "confirmed case" not in wave.text
    cause: Any = wave.detail["cause"]
    assert cause["groups"][0]["case"] == {}
    assert {group["record"].partition("-")[0] for group in cause["groups"][:2]} == {"campaign", "other"}
    assert all(group["size"] > 20 for group in cause["groups"][:2])


def test_explain_shows_the_groups_of_a_wave_and_why_a_record_looks_like_fraud(done: Run) -> None:
    with open_store(done.settings) as store:
        (wave,) = [row for row in done.incidents if row.kind == "fraud_wave"]
        found = explain(done.settings, store, wave.id[:8])
        ((title, columns, rows),) = tables_of(found)
        assert title.startswith("Similar hits (2026-03-02")
        assert dict(zip(columns, rows[0], strict=True))["like"].startswith("campaign-")
        assert "(chargeback, 2026-03-01" in dict(zip(columns, rows[0], strict=True))["nearest case"]
        hit = explain_record(done.settings, store, rows[0][columns.index("like")])
        assert hit is not None
        assert explain_record(done.settings, store, "nobody") is None
    assert hit.opinion is None  # five chargebacks are no answers
    assert "31 % by a second model" in "\n".join(lines_of(replace(hit, opinion=0.31)))
    text = "\n".join(lines_of(hit))
    assert "a model of labels" in text
    assert "version 5, 5 confirmed cases" in text
    assert "of its records were known" in text
    by_title = {title.partition(" (")[0]: rows for title, _, rows in tables_of_hit(hit)}
    assert {"contrast", "model"} <= {row[0] for row in by_title["What speaks for fraud"]}
    near = by_title["Which records lie near"]
    assert near[0][0].startswith("case case-")
    assert near[0][2] == "chargeback"
    assert near[-1][0].startswith("normal normal-")
    signals = {row[0]: row[1:] for row in by_title["What detectors and fields say"]}
    assert signals["outlier"][1] == ""
    assert signals["amount"][1].endswith("%")
    assert by_title["Rules that are in use"] == [["large", "would have missed it"]]
    assert json.loads(json.dumps(hit.data()))["alert"] in (True, False)


def test_the_command_explains_a_record(done: Run, tmp_path: Path) -> None:
    record = next(row.id for row in done.kept if row.flagged)
    settings = tmp_path / "driftd.yaml"
    settings.write_text(yaml.safe_dump(done.settings.model_dump(mode="json", exclude_unset=True)))
    shown = CliRunner().invoke(app, ["explain", record, "--settings", str(settings)])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(f"record {record}")
    assert "Which records lie near" in shown.stdout
