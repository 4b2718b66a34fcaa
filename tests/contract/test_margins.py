"""How near alarms came to a page, drawn together for a picture: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from connectors.database.rows import BlockStatRow, FoldResult, ReadingRow
from connectors.database.store import Store


def reading(block: int, strength: float, *, segment: str = "", channel: str = "level") -> ReadingRow:
    times = block * 1000, block * 1000 + 1000
    return ReadingRow("x", segment, block, *times, channel, 0.0, strength, 6.0, 3.0, 9, 0.1, 0, None, 1, False, False)


def test_each_stretch_tells_its_strongest_reading_of_the_whole_traffic_and_its_records(store: Store) -> None:
    readings = [
        reading(10, 1.0),
        reading(11, 7.5),
        reading(11, 2.0, channel="mix"),
        reading(12, 20.0, segment="country=de"),
        reading(13, 9.0, channel="outlier_rate"),
        reading(19, 5.0),
        reading(20, 99.0),
    ]
    stats = [
        BlockStatRow("", block, block * 1000, block * 1000 + 1000, 0, 100, 0, 0, 0.0, (0,) * 10) for block in (10, 12)
    ]
    with store.begin_fold("m") as step:
        step.commit(FoldResult(30, [], [], readings, [], [], stats=stats))
    found = store.margins("m", ("level", "mix"), from_ms=10_000, to_ms=20_000, places=2)
    assert found == [(10_000, 1.5, 200), (15_000, -1.0, 0)]
    assert store.margins("m", ("level", "mix"), from_ms=10_000, to_ms=20_000, places=3)[-1] == (16_668, -1.0, 0)
    assert store.margins("other", ("level",), from_ms=0, to_ms=20_000, places=5) == []
