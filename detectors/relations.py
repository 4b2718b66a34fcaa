"""Relations: pairs, such as a card and a merchant. A new pair, far from the card's usual merchants, is strange.

Merchants (the right side) are embedded by who visits them: truncated singular value decomposition of the positive
pointwise mutual information max(0, log(n_lr N / (n_l n_r))) of cards and merchants, each merchant being its row of
V sqrt(S) (Levy, Goldberg 2014), brought to length 1. Two merchants with the same kind of customers are near, though no
card may have visited both.

Of every card its last 32 merchants are kept. A record then is one of four:

* the card's first: nothing is known, so nothing is strange;
* a pair that the card has shown before, in the baseline or among its last 32: not strange;
* a merchant that the baseline has not shown, or one too rare to be embedded: as strange as such records are rare;
* else a new pair: 1 - cosine of the merchant and the mean of the card's last ones, ranked among such scores of the
  baseline.

The strangeness of all four is calibrated together on the second half of the baseline, with vectors of the first half.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.checked_arrays import load_arrays, save_arrays
from detectors.conformal import hash64
from detectors.errors import InvalidInput
from detectors.fraud_ranks import Ranks
from detectors.keyed_states import Hashes, Int64s, KeyedStates, Seeds, blank_state
from detectors.outlier import evenly_spaced

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]
Int16s = npt.NDArray[np.int16]

DIMENSIONS = 64  # towns, trades and their like that can be told apart
MOST_RIGHT = 50_000  # merchants that are embedded, those of most records
LAST = 32
LEAST_RECORDS = 20

_CALIBRATION = 20_000  # scores kept
_UNIT = 4096  # vectors are whole numbers of 1/4096, so that their sums are exact
_SPARE = 10  # directions more than wanted, which make those wanted better
_PASSES = 4
_FILE = "relations.npz"
_BLANK = blank_state(np.dtype([("offset", "<i8"), ("count", "u1"), ("ring", "<u4", (LAST,))]))


@dataclass(frozen=True, eq=False)
class Relations:
    """Which pairs are usual. Made by `fit` or `load`; immutable.

    Attributes:
        rights: the embedded right-hand values.
        pairs: uint64, ascending: hashes of the pairs of the baseline, 8 bytes each.
        new: share of the baseline's records that were a new pair of values known by themselves, and
        distance: how their 1 - cosine ranks.
        unknown: share of the baseline's records with a right-hand value that was not embedded.
        ranks: how strange a record is among all.
        seeds: states of the baseline's left-hand values.
    """

    rights: _Rights
    pairs: Hashes
    new: float
    distance: Ranks
    unknown: float
    ranks: Ranks
    seeds: Seeds

    @classmethod
    def fit(cls, left: Hashes, right: Hashes) -> Relations:
        """Learn from the baseline.

        Args:
            left, right: uint64 (n,), hashes of the two sides, in the order of the stream; 0 where there is none.

        Raises:
            InvalidInput: two different numbers of values, or fewer than 20 records with both sides.
        """
        if len(left) != len(right):
            raise InvalidInput(f"relation: expected as many left as right values, got {len(left)} and {len(right)}.")
        rows = np.flatnonzero((left != 0) & (right != 0))
        if len(rows) < LEAST_RECORDS:
            raise InvalidInput(
                f"expected at least {LEAST_RECORDS} records of the baseline to have both sides of the relation, got "
                f"{len(rows)}.",
                hint="Check the fields of fraud.relation.",
            )
        left, right = left[rows], right[rows]
        judged, states = _second_half(left, right)
        distance = Ranks(judged.distance if len(judged.distance) else np.zeros(1, np.float32))
        # One more of each, so that what the baseline did not show is rare, and not impossible.
        n = len(judged.far) + 1
        new, unknown = (len(judged.distance) + 1) / n, (int(judged.unknown.sum()) + 1) / n
        strange = judged.strangeness(new, distance, unknown)
        return cls(
            rights=_Rights.of(left, right),
            pairs=np.unique(_pair_hashes(left, right)),
            new=new,
            distance=_spaced(distance),
            unknown=unknown,
            ranks=_spaced(Ranks(strange)),
            seeds=states.as_seeds(),
        )

    def replay(self, left: Hashes, right: Hashes) -> Floats:
        """Surprise of the second half of the baseline's own pairs, by what those before the middle tell: float32 (n,).

        Not by the whole model: it has seen these very pairs, so that none of them could be new to it, and a scorer that
        learns how usual records look like would take every new pair for fraud. 0 in the first half, and where there
        is no pair.

        Args:
            left, right: uint64 (n,), as `fit` had them.
        """
        surprise = np.zeros(len(left), np.float32)
        rows = np.flatnonzero((left != 0) & (right != 0))
        judged, _ = _second_half(left[rows], right[rows])
        strange = judged.strangeness(self.new, self.distance, self.unknown)
        surprise[rows[len(rows) // 2 :]] = self.ranks.surprise(strange)
        return surprise

    def save(self, folder: Path) -> None:
        """Write the model into a folder.

        Raises:
            InvalidReference: it is there already, or cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self.rights.ids,
            "vectors": self.rights.vectors,
            "pairs": self.pairs,
            "shares": np.array([self.new, self.unknown]),
            "distance": self.distance.scores,
            "ranks": self.ranks.scores,
            "seed_hashes": self.seeds.hashes,
            "seed_states": np.frombuffer(self.seeds.states.tobytes(), np.uint8),
        }
        save_arrays(folder / _FILE, arrays)

    @classmethod
    def load(cls, folder: Path) -> Relations:
        """Read a saved model.

        Raises:
            InvalidReference: missing or damaged.
        """
        names = ("ids", "vectors", "pairs", "shares", "distance", "ranks", "seed_hashes", "seed_states")
        arrays = load_arrays(folder / _FILE, *names)
        new, unknown = arrays["shares"].tolist()
        return cls(
            rights=_Rights(arrays["ids"], arrays["vectors"]),
            pairs=arrays["pairs"],
            new=new,
            distance=Ranks(arrays["distance"]),
            unknown=unknown,
            ranks=Ranks(arrays["ranks"]),
            seeds=Seeds(arrays["seed_hashes"], np.frombuffer(arrays["seed_states"].tobytes(), _BLANK.dtype)),
        )


