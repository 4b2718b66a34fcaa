"""Block summaries: what a worker says of the records of one block. Workers add; the fold reads.

A summary is a commutative monoid over int64: however the records of a block are cut into batches and spread over
workers, the merged summary has the same bytes. It depends on the reference only, never on the state of an alarm.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from detectors.conformal import N_BINS
from detectors.errors import InvalidInput
from detectors.narrow import counts_from_bytes, counts_to_bytes, narrowest, signed_from_bytes, signed_to_bytes

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Vectors are added as whole multiples of 2**-20. A float32 of magnitude below 16 times 2**20 rounds exactly.
FRACTION_BITS = 20
MAX_MAGNITUDE = 8.0  # of one coordinate; what a reference prepares never exceeds it

SCORE_BINS = 1024
CONFIDENCE_BINS = 50
MAX_LABELS = 256
MAX_LABEL_LENGTH = 200

_SCALE = np.float32(2**FRACTION_BITS)
# int32 holds 255 rows of magnitude MAX_MAGNITUDE; 128 rows of 384 dimensions stay in the cache.
_ROWS = 128
_SCORE_FLOOR_BITS = np.int32(126 << 23)  # the float32 0.5
FORMAT_VERSION = 2
_MAGIC = b"driftd.B"
_HEADER = struct.Struct("<8sBBQII")  # magic, format version, flags, n, dimensions, prototypes
_LABELS = struct.Struct("<IQBB")  # labels, records with another one, bytes of a count, bytes of a length
_LETTERS = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of `struct`, for whole numbers of so many bytes
_SPARSE = struct.Struct("<IBB")  # of version 1: entries, bytes of a place, bytes of a count


class ScoredRecords(Protocol):
    """What `summarise` reads of scored records; `detectors.reference.Scored` has it."""

    @property
    def x(self) -> Floats: ...
    @property
    def distance(self) -> Floats: ...
    @property
    def nearest(self) -> npt.NDArray[np.int32]: ...
    @property
    def bin(self) -> npt.NDArray[np.uint8]: ...
    @property
    def prototypes(self) -> int: ...
    @property
    def score_scale(self) -> float: ...


def fixed_point_sum(x: Floats) -> Int64s:
    """Sum over the rows of round(x * 2**20), int64 (d,): exact, so it does not matter how rows are grouped.

    Args:
        x: float32 (n, d), |x| <= 8.
    """
    total = np.zeros(x.shape[1], np.int64)
    for start in range(0, len(x), _ROWS):
        scaled = x[start : start + _ROWS] * _SCALE
        np.rint(scaled, out=scaled)
        total += np.add.reduce(scaled.astype(np.int32), axis=0, dtype=np.int32)
    return total


def score_bins(scores: Floats, scale: float) -> npt.NDArray[np.int64]:
    """Bins of the score histogram: 256 per doubling (0.2 to 0.4 % wide), scale / 2 to 8 scale; the ends take the rest.

    Computed on the bits of the float, so that no logarithm of some library decides.

    Args:
        scores: float32 (n,), >= 0.
        scale: a typical score, such as `Reference.score_scale`; > 0.
    """
    bits = (scores * np.float32(1.0 / scale)).view(np.int32)
    return np.asarray(np.clip((bits - _SCORE_FLOOR_BITS) >> 15, 0, SCORE_BINS - 1), np.int64)


def score_edges(scale: float) -> npt.NDArray[np.float64]:
    """Lower edges of the bins of `score_bins`, float64 (1024,); the first is 0."""
    bits = _SCORE_FLOOR_BITS + (np.arange(SCORE_BINS, dtype=np.int32) << 15)
    edges = bits.view(np.float32).astype(np.float64) * scale
    edges[0] = 0.0
    return edges


def score_at_share(histogram: Int64s, share: float, *, scale: float) -> float:
    """The smallest bin edge with at most ``share`` of the records at or above it; infinity if there is none.

    Args:
        histogram: int64 (1024,), counts of `score_bins`; histograms of several blocks may be added first.
        share: 0 to 1.
        scale: as given to `score_bins`.
    """
    above = np.cumsum(histogram[::-1])[::-1]
    fits = np.flatnonzero(above <= share * above[0])
    return float(score_edges(scale)[fits[0]]) if len(fits) else float("inf")


def confidence_bins(confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Bins of width 0.02 over [0, 1], int64 (n,); what lies outside goes to the ends, NaN is not allowed."""
    return np.clip(confidence * CONFIDENCE_BINS, 0, CONFIDENCE_BINS - 1).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class BlockSummary:
    """Sums over the records of one block of one space and segment. Treat the arrays as read-only.

    Attributes:
        n: records.
        s: int64 (d,), sum of round(x * 2**20).
        h: int64 (49,), counts of the bins of p (`conformal.P_EDGES`).
        c: int64 (K,), counts of the nearest prototype.
        scores: int64 (1024,), see `score_bins`; None where not collected.
        confidence: int64 (50,), see `confidence_bins`; None where not collected. Records without one are in no bin.
        labels: counts of the model's predictions; None where not collected. At most 256 texts: of more, those with the
            smallest hashes, which is the one choice that does not depend on the order of merging.
        other_labels: records whose prediction is not in ``labels``.
    """

    n: int
    s: Int64s
    h: Int64s
    c: Int64s
    scores: Int64s | None = None
    confidence: Int64s | None = None
    labels: Mapping[str, int] | None = None
    other_labels: int = 0

    @classmethod
    def empty(cls, dimension: int, prototypes: int) -> BlockSummary:
        """The summary of no records: merging it changes nothing."""
        return cls(0, np.zeros(dimension, np.int64), np.zeros(N_BINS, np.int64), np.zeros(prototypes, np.int64))

    def merge(self, other: BlockSummary) -> BlockSummary:
        """The summary of both sets of records. Commutative and associative, to the byte.

        Raises:
            InvalidInput: the summaries are of different dimensions or prototypes, so of different references.
        """
        if self.s.shape != other.s.shape or self.c.shape != other.c.shape:
            raise InvalidInput(
                f"cannot merge a summary of {len(self.s)} dimensions and {len(self.c)} prototypes with one of "
                f"{len(other.s)} dimensions and {len(other.c)} prototypes: they are of different references."
            )
        labels, dropped = _merge_labels(self.labels, other.labels)
        return BlockSummary(
            n=self.n + other.n,
            s=self.s + other.s,
            h=self.h + other.h,
            c=self.c + other.c,
            scores=_add(self.scores, other.scores),
            confidence=_add(self.confidence, other.confidence),
            labels=labels,
            other_labels=self.other_labels + other.other_labels + dropped,
        )

    def to_bytes(self) -> bytes:
        """Bytes of format version 2: equal summaries have equal bytes, on every machine."""
        flags = sum(bit for bit, part in ((1, self.scores), (2, self.confidence), (4, self.labels)) if part is not None)
        parts = [
            _HEADER.pack(_MAGIC, FORMAT_VERSION, flags, self.n, len(self.s), len(self.c)),
            signed_to_bytes(self.s),
            # Coded as one histogram: every step of NumPy's costs as much for one bin as for two thousand.
            counts_to_bytes(np.concatenate([self.h, self.c, *self._collected()])),
        ]
        if self.labels is not None:
            parts.append(_labels_to_bytes(self.labels, self.other_labels))
        body = b"".join(parts)
        return body + struct.pack("<I", zlib.crc32(body))

    def _collected(self) -> list[Int64s]:
        return [part for part in (self.scores, self.confidence) if part is not None]

    @classmethod
    def from_bytes(cls, data: bytes) -> BlockSummary:
        """Read what `to_bytes` wrote, in this release or an older one.

        Raises:
            InvalidInput: not a summary, of another format version, or damaged.
        """
        if len(data) < _HEADER.size + 4 or data[: len(_MAGIC)] != _MAGIC:
            raise InvalidInput(f"{len(data)} bytes are no block summary: they do not begin with {_MAGIC!r}.")
        _, version, flags, n, dimension, prototypes = _HEADER.unpack_from(data)
        if version not in (1, FORMAT_VERSION):
            raise InvalidInput(
                f"block summary: expected format version {FORMAT_VERSION} or older, got {version}.",
                hint="It was written by another release of driftd: use that one, or score the records again.",
            )
        body = data[:-4]
        if int.from_bytes(data[-4:], "little") != zlib.crc32(body):
            raise InvalidInput("block summary: damaged, the check sum differs.", hint="Restore the database's copy.")
        read = _read_first_version if version == 1 else _read
        try:
            summary, end = read(body, flags, n, dimension, prototypes)
        except InvalidInput as error:
            raise InvalidInput(f"block summary: {error}") from error
        if end != len(body) or np.add.reduce(summary.h) != n or np.add.reduce(summary.c) != n:
            raise InvalidInput(f"block summary: its counts do not add up to its {n} records.")
        return summary

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockSummary):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]


