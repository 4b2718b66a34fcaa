"""Entities: the latest records of a card, user or merchant against its own past, and against its peers.

A record's vector is brought to at most 16 directions of equal variance and rounded to sixteenths. Of every entity are
kept

* its last N records themselves (N = 8 by default), a byte for each direction;
* sums and sums of squares of those before, halved when they are of 256 records, so that the far past fades.

Two columns are made from that, each calibrated on the baseline (see `fraud_ranks`), by how much is known of the entity:

* **self**: how far the record lies from what is usual of its entity, and how far the average of its last N records
  lies from those before. What is usual is the entity's mean, drawn to the mean of all as far as few records are known
  (the posterior mean of a normal model with the baseline's spread between and within entities; Efron, Morris 1975),
  and likewise its spread; distances are those of Student's distribution, to which one direction far off is not
  everything. The stranger of the two counts, the average at a tenth of its p-value's worth, so that a change shows at
  the first record, and a small but lasting one after a few.
* **peers**: how far the average of its last N records lies from the 5 nearest such averages of other entities of the
  baseline.

Scored first, learned afterwards. All sums are whole numbers: a stream has the same scores, however it is cut into
batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.checked_arrays import load_arrays, save_arrays
from detectors.errors import InvalidInput, InvalidReference
from detectors.fraud_ranks import Ranks
from detectors.index import NearestIndex, stable_product
from detectors.keyed_states import Hashes, Int64s, KeyedStates, Seeds, States, blank_state
from detectors.outlier import evenly_spaced
from detectors.reference import Reference

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int8s = npt.NDArray[np.int8]

DIRECTIONS = 16
MAX_LAST = 64
COLUMNS = ("self", "peers")
LEAST_RECORDS = 20

_STEP = 16  # a standard deviation in units of the rounded vectors
_PAST = 256  # records in the sums of the past, which are halved there
_MAX_PROFILES = 2000
_NEIGHBOURS = 5
_CALIBRATION = 20_000  # scores kept for each number of known records
_LEAST_CALIBRATION = 200  # fewer join those of the next number
_KNOWN = np.array([1, 4, 8, 32])  # records known of an entity at which another calibration begins
# Records that the spread within entities weighs against an entity's own. The same from 8 to 16, on weeks of card
# transactions that are reported nowhere.
_PRIOR_RECORDS = 16.0
# What the average of the last records must be more surprising than the record itself: it is believed once in ten
# times. Without that, what follows a strange record for N records hides what is strange now.
_HANDICAP = np.float32(1.0)
_FILE = "entities.npz"


@dataclass(frozen=True, eq=False)
class EntityModel:
    """What is usual of the entities of a baseline. Made by `fit` or `load`; immutable.

    Attributes:
        reference: prepares the vectors.
        centre: float32 (d,), taken from prepared vectors, and
        directions: float32 (d, r), what then brings them to whitened directions.
        usual: what entities are like.
        profiles: averages of the baseline's entities.
        scales: for each group of `_KNOWN`, of three scores: the record, the average of the latest ones, the peers;
            and of the stranger of the first two.
        seeds: states of the baseline's entities.
    """

    reference: Reference
    centre: Floats
    directions: Floats
    usual: _Usual
    profiles: _Profiles
    scales: tuple[_Scales, ...]
    seeds: Seeds

    @classmethod
    def fit(cls, vectors: npt.ArrayLike, entities: Hashes, *, reference: Reference, last: int = 8) -> EntityModel:
        """Learn from the baseline, replayed in the order of the stream: the first half tells what entities are like,
        the scores of the second calibrate.

        Args:
            vectors: float32 (n, d), raw, in the order of the stream.
            entities: uint64 (n,), hash of whose record each is; 0 for nobody's.
            reference: prepares the vectors.
            last: N, the records of an entity that are averaged, 2 to 64.

        Raises:
            InvalidInput: another number of entities than of vectors, fewer than 20 records of entities, or a ``last``
                out of range; vectors that the reference refuses.
        """
        prepared = reference.prepare(vectors)
        if len(entities) != len(prepared):
            raise InvalidInput(f"entities: expected one for each of {len(prepared)} vectors, got {len(entities)}.")
        if not 2 <= last <= MAX_LAST:
            raise InvalidInput(f"last: expected 2 to {MAX_LAST} records, got {last}.")
        rows = np.flatnonzero(entities)
        if len(rows) < LEAST_RECORDS:
            raise InvalidInput(
                f"expected at least {LEAST_RECORDS} records of the baseline to have an entity, got {len(rows)}.",
                hint="Check that fraud.entity names the field where the entity stands.",
            )
        centre, directions = _directions(reference)
        hashes, q = entities[rows], _rounded(prepared[rows], centre, directions)
        first, second = slice(0, len(rows) // 2), slice(len(rows) // 2, len(rows))
        usual = _Usual.of(hashes[first], q[first], last=last)
        blank = blank_state(_dtype(last, q.shape[1]))
        states = KeyedStates(blank, seeds=Seeds.none(blank), most=len(rows))
        nowhere = np.full(len(rows), -1, np.int64)
        _replay(states, hashes[first], q[first], nowhere[first])
        profiles = usual.profiles(states.as_seeds())
        seen = _replay(states, hashes[second], q[second], nowhere[second])
        seeds = states.as_seeds()
        known, scores = seen.known, usual.scores(seen, hashes[second], profiles)
        for group in np.flatnonzero(_in_groups(known)[: len(_KNOWN)] < _LEAST_CALIBRATION).tolist():
            # Few entities of the baseline are as new as that: take the known ones for new every so many records.
            states = KeyedStates(blank, seeds=Seeds.none(blank), most=len(rows))
            seen = _replay(states, _in_pieces(hashes[second], int(_KNOWN[group])), q[second], nowhere[second])
            there = np.searchsorted(_KNOWN, seen.known, side="right") == group
            scores = np.concatenate([scores, usual.scores(seen, hashes[second], profiles)[there]])
            known = np.concatenate([known, seen.known[there]])
        return cls(reference, centre, directions, usual, profiles, _calibrated(known, scores), seeds)

    def save(self, folder: Path) -> None:
        """Write the model into a folder.

        Raises:
            InvalidReference: it is there already, or cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "centre": self.centre,
            "directions": self.directions,
            "last": np.array(self.usual.last),
            "mean": self.usual.mean,
            "within": self.usual.within,
            "between": self.usual.between,
            "profiles": self.profiles.index.vectors,
            "profile_owners": self.profiles.owners,
            "seed_hashes": self.seeds.hashes,
            "seed_states": np.frombuffer(self.seeds.states.tobytes(), np.uint8),
        }
        for group, scales in enumerate(self.scales):
            arrays |= {f"scale_{group}_{name}": scale.scores for name, scale in scales.named().items()}
        save_arrays(folder / _FILE, arrays)

    @classmethod
    def load(cls, folder: Path, *, reference: Reference) -> EntityModel:
        """Read a saved model.

        Raises:
            InvalidReference: missing, damaged, or made for another reference.
        """
        names = ("centre", "directions", "last", "mean", "within", "between", "profiles", "profile_owners")
        arrays = load_arrays(folder / _FILE, *names, "seed_hashes", "seed_states")
        if len(arrays["centre"]) != reference.dimension:
            raise InvalidReference(
                f"{folder / _FILE} is for vectors of {len(arrays['centre'])} dimensions, the reference has "
                f"{reference.dimension}.",
                hint="Build the reference again.",
            )
        last = int(arrays["last"])
        states = np.frombuffer(arrays["seed_states"].tobytes(), _dtype(last, arrays["directions"].shape[1]))
        scales = tuple(
            _Scales(**{name: Ranks(arrays[f"scale_{group}_{name}"]) for name in _Scales.names()})
            for group in range(len(_KNOWN) + 1)
        )
        return cls(
            reference,
            arrays["centre"],
            arrays["directions"],
            _Usual(last, arrays["mean"], arrays["within"], arrays["between"]),
            _Profiles(NearestIndex(arrays["profiles"]), arrays["profile_owners"]),
            scales,
            Seeds(arrays["seed_hashes"], states),
        )


