"""Many workers in one process, on a clock that the test turns: every interleaving that a seed can make, in seconds.

The workers, the pipeline and the database are the real ones. Only the broker is played: partitions are lists of records
that are there from the beginning, and a group hands the partitions out. At each turn chance decides what happens next:
a worker makes a step, or crashes and comes back, or the group moves partitions. A worker learns that it lost a
partition only some turns later, so that two owners are at work on it at once, as after a frozen process wakes up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch, SourceState, Span
from monitor.app import build_scores
from monitor.collect import Collector
from monitor.decode import Decoder
from monitor.settings import Settings
from monitor.soak import MODEL, SPACE, all_closed, counted, rows_of
from monitor.soak_records import BLOCK_MS, LabelledRecords, labelled_records
from monitor.worker import Worker
from tests.soak.harness import START_MS

TOPIC, TOPIC_ID = "labelled", "AAAAAAAAAAAAAAAAAAAAAA"
TURN_S = 0.07  # of the played clock, at most
NOW_MS = 1_800_000_000_000


def batches_of(records: LabelledRecords) -> dict[Partition, RawBatch]:
    """All records, one batch for each partition."""
    rows: dict[int, list[tuple[int, bytes, bytes | None]]] = {number: [] for number in range(records.partitions)}
    for number, time_ms, key, value in rows_of(records):
        rows[number].append((time_ms, key, value))
    return {
        Partition(TOPIC, number): RawBatch(
            partition=Partition(TOPIC, number),
            offsets=np.arange(len(mine), dtype=np.int64),
            timestamps_ms=np.array([row[0] for row in mine], dtype=np.int64),
            keys=[row[1] for row in mine],
            values=[row[2] for row in mine],
            headers=[()] * len(mine),
            next_offset=len(mine),
            topic_id=TOPIC_ID,
        )
        for number, mine in rows.items()
    }


def reference_of(settings: Settings, folder: Path) -> ReferenceRow:
    """A reference in ``folder``, of traffic of the same kind as what is played."""
    model = settings.models[MODEL]
    collector = Collector(
        MODEL,
        decoder=Decoder(model.watched_record, fields=["body"]),
        embedders={SPACE: model.spaces[SPACE].embedder.build()},
        settings=model.reference,
        block_ms=BLOCK_MS,
    )
    longer = labelled_records(30_000, partitions=4, seed=5, start_ms=START_MS, per_block=50)
    for batch in batches_of(longer).values():
        collector.take(batch.rows(0, len(batch) // 10), None)
    (row,) = collector.build(folder, versions={SPACE: 1}, now_ms=0)
    return row


@dataclass
class Group:
    """Who owns which partition, as the broker sees it."""

    log: Mapping[Partition, RawBatch]
    owner: dict[Partition, int] = field(default_factory=dict)
    there: dict[Partition, int] = field(default_factory=dict)  # so many records have come so far; all where not named

    def length(self, partition: Partition) -> int:
        """How many records of a partition there are now."""
        return min(self.there.get(partition, len(self.log[partition])), len(self.log[partition]))

    def share_out(self, members: Sequence[int], chance: random.Random) -> None:
        """Give every partition to one of the members."""
        self.owner = {partition: chance.choice(list(members)) for partition in sorted(self.log)}

    def of(self, member: int) -> frozenset[Partition]:
        return frozenset(partition for partition, owner in self.owner.items() if owner == member)


class PlayedSource:
    """A `connectors.records.Source` over the lists of a `Group`."""

    finished = False

    def __init__(self, group: Group, member: int, cuts: random.Random) -> None:
        self._group, self._member, self._cuts = group, member, cuts
        self._positions: Any = None
        self._mine: frozenset[Partition] = frozenset()
        self._next: dict[Partition, int] = {}
        self._held: frozenset[Partition] = frozenset()

    def check(self) -> str:
        return "played"

    def open(self, positions: Any, *, topic_ids: Any = None) -> None:
        self._positions = positions

    def learn(self) -> None:
        """Hear of the group's present assignment; until then the old one is believed."""
        mine = self._group.of(self._member)
        for partition in self._mine - mine:
            self._next.pop(partition, None)
        self._mine = mine

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        missing = [partition for partition in sorted(self._mine) if partition not in self._next]
        if missing:
            stored = self._positions(missing)
            for partition in missing:  # a place in the list, which may have holes between its offsets
                offsets = self._group.log[partition].offsets
                self._next[partition] = int(np.searchsorted(offsets, stored.get(partition, 0)))
        found, left = [], max_records
        order = sorted(self._mine - self._held)
        self._cuts.shuffle(order)
        for partition in order:
            whole, first = self._group.log[partition], self._next[partition]
            there = self._group.length(partition)
            after = min(there, first + (left if max_records < 10 else self._cuts.randint(1, left)))
            if after > first:
                found.append(whole.rows(first, after))
                self._next[partition] = after
                left -= after - first
            if left <= 0:
                break
        return found

    def rewind(self) -> None:
        self._next.clear()

    def assignment(self) -> frozenset[Partition]:
        return self._mine

    def partitions(self) -> frozenset[Partition]:
        return frozenset(self._group.log)

    def hold(self, partitions: frozenset[Partition]) -> None:
        self._held = partitions

    def state(self) -> SourceState:
        return SourceState(member="stable", connected=True, rebalances=0, rebuilt=0, failed_commits=0, silent={})

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        pass

    def lag(self) -> Mapping[Partition, int]:
        return {partition: self._group.length(partition) - self._next.get(partition, 0) for partition in self._mine}

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        yield from self._group.log.values()

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        for partition, offset in positions:
            yield self._group.log[partition].rows(offset, offset + 1)

    def close(self) -> None:
        pass


