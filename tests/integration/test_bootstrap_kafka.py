"""`driftd bootstrap` on a real topic, and `driftd run` after it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from typer.testing import CliRunner, Result

import monitor.bootstrap
from connectors.database.store import Store
from detectors.errors import InvalidInput, UnknownTopic
from monitor.app import build_workers
from monitor.cli import app
from monitor.settings import load_settings

COUNT = 3_000
HOURS = 40

pytestmark = pytest.mark.kafka


def records(count: int) -> Iterator[dict[str, Any]]:
    """From 40 hours ago until now."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(8, 12))
    begin = int(time.time() * 1000) - HOURS * 3_600_000
    for row in range(count):
        vector = centres[random.integers(8)] + random.normal(scale=0.3, size=12)
        yield {
            "request_id": f"r-{row}",
            "ts": begin + row * HOURS * 3_600_000 // count,
            "input": {"embedding": vector.round(4).tolist(), "email": "a@example.org"},
        }


def send(brokers: str, topic: str, documents: Iterator[dict[str, Any]]) -> None:
    producer = KafkaProducer(bootstrap_servers=brokers)
    for row, document in enumerate(documents):
        # As a producer would have sent it then.
        producer.send(topic, json.dumps(document).encode(), partition=row % 2, timestamp_ms=document["ts"] + 500)
    producer.flush()
    producer.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else the command begins anew, with it set
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    return tmp_path


def driftd(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_a_topic_becomes_settings_from_which_driftd_runs_on(
    kafka: Any, topic: Callable[..., str], folder: Path
) -> None:
    name = topic(partitions=2)
    send(kafka.brokers, name, records(COUNT))
    done = driftd("bootstrap", "--from", name, "--brokers", kafka.brokers, "--model", "triage", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["records"] == COUNT
    assert [reference["version"] for reference in found["references"]] == [1]
    checked = driftd("check")
    assert checked.exit_code == 0, checked.output
    settings = load_settings(folder / "driftd.yaml")
    assert "/input/email" in settings.models["triage"].record.redact
    with Store.open(settings.database) as store:
        before = {state.partition.number: state for state in store.partition_states("triage")}
        assert {number: state.next_offset for number, state in before.items()} == {0: COUNT // 2, 1: COUNT // 2}
        send(kafka.brokers, name, records(40))
        (worker,) = build_workers(settings, store)
        worker.start()
        deadline = time.monotonic() + 60
        while worker.records < 40 and time.monotonic() < deadline:
            worker.step(int(time.time() * 1000), time.monotonic())
        worker.source.close()
        worker.close()
        # What was looked at is not counted; what came after it is, once.
        counted = {state.partition.number: state for state in store.partition_states("triage")}
        assert {number: state.records for number, state in counted.items()} == {0: 20, 1: 20}
        assert {number: state.from_offset for number, state in counted.items()} == {0: COUNT // 2, 1: COUNT // 2}


def test_an_empty_topic_a_missing_one_and_ctrl_c_leave_nothing(
    kafka: Any, topic: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic(partitions=2)
    empty = driftd("bootstrap", "--from", name, "--brokers", kafka.brokers)
    assert isinstance(empty.exception, InvalidInput)
    assert "There are no records" in empty.exception.message
    missing = driftd("bootstrap", "--from", "no-such-topic", "--brokers", kafka.brokers)
    assert isinstance(missing.exception, UnknownTopic)
    send(kafka.brokers, name, records(COUNT))

    def stopped(*words: object) -> None:
        signal.raise_signal(signal.SIGINT)  # Ctrl-C, when the reference is built and the test begins

    monkeypatch.setattr(monitor.bootstrap, "_test", stopped)
    assert driftd("bootstrap", "--from", name, "--brokers", kafka.brokers).exit_code == 130
    assert [path.name for path in folder.rglob("*") if path.is_file()] == []