class EntityStates:
    """What one partition has shown of its entities.

    Args:
        model: what is usual.
        most: entities remembered; those not seen for longest are dropped.
        stored: (hash, blob) of every entity that former checkpoints wrote.

    A state takes 8 + 2 + 1 + N r + 8 r bytes: 267 for N = 8 and r = 16 directions.

    Attributes:
        known: int64 (n,), of the records pushed last: how many of its entity were known before each; of the far past,
            which fades, the fewer the farther. 0 for nobody's.

    Raises:
        InvalidReference: stored states that are not of this model.
    """

    def __init__(self, model: EntityModel, *, most: int = 100_000, stored: Iterable[tuple[int, bytes]] = ()) -> None:
        self.model = model
        blank = blank_state(_dtype(model.usual.last, model.directions.shape[1]))
        self._states = KeyedStates(blank, seeds=model.seeds, most=most, stored=stored)
        self.known: Int64s = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def dropped(self) -> int:
        """Entities dropped since this object was made."""
        return self._states.dropped

    def push(self, hashes: Hashes, vectors: npt.ArrayLike, offsets: Int64s) -> Floats:
        """Score the next records of the partition, then learn from them.

        Args:
            hashes: uint64 (n,), whose record each is; 0 for nobody's.
            vectors: float32 (n, d), raw.
            offsets: int64 (n,), ascending, and never before those of an earlier call.

        Returns:
            Surprise, float32 (n, 2), of the columns self and peers; 0 (p = 1) for nobody's record.

        Raises:
            InvalidInput: vectors that the reference refuses.
        """
        model = self.model
        surprise = np.zeros((len(hashes), len(COLUMNS)), np.float32)
        self.known = np.zeros(len(hashes), np.int64)
        rows = np.flatnonzero(hashes)
        if len(rows) == 0:
            return surprise
        q = _rounded(model.reference.prepare(vectors)[rows], model.centre, model.directions)
        seen = _replay(self._states, hashes[rows], q, offsets[rows])
        self.known[rows] = seen.known
        scores = model.usual.scores(seen, hashes[rows], model.profiles)
        group = np.searchsorted(_KNOWN, seen.known, side="right")
        for number in np.unique(group).tolist():
            chosen = group == number
            surprise[rows[chosen]] = model.scales[number].surprise(scores[chosen])
        return surprise

    def unwritten(self) -> list[tuple[int, int, bytes]]:
        """(hash, offset of its last record, blob) of each entity that changed since `written`; b"" if dropped."""
        return self._states.unwritten()

    def written(self) -> None:
        """What `unwritten` gave was committed."""
        self._states.written()


