"""Labels on a running daemon: how soon they count, over a kill; and history, scored again, has the same scores."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import LabelledRecord, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from monitor.rescore import Labels, scored_again
from monitor.settings import Settings, load_settings
from tests.acceptance.command import Running, wait_until
from tests.servers.kafka import KafkaServer

log = logging.getLogger(__name__)

BASELINE = 1_000
SOON_S = 2.0  # in which a label is to count; the assertion allows for a machine that does other things too
START_MS = 1_772_438_400_000


def document(number: int, chance: np.random.Generator) -> dict[str, Any]:
    vector = chance.normal(size=6) + (2.0 if number % 20 == 3 else 0.0)
    return {
        "id": f"r{number}",
        "ts": START_MS + 1_000 * number,
        "v": vector.round(4).tolist(),
        "card": f"c{number % 50}",
        "amount": round(float(chance.exponential(40.0)), 2),
    }


class Traffic:
    """Sends records one after the other, 100 a second, and remembers when."""

    def __init__(self, brokers: str, topic: str) -> None:
        from kafka import KafkaProducer

        self.sent_at: dict[str, float] = {}
        self._topic = topic
        self._chance = np.random.default_rng(7)
        self._producer = KafkaProducer(bootstrap_servers=brokers, linger_ms=2)
        self._stop = threading.Event()
        self._number = 0
        for _ in range(BASELINE + 200):
            self._send()
        self._producer.flush(timeout=60)
        self._thread = threading.Thread(target=self._run)

    def _send(self) -> None:
        row = document(self._number, self._chance)
        # A card is always in the same partition, as a topic that is keyed by it has it.
        self._producer.send(self._topic, json.dumps(row).encode(), partition=self._number % 50 % 2)
        self.sent_at[row["id"]] = time.monotonic()
        self._number += 1

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self._send()

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._producer.flush(timeout=60)
        self._producer.close(timeout=10)

    @property
    def sent(self) -> int:
        return self._number


def settings_of(brokers: str, topic: str, scores_topic: str) -> dict[str, Any]:
    model = {
        "source": {"kind": "kafka", "brokers": brokers, "topic": topic, "start": "earliest", "session_timeout_s": 3},
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"block": "10m", "lateness": "1m", "season": "none"},
        "scores": {"kind": "kafka", "topic": scores_topic},
        "fraud": {"fields": {"amount": "/amount"}, "entity": "/card"},
    }
    return {"models": {"cards": model}}


def label_of(row: dict[str, Any], label: Any) -> NewLabel:
    known = LabelledRecord(
        partition=Partition("cards", 0),
        offset=-1,
        row=0,
        event_ms=row["ts"],
        entity="",
        vector=np.array(row["v"], "<f4").tobytes(),
        signals=np.array([2.0, np.nan, np.nan, row["amount"]], "<f4").tobytes(),
        probability=float("nan"),
        p_value=float("nan"),
        scored_with=0,
        selected="",
        chance=float("nan"),
    )
    return NewLabel(row["id"], label, START_MS, "analyst", 1.0, "", row["id"], known)


def scores_in(kafka: KafkaServer, topic: str) -> dict[tuple[int, int], dict[str, Any]]:
    """The last message of each record that is in the topic now, by partition and offset."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=kafka.brokers, enable_auto_commit=False, group_id=None)
    try:
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        found = {}
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=1000).values():
                for message in batch:
                    body = json.loads(message.value)
                    found[body["partition"], body["offset"]] = body
        return found
    finally:
        consumer.close()


def rescored(
    settings: Settings, store: Store, labels: Labels
) -> dict[tuple[int, int], tuple[float | None, float, int, int]]:
    """Probability (None without a case), p-value, version and flood of every record, by partition and offset."""
    found = {}
    for records in scored_again("cards", settings, store, labels=labels):
        fraud = records.fraud
        assert fraud is not None
        columns = zip(
            records.offsets.tolist(),
            [None if np.isnan(value) else value for value in fraud.probability.tolist()],
            fraud.p_value.tolist(),
            fraud.version.tolist(),
            fraud.flood.tolist(),
            strict=True,
        )
        found |= {(records.partition.number, offset): tuple(said) for offset, *said in columns}
    return found  # type: ignore[return-value]


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_a_label_counts_within_seconds_in_both_workers_over_a_kill_and_history_has_the_same_scores(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic(partitions=2)
    scores_topic = topic(partitions=2, config={"cleanup.policy": "delete", "retention.ms": "-1"})
    daemon = Running(tmp_path, settings_of(kafka.brokers, name, scores_topic))
    chance = np.random.default_rng(11)
    cases = [document(20 * number + 3, chance) | {"id": f"case{number}"} for number in range(8)]
    labelled_at: dict[int, float] = {}
    try:
        with Traffic(kafka.brokers, name) as traffic:
            daemon.start("--workers", "2")
            daemon.wait_for_records(BASELINE + 200, at_least=True)
            with Store.open(f"sqlite:///{tmp_path / 'driftd.db'}") as store:

                def in_force(version: int) -> bool:
                    spans = store.label_spans("cards")
                    return {span.partition.number for span in spans if span.version >= version} == {0, 1}

                wait_until(lambda: in_force(0), "both partitions are scored")
                wait_until(lambda: daemon.counted() > traffic.sent - 200, "the workers have caught up")
                labels = [label_of(case, "fraud") for case in cases[:7]] + [label_of(cases[7], "cleared")]
                for first, after in ((0, 1), (1, 7), (7, 8)):
                    store.add_labels("cards", labels[first:after])
                    labelled_at[after] = time.monotonic()
                    wait_until(lambda wanted=after: in_force(wanted), "the labels count in both partitions")
                    if after == 7:
                        pid = re.findall(r"worker started worker=1 pid=(\d+)", daemon.log())[-1]
                        os.kill(int(pid), signal.SIGKILL)
        with Store.open(f"sqlite:///{tmp_path / 'driftd.db'}") as store:
            daemon.wait_for_records(traffic.sent)
            assert daemon.terminate()[0] == 0
            live = scores_in(kafka, scores_topic)
            waited = {
                version: max(
                    (traffic.sent_at[row["id"]] for row in live.values() if row["fraud"]["labels"] < version),
                    default=0.0,
                )
                - at
                for version, at in labelled_at.items()
            }
            # The longest that a record was sent after a label and scored without it; negative where none was.
            log.info("label to effect, s: %s", {version: round(seconds, 2) for version, seconds in waited.items()})
            assert max(waited[1], waited[7]) < 4 * SOON_S
            settings = load_settings(tmp_path / "driftd.yaml")
            then = rescored(settings, store, "then")
            said = {
                place: (
                    row["fraud"]["probability"],
                    row["fraud"]["p_value"],
                    row["fraud"]["labels"],
                    row["fraud"]["flood"],
                )
                for place, row in live.items()
            }
            assert len(said) == traffic.sent - BASELINE
            assert then == said
            everything = rescored(settings, store, "all")
            assert {version for _, _, version, _ in everything.values()} == {8}
            early = [place for place, row in said.items() if row[2] == 0]
            assert early and all(said[place][0] is None and everything[place][0] is not None for place in early)
            assert sum(everything[place][1] != said[place][1] for place in early) > len(early) / 2
    finally:
        daemon.kill()
