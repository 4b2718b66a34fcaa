"""Bursts of near-identical records: how many of a block resemble this one, in bounded memory.

Vectors are cut into cells by random projections, rounded down to multiples of a width (p-stable hashing; Datar,
Immorlica, Indyk, Mirrokni 2004). A table combines 8 projections, so that strangers hardly share a cell; there are four
tables, because near-identical records may lie on two sides of an edge. Each table counts its cells in a fixed number
of counters, chosen by hash (Cormode, Muthukrishnan 2005), less what other cells add to a counter on average (Deng,
Rafiei 2007). A record's group is as large as the second largest of its four counts: one counter that is shared with a
flood by chance says nothing, and two tables that hold a group together are enough.

What a record gets depends on the records before it, and so on offsets alone: not on how they are cut into batches.
"""

from __future__ import annotations

import functools
import itertools
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detectors.conformal import hash64
from detectors.errors import InvalidInput, InvalidReference
from detectors.index import NearestIndex, stable_product
from detectors.outlier import evenly_spaced, leave_one_out
from detectors.reference import Reference

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

TABLES = 4
PROJECTIONS = 8  # in each table
CELLS = 8192  # counters of a table: 128 kB for the four of a block
MAX_BLOCKS = 64  # remembered of a partition, at most 8 MB; of more, the newest
# Cells are so many times as wide as a typical record of the baseline is away from its nearest. Chosen on SMS and
# CLINC150: wider ones (2) make groups of strangers, narrower ones (1) part campaigns whose texts differ in digits.
WIDTH = 1.5
# Counts below so many standard deviations of what other cells add are taken for noise.
NOISE = 5.0
FALSE_FLOODS_PER_BLOCK = 1e-5  # with blocks of 10 s, one in eleven days

