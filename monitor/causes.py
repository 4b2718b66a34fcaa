"""The cause that is stored with an incident: what the blocks since its onset say, as JSON that a person can be shown.

A function of closed blocks and of the records kept from them: the same records give the same bytes, however the fold
was cut into steps, live or in a replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from connectors.database.ageing import AgeRule, group_of
from connectors.database.folding import Fold
from connectors.database.rows import IncidentRow, KeptRecord
from detectors.cause import EVERYTHING, MOST_ROWS, Cause, Sums, find_cause, nearest_exemplars
from detectors.reference import Reference, nearest_prototypes
from detectors.summary import BlockSummary
from monitor.pipeline import OTHER

# Blocks with records that are read at most: three quarters since the onset, the latest; one quarter before it.
MOST_BLOCKS = 512
MOST_SUMMARIES = 16_384  # blocks times segments: about half a second
MOST_RECORDS = 2_000  # kept records that are looked at, the strangest first
MOST_REMEMBERED = 16  # answers about the whole traffic, in one step of the fold; each with up to 2,000 records
RECORDS_OF_PROTOTYPE = 3
MAX_EXCERPT = 120

Key = tuple[str, str, int, int]  # space, segment, block, version of the reference


class Space(Protocol):
    """What is read of a space; `monitor.pipeline.Space` is one."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def reference(self) -> Reference: ...
    @property
    def segments(self) -> Mapping[str, Sequence[str]]: ...


class ClosedBlocks:
    """Closed blocks of one model, as one step of its fold sees them.

    Args:
        fold: gives the blocks that are stored.
        closing: merged summaries of those that this step closes, and which are not stored yet.
        rules: of which age stored summaries are of how many blocks. Old blocks are read in whole groups of so many,
            whether they are merged yet or not: when that is done must not be seen in a cause.
        next_block: blocks below it were closed, and so old ones may be merged, before the blocks are asked for. Of a
            step of the fold that need not be said: it asks for what it closes.
    """

    def __init__(
        self,
        fold: Fold,
        closing: Mapping[Key, BlockSummary] | None = None,
        *,
        rules: Sequence[AgeRule] = (),
        next_block: int = 0,
    ) -> None:
        self.fold = fold
        self._rules = rules
        self._next_block = next_block
        self._closing: dict[tuple[str, str, int], list[tuple[int, BlockSummary]]] = {}
        for (name, segment, block, version), summary in (closing or {}).items():
            self._closing.setdefault((name, segment, version), []).append((block, summary))
        # What the whole traffic has is asked for each segment that alarms, and hundreds may in the same block.
        self._newest = lru_cache(MOST_REMEMBERED)(self._read_newest)
        self._whole = lru_cache(MOST_REMEMBERED)(self._read_sums)
        self._kept = lru_cache(MOST_REMEMBERED)(self._read_kept)

    def group_of(self, block: int, *, now: int) -> tuple[int, int]:
        """The blocks first <= block < after that can only be read together in block ``now``; of young ones, itself."""
        return group_of(block, self._rules, max(now, self._next_block))

    def newest(self, space: Space, *, from_block: int, to_block: int, most: int, now: int) -> Sequence[int]:
        """The newest groups with records with from_block <= block < to_block, at most so many, ascending: their first
        blocks."""
        return self._newest(space.name, space.version, from_block, to_block, most, now)

    def sums(self, space: Space, segments: Sequence[str], *, from_block: int, to_block: int) -> dict[str, Sums]:
        """Sums over the blocks with from_block <= block < to_block, for each of the segments, in their order.

        They are shared between callers: do not add to them.
        """
        size = space.reference.dimension, len(space.reference.prototypes)
        read = {name: self._whole if name == EVERYTHING else self._read_sums for name in segments}
        return {name: read[name](space.name, space.version, size, name, from_block, to_block) for name in segments}

    def kept(self, space: Space, *, from_block: int, to_block: int) -> Sequence[KeptRecord]:
        """The `MOST_RECORDS` strangest records kept from blocks with from_block <= block < to_block."""
        return self._kept(space.name, space.version, from_block, to_block)

    def _read_newest(
        self, space: str, version: int, from_block: int, to_block: int, most: int, now: int
    ) -> Sequence[int]:
        closing = self._closing.get((space, EVERYTHING, version), [])
        found = {block for block, _ in closing if from_block <= block < to_block}
        while True:
            blocks = self.fold.blocks(space, version, from_block=from_block, to_block=to_block, most=most)
            groups = [self.group_of(block, now=now)[0] for block in blocks]
            found.update(groups)
            if len(blocks) < most or len(found) >= most:
                return sorted(found)[-most:]
            to_block = groups[0]  # several of them were in one group: there may be more groups before

    def _read_sums(
        self, space: str, version: int, size: tuple[int, int], segment: str, from_block: int, to_block: int
    ) -> Sums:
        total = Sums.empty(*size)
        for row in self.fold.summaries(space, version, segment=segment, from_block=from_block, to_block=to_block):
            total.add(BlockSummary.from_bytes(row.blob))
        for block, summary in self._closing.get((space, segment, version), []):
            if from_block <= block < to_block:
                total.add(summary)
        return total

    def _read_kept(self, space: str, version: int, from_block: int, to_block: int) -> Sequence[KeptRecord]:
        return self.fold.kept(
            space, version, from_block=from_block, to_block=to_block, most=MOST_RECORDS, order="score"
        )


