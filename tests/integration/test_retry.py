"""Dead letters sent again: afterwards all is as if their records had been good from the beginning."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import KnownAnswer
from connectors.database.store import Store
from detectors.errors import InvalidInput
from detectors.summary import BlockSummary
from monitor.answers import RememberedAnswers
from monitor.app import build_source, open_store
from monitor.references import from_source
from monitor.retry import Retry, RetryResult
from monitor.settings import Settings
from monitor.worker import Worker
from tests.acceptance.command import Running, driftd, wait_until
from tests.servers.kafka import KafkaServer
from tests.soak.fingerprint import fingerprint, first_difference

START_MS = 1_772_438_400_000
RECORDS, BASELINE = 6_000, 1_000
RECORD = {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "segments": {"shop": "/shop"}, "prediction": "/label"}
STRICT = RECORD | {"max_bytes": 300}


def records(count: int = RECORDS) -> list[dict[str, Any]]:
    """One record every 20 ms. After the baseline, one in a hundred is long, and some of those strange or late."""
    random = np.random.default_rng(3)
    vectors = random.normal(size=(count, 8)).round(4)
    vectors[BASELINE::200] += 9.0
    return [
        {
            "id": f"r{i}",
            "ts": START_MS + 20 * i - (25_000 if i > 2 * BASELINE and i % 300 == 0 else 0),
            "shop": "ab"[i % 2],
            "label": ("refund", "login")[i % 3 == 0],
            "v": vectors[i].tolist(),
            "note": "x" * 400 if i >= BASELINE and i % 100 == 0 else "",
        }
        for i in range(count)
    ]


def settings_in(folder: Path, source: dict[str, Any], record: dict[str, Any], **drift: Any) -> Settings:
    return Settings.model_validate(
        {
            "database": f"sqlite:///{folder / 'driftd.db'}",
            "references": folder / "references",
            "checkpoint": {"poll_records": 700},
            "models": {
                "orders": {
                    "source": source,
                    "record": record,
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
                    "reference": {"collect": BASELINE},
                    "drift": {"lateness": "1h", **drift},
                    "outliers": {"sample": 0.05},
                    "performance": {"remember": 1.0},
                }
            },
        }
    )


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The records in a file; the source that reads them."""
    (folder / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "files", "path": str(folder / "orders.jsonl")}


def read_all(settings: Settings, store: Store, *, close: bool = False) -> None:
    """Take in what the source holds, as `driftd run` does; with ``close``, fold every block."""
    worker = Worker("orders", settings, store=store, source=build_source("orders", settings.models["orders"]))
    worker.start()
    clock_s = 0.0
    while not worker.step(START_MS, clock_s, wait_s=0.0).finished:
        clock_s += 0.1
    if close:
        worker.close_blocks_at_end(START_MS)
    worker.source.close()


def retry(settings: Settings, store: Store, **how: Any) -> RetryResult:
    source = build_source("orders", settings.models["orders"])
    try:
        return Retry("orders", settings, store=store, source=source).run(START_MS, **how)
    finally:
        source.close()


def remembered(url: str) -> dict[int, KnownAnswer]:
    """What is remembered of the model's answers, by hash of the record's id."""
    with Store.open(url) as store:
        rows = [RememberedAnswers(row) for row in store.answers([n for n, _, _ in store.answers_numbers("orders")])]
    return {
        key: replace(row.record(place), confidence=0.0)  # which no record says: NaN is not equal to itself
        for row in rows
        for place, key in enumerate(row.hashes.tolist())
    }


def test_after_a_retry_every_byte_is_as_if_the_records_had_been_good(tmp_path: Path) -> None:
    source = write(tmp_path, records())
    expected, mended = tmp_path / "expected", tmp_path / "mended"
    for folder in (expected, mended):
        folder.mkdir()
        settings = settings_in(folder, source, RECORD if folder == expected else STRICT)
        with open_store(settings) as store:
            from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
            read_all(settings, store)
            if folder == mended:
                assert store.dead_letter_counts("orders") == {"too_large": 50}
                settings = settings_in(folder, source, RECORD)
                found = retry(settings, store)
                assert (found.letters, found.mended, found.late, found.still) == (50, 50, 0, {})
                assert retry(settings, store) == RetryResult("orders")
            read_all(settings, store, close=True)
            totals = store.totals("orders")
            assert (totals.records, totals.dead, totals.late) == (RECORDS, 0, 0)
    urls = [f"sqlite:///{folder / 'driftd.db'}" for folder in (expected, mended)]
    prints = [fingerprint(url) for url in urls]
    assert len(prints[0]["kept"]) > 250 and prints[0]["readings"]
    assert first_difference(*prints) == ""
    answers = [remembered(url) for url in urls]
    assert len(answers[0]) == RECORDS and answers[0] == answers[1]


