"""What fraud scores know of the records before, in one partition: its entities and its pairs.

A record is scored by what is known, and becomes part of it. It is written by checkpoints, as rows of a kind such as
"entity/3" or "relation/3", with the version of what was fitted on the baseline, which alone can read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from connectors.database.rows import EntityRow
from connectors.records import Partition
from detectors.entities import EntityStates
from detectors.relations import RelationStates
from monitor.event import EventBatch
from monitor.fraud_build import FraudParts
from monitor.fraud_settings import FraudSettings
from monitor.fraud_signals import hashes_of

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
States = TypeVar("States", bound=EntityStates | RelationStates)


class Past:
    """The entities and pairs of a partition, as far as the settings map any.

    Args:
        parts: what was fitted on the baseline.
        settings: of fraud scores.
        rows: what former checkpoints wrote of the partition.
    """

    def __init__(self, parts: FraudParts, settings: FraudSettings, rows: Sequence[EntityRow]) -> None:
        self._settings = settings
        self._entities: _Keyed[EntityStates] | None = None
        self._relations: _Keyed[RelationStates] | None = None
        # Of older models: the next checkpoint deletes them.
        self._outdated = [replace(row, blob=b"") for row in rows if _version_of(row.kind) < parts.version]
        if parts.entities is not None and settings.entity is not None:
            kind = f"entity/{parts.version}"
            states = EntityStates(parts.entities, most=settings.entity.most, stored=_of_kind(rows, kind))
            self._entities = _Keyed(kind, states, rows)
        if parts.relations is not None and settings.relation is not None:
            kind = f"relation/{parts.version}"
            pairs = RelationStates(parts.relations, most=settings.relation.most, stored=_of_kind(rows, kind))
            self._relations = _Keyed(kind, pairs, rows)

    @property
    def known(self) -> Int64s | None:
        """How many records were known of the entity of each of the last records; None where no entity is mapped."""
        return None if self._entities is None else self._entities.states.known

    def signals(self, events: EventBatch, vectors: Floats, entities: Hashes | None) -> dict[str, Floats]:
        """What it says of the next records, which become part of it: signals by name, float32 (n,) each.

        Args:
            vectors: float32 (n, d), as embedded.
            entities: uint64 (n,), whose each record is, 0 for nobody's; None where no entity is mapped.
        """
        found: dict[str, Floats] = {}
        if self._entities is not None and entities is not None:
            offsets = self._entities.rising(events.offsets, entities != 0)
            surprise = self._entities.states.push(entities, vectors, offsets)
            found |= {"entity_self": surprise[:, 0], "entity_peers": surprise[:, 1]}
        if self._relations is not None and (relation := self._settings.relation) is not None:
            of = None if self._settings.entity is None else self._settings.entity.field
            left = entities if entities is not None and of == relation.of else hashes_of(events, relation.of)
            right = hashes_of(events, relation.to)
            offsets = self._relations.rising(events.offsets, (left != 0) & (right != 0))
            found["relation"] = self._relations.states.push(left, right, offsets)
        return found

    def rows(self, partition: Partition) -> list[EntityRow]:
        """What the next checkpoint writes."""
        rows = list(self._outdated)
        for keyed in (self._entities, self._relations):
            rows += [] if keyed is None else keyed.rows(partition)
        return rows

    def dropped(self) -> int:
        """Keys that were dropped since the last call."""
        return sum(keyed.dropped() for keyed in (self._entities, self._relations) if keyed is not None)

    def written(self) -> None:
        """The checkpoint was committed."""
        self._outdated = []
        for keyed in (self._entities, self._relations):
            if keyed is not None:
                keyed.states.written()


class _Keyed(Generic[States]):
    """The states of one kind that a partition has shown: of its entities, or of the first sides of its pairs.

    Args:
        kind: "entity/3" or "relation/3", with the version of what was fitted on the baseline.
        states: made from the stored rows.
        rows: what former checkpoints wrote of the partition, of any kind.
    """

    def __init__(self, kind: str, states: States, rows: Sequence[EntityRow]) -> None:
        self.kind = kind
        self.states = states
        self._counted = 0  # of the dropped ones
        self._newest = max((row.offset for row in rows if row.kind == kind), default=-1)

    def rising(self, offsets: Int64s, known: Bools) -> Int64s:
        """The offsets, none below one before it: a half of a pair that went alone comes after later records."""
        risen = offsets.copy()
        if known.any():
            risen[known] = np.maximum.accumulate(np.maximum(offsets[known], self._newest))
            self._newest = int(risen[known][-1])
        return risen

    def rows(self, partition: Partition) -> list[EntityRow]:
        """What the next checkpoint writes."""
        return [
            EntityRow(partition, self.kind, _signed(key), offset, blob) for key, offset, blob in self.states.unwritten()
        ]

    def dropped(self) -> int:
        """Keys that were dropped since the last call."""
        new, self._counted = self.states.dropped - self._counted, self.states.dropped
        return new


def _of_kind(rows: Sequence[EntityRow], kind: str) -> list[tuple[int, bytes]]:
    return [(_unsigned(row.entity), row.blob) for row in rows if row.kind == kind]


def _version_of(kind: str) -> int:
    return int(kind.partition("/")[2])


def _signed(key: int) -> int:
    """A 64-bit hash as databases hold it."""
    return key - (1 << 64) if key >= 1 << 63 else key


def _unsigned(key: int) -> int:
    return key % (1 << 64)
