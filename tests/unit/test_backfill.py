"""Backfill on files: what counts once, and how history and live records join. Kills: tests/integration."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from connectors.database.store import Store
from detectors.errors import InvalidInput, OwnershipLost
from monitor.app import build_history, build_workers, open_store
from monitor.backfill import give_up, job_of, local_runner, prepare_trial, run_job, trial_settings
from monitor.backfill_plan import begin, plan_backfill
from monitor.references import from_source
from monitor.settings import Settings, load_settings
from monitor.worker import Worker

START_MS = 1_772_438_400_000
D = 6
RATE = 20  # records a second
BASELINE = 60_000
SHIFT = np.array([1.5, 0, 0, 0, 0, 0])

# Numbers that differ from run to run, and clocks.
MEANINGLESS = {"id", "stored_ms", "advanced_ms", "closed_at_ms", "written", "finished_ms"}
TABLES = ("readings", "summaries", "kept", "dead_letters", "dead_letter_counts", "block_stats", "incidents")


def write_records(path: Path, first: int, after: int, *, moved: tuple[int, int] = (0, 0), broken: int = 0) -> None:
    """Lines first <= number < after of an endless stream: ``moved`` are shifted, every ``broken``-th is broken."""
    vectors = np.random.default_rng(7).standard_normal((BASELINE + 30_000, D))
    with path.open("w") as file:
        for number in range(first, after):
            vector = vectors[BASELINE + number]
            if moved[0] <= number < moved[1]:
                vector = vector + SHIFT
            document = {"id": f"r{number}", "ts": START_MS + number * 1000 // RATE, "shop": "ab"[number % 2]}
            if broken and number % broken == broken - 1:
                file.write("{no json\n")
            else:
                file.write(json.dumps({**document, "v": np.round(vector, 4).tolist()}) + "\n")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reference, and the settings that made it."""
    folder = tmp_path_factory.mktemp("baseline")
    write_records(folder / "baseline.jsonl", -BASELINE, 0)
    from_source(
        settings_of(folder, folder / "baseline.jsonl"),
        "shop",
        start_ms=None,
        end_ms=None,
        progress=lambda step, share: None,
    )
    return folder


def settings_of(folder: Path, source: Path, *, history: Path | None = None, database: Path | None = None) -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": str(source)},
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "segments": {"shop": "/shop"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "outliers": {"sample": 0.01},
        "drift": {"season": "none"},
    }
    if history is not None:
        model["history"] = {"kind": "files", "path": str(history)}
    content = {
        "database": f"sqlite:///{database or folder / 'driftd.db'}",
        "references": str(folder / "references"),
        "models": {"shop": model},
        "sinks": {},
    }
    file = folder / f"{source.stem}.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_settings(file)


def copy_of(baseline: Path, folder: Path) -> Path:
    """A database that knows the reference, in a folder of its own."""
    database = folder / "driftd.db"
    with sqlite3.connect(baseline / "driftd.db") as source, sqlite3.connect(database) as target:
        source.backup(target)
    return database


def run_live(settings: Settings, store: Store, *, ends: bool) -> None:
    """What `driftd run` does with a source that has an end, but for the last blocks unless ``ends``."""
    worker: Worker
    (worker,) = build_workers(settings, store)
    worker.start()
    while not worker.step(int(time.time() * 1000), time.monotonic()).finished:
        pass
    if ends:
        worker.close_blocks_at_end(int(time.time() * 1000))
    worker.source.close()
    worker.close()


def run_backfill(settings: Settings, store: Store, *, live: Store | None = None, **times: int) -> int:
    """What `driftd backfill` does. Returns how many records it counted."""
    source = build_history("shop", settings.models["shop"])
    chosen: dict[str, Any] = {"from_ms": None, "to_ms": None, **times}
    plan = plan_backfill(settings, "shop", store, source, now_ms=START_MS, **chosen)
    begin(plan, store)
    records = 0
    for row in plan.rows:
        job = job_of(row, settings, store, live=live)
        runner = local_runner(job, settings, store, source)
        assert run_job(job, runner, store, stopping=threading.Event())
        records += runner.found.records
    source.close()
    return records


