"""Scores for other programs over kills, moves and a destination that is down: every record, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from monitor.app import build_scores, build_source, open_store
from monitor.checks import check_everything
from monitor.settings import Settings, load_settings
from monitor.soak import CHECKPOINT, MODEL, soak_settings
from monitor.soak_records import USUAL, LabelledRecords, labelled_records
from monitor.worker import Worker
from tests.acceptance.command import Running, driftd, wait_until
from tests.killed_daemon import run_until_killed
from tests.servers.kafka import KafkaServer
from tests.soak.harness import START_MS
from tests.soak.simulation import TOPIC, Played, batches_of, reference_of, simulate

Row = dict[str, Any]
BASELINE = 1_000
COUNT = 4_000
NOW_MS = 1_800_000_000_000


def rows_in(folder: Path) -> list[Row]:
    """What a reader finds in the files of scores, by position."""
    rows = [row for path in folder.glob("model=*/date=*/*.parquet") for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(rows, key=lambda row: (row["topic"], row["partition"], row["offset"], row["row"], row["space"]))


def places(rows: list[Row]) -> list[tuple[str, int, int]]:
    return [(row["topic"], row["partition"], row["offset"]) for row in rows]


# --- every interleaving that a seed can make ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> LabelledRecords:
    return labelled_records(2_000, partitions=4, seed=5, start_ms=START_MS, per_block=50)


@pytest.fixture(scope="module")
def log(records: LabelledRecords) -> dict[Partition, RawBatch]:
    return batches_of(records)


@pytest.fixture(scope="module")
def reference_row(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRow:
    folder = tmp_path_factory.mktemp("played")
    return reference_of(played_settings(folder), folder)


def played_settings(folder: Path) -> Settings:
    checkpoint = {**CHECKPOINT, "every": 0.3, "records": 200}
    source = {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": TOPIC}
    content = soak_settings(folder, source, records=1_000, checkpoint=checkpoint, sinks={})
    content["models"][MODEL]["scores"] = {"kind": "parquet", "path": str(folder / "scores"), "vectors": "float16"}
    return Settings(**content)


@pytest.fixture(scope="module")
def play(
    log: dict[Partition, RawBatch], reference_row: ReferenceRow, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[list[Row], Played]]:
    def run(**how: float) -> tuple[list[Row], Played]:
        folder = tmp_path_factory.mktemp("play")
        settings = played_settings(folder)
        with Store.open(settings.database) as store:
            store.migrate()
            store.add_reference(reference_row)
            played = simulate(settings, log, **how)  # type: ignore[arg-type]
        assert list((folder / "scores" / "_pending" / MODEL).iterdir()) == []
        return rows_in(folder / "scores"), played

    return run


@pytest.fixture(scope="module")
def undisturbed(play: Callable[..., tuple[list[Row], Played]]) -> list[Row]:
    return play(workers=1, poll_records=4_096, seed=0, crashes=0.0, moves=0.0)[0]


def test_the_files_hold_every_record_that_could_be_scored(undisturbed: list[Row], records: LabelledRecords) -> None:
    good = records.label <= USUAL + 1  # usual ones and outliers
    wanted = sorted(zip(records.partition[good].tolist(), records.offset[good].tolist(), strict=True))
    assert [(partition, offset) for _, partition, offset in places(undisturbed)] == wanted
    assert any(row["late"] for row in undisturbed)
    assert any(row["thinned"] for row in undisturbed)
    assert any(row["candidate"] for row in undisturbed)


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_crash_and_swap_partitions_write_every_record_to_one_file(
    seed: int, play: Callable[..., tuple[list[Row], Played]], undisturbed: list[Row]
) -> None:
    rows, played = play(workers=3, poll_records=48, seed=seed, crashes=0.05, moves=0.15, hears=0.3)
    assert played.refused > 0, "an owner of the past tried to write"
    assert rows == undisturbed


# --- kills --------------------------------------------------------------------------------------------------------


def lines(count: int) -> list[Row]:
    """Records 400 s apart, so that each checkpoint falls on several days."""
    vectors = np.random.default_rng(1).normal(size=(count, 8)).round(4).tolist()
    start_ms = 1_772_438_400_000
    return [{"id": f"r{i}", "ts": start_ms + 400_000 * i, "v": vector} for i, vector in enumerate(vectors)]


def model_of(source: dict[str, Any], scores: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "source": source,
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"block": "10m", "lateness": "10m", "season": "none"},
        "scores": scores,
        **more,
    }


def write_settings(folder: Path, model: dict[str, Any]) -> Path:
    content = {
        "database": f"sqlite:///{folder / 'driftd.db'}",
        "references": str(folder / "references"),
        "http": {"bind": "127.0.0.1:0"},
        "checkpoint": {"records": 400, "poll_records": 200},
        "models": {"orders": model},
    }
    path = folder / "driftd.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.timeout(180)
def test_a_kill_at_any_moment_leaves_every_record_in_exactly_one_file(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(COUNT)))
    write_settings(tmp_path, model_of({"kind": "files", "path": "data.jsonl"}, {"kind": "parquet", "path": "scores"}))
    for moment, nth in (
        ("ParquetScores.write:before", 2),
        ("ParquetScores.write:after", 1),
        ("ParquetScores.publish:before", 2),  # the transaction is committed
        ("Path.replace:after", 1),  # one file of several is in its place
        ("ParquetScores.publish:after", 1),
    ):
        assert run_until_killed(tmp_path, moment, nth) == -9, moment
        rows = rows_in(tmp_path / "scores")
        assert len(set(places(rows))) == len(rows), moment
        pending = [path for path in (tmp_path / "scores" / "_pending" / "orders").iterdir() if any(path.iterdir())]
        shown = {path.stem for path in (tmp_path / "scores").glob("model=orders/*/*.parquet")}
        assert (moment == "Path.replace:after") == bool(shown & {path.name for path in pending}), moment
    done = driftd("run", "-s", "driftd.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_in(tmp_path / "scores")
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(BASELINE, COUNT)]
    pending = list((tmp_path / "scores" / "_pending" / "orders").iterdir())
    assert len(pending) == 1, "of the transaction that never was; it goes after a week"
    days = {path.parent.name for path in (tmp_path / "scores").glob("model=orders/date=*/*.parquet")}
    assert days == {f"date={row['time'].date()}" for row in rows}
    assert len(days) > 10


def messages_in(server: KafkaServer, topic: str) -> list[Any]:
    """Every message that is in the topic now."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=server.brokers, enable_auto_commit=False, group_id=None)
    try:
        tps = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        found: list[Any] = []
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for batch in consumer.poll(timeout_ms=1000).values():
                found += batch
        return found
    finally:
        consumer.close()


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_no_message_is_missing_after_kills_and_what_comes_again_is_the_same_bytes_under_the_same_key(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    from kafka import KafkaProducer

    name, rows = topic(partitions=2), lines(COUNT)
    scores_topic = f"{name}-scores"
    with KafkaProducer(bootstrap_servers=kafka.brokers, linger_ms=5) as producer:
        for i, row in enumerate(rows):
            producer.send(name, json.dumps(row).encode(), partition=i % 2)
        producer.flush(timeout=60)
    source = {"kind": "kafka", "brokers": kafka.brokers, "topic": name, "start": "earliest", "session_timeout_s": 6}
    scores = {"kind": "kafka", "topic": scores_topic, "vectors": "float32"}
    write_settings(tmp_path, model_of(source, scores))
    assert driftd("reference", "build", "-s", "driftd.yaml", cwd=tmp_path).returncode == 0
    daemon = Running.with_settings_of(tmp_path)
    daemon.start()
    try:
        # There is no such topic yet: nothing is counted, and /readyz says what is waited for.
        wait_until(lambda: f'no topic "{scores_topic}"' in str(daemon.ready()), "the reason in /readyz")
        assert daemon.counted() == 0
        kafka.create_topic(scores_topic, partitions=2, config={"cleanup.policy": "compact"})
        daemon.wait_for_records(400, at_least=True)
    finally:
        daemon.kill()
    before = daemon.counted()
    assert before < COUNT
    assert run_until_killed(tmp_path, "KafkaScores.write:after", 2) == -9
    daemon.start()
    try:
        daemon.wait_for_records(COUNT)
        wait_until(lambda: "driftd_scores_written_total{" in daemon.get("/metrics")[1], "the metric")
        daemon.terminate()
    finally:
        daemon.kill()
    found = messages_in(kafka, scores_topic)
    by_key: dict[bytes, set[bytes]] = {}
    for message in found:
        by_key.setdefault(message.key, set()).add(message.value)
    assert len(found) > len(by_key), "some came again"
    assert {len(values) for values in by_key.values()} == {1}
    assert set(by_key) == {f"{name}/{i % 2}/{i // 2}/0".encode() for i in range(COUNT)}
    for message in found[:: COUNT // 10]:
        body = json.loads(message.value)
        assert message.partition == body["partition"]
        assert message.timestamp == body["time_ms"] == rows[int(body["id"][1:])]["ts"]
        assert message.headers == [("schema", b"driftd-scores-1")]
        assert body["spaces"]["input"]["score"] > 0


# --- a destination that is down -----------------------------------------------------------------------------------


def read_all(folder: Path, model: dict[str, Any], *, steps: int) -> tuple[Worker, list[Any]]:
    settings = load_settings(write_settings(folder, model))
    worker = Worker(
        "orders",
        settings,
        store=open_store(settings),
        source=build_source("orders", settings.models["orders"]),
        scores=build_scores("orders", settings.models["orders"]),
    )
    worker.start()
    done = [worker.step(NOW_MS + 1000 * number, float(number), wait_s=0.0) for number in range(steps)]
    worker.source.close()
    assert worker.scores is not None
    worker.scores.close()
    return worker, done


def files(folder: Path) -> dict[str, Any]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(2_000)))
    return {"kind": "files", "path": str(folder / "data.jsonl")}


