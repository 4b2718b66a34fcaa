"""Real workers on real servers, disturbed by a plan that a seed makes; and what they leave behind.

    content = produce(kafka, records=150_000, partitions=4, seed=1)      # one topic for all runs
    quiet = Deployment(folder / "quiet", content, database=url, receiver=receiver)
    quiet.run(workers=1)
    shaken = Deployment(folder / "shaken", content, database=other_url, receiver=other_receiver)
    shaken.run(workers=3, disturbances=plan(seed=7, kills=12, joins=2))
    assert first_difference(quiet.fingerprint(), shaken.fingerprint()) == ""

Every run has a consumer group and a database of its own, and reads the same topic with the same reference.
"""

from __future__ import annotations

import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from sqlalchemy import create_engine, text

from connectors.database.store import Store
from connectors.kafka_probe import KafkaSecurity
from connectors.kafka_scratch import ScratchTopic
from detectors.errors import StoreError
from monitor.incidents import OPERATIONAL
from monitor.soak import (
    CHECKPOINT,
    MODEL,
    SPACE,
    Check,
    WorkerProcess,
    all_closed,
    build_reference,
    clean_environment,
    compare,
    rows_of,
    soak_settings,
)
from monitor.soak_records import LabelledRecords, Truth, labelled_records, truth_of
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer
from tests.servers.receiver import Receiver
from tests.soak.fingerprint import Fingerprint, fingerprint

START_MS = 1_772_438_400_000
SESSION_S = 3.0  # the tests' broker allows from one second on
STUCK_S = 90.0
FREEZE_S = SESSION_S + 1.0  # long enough that the group gives the frozen worker's partitions away
LONGEST_FREEZE_S = 30.0  # it may hold a lock of the database, and then nobody else gets on

Action = Literal["kill", "freeze", "join", "leave", "broker", "database"]


@dataclass(frozen=True)
class Disturbance:
    """Something that happens when ``at`` (0..1) of the records are counted; to worker ``who``, or to any."""

    at: float
    action: Action
    who: str = ""


@dataclass(frozen=True)
class Content:
    """A topic of labelled records, and a reference that was built from its first ones."""

    server: KafkaServer
    topic: str
    records: LabelledRecords
    truth: Truth
    folder: Path


@dataclass
class Report:
    """What happened in a run.

    Attributes:
        seconds: from the start of the workers until the last record was counted.
        done: how often each kind of disturbance took place.
        recovery_s: seconds from a server's first answer after its kill to the next committed checkpoint.
    """

    seconds: float = 0.0
    done: dict[str, int] = field(default_factory=dict)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)


def plan(seed: int, **counts: int) -> list[Disturbance]:
    """So many disturbances of each kind, at random places between the first and the last tenth of the stream."""
    chance = random.Random(seed)
    actions = [action for action, count in sorted(counts.items()) for _ in range(count)]
    chance.shuffle(actions)
    places = sorted(chance.uniform(0.02, 0.9) for _ in actions)
    return [Disturbance(at, action) for at, action in zip(places, actions, strict=True)]


def produce(server: KafkaServer, folder: Path, *, records: int, partitions: int, seed: int) -> Content:
    """Fill a topic, and build the reference that all runs use, with the real command."""
    folder.mkdir(parents=True)
    made = labelled_records(records, partitions=partitions, seed=seed, start_ms=START_MS)
    name = f"soak-{secrets.token_hex(4)}"
    open_to_all = KafkaSecurity.model_validate({})
    topic = ScratchTopic([server.brokers], name, security=open_to_all, client_id="soak")
    topic.create(partitions)
    topic.fill(rows_of(made), lambda sent: None)
    content = Content(server, name, made, truth_of(made), folder)
    settings = soak_settings(folder, source_of(content, "reference"), records=records)
    (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))
    build_reference(folder, made)
    return content


def source_of(content: Content, group: str, **more: Any) -> dict[str, Any]:
    """models.soak.source, of one run."""
    return {
        "kind": "kafka",
        "brokers": content.server.brokers,
        "topic": content.topic,
        "group": f"{content.topic}-{group}",
        "start": "earliest",
        "session_timeout_s": SESSION_S,
        "unreachable_after_s": 3,
        **more,
    }


