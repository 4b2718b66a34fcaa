"""What was judged live is judged again from the stored summaries: the same to the byte, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from connectors.database import schema
from connectors.database.rows import IncidentRow, ReadingRow
from connectors.database.store import Store
from monitor.app import build_workers
from monitor.incidents import OPERATIONAL
from monitor.replay import Replayed, Variant, replay
from monitor.settings import Settings

START_MS = 1_772_438_400_000
EVERY_MS, BASELINE, STREAM = 40, 6_000, 14_000
CAMPAIGN = np.array([4.0, 4.0, 0.0, 0.0])
MODEL = "cards"


def lines() -> list[bytes]:
    """Normal records; then a wave of fraud, broken lines, a new version, and at the end one country drifts."""
    chance = np.random.default_rng(4)
    n = BASELINE + STREAM
    x = chance.normal(size=(n, 4))
    names = np.full(n, "normal", object)
    at = BASELINE + 3_000 + chance.choice(1_500, 150, replace=False)
    x[at], names[at] = CAMPAIGN + chance.normal(0, 0.1, (150, 4)), "campaign"
    country = np.where(np.arange(n) % 3 == 0, "de", "fr")
    drifts = (np.arange(n) >= BASELINE + 9_000) & (country == "de")
    x[drifts, 0] += 1.2
    broken = set(range(BASELINE + 6_000, BASELINE + 6_400, 3))
    amount = chance.exponential(40.0, n)
    amount[BASELINE + 12_000 :] *= 1.5
    return [
        b"{broken"
        if row in broken
        else json.dumps(
            {
                "id": f"{names[row]}-{row}",
                "ts": START_MS + EVERY_MS * row,
                "v": vector,
                "amount": round(float(amount[row]), 2),
                "country": country[row],
                "version": "1" if row < BASELINE + 8_000 else "2",
            }
        ).encode()
        for row, vector in enumerate(x.round(3).tolist())
    ]


def settings_for(folder: Path, database: str, **changes: Any) -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": str(folder / "stream.jsonl")},
        "record": {
            "id": "/id",
            "time": "/ts",
            "version": "/version",
            "segments": {"country": "/country"},
            "keep": ["/amount"],
        },
        "spaces": {
            "input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list", "geometry": "standard"}},
            "amount": {"embedder": {"kind": "number", "field": "/amount"}},
        },
        "reference": {"collect": BASELINE},
        "drift": {"block": 10, "lateness": 5, "second_opinions": ["adwin", "page_hinkley"]},
        "fraud": {
            "space": "input",
            "fields": {"amount": "/amount"},
            "alpha": 0.005,
            "review": 0.002,
            "alerts": {"most": 25, "every": "5m"},
        },
    }
    return Settings.model_validate(
        {
            "database": database,
            "references": str(folder / "references"),
            "incidents": {"resolve_after": "30s", "deploy_grace": "20s"},
            "models": {MODEL: {**model, **changes}},
            "sinks": {"log": {"kind": "jsonl", "path": str(folder / "log.jsonl")}},
        }
    )


def run(settings: Settings, store: Store) -> None:
    (worker,) = build_workers(settings, store)
    worker.start()
    clock = 0.0
    while not worker.step(START_MS + 10_000_000, clock).finished:
        clock += 1.0
    worker.close_blocks_at_end(START_MS)
    worker.source.close()
    worker.close()


@dataclass
class Lived:
    settings: Settings
    store: Store

    def incidents(self) -> list[IncidentRow]:
        return [row for row in self.store.incidents(model=MODEL) if row.kind not in OPERATIONAL]

    def told(self) -> list[str]:
        table = schema.outbox
        with self.store._database.reading() as connection:
            query = sa.select(table.c.notification_id).where(table.c.model == MODEL).order_by(table.c.id)
            return list(connection.execute(query).scalars())

    def again(self, settings: Settings | None = None, **more: Any) -> Replayed:
        (found,) = replay(self.store, MODEL, [Variant("now", settings or self.settings)], **more)
        return found


def in_order(rows: list[ReadingRow]) -> list[str]:
    # As text: NaN is not itself.
    return sorted(map(repr, rows))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def lived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """A model that was watched live, with drift of a segment, two spaces, fraud, dead letters and a deployment."""
    folder = tmp_path_factory.mktemp("lived")
    (folder / "stream.jsonl").write_bytes(b"\n".join(lines()) + b"\n")
    database = f"sqlite:///{folder}/driftd.db"
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres").new_database()
    settings = settings_for(folder, database)
    with Store.open(database) as store:
        store.migrate()
        run(settings, store)
        yield Lived(settings, store)


def test_the_same_settings_give_the_same_bytes(lived: Lived) -> None:
    again = lived.again(readings=True, causes=True)
    assert in_order(again.readings) == in_order(lived.store.readings(MODEL))
    assert sorted(again.incidents, key=lambda row: row.id) == sorted(lived.incidents(), key=lambda row: row.id)
    assert [notification.id for notification in again.told] == lived.told()
    kinds = {row.kind for row in again.incidents}
    assert kinds >= {"drift", "fraud_wave", "dead_letters"}, kinds
    assert {row.segment for row in again.incidents} >= {"", "country=de"}
