"""History by the live code: what `driftd backfill` leaves behind is what `driftd run` would have, to the last byte.

One worker reads a topic undisturbed. Every history of the same offsets must leave exactly that: in one go, before live
records, beside them, twice, killed. `make soak` is the long form.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.store import Store
from monitor.soak import MODEL, WorkerProcess, all_closed
from tests.conftest import _missing, running_postgres
from tests.servers.kafka import KafkaServer, missing_kafka
from tests.servers.postgres import PostgresServer
from tests.soak.beside import clean_joint, history_of, run_beside, text_of
from tests.soak.fingerprint import Fingerprint, first_difference
from tests.soak.harness import Content, Deployment, produce

RECORDS = 60_000
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker for this file."""
    if reason := missing_kafka():
        _missing(reason)
    server = KafkaServer(tmp_path_factory.mktemp("broker"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for this file, which kills it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def content(broker: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Content:
    return produce(broker, tmp_path_factory.mktemp("content") / "topic", records=RECORDS, partitions=4, seed=1)


@pytest.fixture(scope="module")
def live(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    """What one worker leaves behind that reads everything as it comes."""
    deployment = Deployment(tmp_path_factory.mktemp("live") / "run", content, thins=False)
    deployment.run(workers=1)
    return deployment.fingerprint()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


@contextmanager
def daemon(deployment: Deployment, name: str = "live") -> Iterator[WorkerProcess]:
    worker = WorkerProcess(deployment.folder, name)
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()


def counted(deployment: Deployment, model: str = MODEL) -> int:
    with Store.open(deployment.url) as store:
        return sum(state.records for state in store.partition_states(model))


def closed(deployment: Deployment) -> bool:
    with Store.open(deployment.url) as store:
        return all_closed(store)


def finish(deployment: Deployment, *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """Type `driftd backfill --json`, and wait. Returns what it printed, and what it said."""
    process = deployment.backfill(*words, "--json")
    try:
        out, said = process.communicate(timeout=WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == code, said
    return json.loads(out) if out.strip() else {}, said


@pytest.mark.kafka
def test_history_in_one_go_is_what_live_records_would_have_left(
    content: Content, live: Fingerprint, tmp_path: Path
) -> None:
    past = Deployment(tmp_path / "run", content, thins=False)
    printed, _ = finish(past)
    assert printed["records"] == RECORDS
    assert [row["kind"] for row in printed["incidents"]] == [row["kind"] for _, row in live["incidents"]]
    assert first_difference(history_of(live), history_of(past.fingerprint())) == ""
    assert past.fingerprint()["outbox"] == [], "nobody is called because of the past"
    printed, said = finish(past)
    assert (printed["records"], printed["counted"]) == (0, RECORDS)
    assert "Nothing to do" in said


@pytest.mark.kafka
def test_a_daemon_goes_on_where_history_ends(content: Content, live: Fingerprint, tmp_path: Path) -> None:
    joint = clean_joint(content.records, 0.78)  # in the middle of the change
    both = Deployment(tmp_path / "run", content, thins=False)
    printed, _ = finish(both, "--to", text_of(joint))
    assert 0 < printed["records"] < RECORDS
    both.run(workers=1)
    assert first_difference(history_of(live), history_of(both.fingerprint())) == ""


@pytest.mark.kafka
@pytest.mark.parametrize("near", [0.4, 0.78])
def test_history_from_before_the_first_live_record_joins_it_without_a_seam(
    near: float, content: Content, live: Fingerprint, tmp_path: Path
) -> None:
    joint = clean_joint(content.records, near)
    both = Deployment(tmp_path / "run", content, start=text_of(joint), thins=False)
    after = int(np.count_nonzero(content.records.time_ms >= joint))
    with daemon(both):
        wait_for(lambda: counted(both) >= after and closed(both), "the daemon has read what is new")
        live_alone = both.fingerprint()
        printed, _ = finish(both)
        assert printed["records"] == RECORDS - counted(both)
    expected = history_of(live, incidents=False)
    assert first_difference(expected, history_of(both.fingerprint(), incidents=False)) == ""
    # What people were told of stays, to the byte; what history adds began before.
    told, found = dict(live_alone["incidents"]), dict(both.fingerprint()["incidents"])
    assert {number: found.get(number) for number in told} == told


@pytest.mark.kafka
@pytest.mark.postgres
def test_kills_of_a_backfill_and_of_the_daemon_beside_it_change_no_byte(
    content: Content, live: Fingerprint, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    joint = clean_joint(content.records, 0.5)
    both = Deployment(
        tmp_path / "run", content, database=own_postgres.new_database(), start=text_of(joint), thins=False
    )
    kills = {"backfill": 6, "daemon": 3, "database": 1}
    report = run_beside(both, joint, kills=kills, seed=3, postgres=own_postgres)
    assert report.kills == kills
    expected = history_of(live, incidents=False)
    assert first_difference(expected, history_of(both.fingerprint(), incidents=False)) == ""
