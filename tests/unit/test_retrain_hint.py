"""`driftd verdict --retrain-hint`: which kept records are named, and the file that they are written to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from connectors.database.rows import Advance, Checkpoint, FoldResult, KeptRecord, ReferenceRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import InvalidInput
from detectors.reference import Reference, Scored
from detectors.summary import summarise
from monitor.cli import app
from monitor.retrain_hint import Hint, hint_of, write_hint
from monitor.settings import Settings
from tests.unit.test_verdict_cli import SETTINGS, drift

P0 = Partition("orders", 0)
BLOCK = 10_000
D = 8
CENTRES = 10.0 * np.random.default_rng(7).normal(size=(4, D))


def vectors_of(kinds: list[int], seed: int) -> Any:
    chance = np.random.default_rng(seed)
    return (CENTRES[kinds] + chance.normal(size=(len(kinds), D))).astype(np.float32)


def kept(scored: Scored, kinds: list[int], *, block: int, offset: int, every: int = 10) -> list[KeptRecord]:
    """What a pipeline keeps: all that is stranger than the baseline, and every tenth of the others."""
    records = []
    for i, kind in enumerate(kinds):
        strange = bool(scored.p_value[i] <= 0.001)
        if strange or i % every == 0:
            records.append(
                KeptRecord(
                    P0,
                    offset + i,
                    block * BLOCK + i,
                    "input",
                    block,
                    f"r{offset + i}",
                    "outlier" if strange else "sample",
                    float(scored.distance[i]),
                    float(scored.p_value[i]),
                    1,
                    -1,
                    "cat",
                    0.5,
                    {"country": "NO"},
                    {"kind": kind, "text": 'a, "b"\nå'},
                    vector=scored.x[i].astype("<f2").tobytes(),
                )
            )
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose stream holds a kind of records from block 5 on, 2, that its reference does not know."""
    folder = tmp_path_factory.mktemp("hint")
    (folder / "driftd.yaml").write_text(SETTINGS.format(folder=folder) + "    outliers: {sample: 0.1}\n")
    chance = np.random.default_rng(3)
    reference = Reference.build(vectors_of(chance.integers(0, 2, 4000).tolist(), seed=1), block=200)
    checksum = reference.save(folder / "reference")
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        store.migrate()
        store.add_reference(
            ReferenceRow("orders", "input", 1, str(folder / "reference"), 4000, D, checksum, 0, active=True)
        )
        for block in range(10):
            kinds = chance.choice(3, 200, p=[0.5, 0.5, 0.0] if block < 5 else [0.4, 0.4, 0.2]).tolist()
            scored = reference.score(vectors_of(kinds, seed=100 + block))
            offset = block * 200
            blob = summarise(np.zeros(200, np.int64), scored)[0].to_bytes()
            store.commit(
                Checkpoint(
                    "orders",
                    [Advance(P0, offset or None, offset + 200, block * BLOCK + 200, 200, 0, 0)],
                    kept=kept(scored, kinds, block=block, offset=offset),
                )
            )
            merged = [SummaryDelta("input", "", block, 1, Partition("", -1), -1, blob)]
            opened = [replace(drift(), onset_ms=5 * BLOCK)] if block == 9 else []
            with store.begin_fold("orders") as step:
                step.commit(FoldResult(block + 1, merged, [], [], opened, []))
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{folder}/driftd.db") as opened:
        yield opened


def settings_of(folder: Path) -> Settings:
    from monitor.settings import load_settings

    return load_settings(folder / "driftd.yaml")


@pytest.fixture
def hint(folder: Path, store: Store) -> Hint:
    return hint_of(settings_of(folder), store, "orders", since_ms=None, most=20)


def test_the_records_named_are_of_the_new_kind_since_the_open_drift(hint: Hint) -> None:
    kinds = [record.fields["kind"] for record in hint.records]
    assert hint.since_ms == 5 * BLOCK and hint.stream == 1000
    assert kinds[0] == 2 and kinds.count(2) >= 0.8 * len(kinds)
    assert all(int(record.id[1:]) >= 1000 for record in hint.records)
    assert hint.records[0].reason == "new"
    assert 150 <= hint.lacking <= 300, "about 200 of 1,000 records are of the new kind"
    assert "Of 1,000 records of orders/input since 1970-01-01 00:00:50Z" in hint.said[0]
    assert "come surely more often than in reference 1" in hint.said[1] and hint.kinds >= 1


def test_records_before_the_time_that_was_asked_for_are_left_out(folder: Path, store: Store) -> None:
    late = hint_of(settings_of(folder), store, "orders", since_ms=8 * BLOCK, most=5)
    assert late.stream == 400 and all(int(record.id[1:]) >= 1600 for record in late.records)
    assert len(late.records) <= 5
    with pytest.raises(InvalidInput, match="No record of orders/input was kept with its vector since"):
        hint_of(settings_of(folder), store, "orders", since_ms=99 * BLOCK, most=5)


def test_the_same_database_gives_the_same_names(folder: Path, store: Store, hint: Hint) -> None:
    assert hint_of(settings_of(folder), store, "orders", since_ms=None, most=20) == hint


def test_every_kind_of_file_holds_every_record_with_its_fields(hint: Hint, tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "parquet"):
        write_hint(tmp_path / f"lacking.{ending}", hint)
    lines = [json.loads(line) for line in (tmp_path / "lacking.jsonl").read_text().splitlines()]
    with (tmp_path / "lacking.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "lacking.parquet").to_pylist()
    assert len(lines) == len(rows) == len(table) == len(hint.records)
    for line, row, cells, record in zip(lines, rows, table, hint.records, strict=True):
        assert line["id"] == row["id"] == cells["id"] == record.id
        assert (line["topic"], line["partition"], line["offset"]) == ("orders", 0, record.offset)
        assert line["fields"] == json.loads(row["fields"]) == json.loads(cells["fields"]) == record.fields
        assert float(row["stands_for"]) == cells["stands_for"] == record.stands_for > 0


def test_a_file_of_another_kind_or_in_no_folder_is_refused(hint: Hint, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="ends in none of"):
        write_hint(tmp_path / "lacking.txt", hint)
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_hint(tmp_path / "nowhere" / "lacking.csv", hint)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_file_and_says_what_it_covers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["verdict", "-s", str(folder / "driftd.yaml"), "--retrain-hint", "lacking.jsonl", "--most", "7"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "Wrote 7 records to lacking.jsonl." in found.stderr and found.stdout == ""
    assert len((tmp_path / "lacking.jsonl").read_text().splitlines()) == 7
    data = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert data["named"] == 7 and 0 < data["covered"] <= 1 and data["space"] == "input"
    monkeypatch.setattr("monitor.standing.ALARMING", {"too few records"})
    assert CliRunner().invoke(app, [*words, "--fail-on-alert"]).exit_code == 3