class PlayedHistory(PlayedSource):
    """The same lists as history: offsets that are assigned, and an end."""

    def __init__(self, log: Mapping[Partition, RawBatch], spans: Mapping[Partition, Span] | None = None) -> None:
        whole = {place: Span(int(batch.offsets[0]), batch.next_offset, TOPIC_ID) for place, batch in log.items()}
        self._log, self._spans = log, whole if spans is None else dict(spans)
        pieces = {place: _piece(log[place], span) for place, span in self._spans.items()}
        super().__init__(Group(pieces, dict.fromkeys(pieces, 0)), 0, random.Random(0))
        self.learn()

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        assert (start_ms, end_ms) == (None, None)
        return dict(self._spans)

    def between(self, spans: Mapping[Partition, Span]) -> PlayedHistory:
        return PlayedHistory(self._log, spans)

    @property
    def finished(self) -> bool:  # type: ignore[override]
        return all(left == 0 for left in self.lag().values())


def _piece(batch: RawBatch, span: Span) -> RawBatch:
    first, after = np.searchsorted(batch.offsets, (span.first, span.after)).tolist()
    return batch.rows(first, after)


@dataclass
class Played:
    """What happened in a simulation."""

    steps: int = 0
    crashes: int = 0
    moves: int = 0
    refused: int = 0  # checkpoints of an owner that was one no more


def simulate(
    settings: Settings,
    log: Mapping[Partition, RawBatch],
    *,
    workers: int,
    poll_records: int,
    seed: int,
    crashes: float = 0.01,
    moves: float = 0.02,
    hears: float = 0.7,
    during: Callable[[Group, int], None] | None = None,
) -> Played:
    """Let ``workers`` read everything. Returns when all is counted and every block is closed.

    Args:
        settings: with a database that holds the reference and nothing else.
        poll_records: most records of one poll.
        crashes, moves: chance of each at a turn.
        hears: chance that a worker knows of a move at its next turn.
        during: told at each turn how many records are counted.

    Raises:
        AssertionError: they stand still.
    """
    chance, played, group = random.Random(seed), Played(), Group(log)
    total, clock_s = sum(map(len, log.values())), 0.0
    settings = settings.model_copy(
        update={"checkpoint": settings.checkpoint.model_copy(update={"poll_records": poll_records})}
    )
    stores = [Store.open(settings.database) for _ in range(workers)]
    members = list(range(workers))
    group.share_out(members, chance)

    def made(number: int) -> tuple[Worker, PlayedSource]:
        source = PlayedSource(group, number, random.Random(chance.random()))
        scores = build_scores(MODEL, settings.models[MODEL])
        worker = Worker(MODEL, settings, store=stores[number], source=source, scores=scores)
        worker.start()
        source.learn()
        return worker, source

    try:
        running = {number: made(number) for number in members}
        quiet = 0
        while True:
            clock_s += chance.uniform(0.0, TURN_S)
            if during is not None:
                during(group, counted(stores[0]))
            number, draw = chance.choice(members), chance.random()
            if draw < crashes:
                played.crashes += 1
                running[number] = made(number)
            elif draw < crashes + moves and workers > 1:
                played.moves += 1
                group.share_out(members, chance)
            worker, source = running[number]
            if chance.random() < hears:
                source.learn()
            step = worker.step(NOW_MS + round(clock_s * 1000), clock_s, wait_s=0.0)
            played.steps += 1
            played.refused += step.refused
            quiet = 0 if step.records else quiet + 1
            if quiet > 20 * workers:
                clock_s += 1.0  # nothing to read any more: wait for the blocks to close
                if _all_read(stores[0], log) and all_closed(stores[0]):
                    break
            assert quiet < 400 * workers, f"{counted(stores[0])} of {total} records counted, then nothing"
        for number in members:
            running[number][0].drain(NOW_MS)
    finally:
        for store in stores:
            store.close()
    return played


def _all_read(store: Store, log: Mapping[Partition, RawBatch]) -> bool:
    return store.positions(MODEL, list(log)) == {place: batch.next_offset for place, batch in log.items()}
