"""How much is read at a time, from which partitions, and what a source that fails does to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from connectors.database.rows import PartitionState
from connectors.records import Partition, RawBatch, SourceState
from detectors.errors import AccessRefused, OffsetGap, SourceUnreachable
from monitor.reader import AHEAD, FIRST_BATCH, REMEMBER_S, RETRY_S, Reader

P = [Partition("orders", number) for number in range(3)]
WAIT_S = 600.0


class ScriptedSource:
    """Hands over what it was given, and remembers what it was asked."""

    def __init__(self, *script: Sequence[RawBatch] | Exception) -> None:
        self.script = list(script)
        self.asked: list[int] = []
        self.held: list[frozenset[Partition]] = []
        self.rewinds = 0
        self.mine = frozenset(P)
        self.behind: dict[Partition, int] = dict.fromkeys(P, 0)
        self.connected = True

    finished = False

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        self.asked.append(max_records)
        step = self.script.pop(0) if self.script else []
        if isinstance(step, Exception):
            raise step
        return list(step)

    def rewind(self) -> None:
        self.rewinds += 1

    def hold(self, partitions: frozenset[Partition]) -> None:
        self.held.append(partitions)

    def assignment(self) -> frozenset[Partition]:
        return self.mine

    def partitions(self) -> frozenset[Partition]:
        return frozenset(P)

    def lag(self) -> Mapping[Partition, int]:
        return self.behind

    def state(self) -> SourceState:
        return SourceState("stable", self.connected, 0, 0, 0, {})

    def check(self) -> str:
        return ""

    def open(self, positions: object, *, topic_ids: object = None) -> None: ...
    def commit(self, next_offsets: Mapping[Partition, int]) -> None: ...
    def close(self) -> None: ...
    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        return iter(())

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        return iter(())


def reader_of(source: ScriptedSource, *, live: bool = True) -> Reader:
    return Reader(source, most_records=4096, target_s=1.0, idle_s=60.0, wait_s=WAIT_S, live=live)


def batch(partition: Partition, *, time_ms: int = 0, n: int = 1) -> RawBatch:
    return RawBatch(
        partition, np.arange(n), np.full(n, time_ms, np.int64), [None] * n, [b""] * n, [[]] * n, next_offset=n
    )


def state(partition: Partition, max_time_s: float, *, idle: bool = False, next_offset: int = 7) -> PartitionState:
    return PartitionState(
        partition, next_offset, round(max_time_s * 1000), 1, 0, 0, idle_offset=next_offset if idle else None
    )


def test_slow_records_make_the_batch_small_and_fast_ones_large_again() -> None:
    reader = reader_of(source := ScriptedSource())
    assert reader.batch_records == FIRST_BATCH
    reader.took(FIRST_BATCH, 25.6)  # 100 ms each
    assert reader.batch_records == 10
    reader.took(10, 0.1)
    assert reader.batch_records == 100
    reader.took(100, 0.0001)
    reader.poll(0.0, wait_s=0.1)
    assert source.asked == [4096], "no more than the settings allow"
    reader.took(1, 5000.0)
    assert reader.batch_records == 4096, "a single slow record says nothing of a full batch"
    reader.took(4096, 1e9)
    assert reader.batch_records == 1, "it always goes on"


def test_what_runs_ahead_is_held_back_until_the_slow_have_caught_up() -> None:
    reader = reader_of(source := ScriptedSource())
    reader.gone(0.0)
    far = AHEAD * WAIT_S
    reader.hold_those_ahead([state(P[0], 0), state(P[1], far), state(P[2], far + 1)], frozenset())
    assert reader.held == {P[2]}
    reader.hold_those_ahead([state(P[0], 0, idle=True), state(P[1], far), state(P[2], far + 1)], frozenset())
    assert reader.held == set(), "an idle partition is not waited for"
    reader.hold_those_ahead([state(P[0], 0), state(P[1], far), state(P[2], far + 1)], frozenset({P[0]}))
    assert reader.held == set(), "neither is one that has stalled"
    reader.hold_those_ahead([state(P[0], -1), state(P[1], far), state(P[2], far + 1)], frozenset())
    assert reader.held == set(), "one that has not begun may lie anywhere"
    assert source.held == [{P[2]}, frozenset()], "the source is told of changes only"


def test_a_partition_of_another_worker_is_waited_for_and_never_held() -> None:
    source = ScriptedSource()
    source.mine = frozenset(P[:2])
    reader = reader_of(source)
    reader.gone(0.0)
    reader.hold_those_ahead([state(P[0], 0), state(P[1], 1e6), state(P[2], 1e6)], frozenset())
    assert reader.held == {P[1]}


def test_a_partition_rests_when_it_is_silent_at_its_end() -> None:
    reader = reader_of(source := ScriptedSource([batch(P[0])]))
    reader.gone(0.0)
    source.behind[P[1]] = 3
    states = [state(partition, 100) for partition in P]
    assert reader.at_rest(59.0, states, {}) == {}
    assert reader.at_rest(60.0, states, {}) == {P[0]: 7, P[2]: 7}
    reader.poll(50.0, wait_s=0.1)
    assert reader.at_rest(60.0, states, {}) == {P[2]: 7}
    assert reader.at_rest(110.0, states, {}) == {P[2]: 7}, "what it brought is not written yet"
    assert reader.at_rest(110.0, states, {P[0]: 1}) == {P[0]: 1, P[2]: 7}
    assert reader.at_rest(110.0, [state(P[0], 100, idle=True)], {}) == {}, "that is known already"
    source.connected = False
    assert reader.at_rest(110.0, states, {}) == {}, "silence of the brokers is not an empty topic"


def test_a_partition_at_its_end_rests_when_its_events_lie_far_behind_all_others() -> None:
    reader = reader_of(ScriptedSource([batch(P[0])]))
    reader.gone(0.0)
    reader.poll(0.0, wait_s=0.1)
    states = [state(P[0], 100.0), state(P[1], 100.0 + WAIT_S)]
    assert reader.at_rest(1.0, states, {P[0]: 1}) == {}
    states = [state(P[0], 99.0, next_offset=1), state(P[1], 100.0 + WAIT_S)]
    assert reader.at_rest(1.0, states, {}) == {P[0]: 1}


def test_an_outage_is_told_from_its_first_failure_until_records_come_again() -> None:
    down = SourceUnreachable("Kafka does not answer.")
    reader = reader_of(ScriptedSource(down, down, [batch(P[0])]))
    reader.poll(5.0, wait_s=0.1)
    reader.poll(6.0, wait_s=0.1)
    assert (reader.failing_since, reader.lasting) == (5.0, False)
    assert "does not answer" in reader.failure
    assert len(reader.poll(7.0, wait_s=0.1)) == 1
    assert (reader.failing_since, reader.failure) == (None, "")


def test_a_live_source_that_does_not_mend_by_itself_is_tried_again_slowly() -> None:
    refused = AccessRefused("Kafka refuses us.")
    reader = reader_of(source := ScriptedSource(refused, [batch(P[0])]))
    assert reader.poll(0.0, wait_s=0.1) == [] and reader.lasting
    assert reader.poll(RETRY_S - 1, wait_s=0.1) == [] and len(source.asked) == 1
    assert len(reader.poll(RETRY_S, wait_s=0.1)) == 1


def test_a_partition_that_fails_for_good_leaves_the_others_alone_and_is_not_forgotten_between_their_records() -> None:
    damaged = OffsetGap("offset 7 of partition 0 is gone")
    reader = reader_of(ScriptedSource(damaged, [batch(P[1])], damaged, [batch(P[1])], [batch(P[1])]))
    assert reader.poll(0.0, wait_s=0.1) == []
    assert len(reader.poll(1.0, wait_s=0.1)) == 1
    assert (reader.failure, reader.failing_since) == (str(damaged), 0.0)
    assert reader.poll(2.0, wait_s=0.1) == []
    assert len(reader.poll(3.0, wait_s=0.1)) == 1 and reader.failure
    assert len(reader.poll(2.0 + REMEMBER_S, wait_s=0.1)) == 1
    assert (reader.failure, reader.lasting, reader.failing_since) == ("", False, None)


def test_files_that_cannot_be_read_end_the_run() -> None:
    reader = reader_of(ScriptedSource(OffsetGap("cut off")), live=False)
    with pytest.raises(OffsetGap):
        reader.poll(0.0, wait_s=0.1)


def test_lag_in_seconds_is_the_age_of_the_last_record_where_more_wait() -> None:
    reader = reader_of(source := ScriptedSource([batch(P[0], time_ms=1_000), batch(P[1], time_ms=2_000)]))
    source.behind[P[0]] = 10
    reader.poll(0.0, wait_s=0.1)
    assert reader.lag_seconds(61_000) == {P[0]: 60.0, P[1]: 0.0}
    assert reader.lag_seconds(0) == {P[0]: 0.0, P[1]: 0.0}, "a clock that went back makes no negative lag"