def contents(database: Path, *tables: str) -> dict[str, list[str]]:
    """The rows of tables as texts, without what differs from run to run."""
    found = {}
    with sqlite3.connect(database) as connection:
        for table in tables or TABLES:
            cursor = connection.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            kept = [place for place, name in enumerate(names) if table == "incidents" or name not in MEANINGLESS]
            found[table] = sorted(repr([row[place] for place in kept]) for row in cursor)
    return found


def counts(database: Path) -> tuple[int, int, int]:
    with sqlite3.connect(database) as connection:
        row = connection.execute("SELECT SUM(records), SUM(dead), SUM(late) FROM partitions").fetchone()
    return int(row[0]), int(row[1]), int(row[2])


def test_a_trial_is_left_with_the_bytes_of_the_live_run(baseline: Path, tmp_path: Path) -> None:
    database = copy_of(baseline, tmp_path)
    write_records(tmp_path / "live.jsonl", 0, 30_000, moved=(12_000, 20_000), broken=997)
    settings = settings_of(baseline, tmp_path / "live.jsonl", database=database)
    with open_store(settings) as store:
        run_live(settings, store, ends=True)
        trial = trial_settings(settings, f"sqlite:///{tmp_path / 'trial.db'}")
        with open_store(trial) as into:
            prepare_trial(trial, "shop", store, into, {})
            assert run_backfill(trial, into, live=store) == 30_000
            assert run_backfill(trial, into, live=store) == 0
    assert contents(tmp_path / "trial.db") == contents(database)
    assert len(contents(database)["incidents"]) >= 1
    assert counts(tmp_path / "trial.db") == counts(database) == (30_000, 30, 0)


@pytest.mark.parametrize("live_first", [False, True])
def test_history_and_live_records_join_without_a_seam(baseline: Path, tmp_path: Path, live_first: bool) -> None:
    # The change begins in history and goes on in the live records; neither begins with a block.
    moved = (11_000, 19_000)
    old, new = tmp_path / "a-old.jsonl", tmp_path / "b-new.jsonl"
    write_records(old, 0, 15_070, moved=moved, broken=997)
    write_records(new, 15_070, 30_000, moved=moved, broken=997)

    whole = tmp_path / "whole"
    whole.mkdir()
    database = copy_of(baseline, whole)
    for file in (old, new):
        settings = settings_of(baseline, file, database=database)
        with open_store(settings) as store:
            run_live(settings, store, ends=file == new)

    joined = tmp_path / "joined"
    joined.mkdir()
    parts = copy_of(baseline, joined)
    settings = settings_of(baseline, new, history=old, database=parts)
    with open_store(settings) as store:
        if live_first:
            run_live(settings, store, ends=False)
            assert run_backfill(settings, store) == 15_070
            assert [row.status for row in store.backfills("shop")] == ["done"]
            run_live(settings, store, ends=True)
        else:
            assert run_backfill(settings_of(baseline, old, database=parts), store) == 15_070
            run_live(settings, store, ends=True)
        assert run_backfill(settings, store) == 0
    assert counts(parts) == counts(database) == (30_000, 30, 0)
    expected, found = contents(database), contents(parts)
    if not live_first:
        # A bounded source closes its last block: of the one in which it ends, the live part came too late.
        for table in ("readings", "summaries", "block_stats", "incidents"):
            expected.pop(table)
            found.pop(table)
        assert found == expected
        return
    del found["incidents"], expected["incidents"]
    assert found == expected
    assert contents(parts, "fold_states") == contents(database, "fold_states")
    # What people were told of stays: the same change is an incident of history, which ends where the live one began.
    joint_ms = START_MS + 15_070 * 1000 // RATE
    with open_store(settings_of(baseline, old, database=database)) as store:
        of_history = [row.id for row in store.incidents() if row.opened_ms <= joint_ms]
    with open_store(settings) as store:
        rows = store.incidents()
    assert len(of_history) >= 1
    assert sorted(row.id for row in rows if row.opened_ms <= joint_ms) == sorted(of_history)
    assert all(row.status == "resolved" for row in rows)
    for row in rows:
        went_on_ms = row.detail.get("went_on_ms")
        if went_on_ms is not None:
            later = [other.opened_ms for other in rows if (other.kind, other.segment) == (row.kind, row.segment)]
            assert row.opened_ms <= joint_ms < went_on_ms == row.resolved_ms
            assert went_on_ms in later
    assert any("went_on_ms" in row.detail for row in rows)


