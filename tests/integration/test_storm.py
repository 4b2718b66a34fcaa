"""Much goes wrong at once: few messages with everything in them, by the real pipeline, fold, database and webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import SecretStr

from connectors.database.rows import IncidentRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from connectors.webhook import WebhookSettings
from detectors.reference import Geometry, Reference
from monitor.decode import Decoder
from monitor.folding import Folder
from monitor.incidents import EventName
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.pacing import Pace
from monitor.pipeline import Pipeline, Space
from monitor.settings import Settings
from tests.senders import Clock, incident, put, told
from tests.servers.receiver import Answer, Receiver

NEVER = threading.Event()
FIELDS, VALUES, DIMENSION = 5, 100, 8  # 500 segments: each record is in five of them
RATE = 10_000  # records a second, most of them strange
CALM_S, STORM_S = 2, 5
NAMES = [f"v{value:02}" for value in range(VALUES)]
MOST = 10


class Desk:
    """A database, a webhook with a real receiver, and its queue, on a clock that the test turns."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.clock = Clock()
        self.store = Store.open(f"sqlite:///{folder / 'driftd.db'}", now_ms=self.clock)
        self.store.migrate()
        self.receiver = receiver
        self.sent_at: list[int] = []  # second of each message
        sink = WebhookSettings(url=SecretStr(receiver.url)).build()
        self.queue = SinkQueue(
            "pager", sink, self.store, policy=RetryPolicy(), pace=Pace(most_per_minute=MOST), metrics=None
        )

    def second(self) -> None:
        """A second goes by, and the sender looks."""
        self.clock.now_ms += 1000
        self.queue.pump(self.clock, NEVER)
        self.sent_at += [self.clock.now_ms // 1000] * (len(self.receiver.requests) - len(self.sent_at))

    def most_in_a_minute(self) -> int:
        return max(sum(first <= at < first + 60 for at in self.sent_at) for first in self.sent_at)

    def last_heard(self) -> dict[str, str]:
        """For each incident, the id of the newest notification that arrived; none comes twice."""
        alerts = [alert["annotations"] for request in self.receiver.requests for alert in request.json["alerts"]]
        ids = [said["notification_id"] for said in alerts]
        assert len(ids) == len(set(ids))
        return {said["incident"]: said["notification_id"] for said in alerts}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Receiver(Answer(200)) as receiver:
        desk = Desk(tmp_path, receiver)
        yield desk
        desk.store.close()


def drawn(chance: np.random.Generator, n: int, *, storm: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Vectors, and the value of each field of each; in the storm every segment moves, one half against the other.

    Three records in ten stay as they were: where none does, it is no storm but another encoder.
    """
    values = np.stack([chance.permutation(np.arange(n) % VALUES) for _ in range(FIELDS)], axis=1)
    vectors = chance.normal(size=(n, DIMENSION))
    if storm:
        vectors[:, :FIELDS] += np.where(values % 2, 6.0, -6.0) * (chance.random((n, 1)) < 0.7)
    return vectors.astype(np.float32), values


def batch_of(first: int, start_ms: int, vectors: npt.NDArray[np.float32], values: npt.NDArray[np.int64]) -> RawBatch:
    """One second of the stream."""
    n = len(vectors)
    rows = zip(vectors.round(3).tolist(), values.tolist(), strict=True)
    bodies = [
        json.dumps({"v": vector, **{f"f{field}": NAMES[value] for field, value in enumerate(row)}}).encode()
        for vector, row in rows
    ]
    return RawBatch(
        partition=Partition("orders", 0),
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=start_ms + np.arange(n, dtype=np.int64) * 1000 // n,
        keys=[None] * n,
        values=bodies,
        headers=[()] * n,
        next_offset=first + n,
    )


def test_five_hundred_segments_that_drift_at_once_in_ten_thousand_strange_records_a_second(
    desk: Desk, tmp_path: Path
) -> None:
    chance = np.random.default_rng(3)
    vectors, values = drawn(chance, VALUES * 540, storm=False)
    fields = [f"f{field}" for field in range(FIELDS)]
    reference = Reference.build(
        vectors,
        geometry=Geometry(unit=False, whitening=0.5),
        block=2000,
        prototypes=32,
        exemplars=0,
        segments=dict.fromkeys(fields, NAMES),
        segment_values={field: [NAMES[v] for v in values[:, number]] for number, field in enumerate(fields)},
    )
    settings = Settings.model_validate(
        {
            "database": "sqlite:///unused.db",
            "sinks": {"pager": {"kind": "webhook", "url": desk.receiver.url}},
            "models": {
                "orders": {
                    "source": {"kind": "files", "path": "unused.jsonl"},
                    "record": {"segments": {field: f"/{field}" for field in fields}},
                    "spaces": {
                        "input": {
                            "embedder": {"kind": "vector", "field": "/v", "encoding": "list", "dimension": DIMENSION}
                        }
                    },
                    "drift": {"block": "1s", "lateness": "1s", "channels": {"shape": 0, "mix": 0}},
                }
            },
        }
    )
    model = settings.models["orders"]
    space = Space("input", model.spaces["input"].embedder.build(), reference, 1, dict.fromkeys(fields, NAMES))
    pipeline = Pipeline(
        "orders",
        decoder=Decoder(model.watched_record, fields=["/v"]),
        spaces=[space],
        block_ms=1000,
        lateness_ms=1000,
        alpha=model.outliers.alpha,
        sample=0.0,
        stored=lambda partitions: {},
    )
    folder = Folder("orders", settings, spaces=[space])
    first = 0
    for second in range(CALM_S + STORM_S + 120):
        storm = CALM_S <= second < CALM_S + STORM_S
        if second < CALM_S + STORM_S:
            found = drawn(chance, RATE if storm else 2000, storm=storm)
            pipeline.process(batch_of(first, desk.clock.now_ms, *found), None)
            first += len(found[0])
            desk.store.commit(pipeline.checkpoint())
            pipeline.written()
            folder.step(desk.store, desk.clock.now_ms, partitions=frozenset({Partition("orders", 0)}))
        desk.second()
    incidents = desk.store.incidents("orders")
    assert sum(row.kind == "drift" and row.segment != "" for row in incidents) == FIELDS * VALUES
    assert [row.kind for row in incidents if row.segment == ""] == ["outlier_rate"]
    assert desk.most_in_a_minute() <= 2, "one model: a message with what is new, and one with what came after it"
    assert desk.queue.pump(desk.clock, NEVER) == 0 and desk.store.outbox_waiting() == (0, None)
    told_of = {row.id for row in incidents if row.detail.get("quiet") is not True}
    assert set(desk.last_heard()) == told_of and len(told_of) > FIELDS * VALUES


def test_two_hundred_models_that_drift_and_recover_again_and_again(desk: Desk) -> None:
    chance = np.random.default_rng(5)
    models = [f"m{number:03}" for number in range(200)]
    newest: dict[str, IncidentRow] = {}
    for second in range(240):
        if second < 150:
            step: list[tuple[IncidentRow, EventName]] = []
            for model in chance.choice(models, size=20, replace=False).tolist():
                name = f"{model}-{chance.integers(3)}"
                before = newest.get(name)
                over = before is not None and before.status == "open"
                revision = 1 if before is None else before.revision + 1
                row = incident(
                    name,
                    model=model,
                    segment=f"s={name[-1]}",
                    severity="page" if chance.random() < 0.3 else "warn",
                    status="resolved" if over else "open",
                    revision=revision,
                )
                newest[name] = row
                step.append((row, "resolved" if over else "opened" if before is None else "reopened"))
            notes = [("pager", told(row, event, f"{row.id}-{row.revision}")) for row, event in step]
            put(desk.store, *notes, incidents=[row for row, _ in step])
        desk.second()
    assert desk.most_in_a_minute() == MOST
    assert desk.store.outbox_waiting() == (0, None)
    assert desk.last_heard() == {name: f"{name}-{row.revision}" for name, row in newest.items()}
    assert len(desk.receiver.requests) <= 40, "what is told of many models is told together"
