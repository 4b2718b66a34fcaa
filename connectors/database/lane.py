"""A lane: history of a model that is scored beside its live records.

Positions, open blocks and the state of the fold are kept under the lane's name; what people look at goes to the model.
So neither sees the other's unfinished work, and every offset counts once in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from connectors.database.ageing import Aged, AgeRule, Merge
from connectors.database.connection import Database
from connectors.database.folding import Fold
from connectors.database.rows import (
    Checkpoint,
    EntityRow,
    FloodRow,
    HalfRow,
    LabelSpan,
    PartitionState,
    ThinnedKeys,
)
from connectors.database.store import Store
from connectors.records import Partition

SIGN = "~"  # no name of a model has it


class LaneStore(Store):
    """The database as a worker sees it that scores history in a lane. Every other table is the model's.

    Args:
        model: the model's name.
        lane: the lane's, such as "support~1".
    """

    def __init__(self, database: Database, *, model: str, lane: str) -> None:
        super().__init__(database)
        self.model = model
        self.lane = lane

    @classmethod
    def beside(cls, store: Store, model: str, lane: str) -> LaneStore:
        """A lane in the database of another store, which is not to be closed before."""
        return cls(store._database, model=model, lane=lane)

    def _work(self, model: str) -> str:
        return self.lane if model == self.model else model

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Store.commit`."""
        super().commit(replace(checkpoint, lane=self._work(checkpoint.model)))

    def positions(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """See `Partitions.positions`."""
        return super().positions(self._work(model), partitions)

    def topic_ids(self, model: str, partitions: Sequence[Partition]) -> dict[Partition, str]:
        """See `Partitions.topic_ids`."""
        return super().topic_ids(self._work(model), partitions)

    def partition_states(self, model: str, partition: Partition | None = None) -> list[PartitionState]:
        """See `Partitions.partition_states`."""
        return super().partition_states(self._work(model), partition)

    def mark_idle(self, model: str, offsets: Mapping[Partition, int]) -> None:
        """See `Partitions.mark_idle`."""
        super().mark_idle(self._work(model), offsets)

    def thinned_keys(self, model: str, partition: Partition) -> list[ThinnedKeys]:
        """See `Partitions.thinned_keys`."""
        return super().thinned_keys(self._work(model), partition)

    def halves(self, model: str, partition: Partition) -> list[HalfRow]:
        """See `Partitions.halves`."""
        return super().halves(self._work(model), partition)

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        """See `FraudStates.label_spans`."""
        return super().label_spans(self._work(model), partition)

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        """See `FraudStates.entity_states`."""
        return super().entity_states(self._work(model), partition)

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        """See `FraudStates.flood_counts`."""
        return super().flood_counts(self._work(model), partition)

    def merge_summaries(self, model: str, rules: Sequence[AgeRule], merge: Merge, *, most: int) -> Aged:
        """See `Ageing.merge_summaries`; ages count from the newest block that the lane has closed."""
        return self._merge_old(model, self._work(model), rules, merge, most=most)

    @contextmanager
    def begin_fold(self, model: str) -> Iterator[Fold]:
        """See `Store.begin_fold`."""
        with self._database.snapshot() as connection:
            yield Fold(self._database, connection, model, lane=self.lane)


def lane_name(model: str, number: int) -> str:
    """The name of a lane of a model."""
    return f"{model}{SIGN}{number}"