def summarise(
    group: Int64s,
    scored: ScoredRecords,
    *,
    scores: Floats | None = None,
    score_scale: float | None = None,
    confidence: npt.NDArray[np.float64] | None = None,
    predictions: Sequence[str | None] | None = None,
) -> dict[int, BlockSummary]:
    """One summary for each group of a batch; a group is a (segment, block) that the caller has numbered.

    Args:
        group: int64 (n,), any numbers in any order.
        scored: what `Reference.score` returned for the n records.
        scores: float32 (n,), what the score histogram counts; the prototype distance if not given.
        score_scale: scale of the histogram's bins; `scored.score_scale` if not given.
        confidence: float64 (n,), the model's confidence, NaN where absent.
        predictions: n texts, None where absent.

    Returns:
        A summary for every number in ``group``, ascending.
    """
    n = len(group)
    if n == 0:
        return {}
    order: Int64s | None = None
    if (group[1:] < group[:-1]).any():
        order = np.argsort(group, kind="stable")
        group = group[order]

    def sorted_rows(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return column if order is None else column[order]

    starts = np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1, [n]])
    x, bins, nearest = sorted_rows(scored.x), sorted_rows(scored.bin), sorted_rows(scored.nearest)
    distance = scored.distance if scores is None else scores
    score_bin = sorted_rows(score_bins(distance, scored.score_scale if score_scale is None else score_scale))
    labels = None if predictions is None else _count_labels(group, sorted_rows(np.asarray(predictions, object)))
    if confidence is not None:
        confidence = sorted_rows(confidence)

    result = {}
    for first, after in itertools.pairwise(starts.tolist()):
        number = int(group[first])
        confidence_counts = None
        if confidence is not None:
            present = confidence[first:after]
            present = present[~np.isnan(present)]
            confidence_counts = np.bincount(confidence_bins(present), minlength=CONFIDENCE_BINS)
        kept, dropped = (None, 0) if labels is None else _at_most(labels[number])
        result[number] = BlockSummary(
            n=after - first,
            s=fixed_point_sum(x[first:after]),
            h=np.bincount(bins[first:after], minlength=N_BINS),
            c=np.bincount(nearest[first:after], minlength=scored.prototypes),
            scores=np.bincount(score_bin[first:after], minlength=SCORE_BINS),
            confidence=confidence_counts,
            labels=kept,
            other_labels=dropped,
        )
    return result


