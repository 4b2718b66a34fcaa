"""Thinning by key through the worker and the real command: crashes and new owners change no vote."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.summary import BlockSummary
from monitor.app import build_source, open_store
from monitor.references import from_source
from monitor.settings import Settings
from monitor.worker import Step, Worker
from tests.acceptance.command import Running, driftd, wait_until
from tests.servers.kafka import KafkaServer

START_MS = 1_772_438_400_000
BLOCK_MS = 10_000
RECORD = {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "key": "/session"}
SPACES = {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}}


def records(count: int) -> list[dict[str, Any]]:
    """One record every 20 ms; sessions of ten, twenty of them at a time; the even ones go to one partition."""
    vectors = np.random.default_rng(1).normal(size=(count, 8)).round(4).tolist()
    return [
        {"id": f"r{i}", "ts": START_MS + 20 * i, "session": f"s{i // 200}-{i % 20}", "v": vector}
        for i, vector in enumerate(vectors)
    ]


def votes_of(rows: list[dict[str, Any]]) -> int:
    """What must enter: sessions do not change their partition, so one vote for each of them and block."""
    return len({(row["ts"] // BLOCK_MS, row["session"]) for row in rows})


def summaries(database: Path) -> dict[tuple[str, int], bytes]:
    """The merged summaries of the closed blocks."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        found = connection.execute("select space, block, blob from summaries").fetchall()
    return {(space, block): blob for space, block, blob in found}


def entered(database: Path) -> int:
    return sum(BlockSummary.from_bytes(blob).n for (space, _), blob in summaries(database).items() if space)


def settings_in(folder: Path, data: Path, *, poll: int) -> Settings:
    return Settings.model_validate(
        {
            "database": f"sqlite:///{folder / 'driftd.db'}",
            "references": folder / "references",
            "checkpoint": {"poll_records": poll},
            "models": {
                "orders": {
                    "source": {"kind": "files", "path": f"{data}/*.jsonl"},
                    "record": RECORD,
                    "spaces": SPACES,
                    "reference": {"collect": 1_000},
                }
            },
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of records, and a database with a reference that was built from them."""
    folder = tmp_path_factory.mktemp("thinning")
    (folder / "data").mkdir()
    rows = records(12_000)
    for half in (0, 1):
        text = "".join(json.dumps(row) + "\n" for row in rows[half::2])
        (folder / "data" / f"{half}.jsonl").write_text(text)
    settings = settings_in(folder, folder / "data", poll=1_000)
    (built,) = from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
    assert built.records == 1_000
    return folder


def run(prepared: Path, folder: Path, *, poll: int, crash_after: int) -> tuple[dict[tuple[str, int], bytes], int]:
    """Read everything with workers that each end in the middle, after so many steps; summaries, thinned records."""
    folder.mkdir()
    with closing(sqlite3.connect(prepared / "driftd.db")) as connection:
        connection.execute("vacuum into ?", [str(folder / "driftd.db")])  # a copy with what the write-ahead log holds
    settings = settings_in(folder, prepared / "data", poll=poll)
    store, clock_s, thinned, workers = open_store(settings), 0.0, 0, 0
    step = Step(0, finished=False)
    while not step.finished:
        worker = Worker("orders", settings, store=store, source=build_source("orders", settings.models["orders"]))
        worker.start()
        workers += 1
        for _ in range(crash_after):
            clock_s += 0.4  # so that a checkpoint is written in every fourth step
            step = worker.step(START_MS, clock_s, wait_s=0.0)
            thinned += step.thinned
            if step.finished:
                worker.close_blocks_at_end(START_MS)
                break
        worker.source.close()
    assert store.totals("orders").records == 12_000
    assert (workers > 5) == (crash_after < 1_000)
    store.close()
    with closing(sqlite3.connect(folder / "driftd.db")) as connection:
        assert connection.execute("select count(*) from thinned_keys").fetchone() == (0,)
    return summaries(folder / "driftd.db"), thinned


def test_workers_that_crash_all_the_time_give_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    whole, thinned = run(prepared, tmp_path / "whole", poll=4_096, crash_after=1_000)
    assert entered(tmp_path / "whole" / "driftd.db") == votes_of(records(12_000)) == 12_000 - thinned
    crashed, thinned_again = run(prepared, tmp_path / "crashed", poll=97, crash_after=11)
    assert crashed == whole
    assert thinned_again == thinned, "what is thinned is counted when its checkpoint is written"


def test_a_key_that_all_records_share_is_seen_while_the_baseline_waits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps(row | {"session": "model-7"}) + "\n" for row in records(1_200))
    (tmp_path / "data" / "0.jsonl").write_text(text)
    settings = settings_in(tmp_path, tmp_path / "data", poll=500)
    worker = Worker(
        "orders", settings, store=open_store(settings), source=build_source("orders", settings.models["orders"])
    )
    worker.start()
    worker.step(START_MS, 0.0, wait_s=0.0)
    assert worker.state == "collecting baseline: 1 of 1,000 records, 255 more had no vote: record.key"
    worker.source.close()


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_kill_9_gives_no_session_a_second_vote(kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path) -> None:
    from kafka import KafkaProducer

    name, rows = topic(partitions=2), records(12_000)
    with KafkaProducer(bootstrap_servers=kafka.brokers, linger_ms=5) as producer:
        for i, row in enumerate(rows):
            producer.send(name, json.dumps(row).encode(), partition=i % 2)
        producer.flush(timeout=60)
    source = {"kind": "kafka", "brokers": kafka.brokers, "topic": name, "start": "earliest", "session_timeout_s": 6}
    model = {
        "source": source,
        "record": RECORD,
        "spaces": SPACES,
        "reference": {"collect": 1_000},
        "drift": {"idle": "2s"},
    }
    daemon = Running(tmp_path, {"models": {"orders": model}, "checkpoint": {"records": 700, "poll_records": 270}})
    assert driftd("reference", "build", "-s", "driftd.yaml", cwd=tmp_path).returncode == 0
    daemon.start()
    daemon.wait_for_records(700, at_least=True)
    daemon.kill()
    assert daemon.one("select count(*) from thinned_keys") > 0
    daemon.start()
    daemon.wait_for_records(12_000)
    wait_until(lambda: daemon.one("select count(*) from summary_deltas") == 0, "every block closed by the wall clock")
    wait_until(lambda: "driftd_thinned_records_total{" in daemon.get("/metrics")[1], "the metric")
    daemon.terminate()
    assert entered(tmp_path / "driftd.db") == votes_of(rows)
    assert daemon.one("select count(*) from thinned_keys") == 0