class RelationStates:
    """What one partition has shown of the left-hand values' pairs.

    Args:
        model: what is usual.
        most: left-hand values remembered; those not seen for longest are dropped.
        stored: (hash, blob) of every left-hand value that former checkpoints wrote.

    A state takes 137 bytes.

    Raises:
        InvalidReference: stored states that are not of this kind.
    """

    def __init__(self, model: Relations, *, most: int = 100_000, stored: Iterable[tuple[int, bytes]] = ()) -> None:
        self.model = model
        self._states = KeyedStates(_BLANK, seeds=model.seeds, most=most, stored=stored)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def dropped(self) -> int:
        """Left-hand values dropped since this object was made."""
        return self._states.dropped

    def push(self, left: Hashes, right: Hashes, offsets: Int64s) -> Floats:
        """Score the next records of the partition, then learn from them.

        Args:
            left, right: uint64 (n,), hashes of the two sides; 0 where there is none.
            offsets: int64 (n,), ascending, and never before those of an earlier call.

        Returns:
            Surprise, float32 (n,); 0 (p = 1) where one side is missing.
        """
        model = self.model
        surprise = np.zeros(len(left), np.float32)
        rows = np.flatnonzero((left != 0) & (right != 0))
        if len(rows) == 0:
            return surprise
        seen = _replay(self._states, left[rows], _ids(right[rows]), offsets[rows])
        judged = _Judged.of(model.rights, model.pairs, _pair_hashes(left[rows], right[rows]), seen)
        surprise[rows] = model.ranks.surprise(judged.strangeness(model.new, model.distance, model.unknown))
        return surprise

    def unwritten(self) -> list[tuple[int, int, bytes]]:
        """(hash, offset of its last record, blob) of each that changed since `written`; b"" if dropped."""
        return self._states.unwritten()

    def written(self) -> None:
        """What `unwritten` gave was committed."""
        self._states.written()