def _add(left: Int64s | None, right: Int64s | None) -> Int64s | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _count_labels(group: Int64s, predictions: npt.NDArray[Any]) -> dict[int, dict[str, int]]:
    counts: dict[int, dict[str, int]] = {number: {} for number in np.unique(group).tolist()}
    for (number, text), count in Counter(zip(group.tolist(), predictions.tolist(), strict=True)).items():
        if text is not None:
            short = text[:MAX_LABEL_LENGTH]
            counts[number][short] = counts[number].get(short, 0) + count
    return counts


def _merge_labels(
    left: Mapping[str, int] | None, right: Mapping[str, int] | None
) -> tuple[Mapping[str, int] | None, int]:
    if left is None or right is None:
        return (right if left is None else left), 0
    kept = merge_counts(left, right, most=MAX_LABELS)
    return kept, sum(left.values()) + sum(right.values()) - sum(kept.values())


def _at_most(counts: dict[str, int]) -> tuple[dict[str, int], int]:
    """The labels that are kept, and how many records had another."""
    kept = at_most(counts, MAX_LABELS)
    return kept, sum(counts.values()) - sum(kept.values())


def merge_counts(left: Mapping[str, int], right: Mapping[str, int], *, most: int) -> dict[str, int]:
    """Counts of texts, added up, of at most so many texts; the same in whatever order parts are merged."""
    merged = dict(left)
    for text, count in right.items():
        merged[text] = merged.get(text, 0) + count
    return at_most(merged, most)