def test_records_of_closed_blocks_are_late_and_those_still_bad_say_why(tmp_path: Path) -> None:
    rows = records()
    rows[1_500] |= {"note": "x" * 400, "v": [0.0] * 8}
    rows[1_501] |= {"note": "x" * 2_000}
    source = write(tmp_path, rows)
    settings = settings_in(tmp_path, source, STRICT)
    with open_store(settings) as store:
        from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
        read_all(settings, store, close=True)
        before = fingerprint(settings.database)
        settings = settings_in(tmp_path, source, RECORD | {"max_bytes": 1_000})
        asked = retry(settings, store, dry_run=True)
        assert (asked.letters, asked.mended, asked.still) == (51, 49, {"zero_vector": 1, "too_large": 1})
        assert first_difference(before, fingerprint(settings.database)) == "", "a dry run writes nothing"

        found = retry(settings, store)
        assert (found.letters, found.mended, found.late, found.gone) == (51, 49, 49, 0)
        assert found.still == {"zero_vector": 1, "too_large": 1}
        [state] = store.partition_states("orders")
        assert (state.records, state.dead, state.closed_late) == (RECORDS, 2, 49)
        assert store.dead_letter_counts("orders") == {"too_large": 1, "zero_vector": 1}
        letters = {row.letter.reason: row.letter.detail for row in store.dead_letter_rows("orders")}
        assert letters["too_large"].endswith("max_bytes is 1000.")
        after = fingerprint(settings.database)
        for table in ("summaries", "readings", "kept", "fold_states"):
            assert after[table] == before[table], table
        read_all(settings, store, close=True)
        assert store.partition_states("orders")[0].closed_late == 49, "no fold counts them again"


def test_letters_can_be_chosen_by_reason_and_number(tmp_path: Path) -> None:
    rows = records()
    rows[1_701] |= {"ts": "soon"}
    source = write(tmp_path, rows)
    settings = settings_in(tmp_path, source, STRICT)
    with open_store(settings) as store:
        from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
        read_all(settings, store)
        settings = settings_in(tmp_path, source, RECORD)
        assert retry(settings, store, reason="bad_time").still == {"bad_time": 1}
        number = store.dead_letter_rows("orders", reason="too_large")[3].id
        assert retry(settings, store, number=number).mended == 1
        assert store.dead_letter_counts("orders") == {"bad_time": 1, "too_large": 49}
        assert retry(settings, store, reason="too_large").mended == 49


def test_a_record_that_is_gone_says_so_and_its_letter_stays(tmp_path: Path) -> None:
    source = write(tmp_path, records())
    settings = settings_in(tmp_path, source, STRICT)
    with open_store(settings) as store:
        from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
        read_all(settings, store)
        (tmp_path / "orders.jsonl").unlink()
        (tmp_path / "others.jsonl").write_text("")
        settings = settings_in(tmp_path, {"kind": "files", "path": f"{tmp_path}/*.jsonl"}, RECORD)
        found = retry(settings, store)
        assert (found.letters, found.mended, found.gone) == (50, 0, 50)
        assert store.dead_letter_counts("orders") == {"too_large": 50}


def test_without_a_reference_nothing_can_be_scored(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, write(tmp_path, records(10)), RECORD)
    with open_store(settings) as store, pytest.raises(InvalidInput, match="no reference for: input"):
        retry(settings, store)


