"""Exactly once under fire: whatever is killed, frozen or moved, the database ends with the same bytes.

One worker reads a topic undisturbed; every other run must leave exactly that behind, in every table. What the bytes
ought to say is known too: the records are labelled. `make soak` is the long form, docs/guarantees.md the promises.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from monitor.settings import Settings
from monitor.soak import CHECKPOINT, MODEL, SPACE, compare, soak_settings
from monitor.soak_records import LabelledRecords, labelled_records, truth_of
from tests.conftest import running_kafka, running_postgres
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer
from tests.servers.receiver import Receiver
from tests.soak.fingerprint import Fingerprint, fingerprint, first_difference
from tests.soak.harness import START_MS, Content, Deployment, Disturbance, plan, produce
from tests.soak.simulation import TOPIC, Played, batches_of, reference_of, simulate

RECORDS = 150_000
BACK_WITHIN_S = 15.0  # 1 to 3 s on a quiet machine; a test machine is not quiet


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker for this file, which kills it."""
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
def undisturbed(content: Content, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fingerprint, dict[str, Any]]:
    """What one worker leaves behind that nobody disturbs: its database, and what the receiver was told."""
    with Receiver() as receiver:
        quiet = Deployment(tmp_path_factory.mktemp("quiet") / "run", content, receiver=receiver)
        quiet.run(workers=1)
        assert [check for check in quiet.checks() if not check.ok] == [], "as the labels say"
        found = quiet.fingerprint()
        opened = [row["kind"] for _, row in found["incidents"] if row["status"] == "resolved"]
        assert "drift" in opened, "the planted change opened an incident, and its end resolved it"
        told = quiet.told()
        notes = [json.loads(row["body"]) for _, row in found["outbox"]]
        last = {one["incident"]: one["id"] for one in sorted(notes, key=lambda one: int(one["values"]["revision"]))}
        assert {incident: alert["annotations"]["notification_id"] for incident, alert in told.items()} == last
        return found, told


