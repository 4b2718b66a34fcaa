"""Each setting of an incident's life has the effect that it says, through the whole fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connectors.database.rows import Advance, Checkpoint, SummaryDelta
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition
from monitor.folding import Folder
from monitor.record_counts import RecordCounts
from monitor.settings import Settings

P0 = Partition("orders", 0)
BLOCK_MS = 10_000
WAVE = [90] + [0] * 25  # dead of 100 records in each block; judged over six blocks


def told(path: Path, dead: list[int], *, harm: str = "normal", **content: Any) -> list[Notification]:
    """What a sink is told of a stream of blocks, some of whose records cannot be used."""
    model = {
        "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "orders"},
        "spaces": {"confidence": {"embedder": {"kind": "number", "field": "/score"}}},
        "drift": {"block": "10s", "lateness": "5s"},
        "harm": harm,
    }
    settings = Settings.model_validate({"models": {"m": model}, **content})
    deltas = [
        SummaryDelta("", "", 100 + number, 0, P0, 0, RecordCounts(100, 0, {"bad_json": count}).to_bytes())
        for number, count in enumerate(dead)
    ]
    newest_ms = (100 + len(dead)) * BLOCK_MS - 1
    found: list[Notification] = []
    with Store.open(f"sqlite:///{path}/{len(list(path.iterdir()))}.db") as store:
        store.migrate()
        store.commit(Checkpoint("m", [Advance(P0, None, 100 * len(dead), newest_ms, 100 * len(dead), 0, 0)], deltas))
        Folder("m", settings, spaces=[]).close_all(store, 0)
        while rows := store.outbox_due(0, 100):
            found += [row.notification for row in rows]
            store.outbox_sent("console", [row.notification.id for row in rows], 1)
    return sorted(found, key=lambda note: (note.starts_ms, note.incident, int(note.values["revision"])))


def events(*args: Any, **more: Any) -> list[str]:
    return [note.values["event"] for note in told(*args, **more)]


@pytest.mark.parametrize(
    ("incidents", "expected"),
    [
        ({"resolve_after": "1m"}, ["opened", "resolved", "reopened", "resolved"]),
        ({"resolve_after": "1m", "cooldown": 0}, ["opened", "resolved", "opened", "resolved"]),
        ({"resolve_after": "1m", "cooldown": "1m"}, ["opened", "resolved", "opened", "resolved"]),
        ({"resolve_after": "10m"}, ["opened"]),
        ({"resolve_after": "1m", "min_duration": "50s"}, ["opened", "resolved", "reopened", "resolved"]),
        ({"resolve_after": "1m", "min_duration": "51s"}, []),
    ],
)
def test_settings_of_incidents(tmp_path: Path, incidents: dict[str, Any], expected: list[str]) -> None:
    assert events(tmp_path, WAVE + WAVE, incidents=incidents) == expected


def test_settings_of_repeating(tmp_path: Path) -> None:
    assert events(tmp_path, [50] * 20) == ["opened"]
    assert events(tmp_path, [50] * 20, notify={"repeat_interval": "1m"}) == [
        "opened",
        "repeated",
        "repeated",
        "repeated",
    ]


def test_settings_of_harm(tmp_path: Path) -> None:
    found = {harm: told(tmp_path, [90] * 9, harm=harm)[0] for harm in ("low", "normal", "high")}
    assert {harm: (note.severity, note.values["priority"]) for harm, note in found.items()} == {
        "low": ("warn", "P4"),
        "normal": ("page", "P1"),
        "high": ("page", "P1"),
    }
    assert "models.m.harm is low, so it only warns" in found["low"].text
    assert told(tmp_path, [30] * 9, harm="high")[0].values["priority"] == "P3"