@dataclass(frozen=True, slots=True)
class _Scales:
    """Of one group of entities, how strange each score is."""

    record: Ranks
    average: Ranks
    stranger: Ranks
    peers: Ranks

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return ("record", "average", "stranger", "peers")

    def named(self) -> dict[str, Ranks]:
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def of(cls, scores: Floats) -> _Scales:
        """Calibrated on scores float32 (n, 3)."""
        record, average, peers = (
            Ranks(np.sort(scores[:, column])[evenly_spaced(len(scores), _CALIBRATION)]) for column in range(3)
        )
        stranger = _stranger(record.surprise(scores[:, 0]), average.surprise(scores[:, 1]))
        return cls(record, average, Ranks(np.sort(stranger)[evenly_spaced(len(stranger), _CALIBRATION)]), peers)

    def surprise(self, scores: Floats) -> Floats:
        """float32 (n, 2), of scores float32 (n, 3)."""
        stranger = _stranger(self.record.surprise(scores[:, 0]), self.average.surprise(scores[:, 1]))
        return np.column_stack([self.stranger.surprise(stranger), self.peers.surprise(scores[:, 2])])


def _stranger(record: Floats, average: Floats) -> Floats:
    return np.asarray(np.maximum(record, average - _HANDICAP), np.float32)


def _in_groups(known: Int64s) -> Int64s:
    """How many of the records are in each group of `_KNOWN`, int64 (len(_KNOWN) + 1,)."""
    return np.bincount(np.searchsorted(_KNOWN, known, side="right"), minlength=len(_KNOWN) + 1).astype(np.int64)


