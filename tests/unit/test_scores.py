"""Scores for other programs: what is written of a record, when it is seen, and what becomes of it when it cannot be."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from connectors.database.rows import PartitionState
from connectors.kafka_scores import KafkaScoresSettings, messages
from connectors.parquet_scores import DAY_MS, MOST_DAYS, ParquetScores, ParquetScoresSettings, table_of
from connectors.records import Partition
from connectors.scores import FraudColumns, ScoredRecords, SpaceScores
from detectors.errors import InvalidSettings, SinkError
from monitor.scores import REMEMBER_MS, RETRY_DROPPED_MS, RETRY_MS, Scores
from monitor.settings import load_settings
from tests.unit.test_pipeline import batch_of, pipeline_of, stream
from tests.unit.test_pipeline import reference as reference

START_MS = 1_772_438_400_000  # 2026-03-02, 08:00
ORDERS = Partition("orders", 3)


def scored(n: int = 4, *, first: int = 10, start_ms: int = START_MS, every_ms: int = 1000) -> ScoredRecords:
    """n rows with two spaces; the third is late, the fourth thinned."""
    numbers = np.arange(n)
    vectors = np.linspace(-1, 1, 3 * n, dtype=np.float32).reshape(n, 3)
    spaces = tuple(
        SpaceScores(
            space=name,
            reference=7,
            score=np.round(0.12345 + numbers / 10, 5).astype(np.float32),
            p_value=1 / (2.0 + numbers),
            candidate=numbers == 1,
            nearest=numbers.astype(np.int32),
            vectors=vectors.astype(np.float16),
        )
        for name in ("input", "output")
    )
    return ScoredRecords(
        partition=ORDERS,
        offsets=first + numbers // 2,
        rows=numbers % 2,
        time_ms=start_ms + every_ms * numbers,
        ids=[f"r{first + number}" for number in numbers],
        late=numbers == 2,
        thinned=numbers == 3,
        predictions=["yes", None, "no", "no"] * (n // 4) + ["yes"] * (n % 4),
        confidence=np.where(numbers == 1, np.nan, 0.5),
        segments={"shop": ["a"] * n, "country": ["ü"] * n},
        spaces=spaces,
        fraud=FraudColumns(
            probability=(0.1 + numbers / 7).astype(np.float32),
            p_value=1 / (3.0 + numbers),
            version=np.full(n, 12),
            flood=numbers.astype(np.int32),
        ),
    )


# --- messages -----------------------------------------------------------------------------------------------------


def test_a_message_says_everything_of_its_record_and_is_keyed_by_its_place() -> None:
    found = dict(messages(scored(), "support"))
    assert list(found) == [b"orders/3/10/0", b"orders/3/10/1", b"orders/3/11/0", b"orders/3/11/1"]
    message = json.loads(found[b"orders/3/10/1"])
    vector = message["spaces"]["input"].pop("vector")
    assert message["spaces"]["output"].pop("vector") == vector
    assert np.frombuffer(base64.b64decode(vector), "<f2") == pytest.approx([-0.4546, -0.2727, -0.0909], abs=1e-3)
    space = {"reference": 7, "score": 0.22345, "p_value": 1 / 3, "candidate": True, "nearest": 1}
    assert message == {
        "topic": "orders",
        "partition": 3,
        "offset": 10,
        "row": 1,
        "time_ms": START_MS + 1000,
        "id": "r11",
        "model": "support",
        "late": False,
        "thinned": False,
        "prediction": None,
        "confidence": None,
        "segments": {"shop": "a", "country": "ü"},
        "spaces": {"input": space, "output": space},
        "fraud": {"probability": pytest.approx(0.2428572), "p_value": 0.25, "labels": 12, "flood": 1},
    }
    assert [json.loads(value)["late"] for value in found.values()] == [False, False, True, False]
    assert [json.loads(value)["thinned"] for value in found.values()] == [False, False, False, True]


def test_nothing_is_said_of_fraud_where_it_is_not_scored() -> None:
    (_, value), *_ = messages(replace(scored(), fraud=None), "m")
    assert "fraud" not in json.loads(value)
    assert not [name for name in table_of([replace(scored(), fraud=None)]).column_names if name.startswith("fraud")]


def test_a_probability_in_a_message_is_that_of_the_score_to_the_last_bit() -> None:
    probability = np.random.default_rng(0).random(1_000).astype(np.float32) ** 20
    fraud = FraudColumns(
        probability, probability.astype(np.float64), np.zeros(1_000, np.int64), np.zeros(1_000, np.int32)
    )
    read = [
        json.loads(value)["fraud"]["probability"] for _, value in messages(replace(scored(1_000), fraud=fraud), "m")
    ]
    assert np.array_equal(np.array(read, np.float32), probability)


def test_a_score_in_a_message_is_the_multiple_that_it_is_in_short() -> None:
    chance = np.random.default_rng(0)
    score = (np.rint(chance.exponential(3e5, 5000)) * np.float32(1e-5)).astype(np.float32)
    whole = scored(5000)
    one = SpaceScores("input", 1, score, np.ones(5000), np.zeros(5000, bool), np.zeros(5000, np.int32), None)
    records = ScoredRecords(**{name: getattr(whole, name) for name in whole.__slots__} | {"spaces": (one,)})
    read = [json.loads(value)["spaces"]["input"]["score"] for _, value in messages(records, "m")]
    assert np.array_equal(np.rint(np.array(read) * 1e5), np.rint(score.astype(np.float64) * 1e5))
    assert np.array(read) == pytest.approx(score, rel=2**-23)
    assert max(len(str(value)) for value in read) < 12


def test_a_message_does_not_depend_on_the_cut() -> None:
    whole = list(messages(scored(8), "m"))
    assert [
        pair for first in range(0, 8, 3) for pair in messages(scored(8), "m", first=first, after=min(first + 3, 8))
    ] == whole


def test_texts_that_no_unicode_has_are_written_with_replacements() -> None:
    whole = scored()
    broken = {"ids": ["a\ud800"] * 4, "segments": {"shop": ["\udfff"] * 4}, "predictions": ["\ud800", None, "b", "c"]}
    records = ScoredRecords(**{name: getattr(whole, name) for name in whole.__slots__} | broken)
    (_, value), *_ = messages(records, "m")
    message = json.loads(value)
    assert (message["id"], message["prediction"], message["segments"]) == ("a?", "?", {"shop": "?"})
    rows = table_of([records]).to_pylist()
    assert (rows[0]["id"], rows[0]["prediction"], rows[0]["segments"]) == ("a?", "?", [("shop", "?")])


# --- files --------------------------------------------------------------------------------------------------------


def seen(folder: Path) -> list[str]:
    """What a reader finds."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("model=*/date=*/*.parquet"))


def places(folder: Path) -> list[tuple[int, int, str]]:
    rows = [row for name in seen(folder) for row in pq.ParquetFile(folder / name).read().to_pylist()]
    return sorted((row["offset"], row["row"], row["space"]) for row in rows)


def test_a_file_has_a_row_for_each_record_and_space(tmp_path: Path) -> None:
    writer = ParquetScores(tmp_path, model="m", token="t")
    writer.publish(writer.write([scored()], 0))
    (name,) = seen(tmp_path)
    assert name.startswith("model=m/date=2026-03-02/orders-3-10-t")
    table = pq.ParquetFile(tmp_path / name).read()
    assert table.num_rows == 8
    row = table.to_pylist()[1]
    assert row["time"].isoformat() == "2026-03-02T08:00:01+00:00"
    assert row["segments"] == [("shop", "a"), ("country", "ü")]
    assert (row["confidence"], row["prediction"], row["candidate"], row["reference"]) == (None, None, True, 7)
    assert np.float32(row["score"]) == np.float32(0.22345)
    fraud = row["fraud_probability"], row["fraud_p_value"], row["fraud_labels"], row["fraud_flood"]
    assert fraud == (pytest.approx(0.2428572), 0.25, 12, 1)
    assert row["vector"] == pytest.approx([-0.4546, -0.2727, -0.0909], abs=1e-3)


def test_a_file_is_seen_when_its_transaction_was_committed_and_not_before(tmp_path: Path) -> None:
    writer, other = ParquetScores(tmp_path, model="m", token="a"), ParquetScores(tmp_path, model="m", token="b")
    receipt = writer.write([scored()], 0)
    assert seen(tmp_path) == []
    assert ds.dataset(tmp_path, format="parquet", partitioning="hive").count_rows() == 0
    other.publish(receipt)  # the next owner of the partition
    first = seen(tmp_path)
    assert len(first) == 1
    writer.publish(receipt)
    assert seen(tmp_path) == first
    lost = writer.write([scored(first=12)], 0)
    writer.discard(lost)
    other.publish(lost)
    assert seen(tmp_path) == first
    assert list((tmp_path / "_pending" / "m").iterdir()) == []


def test_each_day_of_event_time_has_its_own_file_within_bounds(tmp_path: Path) -> None:
    writer = ParquetScores(tmp_path, model="m", token="t")
    writer.publish(writer.write([scored(), scored(4, first=20, start_ms=START_MS + DAY_MS - 1000)], 0))
    days = [name.split("/")[1] for name in seen(tmp_path)]
    assert days == ["date=2026-03-02", "date=2026-03-03"]
    assert len(places(tmp_path)) == 16
    wild = scored(2 * MOST_DAYS, first=100, every_ms=-1000 * DAY_MS)
    writer.publish(writer.write([wild], 0))
    assert len(seen(tmp_path)) == 3, "one file, where there would be one for each record"
    assert len(places(tmp_path)) == len(set(places(tmp_path))) == 16 + 4 * MOST_DAYS


def test_what_a_crash_left_behind_goes_after_a_week_unless_it_was_committed(tmp_path: Path) -> None:
    writer = ParquetScores(tmp_path, model="m", token="t")
    kept, lost = writer.write([scored()], 0), writer.write([scored(first=12)], 0)
    pending = tmp_path / "_pending" / "m"
    now_ms = int(pending.joinpath(lost).stat().st_mtime * 1000)
    writer.sweep({kept}, now_ms + 6 * DAY_MS)
    assert {path.name for path in pending.iterdir()} == {kept, lost}
    writer.sweep({kept}, now_ms + 8 * DAY_MS)
    assert {path.name for path in pending.iterdir()} == {kept}


def test_a_folder_that_cannot_be_made_is_said_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = ParquetScoresSettings(kind="parquet", path=tmp_path / "file").build(model="m", client_id="")
    for action in (writer.check, lambda: writer.write([scored()], 0)):
        with pytest.raises(SinkError, match=r"scores of model m .*models\.m\.scores\.path") as refused:
            action()
        assert refused.value.retryable
    good = ParquetScores(tmp_path / "there", model="m", token="t")
    assert good.check() == f"Parquet files in {tmp_path}/there/model=m"
    assert seen(tmp_path / "there") == []


# --- the worker's side --------------------------------------------------------------------------------------------


class Noted:
    """A writer that remembers what it is told, and refuses as long as it should."""

    def __init__(self) -> None:
        self.refuses = False
        self.said: list[tuple[str, Any]] = []

    def check(self) -> str:
        return "noted"

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        if self.refuses:
            raise SinkError("It is down.", retryable=True)
        self.said.append(("write", sum(map(len, records))))
        return f"receipt-{len(self.said)}"

    def publish(self, receipt: str) -> None:
        if self.refuses:
            raise SinkError("It is down.", retryable=True)
        self.said.append(("publish", receipt))

    def discard(self, receipt: str) -> None:
        self.said.append(("discard", receipt))

    def sweep(self, committed: Collection[str], now_ms: int) -> None:
        self.said.append(("sweep", set(committed)))

    def close(self) -> None:
        pass


def test_the_pipeline_hands_over_every_record_that_it_scored(reference: Any) -> None:
    scores = Scores("orders", Noted(), vectors="float32")
    pipeline = pipeline_of(reference, scores=scores)
    pipeline.process(batch_of(stream(600)), None)
    checkpoint = pipeline.checkpoint()
    (records,) = scores.pending
    dead = {letter.offset for letter in checkpoint.dead_letters}
    assert records.offsets.tolist() == [offset for offset in range(600) if offset not in dead]
    assert int(records.late.sum()) == checkpoint.advances[0].late > 0
    assert not records.thinned.any()
    (space,) = records.spaces
    assert (space.space, space.reference) == ("input", 1)
    kept = {record.offset: record for record in checkpoint.kept}
    for index, offset in enumerate(records.offsets.tolist()):
        if offset in kept:
            assert float(space.score[index]) == kept[offset].score
            assert float(space.p_value[index]) == kept[offset].p_value
            assert bool(space.candidate[index]) == (kept[offset].reason == "outlier")
    assert space.vectors is not None
    assert space.vectors.shape == (len(records), 6)
    assert space.vectors.dtype == np.float32
    pipeline.written()
    assert scores.pending == []


def test_required_scores_stop_the_checkpoint_and_are_tried_again_after_a_while() -> None:
    writer = Noted()
    writer.refuses = True
    scores = Scores("orders", writer)
    assert not scores.waits(0)
    with pytest.raises(SinkError):
        scores.write(1_000)
    assert (scores.failure(1_000 + RETRY_MS), scores.written, scores.dropped) == ("It is down.", 0, 0)
    assert scores.failure(1_000 + REMEMBER_MS) == "", "as where its partitions went to another worker"
    assert scores.waits(1_000 + RETRY_MS - 1)
    assert not scores.waits(1_000 + RETRY_MS)
    assert not scores.waits(0), "a clock that was set back"
    writer.refuses = False
    assert scores.write(1_000 + RETRY_MS) == "receipt-1"
    assert not scores.waits(1_000 + RETRY_MS)
    assert scores.failure(1_000 + RETRY_MS) == ""


def test_scores_that_are_not_required_are_dropped_and_counted(reference: Any) -> None:
    writer = Noted()
    writer.refuses = True
    scores = Scores("orders", writer, required=False)
    pipeline = pipeline_of(reference, scores=scores)
    pipeline.process(batch_of(stream(200)), None)
    rows = len(scores.pending[0])
    assert scores.write(1_000) == ""
    assert (scores.written, scores.dropped) == (0, rows)
    writer.refuses = False
    assert scores.write(1_000 + RETRY_DROPPED_MS - 1) == "", "an attempt may take long, so it is not made at once"
    assert scores.dropped == rows
    assert scores.write(1_000 + RETRY_DROPPED_MS) == "receipt-1"
    assert (scores.written, scores.dropped) == (rows, 0)
    assert not scores.waits(1_000)


def test_what_was_committed_is_published_by_whoever_comes_next() -> None:
    writer = Noted()
    scores = Scores("orders", writer)
    states = [
        PartitionState(Partition("t", number), 5, 0, 5, 0, 0, scores=("", "b", "b")[number]) for number in range(3)
    ]
    scores.settle(states, 0)
    assert writer.said == [("publish", "b"), ("sweep", {"b"})]
    writer.refuses = True
    with pytest.raises(SinkError):
        scores.settle(states, 0)


# --- settings -----------------------------------------------------------------------------------------------------

MODEL = """
  {name}:
    source: {source}
    record: {{codec: raw}}
    spaces: {{input: {{embedder: {{kind: vector, field: body, encoding: bytes}}}}}}
    scores: {scores}
"""
KAFKA = "{kind: kafka, brokers: 'localhost:9092', topic: orders}"
FILES = "{kind: files, path: '*.jsonl'}"


def settings_of(folder: Path, *models: tuple[str, str]) -> Any:
    path = folder / "driftd.yaml"
    texts = [MODEL.format(name=f"m{n}", source=source, scores=scores) for n, (source, scores) in enumerate(models)]
    path.write_text("models:" + "".join(texts))
    return load_settings(path)


@pytest.mark.parametrize(
    ("source", "scores", "said"),
    [
        (FILES, "{kind: kafka, topic: s}", "scores needs brokers"),
        (KAFKA, "{kind: kafka, topic: orders}", "scores.topic is the topic that is read"),
        (KAFKA, "{kind: kafka}", "scores.topic: is missing"),
        (KAFKA, "{kind: kafka, topic: s, brokers: 'a:b'}", "expected host:port"),
        (KAFKA, "{kind: parquet}", "scores.path: is missing"),
        (KAFKA, "{kind: parquet, path: x, vectors: float64}", "scores.vectors"),
        (KAFKA, "{kind: paquet, path: x}", "did you mean parquet"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, source: str, scores: str, said: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        settings_of(tmp_path, (source, scores))
    assert said.lower() in " ".join(refused.value.problems).lower()


def test_two_models_do_not_share_a_topic_of_scores(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as refused:
        settings_of(tmp_path, (KAFKA, "{kind: kafka, topic: s}"), (KAFKA, "{kind: kafka, topic: s}"))
    assert "Give each model a topic of its own" in refused.value.problems[0]


def test_scores_go_to_the_brokers_of_the_source_with_its_rights_unless_others_are_named(tmp_path: Path) -> None:
    security = "{protocol: SASL_PLAINTEXT, username: u, password: p}"
    secured = f"{{kind: kafka, brokers: 'a:1,b:2', topic: orders, security: {security}}}"
    settings = settings_of(
        tmp_path, (secured, "{kind: kafka, topic: s}"), (secured, "{kind: kafka, topic: r, brokers: 'c:3'}")
    )
    beside, elsewhere = (
        model.scores.beside(model.source)
        for model in settings.models.values()
        if isinstance(model.scores, KafkaScoresSettings)
    )
    assert beside.brokers == ["a:1", "b:2"]
    assert beside.security.username == "u"
    assert (elsewhere.brokers, elsewhere.security) == ("c:3", None)
