"""History scored in pieces, in any order and by any process, leaves the bytes of one process.

What decides which bytes come out is tested with a cluster that is played in this process, in a seeded order with lost
and repeated answers; what a cluster does to its workers, with a real one.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from connectors.database.rows import BackfillRow
from connectors.database.store import Store
from detectors.errors import ClusterError, InvalidInput
from monitor.answers import RememberedAnswers
from monitor.app import build_history, build_workers, open_store
from monitor.backfill import Job, job_of, local_runner, prepare_trial, run_job, store_of, trial_settings
from monitor.backfill_plan import begin, plan_backfill
from monitor.cluster import Done, cluster_of
from monitor.distributed import DistributedRunner, distributed_runner, work_of
from monitor.fraud_settings import FraudSettings
from monitor.pieces import get_ready
from monitor.references import from_source
from monitor.settings import Settings, with_changes
from monitor.worker import DeadLetterWave

START_MS = 1_772_438_400_000
D = 4
BASELINE = 4_000
MODEL = "shop"
# Numbers that differ from run to run, and clocks.
MEANINGLESS = {"id", "stored_ms", "advanced_ms", "closed_at_ms", "written", "finished_ms", "pinned_ms"}
TABLES = (
    *("readings", "summaries", "kept", "dead_letters", "dead_letter_counts", "block_stats", "incidents", "partitions"),
    *("verdicts", "fold_states", "formats", "summary_deltas", "thinned_keys", "pending_halves"),
)


def write_records(path: Path, first: int, after: int, *, late: bool = True) -> None:
    """Records first <= number < after, five a second: out of order, some late, broken, from the future or too short."""
    chance = np.random.default_rng(first % 10_007)
    n = after - first
    vectors = chance.standard_normal((n, D)).round(3)
    if late:
        vectors[n // 3 :] += 3.0
    delay = np.where(chance.random(n) < 0.03, chance.integers(0, 90_000, n), chance.integers(0, 3_000, n))
    if not late:
        delay[:] = 0
    with path.open("w") as file:
        for row in range(n):
            number = first + row
            moment = START_MS + number * 200 - int(delay[row])
            vector: list[float] = vectors[row].tolist()
            if late and number % 211 == 210:
                file.write('{"broken')
            else:
                if late and number % 307 == 306:  # what cannot be embedded moves no partition on
                    moment, vector = moment + 50_000, vector[:-1]
                if late and number % 613 == 612:
                    moment += 35_000
                side = "request" if number % 2 == 0 else "response"
                document = {"id": f"r{number}", "ts": moment, "shop": "ab"[number % 3 == 0], "v": vector}
                file.write(json.dumps({**document, "session": f"s{number // 7}", "pair": number // 2, "side": side}))
            file.write("\n")


def settings_of(folder: Path, source: Path, database: Path, **changes: Any) -> Settings:
    record: dict[str, Any] = {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "segments": {"shop": "/shop"}}
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": str(source)},
        "record": {**record, **changes.get("record", {})},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": changes.get("field", "/v"), "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "outliers": {"sample": 0.05},
        "drift": {"season": "none"},
        "dead_letters": changes.get("dead_letters", {}),
        "performance": changes.get("performance", {}),
    }
    return Settings(database=f"sqlite:///{database}", references=folder / "references", models={MODEL: model}, sinks={})


def baseline_in(folder: Path, **changes: Any) -> Path:
    """A folder with a reference, and a database that knows it."""
    write_records(folder / "baseline.jsonl", -BASELINE, 0, late=False)
    settings = settings_of(folder, folder / "baseline.jsonl", folder / "driftd.db", **changes)
    from_source(settings, MODEL, start_ms=None, end_ms=None, progress=lambda step, share: None)
    return folder


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of plain records."""
    return baseline_in(tmp_path_factory.mktemp("baseline"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files that overlap in time."""
    folder = tmp_path_factory.mktemp("records")
    for number in range(3):
        write_records(folder / f"{number}.jsonl", number * 500, number * 500 + 1_500)
    return folder


def copy_of(baseline: Path, database: Path) -> Path:
    database.parent.mkdir(exist_ok=True)
    with sqlite3.connect(baseline / "driftd.db") as source, sqlite3.connect(database) as target:
        source.backup(target)
    return database


def contents(database: Path) -> dict[str, list[str]]:
    """The rows of all tables as texts, without what differs from run to run."""
    found = {}
    with sqlite3.connect(database) as connection:
        for table in TABLES:
            cursor = connection.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            kept = [place for place, name in enumerate(names) if table == "incidents" or name not in MEANINGLESS]
            found[table] = sorted(repr([row[place] for place in kept]) for row in cursor)
        # In which order partitions are written differs, and where a checkpoint ends: so truths are the same, but not in
        # the same order, on which nothing rests that is said of a block.
        said = connection.execute("SELECT record_id, truth, origin, answer, event_ms FROM truths")
        found["truths"] = sorted(map(repr, said))
    with Store.open(f"sqlite:///{database}") as store:
        rows = store.answers([number for number, _, _ in store.answers_numbers(MODEL)])
        answers = [(row.partition, RememberedAnswers(row)) for row in rows]
        found["answers"] = sorted(
            repr((partition, key, kept.record(place)))
            for partition, kept in answers
            for place, key in enumerate(kept.hashes.tolist())
        )
    return found


def planned(settings: Settings, store: Store, *, live: Store | None = None) -> list[Job]:
    """What is to be scored, begun."""
    source = build_history(MODEL, settings.models[MODEL])
    plan = plan_backfill(settings, MODEL, store, source, from_ms=None, to_ms=None, now_ms=START_MS)
    begin(plan, store)
    rows: list[BackfillRow] = plan.rows
    return [job_of(row, settings, store, live=live) for row in rows]


def in_one_process(settings: Settings, *, live: Store | None = None) -> None:
    with open_store(settings) as store:
        for job in planned(settings, store, live=live):
            source = build_history(MODEL, settings.models[MODEL])
            assert run_job(job, local_runner(job, settings, store, source), store, stopping=threading.Event())


class _Played:
    """A task of a played cluster."""

    def drop(self) -> None:
        """Its answer may come all the same."""


class PlayedCluster:
    """A cluster whose workers are this process, which answers in a seeded order, loses answers and repeats some."""

    name = "played"
    workers = 3
    connected = True

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._waiting: list[tuple[_Played, Callable[..., Any], bytes]] = []
        self._told: list[Done[Any]] = []

    def submit(self, call: Callable[..., Any], *arguments: object, first: bool = False) -> _Played:
        self._waiting.append((_Played(), call, pickle.dumps(arguments)))
        return self._waiting[-1][0]

    def over(self, timeout_s: float) -> list[Done[Any]]:
        if not self._waiting:
            return []
        task, call, arguments = self._waiting.pop(self._chance.randrange(len(self._waiting)))
        drawn = self._chance.random()
        if drawn < 0.05:
            return [Done(task, None, "its answer was lost", again=True)]
        if drawn < 0.1 and self._told:
            self._waiting.append((task, call, arguments))
            return [self._chance.choice(self._told)]
        done = Done(task, pickle.loads(pickle.dumps(call(*pickle.loads(arguments)))))
        self._told = [*self._told[-5:], done]
        return [done]


def played(
    settings: Settings, seed: int, *, piece_records: int, live: Store | None = None, stop_at: int | None = None
) -> DistributedRunner:
    """Score everything by a played cluster; where asked for, in two lives. Returns the last runner."""
    with open_store(settings) as store:
        for job in planned(settings, store, live=live):
            source = build_history(MODEL, settings.models[MODEL])
            work, _ = work_of(job, settings, piece_records=piece_records)
            for life in range(1 if stop_at is None else 2):
                stopping, steps = threading.Event(), 0

                def look(_: object, life: int = life, stopping: threading.Event = stopping) -> None:
                    nonlocal steps
                    steps += 1
                    if stop_at is not None and life == 0 and steps >= stop_at:
                        stopping.set()

                cluster: Any = PlayedCluster(seed + life)
                runner = DistributedRunner(
                    job, settings, store=store_of(job, store), source=source, cluster=cluster, work=work
                )
                over = run_job(job, runner, store, stopping=stopping, progress=look)
                assert over == (stop_at is None or life == 1)
    return runner


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"record": {"prediction": "/shop", "label": "/side"}, "performance": {"remember": 0.5}},
    "thinned by key": {"record": {"key": "/session"}},
    "paired": {
        "record": {
            "pair": {"by": "/pair", "role": "/side", "timeout": 20},
            "id": "/request/id",
            "time": {"path": "/request/ts", "unit": "ms"},
            "segments": {"shop": "/request/shop"},
        },
        "field": "/request/v",
    },
    "of a format that is detected": {"record": {"format": "auto"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_records_in_pieces_leave_the_bytes_of_one_process(
    kind: str, baseline: Path, records: Path, tmp_path: Path
) -> None:
    if kind == "paired":
        baseline = baseline_in(tmp_path, **KINDS[kind])
    alone = settings_of(baseline, records, copy_of(baseline, tmp_path / "alone.db"), **KINDS[kind])
    in_one_process(alone)
    expected = contents(tmp_path / "alone.db")
    assert len(expected["kept"]) > 50 and len(expected["incidents"]) > 0 and len(expected["dead_letters"]) > 5
    assert (len(expected["truths"]) > 4_000 and len(expected["answers"]) > 2_000) == (kind == "plain")
    for seed, piece_records in enumerate((97, 700)):
        database = copy_of(baseline, tmp_path / f"{piece_records}.db")
        runner = played(settings_of(baseline, records, database, **KINDS[kind]), seed, piece_records=piece_records)
        assert contents(database) == expected
        if kind == "plain" and piece_records == 97:
            # Most pieces know the newest time from the few records before them; those that did not were done again.
            assert runner.pieces > 30
            assert 0 < runner.again < runner.pieces / 2
        if kind in ("thinned by key", "paired"):
            assert runner.again == 0


@pytest.mark.parametrize("kind", ["thinned by key", "paired"])
def test_folds_after_every_step_leave_the_same_bytes(
    kind: str, baseline: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "paired":
        baseline = baseline_in(tmp_path, **KINDS[kind])
    in_one_process(settings_of(baseline, records, copy_of(baseline, tmp_path / "seldom.db"), **KINDS[kind]))
    monkeypatch.setattr("monitor.history.FOLD_S", 0.0)
    monkeypatch.setattr("monitor.reader.FIRST_BATCH", 50)
    monkeypatch.setattr("monitor.reader.Reader.took", lambda *words: None)
    monkeypatch.setattr("monitor.history.HistoryWorker._due", lambda worker, clock_s: worker._began is not None)
    in_one_process(settings_of(baseline, records, copy_of(baseline, tmp_path / "often.db"), **KINDS[kind]))
    assert contents(tmp_path / "often.db") == contents(tmp_path / "seldom.db")


def test_a_backfill_that_was_stopped_goes_on_and_counts_nothing_twice(
    baseline: Path, records: Path, tmp_path: Path
) -> None:
    alone = settings_of(baseline, records, copy_of(baseline, tmp_path / "alone.db"))
    in_one_process(alone)
    parts = settings_of(baseline, records, copy_of(baseline, tmp_path / "parts.db"))
    played(parts, 5, piece_records=97, stop_at=20)
    assert contents(tmp_path / "parts.db") == contents(tmp_path / "alone.db")


def test_a_trial_in_pieces_repeats_the_closures_of_the_live_run(baseline: Path, tmp_path: Path) -> None:
    live = copy_of(baseline, tmp_path / "live.db")
    folder = tmp_path / "stream"
    folder.mkdir()
    with open_store(settings_of(baseline, folder, live)) as store:
        for number in range(3):  # each run closes its last block, so that the next one's first records are late
            write_records(tmp_path / "more.jsonl", number * 400 - 20, number * 400 + 400)
            with (folder / "grows.jsonl").open("a") as file:
                file.write((tmp_path / "more.jsonl").read_text())
            (worker,) = build_workers(settings_of(baseline, folder, live), store)
            worker.start()
            while not worker.step(int(time.time() * 1000), time.monotonic()).finished:
                pass
            worker.close_blocks_at_end(START_MS)
            worker.source.close()
        for name in ("alone", "pieces"):
            settings = trial_settings(settings_of(baseline, folder, live), f"sqlite:///{tmp_path / name}.db")
            with open_store(settings) as trial:
                prepare_trial(settings, MODEL, store, trial, {})
            if name == "alone":
                in_one_process(settings, live=store)
            else:
                played(settings, 9, piece_records=150, live=store)
    expected, found = contents(tmp_path / "alone.db"), contents(tmp_path / "pieces.db")
    with sqlite3.connect(tmp_path / "pieces.db") as connection:
        assert connection.execute("SELECT SUM(closed_late) FROM partitions").fetchone()[0] > 0
    assert found == expected


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        memory_limit=0,
    ) as found:
        yield found


def test_workers_that_are_killed_change_no_byte(
    cluster: LocalCluster, baseline: Path, records: Path, tmp_path: Path
) -> None:
    alone = settings_of(baseline, records, copy_of(baseline, tmp_path / "alone.db"))
    in_one_process(alone)
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "killed.db"))
    killed: list[int] = []
    seen = 0

    def kill(runner: Any) -> None:
        nonlocal seen
        pid = cluster.workers[len(killed) % 2].pid  # None while it is started again
        if len(killed) < 2 and pid is not None and pid not in killed and runner.found.records >= seen + 300:
            os.kill(pid, signal.SIGKILL)  # in the middle of the pieces that follow
            killed.append(pid)
            seen = runner.found.records

    with open_store(settings) as store:
        (job,) = planned(settings, store)
        source = build_history(MODEL, settings.models[MODEL])
        with distributed_runner(
            job, settings, store, source, cluster=cluster.scheduler_address, piece_records=100
        ) as runner:
            assert run_job(job, runner, store, stopping=threading.Event(), progress=kill)
    assert len(killed) == 2
    assert contents(tmp_path / "killed.db") == contents(tmp_path / "alone.db")


def test_a_worker_that_cannot_read_the_references_is_named(
    cluster: LocalCluster, baseline: Path, records: Path, tmp_path: Path
) -> None:
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "driftd.db"))
    with open_store(settings) as store:
        (job,) = planned(settings, store)
        source = build_history(MODEL, settings.models[MODEL])
        job = replace(job, references=[replace(row, path=str(tmp_path / "nowhere")) for row in job.references])
        with (
            pytest.raises(ClusterError, match=r"Worker .*process \d+: Reference shop/input version 1 is not here"),
            distributed_runner(job, settings, store, source, cluster=cluster.scheduler_address),
        ):
            pass


def test_processes_of_this_machine_score_history_and_end_with_it(baseline: Path, records: Path, tmp_path: Path) -> None:
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "driftd.db"))
    with open_store(settings) as store:
        (job,) = planned(settings, store)
        source = build_history(MODEL, settings.models[MODEL])
        with distributed_runner(job, settings, store, source, cluster="1") as runner:
            assert run_job(job, runner, store, stopping=threading.Event())
    assert runner.found.records == 4_500
    alone = settings_of(baseline, records, copy_of(baseline, tmp_path / "alone.db"))
    in_one_process(alone)
    assert contents(tmp_path / "driftd.db") == contents(tmp_path / "alone.db")


@pytest.mark.parametrize("wanted", ["here", "0", "5000"])
def test_what_is_neither_an_address_nor_a_number_is_refused(wanted: str) -> None:
    with pytest.raises(InvalidInput, match=f"--dask {wanted}"), cluster_of(wanted, secrets={}):
        pass


def test_a_scheduler_that_does_not_answer_and_one_without_workers_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.cluster.CONNECT_S", 0.5)
    with (
        pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1 "),
        cluster_of("tcp://127.0.0.1:1", secrets={}),
    ):
        pass
    with (
        LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as empty,
        pytest.raises(ClusterError, match="has no workers") as raised,
        cluster_of(empty.scheduler_address, secrets={}),
    ):
        pass
    assert "dask worker" in raised.value.hint


def test_a_model_that_scores_fraud_is_refused_with_the_cure(baseline: Path, records: Path, tmp_path: Path) -> None:
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "driftd.db"))
    with open_store(settings) as store:
        (job,) = planned(settings, store)
        model = settings.models[MODEL].model_copy(update={"fraud": FraudSettings()})
        fraud = settings.model_copy(update={"models": {MODEL: model}})
        with (
            pytest.raises(InvalidInput, match="fraud") as raised,
            distributed_runner(job, fraud, store, build_history(MODEL, model), cluster="1"),
        ):
            pass
    assert "Leave out --dask" in raised.value.hint


def test_secrets_are_not_sent_but_taken_from_the_environment_of_a_worker(
    baseline: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "driftd.db"))
    kafka = {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": "t"}
    security = {"protocol": "SASL_PLAINTEXT", "username": "u", "password": "geheim"}
    secret = with_changes(settings, {("models", MODEL, "history"): {**kafka, "security": security}}, named="a test")
    with open_store(settings) as store:
        (job,) = planned(settings, store)
    work, secrets = work_of(job, secret)
    assert secrets == {"DRIFTD_MODELS__SHOP__HISTORY__SECURITY__PASSWORD": "geheim"}
    assert b"geheim" not in pickle.dumps(work)
    failed = get_ready(work)
    assert failed is not None and "DRIFTD_MODELS__SHOP__HISTORY__SECURITY__PASSWORD is not set" in failed.said
    monkeypatch.setenv("DRIFTD_MODELS__SHOP__HISTORY__SECURITY__PASSWORD", "geheim")
    assert get_ready(work) is None


def test_a_worker_with_other_versions_refuses(baseline: Path, records: Path, tmp_path: Path) -> None:
    settings = settings_of(baseline, records, copy_of(baseline, tmp_path / "driftd.db"))
    with open_store(settings) as store:
        (job,) = planned(settings, store)
    work, _ = work_of(job, settings)
    failed = get_ready(replace(work, made_with={**work.made_with, "numpy": "1.0"}))
    assert failed is not None and "numpy" in failed.said and "1.0" in failed.said


def test_a_wave_of_dead_letters_stops_a_distributed_backfill(baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "wave.jsonl").write_text("{broken\n" * 400)
    settings = settings_of(
        baseline, tmp_path / "wave.jsonl", copy_of(baseline, tmp_path / "driftd.db"), dead_letters={"stop_run": 100}
    )
    with pytest.raises(DeadLetterWave, match="100 records in a row"):
        played(settings, 1, piece_records=50)