@dataclass(frozen=True, eq=False, slots=True)
class _Rights:
    """Right-hand values in the space of their co-occurrence.

    Attributes:
        ids: uint32 (m,), ascending.
        vectors: int16 (m, k), of length 4096; zeros where a value tells nothing.
    """

    ids: Ids
    vectors: Int16s

    @classmethod
    def of(cls, left: Hashes, right: Hashes) -> _Rights:
        """Truncated SVD of the positive pointwise mutual information of n pairs."""
        from scipy import sparse

        ids, column, count = np.unique(_ids(right), return_inverse=True, return_counts=True)
        _, row = np.unique(left, return_inverse=True)
        kept = np.sort(np.lexsort((ids, -count))[:MOST_RIGHT])
        matrix = sparse.csr_matrix((np.ones(len(row)), (row, column)))  # adds up what occurs twice
        of_left, of_right = np.asarray(matrix.sum(axis=1))[:, 0], np.asarray(matrix.sum(axis=0))[0]
        pairs = matrix.tocoo()
        information = np.log(pairs.data * len(row) / (of_left[pairs.row] * of_right[pairs.col]))
        pairs.data = np.maximum(information, 0.0)
        vectors = _right_singular(pairs.tocsc()[:, kept])
        length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
        unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)
        return cls(ids[kept], np.rint(unit * _UNIT).astype(np.int16))

    def places(self, ids: Ids) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Row of each id, int64, any shape, and whether it is there."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return places, self.ids[places] == ids


@dataclass(frozen=True, eq=False, slots=True)
class _Seen:
    """The last right-hand values of each of n records' left-hand value, before it came.

    Attributes:
        ids: uint32 (n,), the record's own right-hand value.
        count: int64 (n,), how many are known, and
        ring: uint32 (n, 32), these.
    """

    ids: Ids
    count: Int64s
    ring: Ids


@dataclass(frozen=True, eq=False, slots=True)
class _Judged:
    """Which of n records are new pairs, and how far.

    Attributes:
        far: bool (n,), a new pair whose sides are known by themselves, and
        distance: float32 (m,), 1 - cosine of those.
        unknown: bool (n,), the right-hand value is not embedded.
    """

    far: npt.NDArray[np.bool_]
    distance: Floats
    unknown: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rights: _Rights, pairs: Hashes, hashes: Hashes, seen: _Seen) -> _Judged:
        known = np.arange(LAST) < seen.count[:, None]
        before = ((seen.ring == seen.ids[:, None]) & known).any(axis=1)
        if len(pairs):
            places = np.minimum(np.searchsorted(pairs, hashes), len(pairs) - 1)
            before |= pairs[places] == hashes
        place, embedded = rights.places(seen.ids)
        candidates = np.flatnonzero(~before & embedded & (seen.count > 0))
        near, there = rights.places(seen.ring[candidates])
        there &= known[candidates]
        own = rights.vectors[place[candidates]].astype(np.float64)
        summed = np.zeros(own.shape, np.int32)
        for column in range(int(seen.count[candidates].max(initial=0))):
            rows = np.flatnonzero(there[:, column])
            summed[rows] += rights.vectors[near[rows, column]]
        total = summed.astype(np.float64)  # whole numbers below 2^53, and their products: in any order the same
        product, length = (own * total).sum(axis=1), np.sqrt((total * total).sum(axis=1))
        some = there.any(axis=1)
        cosine = np.divide(product, length * _UNIT, out=np.zeros(len(product)), where=length > 0)
        far = np.zeros(len(hashes), np.bool_)
        far[candidates[some]] = True
        distance = np.rint((1.0 - cosine[some]) * 1e5) * 1e-5
        return cls(far, distance.astype(np.float32), ~before & ~embedded & (seen.count > 0))

    def strangeness(self, new: float, distance: Ranks, unknown: float) -> Floats:
        """-log10 of the share of records that are as strange in the same way, float32 (n,); 0 for what is usual."""
        strange = np.zeros(len(self.far), np.float32)
        strange[self.unknown] = np.float32(-np.log10(unknown))
        strange[self.far] = np.float32(-np.log10(new)) + distance.surprise(self.distance)
        return strange


