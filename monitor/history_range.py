"""A stretch of history: which offsets it holds, up to where blocks may be closed, and what was too late for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from connectors.database.rows import Closure, PartitionState, SummaryDelta
from connectors.records import Partition, Span

_BEFORE_ALL = -(2**62)  # sums of what came without a record lie below zero


@dataclass(frozen=True, slots=True)
class LiveEdge:
    """How far the live records of a model are, as a lane beside them sees it.

    Attributes:
        closes: their fold has closed blocks. Until it has, a block has to wait for their partitions here, too.
        first_open_block: the first block that it has not closed; before it has closed any, the first that holds live
            records. None where none does.
        newest_ms: event time of the newest record of each partition.
    """

    closes: bool
    first_open_block: int | None
    newest_ms: Mapping[Partition, int]


@dataclass(frozen=True)
class HistoryRange:
    """What one backfill scores.

    Attributes:
        spans: the offsets of each partition; each span holds at least one.
        read_to_ms: every record up to this time of the broker lies in the spans or before them, so that a partition
            that was read to its end holds no older block open. None where no more records are to come at all.
        first_ms: event time of the first usable record of a partition, as far as known: a partition holds no block open
            that lies so far before it that its records would be late.
        lane: positions and blocks are kept under this name; "" where they are the model's own.
        live_from_block: in a lane, the first block that the model had before; what people were told of blocks from
            there on stays as it is.
        joins: in a lane, its fold goes on over the blocks that the model had before.
        closures: by the wall clock, of a run over the same offsets that is to be repeated to the byte.
    """

    spans: Mapping[Partition, Span]
    read_to_ms: int | None
    first_ms: Mapping[Partition, int] = field(default_factory=dict)
    lane: str = ""
    live_from_block: int | None = None
    joins: bool = True
    closures: Sequence[Closure] = field(default=())

    @cached_property
    def _cuts(self) -> dict[Partition, tuple[list[int], list[int]]]:
        """By partition, the offsets at which blocks were closed, ascending, and below which block from there on."""
        found: dict[Partition, dict[int, int]] = {}
        for closure in self.closures:
            for partition in self.spans:
                # Of a partition that nobody had read, all came later. One that is silent stands at one offset through
                # thousands of closures.
                offset = closure.next_offsets.get(partition, _BEFORE_ALL)
                below = found.setdefault(partition, {})
                below[offset] = max(closure.block, below.get(offset, closure.block))
        return {
            partition: (sorted(below), list(accumulate((below[offset] for offset in sorted(below)), max)))
            for partition, below in found.items()
        }

    def next_cut(self, partition: Partition, offset: int) -> int | None:
        """The first offset after this one at which blocks were closed by the wall clock; a checkpoint ends there."""
        offsets, _ = self._cuts.get(partition, ([], []))
        place = bisect_right(offsets, offset)
        return offsets[place] if place < len(offsets) else None

    def came_late(self, delta: SummaryDelta) -> bool:
        """Whether the block had been closed by the wall clock before these records came."""
        offsets, below = self._cuts.get(delta.partition, ([], []))
        place = bisect_right(offsets, delta.first_offset) - 1
        return place >= 0 and delta.block < below[place]

    def closed_below(
        self,
        states: Sequence[PartitionState],
        *,
        finished: bool,
        lateness_ms: int,
        block_ms: int,
        live: LiveEdge | None = None,
    ) -> int | None:
        """The block below which all may be closed; None where none may.

        Args:
            states: how far the partitions are.
            finished: everything was read.
            live: in a lane, how far the live records of the model are.
        """
        by_partition = {state.partition: state for state in states}
        passed_ms: list[int] = []
        for partition, span in self.spans.items():
            state = by_partition.get(partition)
            newest_ms = self.first_ms.get(partition, -1)
            if state is not None:
                newest_ms = max(newest_ms, state.max_time_ms)
            over = finished or (state is not None and state.next_offset >= span.after)
            if not over:
                if newest_ms < 0:
                    return None
                passed_ms.append(newest_ms - lateness_ms)
            elif live is None and self.read_to_ms is not None:
                passed_ms.append(max(newest_ms, self.read_to_ms) - lateness_ms)
            elif live is not None and not live.closes:
                passed_ms.append(max(newest_ms, live.newest_ms.get(partition, -1)) - lateness_ms)
        if live is None:
            # Not beyond the newest record: what comes next may lie in the block that follows.
            newest = max((state.max_time_ms for state in states), default=-1) // block_ms + 1
            return min([newest, *(time_ms // block_ms for time_ms in passed_ms)])
        if not live.closes:
            others = live.newest_ms.keys() - self.spans.keys()
            passed_ms += [live.newest_ms[partition] - lateness_ms for partition in sorted(others)]
        # The blocks that live records lie in are closed by the fold of the live records first.
        limit = live.first_open_block if self.joins else self.live_from_block
        bounds = [time_ms // block_ms for time_ms in passed_ms] + ([] if limit is None else [limit])
        newest = max((state.max_time_ms for state in states), default=-1) // block_ms + 1
        return min(bounds, default=newest)