def test_scores_that_are_not_required_hold_nothing_up_and_are_counted_as_dropped(tmp_path: Path) -> None:
    scores = {"kind": "kafka", "topic": "scores", "brokers": "127.0.0.1:1", "required": False}
    worker, steps = read_all(tmp_path, model_of(files(tmp_path), scores), steps=14)
    assert steps[-1].finished
    assert worker.records == 2_000
    assert (sum(step.scores_dropped for step in steps), sum(step.scores_written for step in steps)) == (1_000, 0)
    findings = {finding.name: finding for finding in check_everything(worker._settings)}
    assert not findings["model orders, scores"].ok
    assert (
        "scores of model orders cannot be sent: No Kafka broker at 127.0.0.1:1"
        in findings["model orders, scores"].detail
    )


def test_required_scores_hold_the_checkpoint_until_they_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("a file where a folder should be")
    model = model_of(files(tmp_path), {"kind": "parquet", "path": str(tmp_path / "scores")})
    worker, steps = read_all(tmp_path, model, steps=14)
    assert worker.records == BASELINE
    assert not any(step.finished for step in steps)
    assert "cannot be written" in steps[-1].failure
    assert sum(step.records for step in steps) < 4_000, "it rests between two attempts"
    (tmp_path / "scores").unlink()
    worker, steps = read_all(tmp_path, model, steps=10)
    assert steps[-1].finished
    assert sum(step.scores_written for step in steps) == 1_000
    assert [row["id"] for row in rows_in(tmp_path / "scores")] == [f"r{i}" for i in range(BASELINE, 2_000)]
    findings = {finding.name: finding for finding in check_everything(worker._settings)}
    assert findings["model orders, scores"].detail == f"Parquet files in {tmp_path}/scores/model=orders"