def _second_half(left: Hashes, right: Hashes) -> tuple[_Judged, KeyedStates]:
    """The later half of some pairs by what the earlier half tells of right-hand values and pairs, each by all records
    of its left-hand value before; and what all together have shown of the left-hand values.
    """
    first, second = slice(0, len(left) // 2), slice(len(left) // 2, len(left))
    states = KeyedStates(_BLANK, seeds=Seeds.none(_BLANK), most=len(left))
    nowhere = np.full(len(left), -1, np.int64)
    _replay(states, left[first], _ids(right[first]), nowhere[first])
    seen = _replay(states, left[second], _ids(right[second]), nowhere[second])
    known = np.unique(_pair_hashes(left[first], right[first]))
    rights = _Rights.of(left[first], right[first])
    return _Judged.of(rights, known, _pair_hashes(left[second], right[second]), seen), states


def _ids(right: Hashes) -> Ids:
    return (right >> np.uint64(32)).astype(np.uint32)


def _pair_hashes(left: Hashes, right: Hashes) -> Hashes:
    return hash64(left ^ hash64(right, seed=1))


def _spaced(ranks: Ranks) -> Ranks:
    return Ranks(ranks.scores[evenly_spaced(len(ranks.scores), _CALIBRATION)])


def _right_singular(matrix: Any) -> Doubles:
    """Rows of V sqrt(S), float64 (m, k), of a sparse matrix (n, m), nearly: by subspace iteration from a fixed start
    (Halko, Martinsson, Tropp 2011).
    """
    n, m = matrix.shape
    if matrix.max() <= 0.0:  # every pair is as frequent as chance has it
        return np.zeros((m, 1))
    wanted = min(DIMENSIONS + _SPARE, n, m)
    start = hash64(np.arange(m * wanted)).astype(np.float64).reshape(m, wanted) * 2.0**-64 - 0.5
    basis, _ = _orthonormal(matrix @ start)
    for _ in range(_PASSES):
        basis, _ = _orthonormal(matrix.T @ basis)
        basis, _ = _orthonormal(matrix @ basis)
    right, strength = _orthonormal(matrix.T @ basis)
    return np.asarray(right[:, :DIMENSIONS] * np.sqrt(strength[:DIMENSIONS]), np.float64)


def _orthonormal(columns: Doubles) -> tuple[Doubles, Doubles]:
    """Left singular vectors, float64 (n, k), and singular values, largest first; the sign is fixed by the largest
    entry. By way of the small matrix of products, which for tall matrices takes a hundredth of a QR's time.
    """
    squares, turned = np.linalg.eigh(columns.T @ columns)
    squares, turned = squares[::-1], turned[:, ::-1]
    strength = np.sqrt(np.maximum(squares, 0.0))
    some = strength > 1e-6 * strength[0]  # below, it is rounding
    vectors = (columns @ turned[:, some]) / strength[some]
    return vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]), strength[some]


def _replay(states: KeyedStates, left: Hashes, ids: Ids, offsets: Int64s) -> _Seen:
    """What was known of each record's left-hand value when it came; afterwards the states know the records."""
    count, ring = np.zeros(len(left), np.int64), np.zeros((len(left), LAST), np.uint32)
    for piece in states.pieces(left, offsets):
        keys, group, n = np.unique(left[piece], return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        rows, owner = order + piece.start, group[order]
        known = states.get(keys)
        np.maximum.at(known["offset"], owner, offsets[rows])
        # Each one's remembered values, followed by its new ones.
        had = known["count"].astype(np.int64)
        begin = np.cumsum(had + n) - had - n
        line = np.zeros(int((had + n).sum()), np.uint32)
        remembered = np.arange(LAST) < had[:, None]
        line[(begin[:, None] + np.arange(LAST))[remembered]] = known["ring"][remembered]
        place = begin[owner] + had[owner] + np.arange(len(rows)) - (np.cumsum(n) - n)[owner]
        line[place] = ids[rows]
        start = np.maximum(begin[owner], place - LAST)
        count[rows] = place - start
        ring[rows] = _windows(line, start, place - start)
        end = begin + had + n
        kept = np.maximum(begin, end - LAST)
        known["count"], known["ring"] = end - kept, _windows(line, kept, end - kept)
        states.put(keys, known)
    return _Seen(ids, count, ring)


def _windows(line: Ids, start: Int64s, n: Int64s) -> Ids:
    """uint32 (m, 32): n values of the line from each start on, followed by zeros."""
    columns = np.arange(LAST)
    taken = line[np.minimum(start[:, None] + columns, len(line) - 1)]
    return np.where(columns < n[:, None], taken, np.uint32(0))