def cause_of(
    row: IncidentRow, space: Space, blocks: ClosedBlocks, *, segments: Sequence[str], block_ms: int
) -> dict[str, object] | None:
    """Why an incident is there: its cause from the onset up to the block in which it was last seen.

    Args:
        row: the incident; of a kind that has a space.
        space: that space, with the reference that the incident names.
        blocks: where the summaries come from.
        segments: every segment of the space, without "".

    Returns:
        JSON-compatible; None where no block since the onset is left.
    """
    onset, end = bounds_of(row, blocks, block_ms=block_ms)
    now = row.updated_ms // block_ms
    # Of an incident in one segment, only that one is held against the whole: who else changed is the whole's to say.
    names = [EVERYTHING, *segments] if row.segment == EVERYTHING else [EVERYTHING, row.segment]
    most = max(min(MOST_BLOCKS, MOST_SUMMARIES // len(names)), 4)
    since = blocks.newest(space, from_block=onset, to_block=end, most=most * 3 // 4, now=now)
    if not since:
        return None
    earlier = blocks.newest(space, from_block=0, to_block=onset, most=most // 4, now=now)
    after = blocks.sums(space, names, from_block=since[0], to_block=end)
    before = blocks.sums(space, names, from_block=earlier[0], to_block=onset) if earlier else {}
    cause = find_cause(
        space.reference, after, before=before, segment=row.segment, channel=str(row.detail.get("channel", ""))
    )
    kept = [
        record
        for record in blocks.kept(space, from_block=since[0], to_block=end)
        if in_segment(record, row.segment, space)
    ]
    detail = {
        "from_ms": since[0] * block_ms,
        "to_ms": end * block_ms,
        **_as_json(cause, space.reference, _prototypes_of(kept, space.reference), kept),
    }
    return {name: _rounded(value) for name, value in detail.items()}


def bounds_of(row: IncidentRow, blocks: ClosedBlocks, *, block_ms: int) -> tuple[int, int]:
    """The blocks first <= block < after from an incident's onset to where it was last seen.

    Old ones as far as they can be told apart: the time begins and ends with a group.
    """
    now = row.updated_ms // block_ms
    onset, end = row.onset_ms // block_ms, last_seen(row) // block_ms
    return blocks.group_of(onset, now=now)[0], blocks.group_of(end - 1, now=now)[1]


def in_segment(record: KeptRecord, segment: str, space: Space) -> bool:
    """Whether a kept record belongs to a segment of its space."""
    if segment == EVERYTHING:
        return True
    name, _, value = segment.partition("=")
    found = record.segments.get(name)
    return found not in space.segments.get(name, ()) if value == OTHER else found == value


def vectors_of(records: Sequence[KeptRecord], dimension: int) -> tuple[npt.NDArray[np.float32], list[int]]:
    """The prepared vectors of the records that were kept with theirs: float32 (m, d), and their places."""
    places = [i for i, record in enumerate(records) if record.vector is not None]
    blob = b"".join(record.vector or b"" for record in records)
    return np.frombuffer(blob, "<f2").reshape(-1, dimension).astype(np.float32), places


def last_seen(row: IncidentRow) -> int:
    """End of the last block in which an incident was seen, in milliseconds."""
    last = row.detail.get("last_active_ms")
    return last if isinstance(last, int) else row.updated_ms


def _prototypes_of(records: Sequence[KeptRecord], reference: Reference) -> list[int | None]:
    """The nearest prototype of each record; None where its vector was not kept."""
    found: list[int | None] = [None] * len(records)
    x, places = vectors_of(records, reference.dimension)
    if places:
        _, nearest = nearest_prototypes(reference.prototype_index, reference.search_space(x))
        for place, prototype in zip(places, nearest.tolist(), strict=True):
            found[place] = prototype
    return found


def _as_json(
    cause: Cause, reference: Reference, nearest: Sequence[int | None], kept: Sequence[KeptRecord]
) -> dict[str, object]:
    shown = [row.prototype for row in cause.prototypes]
    named = [*shown, *cause.level.towards, *cause.level.away]
    examples = dict(zip(named, nearest_exemplars(reference, named), strict=True))

    def exemplar(prototype: int) -> dict[str, object] | None:
        if not examples[prototype]:
            return None
        return exemplar_of(reference, examples[prototype][0])

    members: dict[int, list[str]] = {prototype: [] for prototype in shown}
    for record, prototype in zip(kept, nearest, strict=True):
        if prototype in members and len(members[prototype]) < RECORDS_OF_PROTOTYPE:
            members[prototype].append(record.id)
    gained = set(cause.gained)
    return {
        "records": cause.records,
        "records_before": cause.records_before,
        "against": cause.against,
        "changed": cause.changed,
        "prototypes": [
            {**asdict(row), "exemplar": exemplar(row.prototype), "records": members[row.prototype]}
            for row in cause.prototypes
        ],
        "level": {
            "sigmas": cause.level.sigmas,
            "towards": [{"prototype": j, "exemplar": exemplar(j)} for j in cause.level.towards],
            "away": [{"prototype": j, "exemplar": exemplar(j)} for j in cause.level.away],
        },
        "segments": [asdict(row) for row in cause.segments],
        "strangest": [
            {
                "id": record.id,
                "time_ms": record.time_ms,
                "score": record.score,
                "p_value": record.p_value,
                "prototype": prototype,
                "in_gained": prototype in gained,
                "exemplar": record.exemplar,
            }
            for record, prototype in list(zip(kept, nearest, strict=True))[:MOST_ROWS]
        ],
    }


def exemplar_of(reference: Reference, index: int) -> dict[str, object]:
    """What is known of an exemplar: its index, and its id and excerpt where the baseline had any."""
    ids, excerpts = reference.exemplar_ids, reference.exemplar_excerpts
    return {
        "index": index,
        "id": ids[index] if index < len(ids) else "",
        "excerpt": excerpts[index][:MAX_EXCERPT] if index < len(excerpts) else "",
    }


def _rounded(value: object) -> object:
    """Floats with six significant digits: enough for a person, and short."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