@pytest.mark.kafka
@pytest.mark.postgres
def test_twelve_kills_of_three_workers_with_joins_and_leaves_change_no_byte(
    content: Content,
    undisturbed: tuple[Fingerprint, dict[str, Any]],
    own_postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    with Receiver() as receiver:
        shaken = Deployment(tmp_path / "run", content, database=own_postgres.new_database(), receiver=receiver)
        report = shaken.run(workers=3, disturbances=plan(11, kill=12, join=1, leave=2), seed=11)
        assert report.done == {"kill": 12, "join": 1, "leave": 2}
        assert first_difference(undisturbed[0], shaken.fingerprint()) == ""
        assert set(shaken.told()) == set(undisturbed[1]), "no incident was lost at the receiver, none has another id"
        assert shaken.told() == undisturbed[1]


@pytest.mark.kafka
@pytest.mark.postgres
def test_a_killed_broker_and_a_killed_database_change_no_byte_and_records_flow_again(
    content: Content,
    undisturbed: tuple[Fingerprint, dict[str, Any]],
    own_postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    shaken = Deployment(tmp_path / "run", content, database=own_postgres.new_database(), fetch_bytes=16 << 10)
    places = [Disturbance(0.1, "broker"), Disturbance(0.3, "database"), Disturbance(0.5, "broker")]
    report = shaken.run(workers=2, disturbances=[*places, Disturbance(0.7, "database")], postgres=own_postgres)
    assert first_difference(undisturbed[0], shaken.fingerprint()) == ""
    print({server: [round(s, 1) for s in took] for server, took in report.recovery_s.items()})  # noqa: T201
    assert {server: len(took) for server, took in report.recovery_s.items()} == {"broker": 2, "database": 2}
    assert max(s for took in report.recovery_s.values() for s in took) < BACK_WITHIN_S


@pytest.mark.kafka
def test_a_frozen_worker_that_wakes_up_after_its_session_writes_nothing_of_what_it_held(
    content: Content, undisturbed: tuple[Fingerprint, dict[str, Any]], tmp_path: Path
) -> None:
    # Whether it holds anything at that moment is chance, so there are several moments.
    for freeze_at in (0.06, 0.1, 0.15, 0.2):
        shaken = Deployment(tmp_path / f"run{freeze_at}", content)
        # The first worker has all partitions; the second gets them while the first is frozen.
        disturbances = [Disturbance(freeze_at - 0.01, "join"), Disturbance(freeze_at, "freeze", "w0")]
        assert shaken.run(workers=1, disturbances=disturbances).done == {"join": 1, "freeze": 1}
        assert first_difference(undisturbed[0], shaken.fingerprint()) == ""
        if "another worker owns it. Nothing was written." in shaken.log():
            return
    raise AssertionError("a frozen worker held nothing, four times")


@pytest.mark.kafka
def test_kills_while_the_first_baseline_is_collected_leave_one_reference_and_count_every_record_once(
    content: Content, tmp_path: Path
) -> None:
    shaken = Deployment(tmp_path / "run", content, reference=False)
    shaken.run(workers=3, disturbances=[Disturbance(0.0, "kill", "w0"), *plan(4, kill=3)], seed=4)
    # Which records come first is chance, and so is the baseline that is made of them; how many there are is not.
    assert [(key[2], row["records"], row["dead"]) for key, row in shaken.fingerprint()["partitions"]] == [
        (number, count, content.truth.dead[number]) for number, count in content.truth.records.items()
    ]
    with Store.open(shaken.url) as store:
        assert [row.version for row in store.references(MODEL, SPACE)] == [1]


# --- every interleaving that a seed can make ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def played_records() -> LabelledRecords:
    return labelled_records(2_500, partitions=4, seed=5, start_ms=START_MS, per_block=50)


@pytest.fixture(scope="module")
def played_log(played_records: LabelledRecords) -> dict[Partition, RawBatch]:
    return batches_of(played_records)


@pytest.fixture(scope="module")
def played_reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRow:
    folder = tmp_path_factory.mktemp("played")
    return reference_of(played_settings(folder, None), folder)


def played_settings(folder: Path, database: str | None) -> Settings:
    source = {"kind": "kafka", "brokers": "127.0.0.1:1", "topic": TOPIC}
    checkpoint = {**CHECKPOINT, "every": 0.3, "records": 300}
    content = soak_settings(folder, source, records=1_000, database=database, checkpoint=checkpoint, sinks={})
    return Settings(**content)


@pytest.fixture(scope="module")
def play(
    played_log: dict[Partition, RawBatch],
    played_reference: ReferenceRow,
    played_records: LabelledRecords,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Fingerprint, Played]]:
    """Simulates one run on a fresh database, and compares it with the labels."""

    def run(*, database: str | None = None, **how: float) -> tuple[Fingerprint, Played]:
        settings = played_settings(tmp_path_factory.mktemp("play"), database)
        with Store.open(settings.database) as store:
            store.migrate()
            store.add_reference(played_reference)
            played = simulate(settings, played_log, **how)  # type: ignore[arg-type]
            wrong = [check for check in compare(store, played_records, truth_of(played_records)) if not check.ok]
            assert wrong == []
        return fingerprint(settings.database), played

    return run


@pytest.fixture(scope="module")
def played_quietly(play: Callable[..., tuple[Fingerprint, Played]]) -> Fingerprint:
    """One worker, large polls, no crash."""
    found, played = play(workers=1, poll_records=4_096, seed=0, crashes=0.0, moves=0.0)
    assert (played.crashes, played.refused) == (0, 0)
    return found


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("cut", [1, 7, 256, 4_096])
def test_any_cut_and_any_number_of_workers_leave_the_same_bytes(
    cut: int, workers: int, play: Callable[..., tuple[Fingerprint, Played]], played_quietly: Fingerprint
) -> None:
    found, played = play(workers=workers, poll_records=cut, seed=cut + workers)
    assert first_difference(played_quietly, found) == ""
    if cut == 7 and workers > 1:
        assert played.moves > 3


@pytest.mark.postgres
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("cut", [7, 256, 4_096])
def test_postgresql_is_left_with_the_bytes_of_sqlite(
    cut: int,
    workers: int,
    play: Callable[..., tuple[Fingerprint, Played]],
    played_quietly: Fingerprint,
    postgres: PostgresServer,
) -> None:
    found, _ = play(workers=workers, poll_records=cut, seed=cut * workers, database=postgres.new_database())
    assert first_difference(played_quietly, found) == ""


@pytest.mark.parametrize("seed", range(5))
def test_workers_that_crash_and_swap_partitions_all_the_time_leave_the_same_bytes(
    seed: int, play: Callable[..., tuple[Fingerprint, Played]], played_quietly: Fingerprint
) -> None:
    found, played = play(workers=3, poll_records=32, seed=seed, crashes=0.05, moves=0.15, hears=0.3)
    assert played.crashes > 10
    assert played.refused > 0, "an owner of the past tried to write"
    assert first_difference(played_quietly, found) == ""


def test_the_comparison_names_a_row_that_differs(
    play: Callable[..., tuple[Fingerprint, Played]], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'driftd.db'}"
    before, _ = play(workers=1, poll_records=4_096, seed=0, database=url)
    for change, said in (
        ("update partitions set records = records + 1 where number = 2", "partitions"),
        ("update kept set score = score * (1 + 1e-15) where id in (select min(id) from kept)", "kept"),
        ("delete from summaries where id in (select max(id) from summaries)", "summaries"),
        ("insert into thinned_keys values ('soak', 't', 0, 1, 1, x'00')", "thinned_keys"),
    ):
        with closing(sqlite3.connect(tmp_path / "driftd.db")) as connection:
            connection.execute(change)
            connection.commit()
        after = fingerprint(url)
        assert first_difference(before, after).startswith(said)
        before = after