class Deployment:
    """One database and the workers on it.

    Args:
        folder: to be made; settings, logs and a SQLite database go there.
        database: its URL; a SQLite file in ``folder`` unless given.
        receiver: gets the notifications.
        poll_records: most records of one poll. Small, so that a kill finds the work in the middle.
        fetch_bytes: fetched at once from one partition. Small, where a broker that is away must be missed.
        reference: with the reference of all runs; else the workers collect their own.
        start: where workers begin that find no position.
        thins: a key has one vote in a block.
        sinks: in place of the receiver, or of the console.
    """

    def __init__(
        self,
        folder: Path,
        content: Content,
        *,
        database: str | None = None,
        receiver: Receiver | None = None,
        poll_records: int = 400,
        fetch_bytes: int = 1 << 20,
        reference: bool = True,
        start: str = "earliest",
        thins: bool = True,
        sinks: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.content = content
        settings = soak_settings(
            folder,
            source_of(
                content, f"{folder.parent.name}-{folder.name}", max_partition_fetch_bytes=fetch_bytes, start=start
            ),
            records=len(content.records),
            database=database,
            checkpoint={**CHECKPOINT, "poll_records": poll_records},
            # One name of the sink in all runs: it stands in the outbox.
            sinks=sinks
            or {"hook": {"kind": "console"} if receiver is None else {"kind": "webhook", "url": receiver.url}},
            notify={"group_wait": 0, "group_interval": 0, "most_per_minute": 1000},
        )
        if not thins:
            del settings["models"][MODEL]["record"]["key"]
        self.url = str(settings["database"])
        (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))
        self._receiver = receiver
        self._members: dict[str, WorkerProcess] = {}
        self._away: dict[str, float] = {}  # members that are to be started again, and when
        self._frozen: dict[str, tuple[float, dict[int, int]]] = {}  # since when, and where all partitions stood
        self._names = 0
        with Store.open(f"sqlite:///{content.folder / 'driftd.db'}") as built, Store.open(self.url) as store:
            store.migrate()
            if reference:
                (row,) = built.references(MODEL, SPACE)
                store.add_reference(row)

    def run(
        self,
        *,
        workers: int,
        disturbances: Sequence[Disturbance] = (),
        seed: int = 0,
        postgres: PostgresServer | None = None,
    ) -> Report:
        """Read everything, disturbed as the plan says; return when all blocks are closed and all is told.

        Each disturbance waits for the first checkpoint after the one before.

        Raises:
            AssertionError: a worker ended by itself, or they stood still.
        """
        chance, due, report = random.Random(seed), list(disturbances), Report()
        total, seen, moved = len(self.content.records), 0, time.monotonic()
        began, recovering = moved, ("", 0.0)
        disturbed_at = -1
        try:
            for _ in range(workers):
                self._join()
            with Store.open(self.url, busy_timeout_s=2.0) as store:
                while True:
                    now = time.monotonic()
                    states, closed = _progress(store, total)
                    self._revive(now, states)
                    count = sum(states.values())
                    if count > seen:
                        seen, moved = count, now
                        if recovering[0]:
                            report.recovery_s.setdefault(recovering[0], []).append(now - recovering[1])
                            recovering = ("", 0.0)
                        if seen == total:
                            report.seconds = now - began
                    if closed and not self._away and not self._frozen and self._all_told():
                        break
                    if due and seen >= due[0].at * total and seen > disturbed_at and not recovering[0]:
                        wanted, disturbed_at = due.pop(0), seen
                        if self._disturb(wanted, chance, states, postgres):
                            # It answers now: what counts is the next checkpoint, not one from before.
                            recovering = (wanted.action, time.monotonic())
                            moved, seen = recovering[1], max(seen, sum(_progress(store, total)[0].values()))
                        report.done[wanted.action] = report.done.get(wanted.action, 0) + 1
                    assert now - moved < STUCK_S, self._said(f"no checkpoint for {STUCK_S:g} s at {seen} of {total}")
                    time.sleep(0.02)
        finally:
            codes = self._end()
        assert set(codes.values()) == {0}, self._said(f"exit codes {codes}")
        assert not due, f"the records were over before {len(due)} of {len(disturbances)} disturbances"
        return report

    def backfill(self, *words: str, log: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        """`driftd backfill` as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "monitor", "backfill", "-s", str(self.folder / "driftd.yaml"), *words],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def fingerprint(self) -> Fingerprint:
        """What is in the database."""
        return fingerprint(self.url)

    def checks(self) -> list[Check]:
        """What the labels say of it."""
        with Store.open(self.url) as store:
            return compare(store, self.content.records, self.content.truth)

    def told(self) -> dict[str, Any]:
        """What the receiver heard last of each incident, as alerts; the same notification must have said the same."""
        assert self._receiver is not None
        alerts: dict[str, Any] = {}
        newest: dict[str, Any] = {}
        for alert in (alert for request in self._receiver.requests for alert in request.json["alerts"]):
            said = alert["annotations"]
            if alert["labels"]["kind"] in OPERATIONAL:
                continue  # by the wall clock, so that it comes and goes with the disturbances
            assert alerts.setdefault(said["notification_id"], alert) == alert, "one notification id with two texts"
            before = newest.get(said["incident"])
            if before is None or int(before["annotations"]["revision"]) < int(said["revision"]):
                newest[said["incident"]] = alert
        return newest

    def log(self) -> str:
        """What all workers said."""
        return "".join(member.log() for member in self._members.values())

    def delete(self) -> None:
        """Free the disk."""
        shutil.rmtree(self.folder)

    def _join(self) -> None:
        name = f"w{self._names}"
        self._names += 1
        self._members[name] = WorkerProcess(self.folder, name)
        self._members[name].start()

    def _revive(self, now: float, states: dict[int, int]) -> None:
        for name, at in list(self._away.items()):
            if now >= at:
                del self._away[name]
                self._members[name].start()
        for name, (since, stood) in list(self._frozen.items()):
            moved = all(states.get(number, 0) > count for number, count in stood.items())
            if (moved and now - since >= FREEZE_S) or now - since >= LONGEST_FREEZE_S:
                del self._frozen[name]
                self._members[name].send(signal.SIGCONT)
        for name, member in self._members.items():
            ended = member.process is not None and member.process.poll() is not None
            assert not ended or name in self._away, self._said(f"worker {name} ended by itself")

    def _disturb(
        self, wanted: Disturbance, chance: random.Random, states: dict[int, int], postgres: PostgresServer | None
    ) -> bool:
        """Returns whether it was a server, which is back now."""
        if wanted.action == "broker":
            self.content.server.kill()
            self.content.server.start()
        elif wanted.action == "database":
            assert postgres is not None
            postgres.kill()
            postgres.start()
        elif wanted.action == "join":
            self._join()
        else:
            free = [name for name in self._members if name not in self._away and name not in self._frozen]
            if wanted.who or free:
                self._shake(wanted.who or chance.choice(free), wanted.action, chance, states)
        return wanted.action in ("broker", "database")

    def _shake(self, name: str, action: Action, chance: random.Random, states: dict[int, int]) -> None:
        member, now = self._members[name], time.monotonic()
        if action == "freeze":
            member.send(signal.SIGSTOP)
            whole = self.content.truth.records
            self._frozen[name] = now, {number: n for number, n in states.items() if n < whole[number]}
        elif action == "kill":
            member.kill()
            self._away[name] = now + chance.choice((0.0, 0.2, 1.0))
        else:  # a static member that leaves: its partitions wait for the session, or for its return
            member.send(signal.SIGTERM)
            member.wait()
            self._away[name] = now + chance.choice((0.5, SESSION_S + 2.0))

    def _all_told(self) -> bool:
        engine = create_engine(self.url)
        with engine.connect() as connection:
            waiting = connection.execute(text("select count(*) from outbox where status = 'pending'")).scalar_one()
        engine.dispose()
        return waiting == 0

    def _end(self) -> dict[str, int | None]:
        for name in list(self._frozen):
            self._members[name].send(signal.SIGCONT)
        self._frozen.clear()
        for member in self._members.values():
            member.send(signal.SIGTERM)
        codes = {}
        for name, member in self._members.items():
            try:
                codes[name] = member.wait()
            finally:
                member.kill()
        return codes

    def _said(self, what: str) -> str:
        tails = (f"--- {name}\n" + "\n".join(m.log().splitlines()[-15:]) for name, m in self._members.items())
        return "\n".join([what, *tails])


def _progress(store: Store, total: int) -> tuple[dict[int, int], bool]:
    """Records counted, by partition, and whether they are all and every block is closed; nothing without a database."""
    try:
        states = {state.partition.number: state.records for state in store.partition_states(MODEL)}
        return states, sum(states.values()) == total and all_closed(store)
    except StoreError:
        return {}, False
