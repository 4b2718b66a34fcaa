"""What labels that come later need to know of a record: its vector, its signals, and what was said of it.

A checkpoint writes it as one row for each partition, packed: the row's ``ids`` hold hashes of the records' ids, so that
a record is found without reading the rest, and its ``blob`` is one pack after the other, each

    magic, 8 numbers (`_HEADER`)
    offsets, event times, rows, lengths of the entities' names and the names, what made vectors and signals, all
        compressed where that makes them smaller
    probabilities float32 (n,), p-values float64 (n,), vectors float32 (n, d), signals float32 (n, s)

little-endian. Vectors are what takes the room, and hardly shrink: they are left as they are.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.database.rows import LabelledRecord, RememberedRow
from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.joining import hashes_of
from monitor.thinning import key_hashes

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_MAGIC = b"dRM1"
# Records, dimensions, signals, version of the labels, bytes of the compressible part as stored and as it was.
_HEADER = struct.Struct("<4sIIIqII")


def pack(
    partition: Partition,
    first_offset: int,
    *,
    offsets: Int64s,
    rows: npt.NDArray[np.integer[Any]],
    time_ms: Int64s,
    ids: Sequence[str],
    entities: Sequence[str | None] | None,
    probability: Floats,
    p_value: npt.NDArray[np.float64],
    vectors: Floats,
    signals: Floats,
    version: int,
    made_with: str = "",
) -> RememberedRow:
    """The row that remembers these records, at least one, of one partition.

    Args:
        first_offset: where the checkpoint began.
        offsets, rows, time_ms: int64 (n,), where they stand, which row of their record they are, their event time.
        ids: n ids, by which labels name them.
        entities: n names, None where a record has none; None where no entity is mapped.
        probability, p_value: float32 and float64 (n,), as scored.
        vectors, signals: float32 (n, d) and (n, s), as the fraud scorer saw them.
        version: of the labels that they were scored with.
        made_with: see `monitor.fraud_signals.made_with`.
    """
    n = len(offsets)
    names = [] if entities is None else [(name or "").encode("utf-8", "replace") for name in entities]
    places = b"".join(
        [
            offsets.astype("<i8").tobytes(),
            time_ms.astype("<i8").tobytes(),
            rows.astype("<i4").tobytes(),
            np.fromiter(map(len, names), "<u4", len(names)).tobytes() if names else bytes(4 * n),
            *names,
            made_with.encode(),
        ]
    )
    squeezed = zlib.compress(places, 1)
    stored = squeezed if len(squeezed) < len(places) else places
    blob = b"".join(
        [
            _HEADER.pack(_MAGIC, n, vectors.shape[1], signals.shape[1], version, len(stored), len(places)),
            stored,
            probability.astype("<f4").tobytes(),
            p_value.astype("<f8").tobytes(),
            vectors.astype("<f4").tobytes(),
            signals.astype("<f4").tobytes(),
        ]
    )
    hashes = key_hashes(ids).astype("<u8").tobytes()
    return RememberedRow(partition, first_offset, int(time_ms.min()), int(time_ms.max()), n, hashes, blob)


def joined(rows: Sequence[RememberedRow]) -> RememberedRow:
    """Rows of one partition and one checkpoint as one, with the first offset of the first."""
    if len(rows) == 1:
        return rows[0]
    return RememberedRow(
        rows[0].partition,
        rows[0].first_offset,
        min(row.from_ms for row in rows),
        max(row.to_ms for row in rows),
        sum(row.records for row in rows),
        b"".join(row.ids for row in rows),
        b"".join(row.blob for row in rows),
    )


@dataclass(frozen=True, slots=True)
class _Pack:
    """One pack, as views of its bytes."""

    records: int
    version: int
    offsets: Int64s
    time_ms: Int64s
    rows: npt.NDArray[np.int32]
    ends: Int64s  # of the entities' names
    names: bytes  # and behind them what made vectors and signals
    probability: Floats
    p_value: npt.NDArray[np.float64]
    vectors: Floats
    signals: Floats


class Remembered:
    """The records of a row.

    Raises:
        InvalidInput: its bytes are damaged, or of another version.
    """

    def __init__(self, row: RememberedRow) -> None:
        self._row = row
        self._packs: list[_Pack] = []
        at = 0
        try:
            while at < len(row.blob):
                pack, at = _read(row.blob, at)
                self._packs.append(pack)
        except (struct.error, ValueError, zlib.error) as error:
            raise _damaged(row) from error
        self._hashes = hashes_of(row.ids)
        if sum(pack.records for pack in self._packs) != len(self._hashes):
            raise _damaged(row)

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, hashes: Hashes) -> dict[int, int]:
        """For each of these hashes that is here, the place of its last record."""
        places = np.flatnonzero(np.isin(self._hashes, hashes))
        return {int(self._hashes[place]): int(place) for place in places}

    def record(self, place: int) -> LabelledRecord:
        """What is known of the record at a place."""
        for pack in self._packs:
            if place < pack.records:
                return self._record(pack, place)
            place -= pack.records
        raise IndexError(place)

    def _record(self, pack: _Pack, place: int) -> LabelledRecord:
        begin = int(pack.ends[place - 1]) if place else 0
        return LabelledRecord(
            partition=self._row.partition,
            # Below zero lies what is left of a topic that was made anew since: the offsets are other records' now.
            offset=int(pack.offsets[place]) if self._row.first_offset >= 0 else -1,
            row=int(pack.rows[place]),
            event_ms=int(pack.time_ms[place]),
            entity=pack.names[begin : int(pack.ends[place])].decode("utf-8", "replace"),
            vector=pack.vectors[place].tobytes(),
            signals=pack.signals[place].tobytes(),
            probability=float(pack.probability[place]),
            p_value=float(pack.p_value[place]),
            scored_with=pack.version,
            selected="",
            chance=math.nan,
            made_with=pack.names[int(pack.ends[-1]) :].decode("utf-8", "replace"),
        )


def _read(blob: bytes, at: int) -> tuple[_Pack, int]:
    """The pack that begins at ``at``, and where the next one does."""
    magic, n, d, s, version, stored, size = _HEADER.unpack_from(blob, at)
    if magic != _MAGIC:
        raise ValueError(f"expected {_MAGIC!r}, got {magic!r}")
    at += _HEADER.size
    places = blob[at : at + stored]
    if stored < size:
        places = zlib.decompress(places)
    at += stored
    if len(places) != size:
        raise ValueError(f"expected {size} bytes, got {len(places)}")
    lengths = np.frombuffer(places, "<u4", n, 20 * n)

    def take(kind: str, count: int) -> Any:
        nonlocal at
        values = np.frombuffer(blob, kind, count, at)
        at += values.nbytes
        return values

    pack = _Pack(
        records=n,
        version=version,
        offsets=np.frombuffer(places, "<i8", n),
        time_ms=np.frombuffer(places, "<i8", n, 8 * n),
        rows=np.frombuffer(places, "<i4", n, 16 * n),
        ends=np.cumsum(lengths, dtype=np.int64),
        names=places[24 * n :],
        probability=take("<f4", n),
        p_value=take("<f8", n),
        vectors=take("<f4", n * d).reshape(n, d),
        signals=take("<f4", n * s).reshape(n, s),
    )
    return pack, at


def _damaged(row: RememberedRow) -> InvalidInput:
    topic, number = row.partition
    return InvalidInput(
        f"What is remembered of partition {number} of {topic} from offset {row.first_offset} on (row {row.id}) is "
        "damaged, or was written by another version.",
        hint=f"Its labels wait. Delete it: DELETE FROM remembered WHERE id = {row.id}",
    )
