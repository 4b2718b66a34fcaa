"""What the model answered, remembered for true answers that come later.

A checkpoint writes it as one row for each partition, packed: the row's ``ids`` hold hashes of the records' ids (8 bytes
each), so that a record is found without reading the rest, and its ``blob`` is

    magic, 4 numbers (`_HEADER`)
    event times, as differences of neighbours in the narrowest integers that hold them
    which of the different answers each is, in the narrowest integers
    confidences float32, byte by byte: the first bytes of all, then the second ...
    lengths of the different answers (uint32) and the answers, UTF-8

little-endian, all behind the header compressed where that makes it smaller. Times, two hundred different answers and a
confidence take 13 bytes a record with the hash (measured: 12.9 for a record every 10 ms with random confidences).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.database.remade import record_origin
from connectors.database.rows import AnswersRow, KnownAnswer, NewTruth
from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.event import EventBatch
from monitor.thinning import key_hashes

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

MOST_TRUTHS: Final = 20_000  # of a checkpoint; the caller writes it before more are collected
MOST_ANSWERS: Final = 500_000  # of a checkpoint, about 60 bytes each in memory

_MAGIC = b"dAN1"
# Records, different answers, bytes of an event time's difference, bytes behind the header as they were.
_HEADER = struct.Struct("<4sIIBI")
_SIGNED = ("<i1", "<i2", "<i4", "<i8")
_UNSIGNED = ("<u1", "<u2", "<u4")


class Answers:
    """Collects what the records of one checkpoint say of answers: the model's, and the true ones.

    Args:
        share: of the records whose answers are remembered, chosen by hash of their id. Records that say themselves what
            is true are taken whatever it is.
    """

    def __init__(self, share: float) -> None:
        # A hash below is chosen. 2**64 itself is no uint64: share 1 is asked for by itself.
        self._all = share >= 1.0
        self._below = np.uint64(min(round(share * 2.0**64), 2**64 - 1))
        self.clear()

    def clear(self) -> None:
        """The checkpoint was written, or is given up."""
        self._pieces: dict[Partition, list[tuple[Hashes, Int64s, list[str], Floats]]] = {}
        self._taken = 0
        self.truths: list[NewTruth] = []

    @property
    def full(self) -> bool:
        """The checkpoint should be written before more records are taken in."""
        return self._taken >= MOST_ANSWERS or len(self.truths) >= MOST_TRUTHS

    def take(self, events: EventBatch, late: npt.NDArray[np.bool_]) -> None:
        """Take in records of which the model's answer is mapped; nothing of others.

        Args:
            late: bool (n,), which of them are late: what these say themselves counts for no block.
        """
        if events.predictions is None or len(events) == 0:
            return
        if events.labels is not None:
            self._take_truths(events, late)
        if not self._all and self._below == 0:
            return
        hashes = key_hashes(events.ids)
        chosen = np.fromiter((answer is not None for answer in events.predictions), np.bool_, len(events))
        if not self._all:
            chosen &= hashes < self._below
        rows = np.flatnonzero(chosen)
        if len(rows) == 0:
            return
        answers = [str(events.predictions[row]) for row in rows.tolist()]
        confidence = np.full(len(rows), np.nan) if events.confidence is None else events.confidence[rows]
        piece = (hashes[rows], events.time_ms[rows], answers, confidence.astype(np.float32))
        self._pieces.setdefault(events.partition, []).append(piece)
        self._taken += len(rows)

    def rows(self, first_offsets: Mapping[Partition, int]) -> list[AnswersRow]:
        """What the checkpoint has to write, given where it began in each partition."""
        return [
            pack(
                partition,
                first_offsets[partition],
                hashes=np.concatenate([hashes for hashes, _, _, _ in pieces]),
                time_ms=np.concatenate([times for _, times, _, _ in pieces]),
                answers=[answer for _, _, answers, _ in pieces for answer in answers],
                confidence=np.concatenate([confidence for _, _, _, confidence in pieces]),
            )
            for partition, pieces in sorted(self._pieces.items())
        ]

    def _take_truths(self, events: EventBatch, late: npt.NDArray[np.bool_]) -> None:
        """What records say themselves. One that names no answer of the model cannot say whether it was right."""
        assert events.labels is not None and events.predictions is not None
        said = zip(events.labels, events.predictions, strict=True)
        rows = [row for row, (label, answer) in enumerate(said) if label is not None and answer is not None]
        begins = record_origin(events.partition), record_origin(events.partition, late=True)
        for row in rows:
            time_ms = int(events.time_ms[row])
            truth = NewTruth(
                record_id=events.ids[row],
                truth=str(events.labels[row]),
                time_ms=time_ms,
                weight=1.0,
                origin=f"{begins[int(late[row])]}{events.offsets[row]}/{events.rows[row]}",
                answer=events.predictions[row],
                confidence=math.nan if events.confidence is None else float(events.confidence[row]),
                event_ms=time_ms,
            )
            self.truths.append(truth)


def pack(
    partition: Partition,
    first_offset: int,
    *,
    hashes: Hashes,
    time_ms: Int64s,
    answers: Sequence[str],
    confidence: Floats,
) -> AnswersRow:
    """The row that remembers what the model answered to these records, at least one, of one partition.

    Args:
        first_offset: where the checkpoint began.
        hashes: uint64 (n,), of the records' ids.
        time_ms: int64 (n,), event times.
        answers: n texts.
        confidence: float32 (n,), NaN where unknown.
    """
    n = len(hashes)
    places: dict[str, int] = {}
    codes = np.fromiter((places.setdefault(answer, len(places)) for answer in answers), np.int64, n)
    steps = np.diff(time_ms, prepend=np.int64(0))
    first, steps = int(time_ms[0]), steps[1:]
    widest = max(int(np.abs(steps).max(initial=0)) + 1, 1)
    kind = next(kind for kind in _SIGNED if widest <= 2 ** (8 * np.dtype(kind).itemsize - 1))
    texts = [answer.encode("utf-8", "replace") for answer in places]
    body = b"".join(
        [
            first.to_bytes(8, "little", signed=True),
            steps.astype(kind).tobytes(),
            codes.astype(_codes_of(len(texts))).tobytes(),
            confidence.astype("<f4").view(np.uint8).reshape(n, 4).T.tobytes(),
            np.fromiter(map(len, texts), "<u4", len(texts)).tobytes(),
            *texts,
        ]
    )
    squeezed = zlib.compress(body, 1)
    stored = squeezed if len(squeezed) < len(body) else body
    header = _HEADER.pack(_MAGIC, n, len(texts), np.dtype(kind).itemsize, len(body))
    ids = hashes.astype("<u8").tobytes()
    return AnswersRow(partition, first_offset, int(time_ms.min()), int(time_ms.max()), n, ids, header + stored)


def _codes_of(different: int) -> str:
    return next(kind for kind in _UNSIGNED if different <= 2 ** (8 * np.dtype(kind).itemsize))


class RememberedAnswers:
    """The answers of a row.

    Raises:
        InvalidInput: its bytes are damaged, or of another version.
    """

    def __init__(self, row: AnswersRow) -> None:
        try:
            self._read(row)
        except (struct.error, ValueError, zlib.error, StopIteration, IndexError) as error:
            topic, number = row.partition
            raise InvalidInput(
                f"The answers of partition {number} of {topic} from offset {row.first_offset} on (row {row.id}) are "
                "damaged, or were written by another version.",
                hint=f"Their true answers wait. Delete them: DELETE FROM answers WHERE id = {row.id}",
            ) from error

    def _read(self, row: AnswersRow) -> None:
        magic, n, different, width, size = _HEADER.unpack_from(row.blob)
        if magic != _MAGIC or len(row.ids) != 8 * n:
            raise ValueError(f"expected {_MAGIC!r} and {n} ids, got {magic!r} and {len(row.ids) / 8:g}")
        body = row.blob[_HEADER.size :]
        if len(body) < size:
            body = zlib.decompress(body)
        if len(body) != size:
            raise ValueError(f"expected {size} bytes, got {len(body)}")
        at = 8

        def take(kind: str, count: int) -> npt.NDArray[np.generic]:
            nonlocal at
            values = np.frombuffer(body, kind, count, at)
            at += values.nbytes
            return values

        steps = take(_SIGNED[(1, 2, 4, 8).index(width)], n - 1).astype(np.int64)
        self.time_ms: Int64s = int.from_bytes(body[:8], "little", signed=True) + np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(steps)]
        )
        self._codes = take(_codes_of(different), n).astype(np.int64)
        bits = take("u1", 4 * n).reshape(4, n).T.copy()
        self.confidence: Floats = bits.view("<f4").reshape(n).astype(np.float32, copy=False)
        ends = np.cumsum(take("<u4", different).astype(np.int64)).tolist()
        words = body[at:]
        if (ends[-1] if ends else 0) != len(words):
            raise ValueError(f"expected {ends[-1]} bytes of answers, got {len(words)}")
        self._words = [words[b:e].decode("utf-8", "replace") for b, e in zip([0, *ends[:-1]], ends, strict=True)]
        self.hashes: Hashes = np.frombuffer(row.ids, "<u8").astype(np.uint64, copy=False)

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: Hashes) -> dict[int, int]:
        """For each of these hashes that is here, the place of its last record."""
        places = np.flatnonzero(np.isin(self.hashes, hashes))
        return {int(self.hashes[place]): int(place) for place in places}

    def record(self, place: int) -> KnownAnswer:
        """What the model answered to the record at a place."""
        word = self._words[int(self._codes[place])]
        return KnownAnswer(word, float(self.confidence[place]), int(self.time_ms[place]))