def at_most(counts: dict[str, int], most: int) -> dict[str, int]:
    """The counts of at most so many texts: of more, those with the smallest hashes."""
    if len(counts) <= most:
        return counts
    # A text among the smallest hashes of the whole is among the smallest of every part: its count is exact.
    kept = sorted(counts, key=lambda text: (_label_hash(text), text))[:most]
    return {text: counts[text] for text in kept}


def _label_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _labels_to_bytes(labels: Mapping[str, int], others: int) -> bytes:
    texts = [(text.encode("utf-8", "surrogatepass"), count) for text, count in sorted(labels.items())]
    count_type = narrowest(max((count for _, count in texts), default=0))
    length_type = narrowest(max((len(text) for text, _ in texts), default=0))
    return b"".join(
        [
            _LABELS.pack(len(texts), others, count_type.itemsize, length_type.itemsize),
            np.array([count for _, count in texts], count_type).tobytes(),
            np.array([len(text) for text, _ in texts], length_type).tobytes(),
            *(text for text, _ in texts),
        ]
    )


def _read(body: bytes, flags: int, n: int, dimension: int, prototypes: int) -> tuple[BlockSummary, int]:
    """A summary of version 2, and where it ends."""
    s, position = signed_from_bytes(body, _HEADER.size, dimension)
    shared = N_BINS + prototypes
    with_scores = shared + (SCORE_BINS if flags & 1 else 0)
    size = with_scores + (CONFIDENCE_BINS if flags & 2 else 0)
    counts, position = counts_from_bytes(body, position, size)
    labels: dict[str, int] | None = None
    others = 0
    if flags & 4:
        reader = _Reader(body, position)
        found, others, count_width, length_width = reader.unpack(_LABELS.format)
        numbers = reader.unpack(f"<{found}{_LETTERS[_known(count_width)]}")
        lengths = reader.unpack(f"<{found}{_LETTERS[_known(length_width)]}")
        labels = {
            reader.take(length).decode("utf-8", "surrogatepass"): number
            for number, length in zip(numbers, lengths, strict=True)
        }
        position = reader.position
    summary = BlockSummary(
        n,
        s,
        counts[:N_BINS],
        counts[N_BINS:shared],
        counts[shared:with_scores] if flags & 1 else None,
        counts[with_scores:] if flags & 2 else None,
        labels,
        others,
    )
    return summary, position


def _read_first_version(body: bytes, flags: int, n: int, dimension: int, prototypes: int) -> tuple[BlockSummary, int]:
    """A summary of version 1, and where it ends: sums in eight bytes each, every histogram by itself."""
    reader = _Reader(body, _HEADER.size)
    summary = BlockSummary(
        n=n,
        s=reader.array("<i8", dimension).astype(np.int64),
        h=reader.sparse(N_BINS),
        c=reader.sparse(prototypes),
        scores=reader.sparse(SCORE_BINS) if flags & 1 else None,
        confidence=reader.sparse(CONFIDENCE_BINS) if flags & 2 else None,
    )
    if flags & 4:
        count, others = reader.unpack("<IQ")
        labels = {}
        for _ in range(count):
            length, records = reader.unpack("<IQ")
            labels[reader.take(length).decode("utf-8", "surrogatepass")] = records
        summary = replace(summary, labels=labels, other_labels=others)
    return summary, reader.position


def _known(width: int) -> int:
    if width not in _LETTERS:
        raise InvalidInput("its numbers have an unknown width.")
    return width


class _Reader:
    """Reads parts from the front of a body whose check sum was right."""

    def __init__(self, body: bytes, position: int) -> None:
        self._body = body
        self.position = position

    def take(self, length: int) -> bytes:
        part = self._body[self.position : self.position + length]
        if len(part) != length:
            raise InvalidInput("it ends too early.")
        self.position += length
        return part

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def array(self, dtype: str, length: int) -> npt.NDArray[Any]:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * length), dtype)

    def sparse(self, size: int) -> Int64s:
        length, *widths = self.unpack(_SPARSE.format)
        places = self.array(f"<u{_known(widths[0])}", length).astype(np.int64)
        values = self.array(f"<u{_known(widths[1])}", length).astype(np.int64)
        if length and (places[-1] >= size or (np.diff(places) <= 0).any() or (values <= 0).any()):
            raise InvalidInput(f"a histogram of {size} bins has a count outside them.")
        counts = np.zeros(size, np.int64)
        counts[places] = values
        return counts