def _in_pieces(hashes: Hashes, length: int) -> Hashes:
    """Another entity for every ``length`` records of one, uint64 (n,)."""
    order = np.argsort(hashes, kind="stable")
    _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    place = np.empty(len(hashes), np.int64)
    place[order] = np.arange(len(hashes)) - np.repeat(starts, counts)
    pieces = np.rec.fromarrays([hashes, place // length])
    return np.asarray(np.unique(pieces, return_inverse=True)[1] + 1, np.uint64)


def _calibrated(known: Int64s, scores: Floats) -> tuple[_Scales, ...]:
    """One for each number of known records; a group with few records is calibrated on all that know fewer or more,
    nearest groups first."""
    group = np.searchsorted(_KNOWN, known, side="right")
    found = []
    for number in range(len(_KNOWN) + 1):
        for reach in range(len(_KNOWN) + 1):
            chosen = np.abs(group - number) <= reach
            if np.count_nonzero(chosen) >= _LEAST_CALIBRATION:
                break
        found.append(_Scales.of(scores[chosen]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was known when each of n records came; sums over r directions, in sixteenths of a standard deviation.

    Attributes:
        q: int64 (n, r), the record itself.
        known: int64 (n,), records of its entity before, and
        total, squares: int64 (n, r), their sums and sums of squares.
        recent: int64 (n,), of the last N records, this one included, and
        recent_total: int64 (n, r), their sums.
        past, past_total, past_squares: of those before the last N.
    """

    q: Int64s
    known: Int64s
    total: Int64s
    squares: Int64s
    recent: Int64s
    recent_total: Int64s
    past: Int64s
    past_total: Int64s
    past_squares: Int64s

    @classmethod
    def empty(cls, n: int, directions: int) -> _Seen:
        w, k = (n, directions), np.int64
        return cls(
            q=np.zeros(w, k),
            known=np.zeros(n, k),
            total=np.zeros(w, k),
            squares=np.zeros(w, k),
            recent=np.zeros(n, k),
            recent_total=np.zeros(w, k),
            past=np.zeros(n, k),
            past_total=np.zeros(w, k),
            past_squares=np.zeros(w, k),
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Profiles:
    """Averages of the last N records of the baseline's entities.

    Attributes:
        index: float32 (m, r), in the unit of the entities' own spread.
        owners: uint64 (m,), hash of whose each is.
    """

    index: NearestIndex
    owners: Hashes

    def distance(self, averages: Floats, hashes: Hashes) -> Floats:
        """Mean distance to up to 5 nearest profiles of others, float32 (n,).

        An entity is no peer of its own: its profile lies near as long as it shares records with the average, which
        those that calibrate do, and later ones do not.
        """
        if len(self.owners) == 1:
            return self.index.search(averages, 1)[0][:, 0]
        distances, found = self.index.search(averages, min(_NEIGHBOURS + 1, len(self.owners)))
        own = self.owners[found] == hashes[:, None]
        left_out = np.where(own.any(axis=1), own.argmax(axis=1), distances.shape[1] - 1)
        others = np.arange(distances.shape[1]) != left_out[:, None]
        return np.asarray(distances[others].reshape(len(averages), -1).mean(axis=1), np.float32)


@dataclass(frozen=True, eq=False)
class _Usual:
    """What entities are like: a normal model with a spread between entities and one within.

    Attributes:
        last: N.
        mean: float64 (r,), of the entities' means, in sixteenths.
        within, between: float64 (r,), variances of records within an entity and of the entities' means.
    """

    last: int
    mean: Doubles
    within: Doubles
    between: Doubles

    @classmethod
    def of(cls, hashes: Hashes, q: Int8s, *, last: int) -> _Usual:
        """Measured by the analysis of variance: float64 moments of whole numbers, so exact."""
        _, group, n = np.unique(hashes, return_inverse=True, return_counts=True)
        total = np.zeros((len(n), q.shape[1]), np.int64)
        np.add.at(total, group, q)
        squares = np.zeros_like(total)
        np.add.at(squares, group, q.astype(np.int64) ** 2)
        own = squares - total**2 / n[:, None]
        freedom = max(int(len(q) - len(n)), 0)
        overall = np.maximum(q.astype(np.float64).var(axis=0), 1.0)
        # A tenth of an entity's records being its own would be nothing to divide by.
        within = own.sum(axis=0) / freedom if freedom >= len(q) / 20 else overall
        within = np.maximum(within, 1.0)  # the rounding alone makes 1/12
        means = total / n[:, None]
        mean = means.mean(axis=0)
        between = np.maximum(means.var(axis=0) - (within / n[:, None]).mean(axis=0), 0.01 * overall)
        return cls(last, mean, within, between)

    def scores(self, seen: _Seen, hashes: Hashes, profiles: _Profiles) -> Floats:
        """float32 (n, 3): of the record, of the average of the last N, and of that among its peers.

        Args:
            hashes: uint64 (n,), whose record each is.
        """
        usual, spread, weight = self._posterior(seen.known, seen.total, seen.squares)
        record = (seen.q - usual) ** 2 / (spread * (1.0 + weight))
        usual, spread, weight = self._posterior(seen.past, seen.past_total, seen.past_squares)
        average = seen.recent_total / seen.recent[:, None]
        lasting = (average - usual) ** 2 / (spread * (1.0 / seen.recent[:, None] + weight))
        peers = profiles.distance(self._in_own_spread(average), hashes)
        scores = np.column_stack([_surprisal(record), _surprisal(lasting), peers])
        return np.asarray(np.rint(scores * 1e5) * 1e-5, np.float32)

    def profiles(self, seeds: Seeds) -> _Profiles:
        """Of the entities of which most is known."""
        ring_n = seeds.states["recent"]
        full = np.flatnonzero(ring_n >= min(self.last, int(np.sort(ring_n)[-min(len(ring_n), 50)])))
        rows = full[evenly_spaced(len(full), _MAX_PROFILES)]
        chosen = seeds.states[rows]
        total = chosen["ring"].astype(np.int64).sum(axis=1)
        return _Profiles(NearestIndex(self._in_own_spread(total / chosen["recent"][:, None])), seeds.hashes[rows])

    def _in_own_spread(self, average: Doubles) -> Floats:
        return np.asarray((average - self.mean) / np.sqrt(self.between + self.within / self.last), np.float32)

    def _posterior(self, n: Int64s, total: Int64s, squares: Int64s) -> tuple[Doubles, Doubles, Doubles]:
        """Mean, variance of a record, and variance of the mean in units of that: float64 (m, r) each."""
        count = n[:, None].astype(np.float64)
        strength = self.within / self.between  # records that the mean of all entities is worth
        mean = (total + strength * self.mean) / (count + strength)
        own = squares - np.divide(total * total, np.maximum(count, 1.0))
        spread = (_PRIOR_RECORDS * self.within + own) / (_PRIOR_RECORDS + np.maximum(count - 1.0, 0.0))
        return mean, spread, 1.0 / (count + strength)


def _surprisal(squares: Doubles) -> Doubles:
    """Sum of log(1 + square / 16) over the directions, float64 (n,): what is improbable under Student's distribution
    with 16 degrees of freedom. One after the other, so that a row's result does not depend on the rows around it.
    """
    total = np.zeros(len(squares))
    for column in range(squares.shape[1]):
        total += np.log1p(squares[:, column] / _PRIOR_RECORDS)
    return total


def _directions(reference: Reference) -> tuple[Floats, Floats]:
    """What brings prepared vectors to at most 16 directions with variance 1, in sixteenths: a table's columns, where
    there are so few, because what changes is often one of them; else principal directions.
    """
    centre = reference.mean.astype(np.float32)
    if not reference.geometry.unit and reference.dimension <= DIRECTIONS:
        values, chosen = np.diag(reference.covariance), np.eye(reference.dimension)
    else:
        values, vectors = np.linalg.eigh(reference.covariance)
        order = np.argsort(-values, kind="stable")[:DIRECTIONS]
        values, chosen = values[order], vectors[:, order]
        chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
    deviation = np.sqrt(np.maximum(values, max(1e-6 * float(values.max()), 1e-12)))
    return centre, np.asarray(_STEP * chosen / deviation, np.float32)


def _rounded(prepared: Floats, centre: Floats, directions: Floats) -> Int8s:
    z = stable_product(prepared - centre, directions)
    return np.clip(np.rint(z), -127, 127).astype(np.int8)


def _dtype(last: int, directions: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("offset", "<i8"),
            ("past", "<u2"),
            ("recent", "u1"),
            ("ring", "i1", (last, directions)),
            ("total", "<i4", (directions,)),
            ("squares", "<i4", (directions,)),
        ]
    )


def _replay(states: KeyedStates, hashes: Hashes, q: Int8s, offsets: Int64s) -> _Seen:
    """What was known of each record's entity when it came; afterwards the states know the records."""
    seen = _Seen.empty(len(hashes), q.shape[1])
    for piece in states.pieces(hashes, offsets):
        keys, group = np.unique(hashes[piece], return_inverse=True)
        order = np.argsort(group, kind="stable")
        known = states.get(keys)
        rows = order + piece.start
        owner = group[order]
        np.maximum.at(known["offset"], owner, offsets[rows])
        while len(rows):  # once, or twice where sums have to be halved
            rows, owner = _advance(known, rows, owner, q, seen)
        states.put(keys, known)
    return seen


def _advance(known: States, rows: Int64s, owner: Int64s, q: Int8s, seen: _Seen) -> tuple[Int64s, Int64s]:
    """Fill ``seen`` for the rows of each entity, in order, up to where its sums have to be halved.

    Args:
        known: (k,), states of entities; changed.
        rows: int64 (n,), of ``q`` and ``seen``, those of an entity together and in order.
        owner: int64 (n,), ascending: whose row each is.

    Returns:
        The rows that are left, and whose they are.
    """
    last = known.dtype["ring"].shape[0]
    had = known["recent"].astype(np.int64)
    before = known["past"].astype(np.int64)
    count = np.bincount(owner, minlength=len(known))
    first = np.cumsum(count) - count  # of each entity's rows
    taken = np.minimum(count, _PAST - before + last - had)  # so many, until the past is full
    rank = np.arange(len(rows)) - first[owner]
    now = rank < taken[owner]
    left, left_owner = rows[~now], owner[~now]
    rows, owner, rank = rows[now], owner[now], rank[now]

    # Each entity's remembered records, followed by its new ones, and running sums over all of that.
    begin = np.cumsum(had + taken) - had - taken
    line = np.empty((int((had + taken).sum()), q.shape[1]), np.int64)
    remembered = np.arange(last) < had[:, None]
    line[(begin[:, None] + np.arange(last))[remembered]] = known["ring"][remembered]
    place = begin[owner] + had[owner] + rank
    line[place] = q[rows]
    sums = np.zeros((len(line) + 1, q.shape[1]), np.int64)
    np.cumsum(line, axis=0, out=sums[1:])
    squares = np.zeros_like(sums)
    np.cumsum(line * line, axis=0, out=squares[1:])

    start = begin[owner]
    recent = np.maximum(start, place + 1 - last)
    total, square = known["total"].astype(np.int64), known["squares"].astype(np.int64)
    seen.q[rows] = line[place]
    seen.known[rows] = before[owner] + place - start
    seen.total[rows] = total[owner] + sums[place] - sums[start]
    seen.squares[rows] = square[owner] + squares[place] - squares[start]
    seen.recent[rows] = place + 1 - recent
    seen.recent_total[rows] = sums[place + 1] - sums[recent]
    seen.past[rows] = before[owner] + recent - start
    seen.past_total[rows] = total[owner] + sums[recent] - sums[start]
    seen.past_squares[rows] = square[owner] + squares[recent] - squares[start]

    end = begin + had + taken
    kept = np.maximum(begin, end - last)
    total += sums[kept] - sums[begin]
    square += squares[kept] - squares[begin]
    past = before + kept - begin
    full = past >= _PAST
    known["past"] = np.where(full, past // 2, past)
    known["total"] = np.where(full[:, None], total // 2, total)
    known["squares"] = np.where(full[:, None], square // 2, square)
    known["recent"] = end - kept
    remembered = np.arange(last) < (end - kept)[:, None]
    ring = np.zeros_like(known["ring"])
    ring[remembered] = line[(kept[:, None] + np.arange(last))[remembered]]
    known["ring"] = ring
    return left, left_owner
