"""Old summaries are added up: exactly, as a whole group or not at all, and alike in however many steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.database import ageing
from connectors.database.ageing import Aged, AgeRule
from connectors.database.connection import Database
from connectors.database.lane import LaneStore, lane_name
from connectors.database.rows import BackfillRow, FoldResult, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition

RULES = [AgeRule(20, 4), AgeRule(100, 16)]
MERGED = Partition("", -1)
Row = tuple[int, int, int, int]  # block, blocks, reference, sum


def sums(_space: str, blobs: Sequence[bytes]) -> bytes:
    """Of numbers as texts, so that a test can see what was added."""
    return str(sum(map(int, blobs))).encode()


def summary(block: int, amount: int, *, space: str = "input", segment: str = "", reference: int = 1) -> SummaryDelta:
    return SummaryDelta(space, segment, block, reference, MERGED, 0, str(amount).encode())


def close(store: Store, next_block: int, rows: Iterable[SummaryDelta] = (), *, model: str = "m") -> None:
    with store.begin_fold(model) as step:
        step.commit(FoldResult(next_block, list(rows), [], [], [], []))


def merge(store: Store, rules: Sequence[AgeRule] = RULES, *, model: str = "m", most: int = 100_000) -> Aged:
    return store.merge_summaries(model, rules, sums, most=most)


def rows_of(store: Store, *, model: str = "m", space: str = "input", segment: str = "") -> list[Row]:
    found = store.summaries(model, space, segment=segment)
    return [(row.block, row.blocks, row.reference, int(row.blob)) for row in found]


def backfill(number: str, lane: str) -> BackfillRow:
    return BackfillRow(number, "m", lane, "scoring", {}, {}, 0)


def test_each_age_has_its_width_and_groups_begin_at_its_multiples(store: Store) -> None:
    close(store, 150, [summary(block, block) for block in range(3, 150)])
    assert merge(store) == Aged(rows=45 + 80, into=3 + 20)
    found = rows_of(store)
    assert found[:4] == [
        (0, 16, 1, sum(range(3, 16))),
        (16, 16, 1, sum(range(16, 32))),
        (32, 16, 1, sum(range(32, 48))),
        (48, 4, 1, sum(range(48, 52))),
    ]
    assert [row[:2] for row in found[3:]] == [(b, 4) for b in range(48, 128, 4)] + [(b, 1) for b in range(128, 150)]
    assert sum(row[3] for row in found) == sum(range(3, 150))


def test_a_group_waits_until_its_last_block_is_old_enough(store: Store) -> None:
    close(store, 23, [summary(block, 1) for block in range(23)])
    assert merge(store) == Aged()
    close(store, 24)
    assert merge(store) == Aged(rows=4, into=1)
    assert rows_of(store)[:2] == [(0, 4, 1, 4), (4, 1, 1, 1)]
    assert merge(store) == Aged(), "what is merged stays as it is"


def test_nothing_is_merged_without_rules_or_before_the_first_step(store: Store) -> None:
    assert merge(store) == Aged()
    close(store, 200, [summary(block, 1) for block in range(100)])
    assert merge(store, []) == Aged()
    assert len(rows_of(store)) == 100


def test_every_space_segment_reference_and_model_keeps_its_own(store: Store) -> None:
    places = [("input", ""), ("input", "country=NO"), ("input", "country=SE"), ("output", ""), ("", "")]
    for model in ("m", "n", "m~1"):
        rows = [
            summary(block, 10**index, space=space, segment=segment, reference=1 + block // 6)
            for index, (space, segment) in enumerate(places)
            for block in range(8)
        ]
        close(store, 40, rows, model=model)
    assert merge(store) == Aged(rows=40, into=15)
    for index, (space, segment) in enumerate(places):
        found = rows_of(store, space=space, segment=segment)
        assert found == [(0, 4, 1, 4 * 10**index), (4, 4, 1, 2 * 10**index), (4, 4, 2, 2 * 10**index)]
    assert len(rows_of(store, model="n")) == 8
    assert len(rows_of(store, model="m~1")) == 8


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ends=st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(sorted),
    blocks=st.sets(st.integers(0, 299), min_size=1, max_size=60),
    most=st.sampled_from([1, 7, 100_000]),
)
def test_merging_in_steps_gives_the_rows_of_merging_at_once(
    store: Store, ends: list[int], blocks: set[int], most: int
) -> None:
    name = f"steps {ends} {most} {sorted(blocks)}"
    at = 0
    for end in ends:
        new = [summary(block, 7**block % 1001) for block in sorted(blocks) if at <= block < end]
        close(store, end, new, model=name)
        close(store, end, new, model=f"once {name}")
        while merge(store, model=name, most=most).left:
            pass
        at = end
    merge(store, model=f"once {name}")
    assert rows_of(store, model=name) == rows_of(store, model=f"once {name}")


def test_summaries_that_come_later_join_the_row_of_their_group(store: Store) -> None:
    close(store, 150, [summary(block, 1) for block in range(5, 150, 2)])
    merge(store)
    before = rows_of(store)
    close(store, 150, [summary(block, 1000) for block in (6, 34, 70)])
    assert merge(store).into == 3
    late = {0: 1000, 32: 1000, 68: 1000}
    assert rows_of(store) == [(*row[:3], row[3] + late.get(row[0], 0)) for row in before]


def test_rows_that_were_merged_wider_stay_so_when_settings_ask_for_less(store: Store) -> None:
    close(store, 200, [summary(block, 1) for block in range(32)])
    merge(store, [AgeRule(20, 16)])
    close(store, 200, [summary(17, 100)])
    merge(store, [AgeRule(20, 4)])
    assert rows_of(store) == [(0, 16, 1, 16), (16, 16, 1, 116)]


def test_a_failure_leaves_each_group_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ageing, "_BLOCKS", 4)
    close(store, 200, [summary(block, 1) for block in range(100)])
    calls = 0

    def killed(space: str, blobs: Sequence[bytes]) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return sums(space, blobs)

    with pytest.raises(KeyboardInterrupt):
        store.merge_summaries("m", RULES, killed, most=1000)
    assert sum(row[3] for row in rows_of(store)) == 100
    assert [row[1] for row in rows_of(store)] == [16] * 3 + [1] * 52
    merge(store)
    assert [row[1] for row in rows_of(store)] == [16] * 6 + [4]


def test_two_processes_at_once_merge_every_group_once(
    store: Store, new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ageing, "_BLOCKS", 8)
    close(store, 300, [summary(block, 1, segment=f"s={n}") for block in range(160) for n in range(3)])
    inside, done = threading.Event(), list[Aged]()
    other = new_store()

    def slow(space: str, blobs: Sequence[bytes]) -> bytes:
        inside.set()
        return sums(space, blobs)

    def second() -> None:
        assert inside.wait(10)
        done.append(merge(other))

    thread = threading.Thread(target=second)
    thread.start()
    done.append(store.merge_summaries("m", RULES, slow, most=100_000))
    thread.join(30)
    assert sum(aged.rows for aged in done) == 480
    for n in range(3):
        assert rows_of(store, segment=f"s={n}") == [(block, 16, 1, 16) for block in range(0, 160, 16)]


def test_history_that_is_being_scored_beside_keeps_the_summaries_as_they_are(store: Store) -> None:
    close(store, 200, [summary(block, 1) for block in range(100, 200)])
    store.plan_backfill(backfill("b1", lane_name("m", 1)), [])
    assert merge(store) == Aged(waits_for="m~1")
    store.end_backfill(backfill("b1", lane_name("m", 1)), "done", 0)
    store.plan_backfill(backfill("b2", "m"), ["b1"])
    assert merge(store).rows == 80, "what goes on from what is there adds to no old block"


def test_a_lane_merges_what_is_old_for_it_and_nothing_of_what_is_to_come(store: Store) -> None:
    close(store, 200, [summary(block, 1) for block in range(100, 200)])
    lane = LaneStore.beside(store, "m", lane_name("m", 1))
    store.plan_backfill(backfill("b1", lane_name("m", 1)), [])
    close(lane, 40, [summary(block, 5) for block in range(40)])
    assert merge(lane) == Aged(rows=20, into=5)
    found = rows_of(store)
    assert found[:6] == [(block, 4, 1, 20) for block in range(0, 20, 4)] + [(20, 1, 1, 5)]
    assert [row[1] for row in found[25:]] == [1] * 100
    store.plan_backfill(backfill("b2", lane_name("m", 2)), ["b1"])
    assert merge(lane) == Aged(waits_for="m~2")


def test_a_range_that_begins_inside_a_row_has_the_row(store: Store) -> None:
    close(store, 150, [summary(block, 1) for block in range(150)])
    merge(store)

    def firsts(from_block: int | None, to_block: int | None) -> list[int]:
        return [
            row.block for row in store.summaries("m", "input", segment="", from_block=from_block, to_block=to_block)
        ]

    assert firsts(17, 50) == [16, 32, 48]
    assert firsts(32, 48) == [32]
    assert firsts(47, 48) == [32]
    assert firsts(125, 130) == [124, 128, 129]
    assert firsts(None, 1) == [0]


def test_a_group_of_blocks_is_named_before_and_after_it_is_merged(store: Store) -> None:
    """Whoever reads whole groups reads the same sums, whenever they were merged."""
    close(store, 150, [summary(block, block) for block in range(150)])

    def read() -> dict[int, int]:
        found: dict[int, int] = {}
        for block, _, _, amount in rows_of(store):
            first = ageing.group_of(block, RULES, 150)[0]
            found[first] = found.get(first, 0) + amount
        return found

    before = read()
    assert ageing.group_of(47, RULES, 150) == (32, 48)
    assert ageing.group_of(48, RULES, 150) == (48, 52)
    assert ageing.group_of(127, RULES, 150) == (124, 128)
    assert ageing.group_of(128, RULES, 150) == (128, 129)
    merge(store)
    assert read() == before
    assert set(before) == {row[0] for row in rows_of(store)}


def test_transactions_are_small_and_a_call_ends_after_so_many_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ageing, "_BLOCKS", 16)
    close(store, 400, [summary(block, 1) for block in range(400)])
    rows: list[int] = []

    def counted(self: object, connection: object, gone: list[object], wider: list[object]) -> None:
        rows.append(len(gone) + len(wider))
        write(connection, gone, wider)  # type: ignore[arg-type]

    write = ageing._write
    monkeypatch.setattr(ageing, "_write", lambda *given: counted(None, *given))
    assert merge(store, most=100) == Aged(rows=112, into=7, left=True)
    assert rows == [16] * 7
    while merge(store, most=100).left:
        pass
    assert max(rows) == 16
    assert len(rows_of(store)) == 18 + 23 + 20


def test_merged_rows_age_further_by_their_first_writing(store: Store) -> None:
    """Retention deletes in the order of numbers: a merged row takes the place of the newest that it was made of."""
    close(store, 60, [summary(block, 1) for block in range(40)])
    merge(store)
    with Database.reading(store._database) as connection:
        found = connection.exec_driver_sql("select id, block from summaries order by id").fetchall()
    assert [row[1] for row in found] == list(range(0, 40, 4))
    assert [row[0] - found[0][0] for row in found] == list(range(0, 40, 4))
