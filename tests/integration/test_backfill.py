"""History by the live code: what `driftd backfill` leaves behind is what `driftd run` would have, to the last byte.

One worker reads a topic undisturbed. Every history of the same offsets must leave exactly that: in one go, before live
records, beside them, twice, killed. `make soak` is the long form.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.store import Store
from connectors.kafka_probe import KafkaSecurity
from connectors.kafka_scratch import ScratchTopic
from monitor.soak import MODEL, WorkerProcess, all_closed, rows_of
from tests.conftest import running_kafka, running_postgres
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer
from tests.soak.beside import clean_joint, firsts_from, history_of, run_beside, text_of
from tests.soak.fingerprint import Fingerprint, first_difference
from tests.soak.harness import Content, Deployment, produce

RECORDS = 60_000
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker for this file."""
    with running_kafka(tmp_path_factory.mktemp("broker")) as server:
        yield server


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
@pytest.mark.postgres
def test_dask_leaves_what_live_records_would_have_left_also_in_a_lane_beside_a_daemon(
    content: Content, live: Fingerprint, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    joint = clean_joint(content.records, 0.5)
    both = Deployment(
        tmp_path / "run", content, database=own_postgres.new_database(), start=text_of(joint), thins=False
    )
    after = int(np.count_nonzero(content.records.time_ms >= joint))
    with daemon(both):
        wait_for(lambda: counted(both) >= after and closed(both), "the daemon has read what is new")
        printed, _ = finish(both, "--dask", "2")
        assert printed["records"] == RECORDS - counted(both)
    expected = history_of(live, incidents=False)
    assert first_difference(expected, history_of(both.fingerprint(), incidents=False)) == ""


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
    # A machine that is fast is through before all of them are due.
    assert report.kills["backfill"] >= 2 and sum(report.kills.values()) >= 4
    expected = history_of(live, incidents=False)
    assert first_difference(expected, history_of(both.fingerprint(), incidents=False)) == ""


@pytest.mark.kafka
def test_ranges_that_overlap_count_nothing_twice(content: Content, live: Fingerprint, tmp_path: Path) -> None:
    again = Deployment(tmp_path / "run", content, thins=False)
    times = [text_of(clean_joint(content.records, near)) for near in (0.2, 0.35, 0.5)]
    printed = [
        finish(again, "--to", times[1])[0],
        finish(again, "--from", times[0], "--to", times[2])[0],
        finish(again, "--from", times[0], "--to", times[1])[0],
        finish(again, "--from", times[2])[0],
    ]
    assert printed[2]["records"] == 0
    assert sum(one["records"] for one in printed) == RECORDS
    assert first_difference(history_of(live), history_of(again.fingerprint())) == ""


@pytest.mark.kafka
def test_two_backfills_at_once_and_then_a_daemon_count_each_record_once(
    content: Content, live: Fingerprint, tmp_path: Path
) -> None:
    busy = Deployment(tmp_path / "run", content, thins=False)
    both = [busy.backfill("--rate", "4000", "--json") for _ in range(2)]
    try:
        wait_for(lambda: counted(busy) > 0, "one of them counts")
        with daemon(busy) as worker:
            ended = [process.communicate(timeout=WITHIN_S) for process in both]
            wait_for(lambda: counted(busy) == RECORDS and closed(busy), "the daemon counts what is left")
            assert worker.alive
    finally:
        for process in both:
            process.kill()
    # At the same moment only one plan is stored; of two at the same plan, and of it and the daemon, one goes on.
    assert {process.returncode for process in both} <= {0, 1}, ended
    taken_over = [json.loads(out)["taken_over"] for out, _ in ended if out.strip()]
    assert any(taken_over), ended
    assert all("at the same moment" in said for out, said in ended if not out.strip()), ended
    assert first_difference(history_of(live), history_of(busy.fingerprint())) == ""
    with Store.open(busy.url) as store:
        assert {row.status for row in store.backfills(MODEL)} == {"taken over"}


@pytest.mark.kafka
def test_a_dead_broker_a_locked_database_and_ctrl_c_cost_nothing_but_time(
    content: Content, live: Fingerprint, broker: KafkaServer, tmp_path: Path
) -> None:
    rough = Deployment(tmp_path / "run", content, thins=False, fetch_bytes=16 << 10)
    process = rough.backfill("--rate", "6000")
    try:
        wait_for(lambda: counted(rough) > 2_000, "it counts")
        broker.kill()
        broker.start()
        before = counted(rough)
        wait_for(lambda: counted(rough) > before, "it goes on after the broker is back")
        with closing(sqlite3.connect(rough.folder / "driftd.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = counted(rough)
            process.send_signal(signal.SIGINT)
            connection.execute("ROLLBACK")
        _, said = process.communicate(timeout=WITHIN_S)
        assert process.returncode == 130, said
        assert "The same command goes on from here." in said
        assert before <= counted(rough) < RECORDS
    finally:
        process.kill()
    printed, said = finish(rough)
    assert "it goes on" in said
    assert 0 < printed["records"] < RECORDS
    assert first_difference(history_of(live), history_of(rough.fingerprint())) == ""


@pytest.mark.kafka
def test_records_that_are_deleted_on_the_way_are_told_of_and_the_rest_is_scored_by_the_next_command(
    content: Content, tmp_path: Path
) -> None:
    joint = clean_joint(content.records, 0.5)
    firsts = firsts_from(content.records, joint)
    copy = replace(content, topic=f"{content.topic}-cut")
    copied(copy)
    both = Deployment(tmp_path / "run", copy, start=text_of(joint), thins=False)
    with daemon(both):
        wait_for(lambda: counted(both) == RECORDS - sum(firsts) and closed(both), "the daemon has read what is new")
        process = both.backfill("--rate", "4000", "--to", text_of(joint))
        wait_for(lambda: counted(both, f"{MODEL}~1") > 0, "it counts")
        process.kill()
        process.communicate()
        with Store.open(both.url) as store:
            read = {state.partition.number: state.next_offset for state in store.partition_states(f"{MODEL}~1")}
        assert read[0] < firsts[0] - 1_000
        delete_below(copy, {0: firsts[0] - 1_000})
        _, said = finish(both, "--to", text_of(joint), code=1)
        assert "What was scored counts. Type the same command again" in said
        finish(both, "--to", text_of(joint))
        printed, _ = finish(both, "--to", text_of(joint))
        assert printed["records"] == 0
    with Store.open(both.url) as store:
        assert [row.status for row in store.backfills(MODEL)] == ["cut short", "done"]
        assert store.totals(MODEL).records == RECORDS - (firsts[0] - 1_000 - read[0])


def copied(content: Content) -> None:
    topic = ScratchTopic(
        [content.server.brokers], content.topic, security=KafkaSecurity.model_validate({}), client_id="copy"
    )
    topic.create(content.records.partitions)
    topic.fill(rows_of(content.records), lambda sent: None)


def delete_below(content: Content, offsets: dict[int, int]) -> None:
    """As retention does it."""
    from kafka import KafkaAdminClient, TopicPartition

    admin = KafkaAdminClient(bootstrap_servers=content.server.brokers)
    try:
        admin.delete_records({TopicPartition(content.topic, number): offset for number, offset in offsets.items()})
    finally:
        admin.close()