_SAMPLE = 4000  # records whose nearest neighbours are looked for
_TILE = 4096
_SEED = 0x666C6F6F64
_FILE = "flood.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """How near is near-identical, and how many are a flood; measured on a baseline.

    Attributes:
        dimension: of the prepared vectors.
        width: of the cells, in the distance of prepared vectors. Records a fortieth of it apart count as one
            group nearly always, records a sixth of it apart in about half, strangers three times it apart hardly ever.
        least: fewest near-identical records of a block that normal traffic, twice as dense as in the baseline, shows
            less than once in 100,000 blocks.
    """

    dimension: int
    width: float
    least: int

    @classmethod
    def measure(cls, reference: Reference, vectors: Floats, blocks: Int64s) -> FloodPlan:
        """Measure a baseline.

        The largest groups of its blocks, each two neighbours taken as one, give the fewest records of a flood: above
        the upper tenth of them, the tail is taken as exponential (Pickands 1975), with the mean excess, or 1 if that is
        less.

        Args:
            reference: made of the baseline.
            vectors: float32 (n, d), raw, in the order of time.
            blocks: int64 (n,), block numbers, ascending.

        Raises:
            InvalidInput: no vectors, or not as many block numbers.
        """
        if len(vectors) == 0 or len(vectors) != len(blocks):
            raise InvalidInput(f"floods need vectors and as many block numbers, got {len(vectors)} and {len(blocks)}.")
        plan = cls(reference.dimension, WIDTH * _typical_distance(reference), 0)
        sketch = FloodSketch(plan)
        pairs = np.unique(blocks, return_inverse=True)[1].astype(np.int64) // 2
        largest = np.zeros(int(pairs[-1]) + 1, np.int64)
        for start in range(0, len(vectors), _TILE):
            tile = slice(start, start + _TILE)
            sizes = sketch.push(pairs[tile], reference.prepare(vectors[tile]))
            np.maximum.at(largest, pairs[tile], sizes)
            sketch.written()
        return cls(plan.dimension, plan.width, _least(largest))

    def save(self, folder: Path) -> None:
        """Write it into a folder that exists, as flood.json.

        Raises:
            InvalidReference: it cannot be written.
        """
        content = {"format": _FORMAT, "dimension": self.dimension, "width": self.width, "least": self.least}
        try:
            (folder / _FILE).write_text(json.dumps(content))
        except OSError as error:
            raise InvalidReference(
                f"cannot write {folder / _FILE}: {error.strerror or error}.", hint="Check its permissions."
            ) from error

    @classmethod
    def load(cls, folder: Path) -> FloodPlan:
        """Read what `save` wrote.

        Raises:
            InvalidReference: missing, damaged, or of another format.
        """
        try:
            content = json.loads((folder / _FILE).read_bytes())
            plan = cls(int(content["dimension"]), float(content["width"]), int(content["least"]))
            fits = content["format"] == _FORMAT and plan.dimension > 0 and plan.width > 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidReference(
                f"{folder / _FILE} is missing or damaged.", hint="Build anew: driftd reference build"
            ) from error
        if not fits:
            raise InvalidReference(
                f"{folder / _FILE} is of another release of driftd.", hint="Build anew: driftd reference build"
            )
        return plan


class FloodSketch:
    """Counts near-identical records in the blocks of one partition.

    Args:
        plan: how near is near-identical.
        stored: what `unwritten` gave of the blocks that are open, by block, in any order, with the same plan.
        most: blocks that are remembered; of more, the newest.
    """

    def __init__(self, plan: FloodPlan, stored: Iterable[tuple[int, bytes]] = (), *, most: int = MAX_BLOCKS) -> None:
        self._most = most
        self._directions = _directions(plan.dimension) / np.float32(plan.width)
        self._counts: dict[int, npt.NDArray[np.int32]] = {}
        self._below = -(2**63)  # blocks that are not counted any more
        self._new: dict[int, list[npt.NDArray[np.int64]]] = {}  # counters that no checkpoint has written
        for block, blob in sorted(stored):
            counts = self._of(block)
            if counts is not None:
                cells, added = _read(blob)
                counts[cells] += added

    def push(self, blocks: Int64s, vectors: Floats) -> npt.NDArray[np.int32]:
        """Count records, and say how many near-identical ones of its block there are so far, each one included.

        Args:
            blocks: int64 (n,), the block of each record, in the order of the offsets.
            vectors: float32 (n, d), prepared.

        Returns:
            int32 (n,), an estimate, at least 1; 0 for records of blocks that are not counted any more. With n records
            in the block so far, the error of most is below sqrt(n / 8192), and groups below five times that are 1.
        """
        sizes = np.zeros(len(vectors), np.int32)
        if len(vectors) == 0:
            return sizes
        cells = self._cells(vectors)
        order = np.arange(len(blocks))
        if len(self._counts.keys() | set(blocks.tolist())) <= self._most:
            order = np.argsort(blocks, kind="stable")
        # Otherwise in the order of arrival: which records come before their block has to go depends on it.
        cuts = np.flatnonzero(np.diff(blocks[order])) + 1
        for start, stop in itertools.pairwise([0, *cuts.tolist(), len(order)]):
            rows, block = order[start:stop], int(blocks[order[start]])
            counts = self._of(block)
            if counts is not None:
                sizes[rows] = _counted(counts, cells[rows])
                self._new.setdefault(block, []).append(cells[rows].ravel())
        return sizes

    def close(self, below: int) -> None:
        """Forget the blocks below ``below``."""
        self._below = max(self._below, below)
        for block in [block for block in self._counts if block < self._below]:
            del self._counts[block]
            self._new.pop(block, None)

    def unwritten(self) -> list[tuple[int, bytes]]:
        """What was counted since `written`, by block: blobs that add up."""
        return [(block, _blob(np.concatenate(pieces))) for block, pieces in sorted(self._new.items())]

    def written(self) -> None:
        """What `unwritten` gave is stored."""
        self._new.clear()

    def _cells(self, vectors: Floats) -> Int64s:
        """The counter of every record in each table, int64 (n, TABLES), numbered through all tables."""
        steps = np.floor(stable_product(vectors, self._directions) + _shifts()).astype(np.int64)
        with np.errstate(over="ignore"):
            mixed = (steps.view(np.uint64) * _factors()).reshape(len(steps), TABLES, PROJECTIONS).sum(axis=2)
        cells = hash64(np.asarray(mixed, np.uint64)) % np.uint64(CELLS)
        return cells.astype(np.int64) + np.arange(TABLES) * CELLS

    def _of(self, block: int) -> npt.NDArray[np.int32] | None:
        """The counters of a block; None where it is not counted any more."""
        if block < self._below:
            return None
        if block not in self._counts:
            if len(self._counts) == self._most:
                self.close(min(*self._counts, block) + 1)
                if block < self._below:
                    return None
            self._counts[block] = np.zeros(TABLES * CELLS, np.int32)
        return self._counts[block]


def _counted(counts: npt.NDArray[np.int32], cells: Int64s) -> npt.NDArray[np.int32]:
    """Add records to the counters of their block, one after the other: the size of each one's group when it came."""
    before = int(counts[:CELLS].sum())
    flat = cells.ravel()  # record by record, so that equal cells stay in the order of the records
    order = np.argsort(flat.astype(np.uint16), kind="stable")
    ordered = flat[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    lengths = np.diff(begins, append=len(ordered))
    place = np.empty(len(flat), np.int64)
    place[order] = np.arange(1, len(flat) + 1) - np.repeat(begins, lengths)
    found = (counts[flat] + place).reshape(cells.shape).astype(np.float64)
    counts[ordered[begins]] += lengths.astype(np.int32)
    so_far = np.arange(before + 1, before + len(cells) + 1, dtype=np.float64)
    own = np.sort(found, axis=1)[:, -2]
    size = own - (so_far - own) / (CELLS - 1)
    noise = NOISE * np.sqrt(so_far / CELLS)
    return np.where(size >= np.maximum(noise, 1.0), np.rint(size), 1.0).astype(np.int32)


def _blob(cells: Int64s) -> bytes:
    """Counters and what is added to them: gaps and counts, byte by byte, so that the many zeros lie together."""
    where, counts = np.unique(cells, return_counts=True)
    numbers = np.concatenate([np.diff(where, prepend=0), counts]).astype("<u4")
    return zlib.compress(numbers.view(np.uint8).reshape(-1, 4).T.tobytes(), 1)


def _read(blob: bytes) -> tuple[Int64s, npt.NDArray[np.int32]]:
    numbers = np.frombuffer(zlib.decompress(blob), np.uint8).reshape(4, -1).T.copy().view("<u4")[:, 0]
    gaps, counts = np.split(numbers, 2)
    return np.cumsum(gaps, dtype=np.int64), counts.astype(np.int32)


def _typical_distance(reference: Reference) -> float:
    """The distance of prepared vectors to their nearest other: its median, copies left out."""
    baseline = reference.exemplars if len(reference.exemplars) > 1 else reference.calibration_vectors
    index = NearestIndex(np.ascontiguousarray(baseline[evenly_spaced(len(baseline), _SAMPLE)]))
    distances, _ = leave_one_out(index, np.arange(len(index)), 1)
    apart = distances[distances > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def _least(largest: Int64s) -> int:
    """The group size above which normal blocks come once in 1 / FALSE_FLOODS_PER_BLOCK of them."""
    ascending = np.sort(largest).astype(np.float64)
    upper = max(len(ascending) // 10, 1)
    start = float(ascending[-upper])
    excess = max(float((ascending[-upper:] - start).mean()), 1.0)
    return ceil(start + excess * log(upper / len(ascending) / FALSE_FLOODS_PER_BLOCK)) + 1


@functools.cache
def _directions(dimension: int) -> Floats:
    """Random directions, float32 (d, 32), nearly normal: sums of 12 uniform numbers, exact on every machine."""
    shape = (dimension, TABLES * PROJECTIONS)
    numbers = np.arange(dimension * TABLES * PROJECTIONS, dtype=np.int64).reshape(shape)
    total = np.full(shape, -6.0)
    for draw in range(12):
        total += (hash64(numbers, _SEED + draw) >> np.uint64(48)).astype(np.float64) * 2.0**-16
    return total.astype(np.float32)


@functools.cache
def _shifts() -> Floats:
    """Where the edges of the cells lie, float32 (32,), in [0, 1)."""
    numbers = np.arange(TABLES * PROJECTIONS, dtype=np.int64)
    return ((hash64(numbers, _SEED + 12) >> np.uint64(48)).astype(np.float64) * 2.0**-16).astype(np.float32)


@functools.cache
def _factors() -> npt.NDArray[np.uint64]:
    """Odd factors, uint64 (32,)."""
    return hash64(np.arange(TABLES * PROJECTIONS, dtype=np.int64), _SEED + 13) | np.uint64(1)