def test_overlapping_ranges_count_each_record_once(baseline: Path, tmp_path: Path) -> None:
    database = copy_of(baseline, tmp_path)
    write_records(tmp_path / "records.jsonl", 0, 20_000)
    settings = settings_of(baseline, tmp_path / "records.jsonl", database=database)

    def at(number: int) -> int:
        return START_MS + number * 1000 // RATE

    with open_store(settings) as store:
        assert run_backfill(settings, store, from_ms=at(8_000), to_ms=at(12_000)) == 4_000
        assert run_backfill(settings, store, from_ms=at(6_000), to_ms=at(14_000)) == 4_000
        assert run_backfill(settings, store) == 12_000
        assert run_backfill(settings, store) == 0
        assert len(store.backfills("shop")) == 5
    assert counts(database) == (20_000, 0, 0)


def test_what_an_older_driftd_counted_is_taken_to_begin_with_the_first_record(baseline: Path, tmp_path: Path) -> None:
    database, records = copy_of(baseline, tmp_path), tmp_path / "records.jsonl"
    write_records(records, 0, 4000)
    settings = settings_of(baseline, records, database=database)
    with open_store(settings) as store:
        run_backfill(settings, store)
        with sqlite3.connect(database) as connection:  # as the upgrade leaves rows of before
            connection.execute("UPDATE partitions SET from_offset = NULL")
            connection.execute("DELETE FROM backfills")
        end = records.stat().st_size
        write_records(records, 0, 6000)
        source = build_history("shop", settings.models["shop"])
        plan = plan_backfill(settings, "shop", store, source, from_ms=None, to_ms=None, now_ms=0)
        assert [[span[:2] for span in row.spans.values()] for row in plan.rows] == [[(end, records.stat().st_size)]]
        assert plan.counted == end
        assert "not known where counting began" in plan.notes[0]


