"""Everything at once, twice: live by workers that crash, and as history in another database. The bytes are the same.

Two spaces, segments, keys that have one vote, requests that wait for their responses, offsets with holes, dead letters,
late records, fraud with labels that come meanwhile, a partition that is silent for so long that blocks are closed
without it, and comes back. Only the broker is played (tests/soak/simulation.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from connectors.database.ageing import AgeRule
from connectors.database.rows import BackfillRow, LabelledRecord, NewLabel, NewTruth, ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from monitor.ageing import sum_of_summaries
from monitor.backfill import job_of, local_runner, prepare_trial, run_job, trial_settings
from monitor.backfill_plan import begin, plan_backfill
from monitor.collect import Collector
from monitor.decode import Decoder
from monitor.settings import ModelSettings, Settings
from monitor.soak import MODEL
from monitor.truth_desk import TruthDesk
from tests.servers.postgres import PostgresServer
from tests.soak.beside import history_of
from tests.soak.fingerprint import Fingerprint, fingerprint, first_difference
from tests.soak.simulation import NOW_MS, TOPIC, TOPIC_ID, Group, PlayedHistory, simulate

START_MS = 1_772_438_400_000
BLOCK_S = 10
CALLS = 9_000
BASELINE_CALLS = 4_000
SHARES = (0.45, 0.3, 0.15, 0.1)


def calls(count: int, seed: int) -> dict[Partition, RawBatch]:
    """Requests and their responses, four partitions of different speed, and what a topic has of oddities."""
    chance = np.random.default_rng(seed)
    rows: dict[int, list[tuple[int, bytes | None]]] = {number: [] for number in range(4)}
    for number in range(count):
        partition = int(chance.choice(4, p=SHARES))
        time_ms = START_MS + number * 60 + int(chance.integers(-1_500, 1_500))
        if chance.random() < 0.01:
            time_ms -= 60_000  # too late
        moved = 2.0 if 0.6 * count < number < 0.75 * count else 0.0
        vector = chance.normal(size=6) + (moved if number % 3 else 0.0)
        label = int(np.argmax(vector))
        half: dict[str, Any] = {"call": f"c{number}", "kind": "x.request", "ts": time_ms}
        request = half | {
            "v": vector.round(4).tolist(),
            "u": (vector[:4] ** 2).round(4).tolist(),
            "session": f"s{number // 40}-{int(chance.integers(20))}",
            "country": str(chance.choice(["de", "fr", "us"])),
            "card": f"k{int(chance.integers(60))}",
            "amount": round(float(chance.exponential(40.0)), 2),
        }
        response = half | {"kind": "x.response", "ts": time_ms + 300, "label": f"l{label}", "sure": 0.5 + label / 20}
        if chance.random() < 0.3:
            response["truth"] = f"l{label}" if chance.random() < 0.8 else "l9"
        body: bytes | None = json.dumps(request).encode()
        if chance.random() < 0.01:
            body = None if chance.random() < 0.5 else b"{broken"
        rows[partition].append((time_ms, body))
        if chance.random() < 0.97:
            rows[partition].insert(
                max(0, len(rows[partition]) - int(chance.integers(0, 4))),
                (time_ms + 300, json.dumps(response).encode()),
            )
    found = {}
    for number, mine in rows.items():
        offsets = np.cumsum(chance.integers(1, 4, len(mine))) - 1  # transactions and compaction leave holes
        found[Partition(TOPIC, number)] = batch_of(number, mine, offsets)
    return found


def batch_of(number: int, rows: Sequence[tuple[int, bytes | None]], offsets: npt.NDArray[Any]) -> RawBatch:
    return RawBatch(
        partition=Partition(TOPIC, number),
        offsets=offsets.astype(np.int64),
        timestamps_ms=np.array([time_ms + 50 for time_ms, _ in rows], dtype=np.int64),
        keys=[None] * len(rows),
        values=[value for _, value in rows],
        headers=[()] * len(rows),
        next_offset=int(offsets[-1]) + 1,
        topic_id=TOPIC_ID,
    )


def settings_of(folder: Path, database: str | None = None) -> Settings:
    space = {"kind": "vector", "encoding": "list"}
    model = {
        "source": {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": TOPIC},
        "record": {
            "id": "/request/call",
            "time": {"path": "/request/ts", "unit": "ms"},
            "pair": {"by": "/call", "role": "/kind", "timeout": "5s"},
            "key": "/request/session",
            "prediction": "/response/label",
            "confidence": "/response/sure",
            "label": "/response/truth",
            "segments": {"country": "/request/country"},
        },
        "spaces": {
            "input": {"embedder": {**space, "field": "/request/v"}},
            "squares": {"embedder": {**space, "field": "/request/u"}},
        },
        "reference": {"collect": 3_000, "exemplars": 500},
        "drift": {"block": BLOCK_S, "lateness": 20, "idle": 2.0, "wait": 60.0, "season": "none"},
        "dead_letters": {"stop_ratio": 0.9},
        "performance": {"remember": 0.5, "window": "2m", "least": 100},
        "fraud": {"space": "input", "fields": {"amount": "/request/amount"}, "entity": "/request/card"},
    }
    return Settings(
        database=database or f"sqlite:///{folder / 'driftd.db'}",
        references=str(folder / "references"),
        checkpoint={"every": 0.3, "records": 400},
        incidents={"resolve_after": 60},
        models={MODEL: model},
        sinks={},
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[ReferenceRow]:
    folder = tmp_path_factory.mktemp("references")
    model = settings_of(folder).models[MODEL]
    embedders = {name: space.embedder.build() for name, space in model.spaces.items()}
    fields = [*(field for embedder in embedders.values() for field in embedder.fields), *model.extra_fields]
    collector = Collector(
        MODEL,
        decoder=Decoder(model.watched_record, fields=fields),
        embedders=embedders,
        settings=model.reference,
        block_ms=BLOCK_S * 1000,
        thin_by_key=model.thins_by_key,
        fraud=model.fraud,
        fraud_space=model.fraud_space,
    )
    for batch in calls(BASELINE_CALLS, 99).values():
        collector.take(batch, None)
    return collector.build(folder, versions=dict.fromkeys(model.reference_spaces, 1), now_ms=0)


@pytest.fixture(scope="module")
def log() -> dict[Partition, RawBatch]:
    return calls(CALLS, 1)


@pytest.fixture(scope="module")
def live(
    log: dict[Partition, RawBatch], references: list[ReferenceRow], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Fingerprint]:
    """Two workers that crash, labels that come, and the last partition silent for the middle of the stream."""
    settings = settings_of(tmp_path_factory.mktemp("live"))
    slowest = max(log)
    with Store.open(settings.database) as store:
        store.migrate()
        for row in references:
            store.add_reference(row)
        said = 0

        def during(group: Group, counted: int) -> None:
            nonlocal said
            if said == 0 and not group.there:
                group.there = {slowest: len(log[slowest]) // 3}
            if said == 6 and settled(store):
                group.there = {}  # it comes back, long after its blocks were closed
            if counted >= (said + 1) * CALLS // 8 and said < 6:
                said += 1
                store.add_labels(MODEL, labels(said))
                TruthDesk(MODEL, store, remembered_days=30).take(truths(said))

        played = simulate(settings, log, workers=2, poll_records=300, seed=1, crashes=0.04, moves=0.03, during=during)
        assert played.crashes > 2
        assert said == 6
        assert [row for row in store.closures(MODEL) if row.reason == "idle"], "the clock closed blocks"
        states = store.partition_states(MODEL)
        assert sum(state.closed_late for state in states) > 50, "records that came too late for them"
        assert sum(state.late for state in states) > 20
        assert sum(state.dead for state in states) > 20
        assert len({span.version for span in store.label_spans(MODEL)}) > 2
        assert {row.kind for row in store.incidents(model=MODEL)} >= {"drift"}
        assert store.truth_counts(MODEL).corrected > 0
        said_of_it = store.verdicts(MODEL)
        assert said_of_it[-1].truths > 1_000 and {row.word for row in said_of_it} >= {"watch", "too few records"}
    return settings, fingerprint(settings.database)


def settled(store: Store) -> bool:
    """Whether the clock has closed blocks."""
    return any(row.reason == "idle" for row in store.closures(MODEL))


def labels(batch: int) -> list[NewLabel]:
    chance = np.random.default_rng([batch, 5])
    return [
        NewLabel(
            f"case-{batch}-{number}",
            "fraud" if number % 3 else "cleared",
            START_MS,
            "analyst",
            1.0,
            "",
            f"case-{batch}-{number}",
            LabelledRecord(
                partition=Partition(TOPIC, 0),
                offset=-1,
                row=0,
                event_ms=START_MS,
                entity="",
                vector=(chance.normal(size=6) + 3.0).astype("<f4").tobytes(),
                signals=np.array([2.0, np.nan, np.nan, 900.0], "<f4").tobytes(),
                probability=float("nan"),
                p_value=float("nan"),
                scored_with=0,
                selected="",
                chance=float("nan"),
            ),
        )
        for number in range(6)
    ]


def truths(batch: int) -> list[NewTruth]:
    """True answers of records that are there, that are to come and that never come; some correct earlier ones."""
    chance = np.random.default_rng([batch, 6])
    numbers = chance.integers(0, CALLS, 80).tolist()
    return [NewTruth(f"c{number}", "l1", START_MS, 3.0, f"said-{batch}-{number}") for number in set(numbers)]


def score_again(settings: Settings, database: str, log: dict[Partition, RawBatch], *, cut: int) -> Fingerprint:
    """As history, in a database of its own, as `driftd backfill --into` does it."""
    trial = trial_settings(settings, database)
    source = PlayedHistory(log)
    checkpoint = settings.checkpoint.model_copy(update={"poll_records": cut, "records": 3 * cut})
    trial = trial.model_copy(update={"checkpoint": checkpoint})
    with Store.open(settings.database) as live, Store.open(database) as store:
        store.migrate()
        prepare_trial(trial, MODEL, live, store, {})
        rows = [*live.references(MODEL, "input"), *live.references(MODEL, "squares")]
        spans = {place: (span.first, span.after, span.topic_id) for place, span in source.extents(None, None).items()}
        detail = {"references": {row.space: row.version for row in rows}, "labels": 0, "read_to_ms": NOW_MS}
        row = BackfillRow(f"{MODEL}-1", MODEL, MODEL, "scoring", spans, detail, NOW_MS)
        store.plan_backfill(row, [])
        job = job_of(row, trial, store, live=live)
        runner = local_runner(job, trial, store, source)
        assert run_job(job, runner, store, stopping=threading.Event())
        assert [(found.status, found.lane) for found in store.backfills(MODEL)] == [("done", MODEL)]
    return fingerprint(database)


def test_history_of_everything_at_once_has_the_bytes_of_its_live_run(
    live: tuple[Settings, Fingerprint], log: dict[Partition, RawBatch], tmp_path: Path
) -> None:
    settings, expected = live
    found = score_again(settings, f"sqlite:///{tmp_path / 'trial.db'}", log, cut=61)
    assert difference(expected, found) == ""


@pytest.mark.postgres
def test_history_on_postgresql_has_the_bytes_of_sqlite(
    live: tuple[Settings, Fingerprint], log: dict[Partition, RawBatch], postgres: PostgresServer
) -> None:
    settings, expected = live
    found = score_again(settings, postgres.new_database(), log, cut=4_096)
    assert difference(expected, found) == ""


def difference(expected: Fingerprint, found: Fingerprint) -> str:
    """Nobody is told of the past; and at the end of a topic requests wait for their responses."""
    waiting = {"pending_halves": []}
    # What people said is read where they said it.
    said = [row for row in expected["truths"] if not row[0][1].startswith("said-")]
    assert len(said) < len(expected["truths"])
    assert len(expected["pending_halves"]) > 0
    assert found["pending_halves"] == expected["pending_halves"]
    assert len(expected["answers"]) > CALLS // 3
    return first_difference(expected | {"outbox": [], "truths": said}, found | waiting)


def test_history_before_blocks_that_were_added_up_ends_before_them(
    log: dict[Partition, RawBatch], references: list[ReferenceRow], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    joint_ms = START_MS + CALLS * 60 * 74 // 100  # in the middle of the change
    firsts = {place: int(np.argmax(batch.timestamps_ms >= joint_ms)) for place, batch in log.items()}
    with Store.open(settings.database) as store:
        store.migrate()
        for row in references:
            store.add_reference(row)
        newer = {place: batch.rows(firsts[place], len(batch)) for place, batch in log.items()}
        simulate(settings, newer, workers=1, poll_records=300, seed=2, crashes=0.0, moves=0.0)
        assert store.merge_summaries(MODEL, [AgeRule(0, 2)], sum_of_summaries, most=100_000).rows > 0
        before = fingerprint(settings.database)
        source = PlayedHistory(log)
        plan = plan_backfill(settings, MODEL, store, source, from_ms=None, to_ms=None, now_ms=NOW_MS)
        assert [row.lane for row in plan.rows] == [f"{MODEL}~1"]
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        assert not job.range.joins
        assert run_job(job, local_runner(job, settings, store, source), store, stopping=threading.Event())
        after = fingerprint(settings.database)
        lane = {state.partition: state for state in store.partition_states(f"{MODEL}~1")}
        assert {place: state.next_offset for place, state in lane.items()} == {
            place: int(log[place].offsets[first]) for place, first in firsts.items()
        }
        assert {row.status for row in store.incidents(model=MODEL) if row.opened_ms < joint_ms} == {"resolved"}
        assert plan_backfill(settings, MODEL, store, source, from_ms=None, to_ms=None, now_ms=NOW_MS).rows == []
    joint = joint_ms // (BLOCK_S * 1000)
    for table in ("readings", "fold_states", "folds"):
        assert set(map(str, before[table])) <= set(map(str, after[table])), "as it was"
    assert min(key[3] for key, _ in before["readings"]) >= joint - 1
    assert min(key[3] for key, _ in after["readings"]) < joint - 30, "and what was before it"


def plain_settings(folder: Path) -> Settings:
    """One space, no pairs, no keys, no cards: what lies on both sides of a joint does not depend on it."""
    whole = settings_of(folder)
    model = {
        "source": {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": TOPIC},
        "record": {
            "id": "/call",
            "time": {"path": "/ts", "unit": "ms"},
            "prediction": "/label",
            "confidence": "/sure",
            "label": "/truth",
        },
        "spaces": {"input": {"embedder": {"kind": "vector", "encoding": "list", "field": "/request/v"}}},
        "reference": {"collect": 3_000, "exemplars": 500},
        "drift": {"block": BLOCK_S, "lateness": 20, "idle": 2.0, "wait": 60.0, "season": "none"},
        "performance": {"remember": 1.0, "window": "2m", "least": 100, "floor": 0.7},
    }
    return whole.model_copy(update={"models": {MODEL: ModelSettings.model_validate(model)}})


def test_what_records_say_counts_with_their_blocks_also_where_history_is_filled_in_before_live_records(
    references: list[ReferenceRow], tmp_path: Path
) -> None:
    chance = np.random.default_rng(4)
    rows: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    for number in range(4_000):
        vector = chance.normal(size=6) + (2.0 if number > 3_200 else 0.0)
        time_ms = START_MS + number * 60
        said = {"request": {"v": vector.round(4).tolist()}, "call": f"c{number}", "ts": time_ms, "label": "a"}
        if number % 3 == 0:
            # What was wrong long ago is no news: it belongs to its own blocks.
            said["truth"] = "b" if chance.random() < (0.6 if number < 1_500 else 0.05) else "a"
        rows[number % 2].append((time_ms, json.dumps(said | {"sure": 0.8}).encode()))
    log = {Partition(TOPIC, number): batch_of(number, mine, np.arange(len(mine))) for number, mine in rows.items()}
    found = []
    for name in ("whole", "joined"):
        folder = tmp_path / name
        folder.mkdir()
        settings = plain_settings(folder)
        with Store.open(settings.database) as store:
            store.migrate()
            store.add_reference(references[0])
            first = 0 if name == "whole" else 1_000
            newer = {place: batch.rows(first, len(batch)) for place, batch in log.items()}
            simulate(settings, newer, workers=2, poll_records=300, seed=2, crashes=0.02, moves=0.02)
            if name == "joined":
                before = store.verdict(MODEL)
                assert before is not None and before.word != "degraded"
                source = PlayedHistory(log)
                plan = plan_backfill(settings, MODEL, store, source, from_ms=None, to_ms=None, now_ms=NOW_MS)
                begin(plan, store)
                job = job_of(plan.rows[0], settings, store)
                assert job.range.joins
                assert run_job(job, local_runner(job, settings, store, source), store, stopping=threading.Event())
        found.append(history_of(fingerprint(settings.database), incidents=False))
    assert first_difference(*found) == ""
    words = [row["word"] for _, row in found[0]["verdicts"]]
    assert "degraded" in words and len(found[0]["truths"]) > 1_300
