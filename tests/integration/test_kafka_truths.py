"""True answers beside a stream: each once, whoever is killed when, before its record or thousands of records after."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from connectors.database.store import Store
from connectors.records import Partition
from monitor.checks import check_everything
from monitor.settings import Settings
from tests.acceptance.command import Running, wait_until
from tests.killed_daemon import run_until_killed
from tests.servers.kafka import KafkaServer

pytestmark = pytest.mark.kafka

BASELINE, RECORDS = 1_000, 4_000
LABELLED = 50  # every 50th record says itself what is true


def settings_of(folder: Path, brokers: str, records: str, truths: str) -> dict[str, Any]:
    model = {
        "source": {"kind": "kafka", "brokers": brokers, "topic": records, "start": "earliest"},
        "record": {"id": "/id", "prediction": "/answer", "confidence": "/sure", "label": "/truth"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
        "reference": {"collect": BASELINE},
        "performance": {"labels": {"kind": "kafka", "topic": truths}},
    }
    return {
        "checkpoint": {"records": 500, "poll_records": 250},
        "database": f"sqlite:///{folder}/driftd.db",
        "references": f"{folder}/references",
        "models": {"m": model},
        "http": {"bind": "127.0.0.1:0"},
    }


def records(first: int, after: int) -> list[bytes]:
    vectors = np.random.default_rng(first).normal(size=(after - first, 4)).round(3).tolist()
    return [
        json.dumps(
            {"id": f"r{n}", "v": vector, "answer": f"class {n % 7}", "sure": 0.5}
            | ({"truth": "class 0"} if n % LABELLED == 0 else {})
        ).encode()
        for n, vector in zip(range(first, after), vectors, strict=True)
    ]


def truth(n: int, said: str = "class 1", **more: Any) -> bytes:
    return json.dumps({"id": f"r{n}", "label": said, "time": "2026-01-31T12:00:00Z"} | more).encode()


def send(kafka: KafkaServer, topic: str, values: Sequence[bytes]) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=kafka.brokers)
    for value in values:
        producer.send(topic, value=value)
    producer.flush(timeout=30)
    producer.close(timeout=10)


def test_every_true_answer_counts_once_though_the_daemon_is_killed_where_it_stores_them(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    stream, answers = topic(), topic()
    settings = settings_of(tmp_path, kafka.brokers, stream, answers)
    (tmp_path / "driftd.yaml").write_text(yaml.safe_dump(settings))
    early = [truth(n) for n in range(3_001, 3_100)]  # of records that come thousands later
    send(kafka, answers, [*early, *early[:50], b"none"])
    send(kafka, stream, records(0, 3_000))
    assert run_until_killed(tmp_path, "Store.add_truths:after", 1) == -9
    send(kafka, stream, records(3_000, RECORDS))
    late = [truth(n, weight=4) for n in range(1_001, 1_100)]
    send(kafka, answers, [*late, truth(1_001, "class 2"), truth(17), *late])
    assert run_until_killed(tmp_path, "Store.commit:after", 3) == -9
    own = [n for n in range(BASELINE, RECORDS) if n % LABELLED == 0]
    labelled = [*range(3_001, 3_100), *range(1_001, 1_100)]
    expected = len(labelled) + 1 + len(own)  # the correction is one more
    running = Running(tmp_path, settings)
    running.start()
    try:
        with Store.open(settings["database"]) as store:
            ends = {Partition(answers, 0): len(early) + 51 + 2 * len(late) + 2}
            wait_until(lambda: store.truth_positions("m") == ends, "all true answers", 90)
            wait_until(lambda: store.truth_counts("m").version == expected, f"{expected} that count", 60)
            rows = store.truths("m")
            counts = store.truth_counts("m")
        assert [row.version for row in rows] == list(range(1, expected + 1))
        latest = {row.said.record_id: row.said for row in rows}
        # What each is held against is what the model answered to just that record.
        assert all(row.said.answer == f"class {int(row.said.record_id[1:]) % 7}" for row in rows)
        assert {row.said.record_id for row in rows} == {f"r{n}" for n in [*labelled, *own]}
        # A record of the baseline is not remembered: it was there before anything was compared.
        assert (counts.waiting, counts.corrected) == (1, 1 + len(set(labelled) & set(own)))
        assert latest["r1001"].truth == "class 2" and latest["r1002"].weight == 4.0
        assert sum(row.said.origin.startswith("record:") for row in rows) == len(own)
        assert 'driftd_truths_matched{model="m"}' in running.get("/metrics")[1]
        request = urllib.request.Request(f"{running.url()}/truths?model=m", data=truth(5))
        with pytest.raises(urllib.error.HTTPError, match="403"):  # no token is set
            urllib.request.urlopen(request, timeout=30)
        findings = {finding.name: finding for finding in check_everything(Settings.model_validate(settings))}
        assert findings["model m, topic of true answers"].ok
    finally:
        running.kill()