def test_a_daemon_that_starts_meanwhile_takes_over(baseline: Path, tmp_path: Path) -> None:
    database = copy_of(baseline, tmp_path)
    write_records(tmp_path / "records.jsonl", 0, 20_000)
    settings = settings_of(baseline, tmp_path / "records.jsonl", database=database)
    with open_store(settings) as store:
        source = build_history("shop", settings.models["shop"])
        plan = plan_backfill(settings, "shop", store, source, from_ms=None, to_ms=None, now_ms=START_MS)
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        runner = local_runner(job, settings, store, source)
        steps = 0

        def after_three_steps(_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                run_live(settings, store, ends=True)

        with pytest.raises(OwnershipLost, match="taken over"):
            run_job(job, runner, store, stopping=threading.Event(), progress=after_three_steps)
        assert [row.status for row in store.backfills("shop")] == ["taken over"]
        assert run_backfill(settings, store) == 0
    assert counts(database) == (20_000, 0, 0)


def test_a_backfill_that_was_stopped_goes_on(baseline: Path, tmp_path: Path) -> None:
    database = copy_of(baseline, tmp_path)
    write_records(tmp_path / "records.jsonl", 0, 20_000, moved=(9_000, 14_000))
    settings = settings_of(baseline, tmp_path / "records.jsonl", database=database)
    with open_store(settings) as store:
        source = build_history("shop", settings.models["shop"])
        plan = plan_backfill(settings, "shop", store, source, from_ms=None, to_ms=None, now_ms=START_MS)
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        stopping = threading.Event()
        runner = local_runner(job, settings, store, source)
        assert not run_job(job, runner, store, stopping=stopping, progress=lambda runner: stopping.set())
        left = 20_000 - runner.found.records
        assert 0 < left < 20_000
        assert run_backfill(settings, store) == left
    other = tmp_path / "other"
    other.mkdir()
    at_once = copy_of(baseline, other)
    whole = settings_of(baseline, tmp_path / "records.jsonl", database=at_once)
    with open_store(whole) as store:
        run_backfill(whole, store)
    assert contents(at_once) == contents(database)


@pytest.mark.parametrize("steps", [0, 1])
def test_what_was_begun_can_be_given_up(baseline: Path, tmp_path: Path, steps: int) -> None:
    database = copy_of(baseline, tmp_path)
    write_records(tmp_path / "old.jsonl", 0, 12_000)
    write_records(tmp_path / "new.jsonl", 12_000, 16_000)
    settings = settings_of(baseline, tmp_path / "new.jsonl", history=tmp_path / "old.jsonl", database=database)
    with open_store(settings) as store:
        run_live(settings, store, ends=True)
        source = build_history("shop", settings.models["shop"])
        plan = plan_backfill(settings, "shop", store, source, from_ms=None, to_ms=None, now_ms=START_MS)
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        assert job.range.lane
        scored = 0
        if steps:
            stopping = threading.Event()
            runner = local_runner(job, settings, store, source)
            assert not run_job(job, runner, store, stopping=stopping, progress=lambda runner: stopping.set())
            scored = runner.found.records
        give_up(job, local_runner(job, settings, store, source), store)
        assert [row.status for row in store.backfills("shop")] == ["cut short"]
        assert store.totals("shop").records == 4_000 + scored
        assert run_backfill(settings, store) == 12_000 - scored
    assert counts(database) == (16_000, 0, 0)


def test_of_many_files_the_oldest_come_first_and_their_blocks_are_closed_before_the_last_is_begun(
    baseline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "days"
    folder.mkdir()
    for day in range(60):  # the names say nothing of the order
        write_records(folder / f"{(day * 37) % 60:02d}.jsonl", day * 500, (day + 1) * 500)
    database = copy_of(baseline, tmp_path)
    settings = settings_of(baseline, folder, database=database)
    most_open = 0
    with open_store(settings) as store:
        source = build_history("shop", settings.models["shop"])
        plan = plan_backfill(settings, "shop", store, source, from_ms=None, to_ms=None, now_ms=START_MS)
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        runner = local_runner(job, settings, store, source)

        def look(_: object) -> None:
            nonlocal most_open
            runner.folder.step(store, START_MS, partitions=frozenset(job.range.spans))
            with sqlite3.connect(database) as connection:
                open_blocks = connection.execute("SELECT COUNT(DISTINCT block) FROM summary_deltas").fetchone()
            most_open = max(most_open, int(open_blocks[0]))

        assert run_job(job, runner, store, stopping=threading.Event(), progress=look)
    whole = tmp_path / "whole"
    whole.mkdir()
    write_records(whole / "all.jsonl", 0, 30_000)
    settings = settings_of(baseline, whole / "all.jsonl", database=copy_of(baseline, whole))
    with open_store(settings) as store:
        run_backfill(settings, store)
    assert counts(database) == (30_000, 0, 0)
    # 150 blocks in all; a file holds 2.5 of them.
    assert most_open < 75
    assert contents(database, "summaries") == contents(whole / "driftd.db", "summaries")


def test_a_file_that_came_after_the_clock_had_closed_blocks_is_late_in_a_trial_too(
    baseline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_records(folder / "a.jsonl", 0, 8_000)
    database = copy_of(baseline, tmp_path)
    settings = settings_of(baseline, folder, database=database)
    with open_store(settings) as store:
        run_live(settings, store, ends=True)
        write_records(folder / "b.jsonl", 6_000, 12_000)
        run_live(settings, store, ends=True)
        assert sum(state.closed_late for state in store.partition_states("shop")) > 1_000
        trial = trial_settings(settings, f"sqlite:///{tmp_path / 'trial.db'}")
        with open_store(trial) as into:
            prepare_trial(trial, "shop", store, into, {})
            assert run_backfill(trial, into, live=store) == 14_000
    for table in ("readings", "summaries", "fold_states"):
        assert contents(tmp_path / "trial.db", table) == contents(database, table)


def test_what_cannot_be_scored_is_said_before_anything_is_written(baseline: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", 0, 100)
    settings = settings_of(tmp_path, tmp_path / "records.jsonl")
    with open_store(settings) as store, pytest.raises(InvalidInput, match="no reference"):
        run_backfill(settings, store)
    settings = settings_of(baseline, tmp_path / "records.jsonl", database=copy_of(baseline, tmp_path))
    with open_store(settings) as store:
        with pytest.raises(InvalidInput, match="not before"):
            run_backfill(settings, store, from_ms=START_MS, to_ms=START_MS)
        with pytest.raises(InvalidInput, match="no record"):
            run_backfill(settings, store, from_ms=START_MS + 86_400_000)
        assert store.backfills("shop") == []
