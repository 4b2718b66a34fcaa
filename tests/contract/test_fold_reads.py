"""What a fold reads of closed blocks to explain an incident: the same on SQLite and PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from connectors.database.rows import Advance, Checkpoint, FoldResult, KeptRecord, NewLabel, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition

P0 = Partition("orders", 0)
NOWHERE = Partition("", -1)
NASTY = "name=a\0b"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Blocks 0 to 299 of two segments and two references are closed, and a record of each is kept."""
    address = f"sqlite:///{tmp_path_factory.mktemp('fold')}/driftd.db"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres").new_database()
    with Store.open(address) as opened:
        opened.migrate()
        merged = [
            SummaryDelta("input", segment, block, reference, NOWHERE, 0, b"%d" % block)
            for block in range(300)
            for segment, reference in (("", 1), ("", 2), (NASTY, 1))
        ]
        kept = [
            KeptRecord(
                P0, n, n, "input", n, f"r{n}", "sample", float(n % 7), 0.5, 1, -1, None, None, {}, {}, vector=b"\0<"
            )
            for n in range(300)
        ]
        opened.commit(Checkpoint("m", [Advance(P0, None, 300, 300, 300, 0, 0)], kept=kept))
        with opened.begin_fold("m") as fold:
            fold.commit(FoldResult(300, merged, [], [], [], []))
        yield opened


def test_the_newest_blocks_are_found(store: Store) -> None:
    with store.begin_fold("m") as fold:
        assert fold.blocks("input", 1, from_block=10, to_block=200, most=3) == [197, 198, 199]
        assert fold.blocks("input", 1, from_block=298, to_block=999, most=9) == [298, 299]
        assert fold.blocks("input", 9, from_block=0, to_block=999, most=9) == []


def test_summaries_of_a_segment_come_in_order_and_once(store: Store) -> None:
    with store.begin_fold("m") as fold:
        for segment in ("", NASTY):  # more rows than are fetched at once
            rows = list(fold.summaries("input", 1, segment=segment, from_block=20, to_block=280))
            assert [row.block for row in rows] == list(range(20, 280))
            assert [row.blob for row in rows] == [b"%d" % block for block in range(20, 280)]


def test_kept_records_come_strangest_or_newest_first(store: Store) -> None:
    with store.begin_fold("m") as fold:
        strange = fold.kept("input", 1, from_block=50, to_block=100, most=8, order="score")
        assert [record.score for record in strange] == [6.0] * 7 + [5.0]
        assert [record.offset for record in strange[:3]] == [55, 62, 69]
        newest = fold.kept("input", 1, from_block=50, to_block=100, most=2, order="time")
        assert [record.offset for record in newest] == [99, 98]
        assert newest[0].vector == b"\0<"


def test_fraud_hits_come_strangest_first_and_each_is_flagged_by_itself(store: Store) -> None:
    rows = [
        KeptRecord(
            P0,
            n,
            n,
            "fraud",
            7,
            f"r{n}",
            "fraud" if n % 5 else "review",
            float(n % 4),
            0.001,
            1,
            -1,
            None,
            None,
            {"country": "de"},
            {},
            labels=3,
            detail={"probability": n / 100} if n % 3 else {},
        )
        for n in range(20)
    ]
    store.commit(Checkpoint("frauds", [Advance(P0, None, 20, 20, 20, 0, 0)], kept=rows))
    said = NewLabel("r1", "fraud", 44, "chargeback", 1.0, "bank", "one")
    store.add_labels("frauds", [said])
    with store.begin_fold("frauds") as fold:
        assert fold.fraud_hits("fraud", 8, 0.0, 99) == []
        hits = fold.fraud_hits("fraud", 7, 2.0, 4)
        assert [(hit.surprise, hit.offset) for hit in hits] == [(3.0, 3), (3.0, 7), (3.0, 11), (3.0, 19)]
        assert (hits[1].probability, hits[1].labels, hits[1].segments) == (0.07, 3, {"country": "de"})
        assert math.isnan(hits[0].probability)
        (number,) = [row.id for row in store.waiting_labels("frauds", limit=9)]
        assert fold.label_facts([number, number + 1]) == {number: ("chargeback", 44)}
        assert fold.commit(FoldResult(8, [], [], [], [], [], hits=hits[1:3])) == {"fraud": 2}
    with store.begin_fold("frauds") as fold:
        kept = fold.kept("fraud", 1, from_block=0, to_block=99, most=99, order="time")
    assert sorted(row.offset for row in kept if row.flagged) == [7, 11]
