"""The limit of dead letters counts records, not polls; several processes publish each letter once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition
from detectors.errors import SinkError
from monitor.dead_letters import DeadLetterLimit, DeadLetterPublisher
from monitor.settings import DeadLetterSettings

ORDERS, RETURNS = Partition("orders", 0), Partition("returns", 0)


def letter(offset: int, row: int = -1, partition: Partition = ORDERS) -> DeadLetter:
    return DeadLetter(partition, offset, -1, "bad_json", "byte 0 is no JSON", b"", 0, row)


def limit_of(ratio: float, records: int, run: int) -> DeadLetterLimit:
    # Not validated: small numbers are easier to count, and a person has larger ones.
    return DeadLetterLimit(DeadLetterSettings.model_construct(stop_ratio=ratio, stop_records=records, stop_run=run))


def stopped_at(flags: Sequence[bool], cuts: Sequence[int], limit: DeadLetterLimit) -> int | None:
    """The number of the piece of the stream in which the limit is reached, None if it never is."""
    edges = [0, *sorted({cut for cut in cuts if cut < len(flags)}), len(flags)]
    for first, after in itertools.pairwise(edges):
        offsets = np.arange(first, after, dtype=np.int64) * 3  # holes are normal
        if limit.push(offsets, [letter(3 * row) for row in range(first, after) if flags[row]]):
            return after
    return None


def first_over(flags: Sequence[bool], *, ratio: float, records: int, run: int) -> int | None:
    """How many records have been seen when the limit is reached, by looking at every one."""
    for seen in range(1, len(flags) + 1):
        if seen >= records and sum(flags[seen - records : seen]) > ratio * records:
            return seen
        if seen >= run and all(flags[seen - run : seen]):
            return seen
    return None


@settings(max_examples=200, deadline=None)
@given(
    flags=st.lists(st.booleans(), min_size=1, max_size=120),
    cuts=st.lists(st.integers(1, 119), max_size=20),
    records=st.integers(3, 40),
    run=st.integers(2, 30),
    ratio=st.sampled_from([0.2, 0.5, 0.8, 1.0]),
)
def test_the_limit_is_reached_at_the_same_record_however_polls_cut_the_stream(
    flags: list[bool], cuts: list[int], records: int, run: int, ratio: float
) -> None:
    expected = first_over(flags, ratio=ratio, records=records, run=run)
    found = stopped_at(flags, cuts, limit_of(ratio, records, run))
    if expected is None:
        assert found is None
    else:
        edges = sorted({*(cut for cut in cuts if cut < len(flags)), len(flags)})
        assert found == next(edge for edge in edges if edge >= expected)


def test_a_run_stops_before_there_are_records_enough_for_a_share() -> None:
    limit = limit_of(0.5, 1_000, 100)
    assert limit.push(np.arange(99), [letter(offset) for offset in range(99)]) == ""
    reason = limit.push(np.arange(99, 200), [letter(99)])
    assert reason == "100 records in a row cannot be used (the last one: bad_json: byte 0 is no JSON)"


def test_a_share_says_how_many_of_how_many() -> None:
    limit = limit_of(0.5, 1_000, 10_000)
    reason = limit.push(np.arange(1_200), [letter(offset) for offset in range(1_200) if offset % 5 < 3])
    assert reason.startswith("600 of 1,000 records cannot be used")


def test_many_rows_of_one_record_are_one_record() -> None:
    limit = limit_of(0.5, 10, 5)
    assert limit.push(np.arange(10), [letter(3, row) for row in range(50)]) == ""


@pytest.mark.parametrize("dead", [(), (7,)])
def test_what_is_remembered_is_bounded(dead: tuple[int, ...]) -> None:
    limit = limit_of(1.0, 100, 50)
    for start in range(0, 100_000, 1_000):
        some = [letter(start + offset) for offset in range(0, 1_000, 2)]
        assert limit.push(np.arange(start, start + 1_000), some) == ""
    assert len(limit._dead) <= 100


class Topic:
    """A dead-letter topic that takes what it is sent, or is down for as long as it holds."""

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.taken: list[int] = []

    def send(self, letters: Sequence[DeadLetter]) -> None:
        if self.down:
            raise SinkError("down", retryable=True)
        self.taken += [letter.offset for letter in letters]

    def close(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as made:
        made.migrate()
        for model in ("a", "b"):
            letters = [letter(1), letter(2, partition=RETURNS)]
            made.commit(Checkpoint(model, [Advance(ORDERS, None, 9, 0, 9, 2, 0)], dead_letters=letters))
        yield made


def publisher(store: Store, assigned: frozenset[Partition], **topics: Topic) -> DeadLetterPublisher:
    return DeadLetterPublisher(store, topics, assigned=lambda model: assigned)  # type: ignore[arg-type]


def test_each_process_publishes_the_letters_of_its_own_partitions_once(store: Store) -> None:
    one, other = Topic(), Topic()
    first, second = (
        publisher(store, frozenset({ORDERS}), a=one),
        publisher(store, frozenset({RETURNS}), a=other),
    )
    assert first.waiting() == 2
    assert first.pump("a") and second.pump("a")
    assert not first.pump("a") and not second.pump("a")
    assert (one.taken, other.taken) == ([1], [2])
    assert first.waiting() == 0


def test_without_partitions_nothing_is_published(store: Store) -> None:
    topic = Topic()
    assert not publisher(store, frozenset(), a=topic).pump("a")
    assert topic.taken == []


def test_a_topic_that_is_down_delays_no_other(store: Store) -> None:
    down, up = Topic(down=True), Topic()
    running = publisher(store, frozenset({ORDERS, RETURNS}), a=down, b=up)
    running.start()
    try:
        deadline = time.monotonic() + 20
        while up.taken != [1, 2] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert up.taken == [1, 2]
        assert running.waiting() == 2
    finally:
        running.stop()
    assert down.taken == []
