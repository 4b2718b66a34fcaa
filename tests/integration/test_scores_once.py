"""Scores for other programs over kills, moves and a destination that is down: every record, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from connectors.database.rows import Checkpoint, ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from detectors.errors import StoreUnreachable
from monitor.app import build_scores, build_source, open_store
from monitor.checks import Finding, check_everything
from monitor.settings import Settings, load_settings
from monitor.soak import CHECKPOINT, MODEL, soak_settings
from monitor.soak_records import USUAL, LabelledRecords, labelled_records
from monitor.worker import Step, Worker
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


@pytest.mark.parametrize("seed", range(2))
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
        ("ParquetScores.write:after", 2),  # the transaction is not begun
        ("ParquetScores.publish:before", 2),  # the transaction is committed
        ("Path.replace:after", 1),  # one file of several is in its place
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

    # Nothing is deleted or compacted: what came twice must be seen twice.
    scores_topic = topic(partitions=2, config={"cleanup.policy": "delete", "retention.ms": "-1"})
    name, rows = topic(partitions=2), lines(COUNT)
    with KafkaProducer(bootstrap_servers=kafka.brokers, linger_ms=5) as producer:
        for i, row in enumerate(rows):
            producer.send(name, json.dumps(row).encode(), partition=i % 2)
        producer.flush(timeout=60)
    source = {"kind": "kafka", "brokers": kafka.brokers, "topic": name, "start": "earliest", "session_timeout_s": 2}
    write_settings(tmp_path, model_of(source, {"kind": "kafka", "topic": scores_topic, "vectors": "float32"}))
    # A checkpoint may hold no records; what was sent is one that does.
    assert run_until_killed(tmp_path, "KafkaScores._send:after", 3) == -9
    daemon = Running.with_settings_of(tmp_path)
    before = daemon.counted()
    assert BASELINE <= before < COUNT
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
    assert len(by_key) == COUNT - BASELINE
    for partition in (0, 1):  # the baseline took the first records of each
        first = min(message.offset for message in map(place_of, by_key) if message.partition == partition)
        wanted = {f"{name}/{partition}/{offset}/0".encode() for offset in range(first, COUNT // 2)}
        assert wanted == {key for key in by_key if place_of(key).partition == partition}
    for message in found[:: COUNT // 10]:
        body = json.loads(message.value)
        assert message.partition == body["partition"]
        assert message.timestamp == body["time_ms"] == rows[int(body["id"][1:])]["ts"]
        assert message.headers == [("schema", b"driftd-scores-1")]
        assert body["spaces"]["input"]["score"] > 0


class Place(NamedTuple):
    partition: int
    offset: int


def place_of(key: bytes) -> Place:
    _, partition, offset, _ = key.decode().split("/")
    return Place(int(partition), int(offset))


# --- a destination that is down -----------------------------------------------------------------------------------


class Reading:
    """A worker on a clock that the test turns."""

    def __init__(self, folder: Path, model: dict[str, Any]) -> None:
        self.settings = load_settings(write_settings(folder, model))
        source = build_source("orders", self.settings.models["orders"])
        scores = build_scores("orders", self.settings.models["orders"])
        self.store = open_store(self.settings)
        self.worker = Worker("orders", self.settings, store=self.store, source=source, scores=scores)
        self.worker.start()
        self._clock_s = 0

    def steps(self, count: int) -> list[Step]:
        """So many steps, each a second after the one before."""
        done = []
        for _ in range(count):
            self._clock_s += 1
            done.append(self.worker.step(NOW_MS + 1000 * self._clock_s, float(self._clock_s), wait_s=0.0))
        return done

    def close(self) -> None:
        assert self.worker.scores is not None
        self.worker.scores.close()
        self.worker.source.close()
        self.store.close()

    def check(self) -> Finding:
        """What `driftd check` says of the scores."""
        (found,) = [finding for finding in check_everything(self.settings) if finding.name == "model orders, scores"]
        return found


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Reading]]:
    """``reading(scores)`` starts a worker that reads 2,000 records of a file, the first half for its baseline."""
    made: list[Reading] = []

    def start(scores: dict[str, Any]) -> Reading:
        made.append(Reading(tmp_path, model_of(files(tmp_path), scores)))
        return made[-1]

    yield start
    for one in made:
        one.close()


def files(folder: Path) -> dict[str, Any]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(2_000)))
    return {"kind": "files", "path": str(folder / "data.jsonl")}


def test_scores_that_are_not_required_hold_nothing_up_and_are_counted_as_dropped(
    reading: Callable[[dict[str, Any]], Reading],
) -> None:
    found = reading({"kind": "kafka", "topic": "scores", "brokers": "127.0.0.1:1", "required": False})
    steps = found.steps(14)
    assert steps[-1].finished
    assert found.worker.records == 2_000
    assert (sum(step.scores_dropped for step in steps), sum(step.scores_written for step in steps)) == (1_000, 0)
    assert not found.check().ok
    assert "scores of model orders cannot be sent: No Kafka broker at 127.0.0.1:1" in found.check().detail


def test_required_scores_hold_the_checkpoint_until_they_can_be_written(
    reading: Callable[[dict[str, Any]], Reading], tmp_path: Path
) -> None:
    (tmp_path / "scores").write_text("a file where a folder should be")
    found = reading({"kind": "parquet", "path": str(tmp_path / "scores")})
    steps = found.steps(14)
    assert found.worker.records == BASELINE
    assert not any(step.finished for step in steps)
    assert "cannot be written" in steps[-1].failure
    assert sum(step.records for step in steps) < 4_000, "it rests between two attempts"
    assert found.worker.held == frozenset(), "that nothing is fetched is no reason to hide the lag"
    (tmp_path / "scores").unlink()
    steps = found.steps(14)
    assert steps[-1].finished
    assert sum(step.scores_written for step in steps) == 1_000
    assert [row["id"] for row in rows_in(tmp_path / "scores")] == [f"r{i}" for i in range(BASELINE, 2_000)]
    assert found.check().detail == f"Parquet files in {tmp_path}/scores/model=orders"


def test_files_of_a_transaction_whose_answer_was_lost_are_seen_all_the_same(
    reading: Callable[[dict[str, Any]], Reading], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, times = Store.commit, 0

    def cut_off(store: Store, checkpoint: Checkpoint) -> None:
        nonlocal times
        commit(store, checkpoint)
        times += 1
        if times == 3:
            raise StoreUnreachable("The connection broke.")

    monkeypatch.setattr(Store, "commit", cut_off)
    found = reading({"kind": "parquet", "path": str(tmp_path / "scores")})
    steps = found.steps(14)
    assert [step.failure for step in steps if step.failure] == ["The connection broke."]
    assert steps[-1].finished
    assert [row["id"] for row in rows_in(tmp_path / "scores")] == [f"r{i}" for i in range(BASELINE, 2_000)]


@pytest.mark.kafka
def test_a_topic_that_is_missing_holds_the_checkpoint_until_it_is_made(
    kafka: KafkaServer, topic: Callable[..., str], reading: Callable[[dict[str, Any]], Reading]
) -> None:
    name = f"{topic()}-s"
    found = reading({"kind": "kafka", "topic": name, "brokers": kafka.brokers})
    steps = found.steps(8)
    assert f'no topic "{name}"' in steps[-1].failure
    assert found.worker.records == BASELINE
    kafka.create_topic(name, partitions=1)
    steps = found.steps(14)
    assert steps[-1].finished
    assert len(messages_in(kafka, name)) == sum(step.scores_written for step in steps) == 1_000
