"""What happened to the records of one block: how many came, were late, could not be used, and of which version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.summary import at_most, merge_counts
from monitor.event import EventBatch

MAX_VERSIONS = 32  # of the watched model, in one block


class _StoredCounts(msgspec.Struct, array_like=True, frozen=True):
    records: int
    late: int
    dead: list[tuple[str, int]]
    versions: list[tuple[str, int]] = []  # not there before driftd knew of versions, and where none is named


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """What happened to the records of one block; the summary of space "".

    Attributes:
        records: all that came, late and unusable ones included.
        dead: how many could not be used, by reason.
        versions: records on time of each version of the watched model. Of more than `MAX_VERSIONS`, those with the
            smallest hashes.
    """

    records: int
    late: int
    dead: dict[str, int]
    versions: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        counts = (self.records, self.late, sorted(self.dead.items()))
        return msgspec.json.encode((*counts, sorted(self.versions.items())) if self.versions else counts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> RecordCounts:
        stored = msgspec.json.decode(blob, type=_StoredCounts)
        return cls(stored.records, stored.late, dict(stored.dead), dict(stored.versions))

    def merge(self, other: RecordCounts) -> RecordCounts:
        # Counts may be negative: of a dead letter that was mended.
        # In one order, whoever came first: the fold stores them.
        reasons = sorted(self.dead | other.dead)
        summed = {reason: self.dead.get(reason, 0) + other.dead.get(reason, 0) for reason in reasons}
        dead = {reason: count for reason, count in summed.items() if count}
        versions = merge_counts(self.versions, other.versions, most=MAX_VERSIONS)
        return RecordCounts(self.records + other.records, self.late + other.late, dead, versions)


def versions_of(
    events: EventBatch, blocks: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
) -> dict[int, dict[str, int]]:
    """By block, how many records on time each version of the model answered."""
    if events.versions is None:
        return {}
    named = zip(blocks.tolist(), events.versions, late.tolist(), strict=True)
    found: dict[int, dict[str, int]] = {}
    for (block, version, is_late), count in Counter(named).items():
        if version is not None and not is_late:
            found.setdefault(block, {})[version] = count
    return {block: at_most(counts, MAX_VERSIONS) for block, counts in found.items()}