def test_rows_of_a_body_are_retried_one_by_one(tmp_path: Path) -> None:
    """A body of four rows: one row of it is bad, or all of it, until the settings are mended."""
    rows = records(3_000)

    def body(first: int, tensors: list[list[float]]) -> dict[str, Any]:
        n = len(tensors)
        inputs = [
            {"name": "v", "shape": [n, 8], "datatype": "FP32", "data": tensors},
            {"name": "ts", "shape": [n], "datatype": "INT64", "data": [START_MS + 20 * (first + i) for i in range(n)]},
        ]
        return {"id": f"b{first}", "inputs": inputs, "note": "x" * 2_000 if first == 2_000 else ""}

    bodies = [body(i, [row["v"] for row in rows[i : i + 4]]) for i in range(0, 3_000, 4)]
    bodies[600]["inputs"][1]["data"][2] = START_MS - 11 * 365 * 86_400_000  # of 2,402: too far back
    source = write(tmp_path, bodies)
    record = {"format": "v2", "id": "/id", "time": {"path": "/inputs/ts", "unit": "ms"}}

    def with_record(more: dict[str, Any]) -> Settings:
        settings = settings_in(tmp_path, source, record | more)
        model = settings.models["orders"].model_dump() | {"record": record | more}
        model["spaces"]["input"]["embedder"]["field"] = "/inputs/v"
        return Settings.model_validate(settings.model_dump() | {"models": {"orders": model}})

    settings = with_record({"max_bytes": 1_500})
    with open_store(settings) as store:
        from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
        read_all(settings, store)
        assert store.dead_letter_counts("orders") == {"too_large": 1, "time_past": 1}
        assert [row.letter.row for row in store.dead_letter_rows("orders")] == [-1, 2]
        [state] = store.partition_states("orders")
        assert (state.records, state.dead) == (2_997, 2)
        settings = with_record({"max_past_days": 5_000})
        found = retry(settings, store)
        assert (found.letters, found.mended, found.still, found.gone) == (2, 2, {}, 0)
        [state] = store.partition_states("orders")
        assert (state.records, state.dead, state.late + state.closed_late) == (3_000, 0, 0)
        read_all(settings, store, close=True)
        deltas = store.summaries("orders", "input", segment="")
        assert sum(BlockSummary.from_bytes(delta.blob).n for delta in deltas) == 3_000


def test_a_topic_is_read_again_in_the_format_that_it_was_pinned_to(tmp_path: Path) -> None:
    """A record that would do by itself, as plain JSON, in a topic of bodies."""
    bodies: list[dict[str, Any]] = [
        {"inputs": [{"name": "v", "shape": [1, 8], "datatype": "FP32", "data": row["v"]}]} for row in records(2_000)
    ]
    bodies.insert(1_500, {"inputs": {"v": records(1)[0]["v"]}})
    source = write(tmp_path, bodies) | {"time": {"start": "2026-03-02T08:00:00Z", "interval_ms": 20}}
    settings = settings_in(tmp_path, source, {"format": "auto"})
    model = settings.models["orders"].model_dump()
    model["spaces"]["input"]["embedder"]["field"] = "/inputs/v"
    settings = Settings.model_validate(settings.model_dump() | {"models": {"orders": model}})
    with open_store(settings) as store:
        read_all(settings, store)
        counts = store.dead_letter_counts("orders")
        assert sum(counts.values()) == 1
        found = retry(settings, store)
        assert (found.letters, found.mended, found.still) == (1, 0, counts)


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_a_retry_beside_the_daemon_counts_every_record_once(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    from kafka import KafkaProducer

    name, rows = topic(partitions=2), records(4_000)
    source = {"kind": "kafka", "brokers": kafka.brokers, "topic": name, "start": "earliest", "session_timeout_s": 6}

    def produce(some: Sequence[dict[str, Any]]) -> None:
        with KafkaProducer(bootstrap_servers=kafka.brokers, linger_ms=5) as producer:
            for i, row in enumerate(some):
                producer.send(name, json.dumps(row).encode(), partition=i % 2)
            producer.flush(timeout=60)

    model = {
        "source": source,
        "record": STRICT,
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"lateness": "1h", "idle": "1h", "wait": "2h"},
    }
    running = Running(tmp_path, {"models": {"orders": model}})
    produce(rows[:3_000])
    running.start()
    try:
        running.wait_for_records(3_000)
        bad = running.one("select count(*) from dead_letters")
        assert bad >= 20
        (tmp_path / "mended.yaml").write_text(
            (tmp_path / "driftd.yaml").read_text().replace("max_bytes: 300", "max_bytes: 3000")
        )
        refused = driftd("deadletters", "retry", "-s", "mended.yaml", cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "") and "--dry-run" in refused.stderr
        produce(rows[3_000:])
        done = driftd("deadletters", "retry", "-s", "mended.yaml", "--reason", "too_large", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        running.wait_for_records(4_000)
        again = driftd("deadletters", "retry", "-s", "mended.yaml", "--yes", "--json", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        wait_until(lambda: running.one("select sum(dead) from partitions") == 0, "no letter is left")
        assert running.counted() == 4_000
        assert running.one("select count(*) from dead_letters") == 0
        assert running.one("select coalesce(sum(count), 0) from dead_letter_counts") == 0
        mended = json.loads(again.stdout)
        said = int(done.stdout.split()[1].replace(",", "")) + sum(each["mended"] for each in mended)
        assert said == 30
        assert Counter(line.split("level=")[-1].split()[0] for line in running.log().splitlines())["error"] == 0
    finally:
        running.kill()
