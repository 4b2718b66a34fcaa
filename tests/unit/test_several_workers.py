"""Several workers of one model on one database: what one of them folds, the others know."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from connectors.database.store import Store
from monitor.incidents import OPERATIONAL
from monitor.settings import Settings
from monitor.soak import CHECKPOINT, MODEL, all_closed, counted, soak_settings
from monitor.soak_records import labelled_records
from monitor.worker import Worker
from tests.soak.harness import START_MS
from tests.soak.simulation import NOW_MS, TOPIC, Group, PlayedSource, batches_of, reference_of

RECORDS = 6_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    source = {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": TOPIC}
    checkpoint = {**CHECKPOINT, "every": 0.3, "records": 100, "poll_records": 100}
    return Settings(**soak_settings(tmp_path, source, records=1_000, checkpoint=checkpoint, sinks={}))


def test_each_worker_knows_the_incidents_that_others_open_and_resolve(settings: Settings) -> None:
    log = batches_of(labelled_records(RECORDS, partitions=4, seed=5, start_ms=START_MS, per_block=50))
    group = Group(log, {partition: partition.number % 2 for partition in log})
    with Store.open(settings.database) as store:
        store.migrate()
        store.add_reference(reference_of(settings, settings.references))
        workers = []
        for number in range(2):
            source = PlayedSource(group, number, random.Random(number))
            workers.append(Worker(MODEL, settings, store=store, source=source))
            workers[-1].start()
            source.learn()
        chance, told_by, opened, clock_s = random.Random(2), set(), set(), 0.0
        while counted(store) < RECORDS or not all_closed(store):
            clock_s += 0.2
            assert clock_s < 600, "they stand still"
            number = chance.randrange(len(workers))
            step = workers[number].step(NOW_MS + round(clock_s * 1000), clock_s, wait_s=0.0)
            if step.folded is not None:
                rows = store.incidents(model=MODEL, status="open")
                stored = {row.id for row in rows if row.kind not in OPERATIONAL}
                assert {row.id for row in workers[number].open_incidents} == stored
                opened |= stored
                told_by |= {number} if step.folded.incidents else set()
        assert opened and not store.incidents(model=MODEL, status="open")
        assert told_by == {0, 1}, "both have folded, so both could know too little"
