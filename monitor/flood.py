"""Floods: near-identical records in the open blocks of one partition, counted through restarts and owners.

The group that a record belongs to is counted within its block and partition, in the order of the offsets. A record
that is late, or dated after the broker got it, has no place in that order and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from connectors.database.rows import FloodRow
from connectors.records import Partition
from detectors.flood import FloodPlan, FloodSketch
from monitor.event import EventBatch


class Floods:
    """The groups that one partition has shown in its open blocks.

    Args:
        plan: how near is near-identical.
        stored: what former checkpoints wrote of the open blocks.
    """

    def __init__(self, plan: FloodPlan, stored: Iterable[FloodRow] = ()) -> None:
        self._sketch = FloodSketch(plan, [(row.block, row.blob) for row in stored])

    def push(
        self,
        events: EventBatch,
        x: npt.NDArray[np.float32],
        *,
        blocks: npt.NDArray[np.int64],
        late: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int32]:
        """Count the next records of the partition.

        Args:
            x: float32 (n, d), prepared.
            blocks: int64 (n,), the block of each event.
            late: bool (n,), those that came too late for their block.

        Returns:
            int32 (n,): how many near-identical records of its block there are so far, each one included; 0 for those
            that are not counted.
        """
        sizes = np.zeros(len(events), np.int32)
        rows = np.flatnonzero(~(late | events.ahead))  # a block far ahead may stay open for years
        if len(rows):
            everything = len(rows) == len(events)
            sizes[rows] = self._sketch.push(blocks[rows], x if everything else x[rows])
        return sizes

    def close(self, below: int) -> None:
        """Forget the blocks below ``below``: every further record of theirs is late."""
        self._sketch.close(below)

    def unwritten(self, partition: Partition, first_offset: int) -> list[FloodRow]:
        """What the next checkpoint has to write, for a checkpoint that begins at ``first_offset``."""
        return [FloodRow(partition, block, first_offset, blob) for block, blob in self._sketch.unwritten()]

    def written(self) -> None:
        """The checkpoint was committed."""
        self._sketch.written()
