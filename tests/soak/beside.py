"""A backfill beside a live daemon, both killed again and again: what is left must be what nobody would have disturbed.

The daemon begins in the middle of the topic, at ``joint``; the backfill scores what lies before. Each kill waits for
the first checkpoint of its victim after the one before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from connectors.database.store import Store
from detectors.errors import StoreError
from monitor.soak import MODEL, WorkerProcess, all_closed
from monitor.soak_records import BLOCK_MS, OUTLIER, LabelledRecords
from tests.servers.postgres import PostgresServer
from tests.soak.fingerprint import Fingerprint
from tests.soak.harness import Deployment

STUCK_S = 120.0


@dataclass
class Beside:
    """What happened: kills by victim, and seconds until both were through."""

    kills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def clean_joint(records: LabelledRecords, near: float) -> int:
    """A time such that the first record of each partition from then on is usable: counting begins anew with it.

    What comes first is in a daemon's eyes never late, and a dead letter before it has no time but the broker's.
    """
    start, end = int(records.time_ms.min()), int(records.time_ms.max())
    for moment in range(start + round(near * (end - start)), end, 777):
        firsts = [
            np.flatnonzero((records.partition == number) & (records.time_ms >= moment))[0]
            for number in range(records.partitions)
        ]
        if all(records.label[row] <= OUTLIER for row in firsts) and 1_000 < moment % BLOCK_MS < BLOCK_MS - 1_000:
            return moment
    raise AssertionError("no such time")


def text_of(time_ms: int) -> str:
    """As the command line takes it."""
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).isoformat()


def history_of(found: Fingerprint, *, incidents: bool = True) -> Fingerprint:
    """What must be the same: rows of lanes count for their model, and nobody was told of the past."""
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (model, topic, number), row in found["partitions"]:
        before = seen.get((MODEL, topic, number))
        assert model.partition("~")[0] == MODEL
        if before is not None:
            row = {
                "next_offset": max(row["next_offset"], before["next_offset"]),
                "max_time_ms": max(row["max_time_ms"], before["max_time_ms"]),
                "topic_id": row["topic_id"],
                **{name: row[name] + before[name] for name in ("records", "dead", "late", "closed_late")},
            }
        seen[MODEL, topic, number] = row
    left_out = {"outbox": []} if incidents else {"outbox": [], "incidents": []}
    return {**found, "partitions": sorted(seen.items()), **left_out}


def run_beside(
    deployment: Deployment,
    joint_ms: int,
    *,
    kills: Mapping[str, int],
    seed: int,
    postgres: PostgresServer | None = None,
) -> Beside:
    """Let a daemon read on from ``joint_ms``, and a backfill score what was before.

    Args:
        kills: by victim ("backfill", "daemon", "database", "broker"), how many: at random places of the backfill.

    Raises:
        AssertionError: one of them ended by itself, or they stood still.
    """
    chance, report, began = random.Random(seed), Beside(), time.monotonic()
    records = deployment.content.records
    older = sum(firsts_from(records, joint_ms))
    victims = [victim for victim, count in sorted(kills.items()) for _ in range(count)]
    chance.shuffle(victims)
    due = list(zip(sorted(chance.uniform(0.0, 0.95) for _ in victims), victims, strict=True))
    counts, moved, disturbed = {"daemon": 0, "backfill": 0}, began, -1
    daemon, backfill = WorkerProcess(deployment.folder, "live"), None
    with (deployment.folder / "backfill.log").open("a+") as log:
        try:
            daemon.start()
            while True:
                now = time.monotonic()
                found = _counted(deployment)
                if found is not None and found != counts:
                    counts, moved = found, now
                if backfill is None and _begun(deployment) == records.partitions:
                    backfill = deployment.backfill("--to", text_of(joint_ms), log=log)
                over = backfill is not None and backfill.poll() is not None
                if backfill is not None and over:
                    assert backfill.returncode == 0, _said(log)
                    if sum(counts.values()) == len(records) and _closed(deployment):
                        break
                assert daemon.alive, daemon.log()[-2000:]
                assert now - moved < STUCK_S, f"stood still at {counts}: {_said(log)}"
                # Between two kills something is counted.
                ready = not over and backfill is not None and sum(counts.values()) > disturbed
                if due and ready and counts["backfill"] >= due[0][0] * older:
                    victim, disturbed = due.pop(0)[1], sum(counts.values())
                    report.kills[victim] = report.kills.get(victim, 0) + 1
                    if victim == "daemon":
                        daemon.kill()
                        daemon.start()
                    elif victim == "backfill" and backfill is not None:
                        backfill.kill()
                        backfill.wait()
                        backfill = deployment.backfill("--to", text_of(joint_ms), log=log)
                    elif victim == "database" and postgres is not None:
                        postgres.kill()
                        postgres.start()
                    elif victim == "broker":
                        deployment.content.server.kill()
                        deployment.content.server.start()
                    moved = time.monotonic()
                time.sleep(0.02)
        finally:
            if backfill is not None:
                backfill.kill()
                backfill.wait()
            daemon.kill()
    report.seconds = time.monotonic() - began
    return report


def firsts_from(records: LabelledRecords, joint_ms: int) -> list[int]:
    """By partition, the first offset with a time of ``joint_ms`` or later."""
    return [
        int(np.flatnonzero(records.time_ms[records.partition == number] >= joint_ms)[0])
        for number in range(records.partitions)
    ]


def _begun(deployment: Deployment) -> int:
    """How many partitions the daemon has begun."""
    try:
        with Store.open(deployment.url, busy_timeout_s=2.0) as store:
            return len(store.partition_states(MODEL))
    except StoreError:
        return 0


def _counted(deployment: Deployment) -> dict[str, int] | None:
    """Records that count, of the model and of its lanes; None without a database."""
    try:
        with Store.open(deployment.url, busy_timeout_s=2.0) as store:
            lanes = {job.lane for job in store.backfills(MODEL)} - {MODEL}
            counts = {name: sum(s.records for s in store.partition_states(name)) for name in [MODEL, *sorted(lanes)]}
    except StoreError:
        return None
    return {"daemon": counts.pop(MODEL), "backfill": sum(counts.values())}


def _closed(deployment: Deployment) -> bool:
    try:
        with Store.open(deployment.url, busy_timeout_s=2.0) as store:
            return all_closed(store)
    except StoreError:
        return False


def _said(log: Any) -> str:
    log.seek(0)
    return str(log.read())[-3000:]
