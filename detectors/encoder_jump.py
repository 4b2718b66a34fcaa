"""Did the encoder change, where nobody can ask it? From block summaries of ready vectors alone.

A changed encoder changes every record from one block to the next, in every segment. A changing world does not: it
grows, it leaves some of the traffic as it was, and what is new is about something, so that it crowds around few
prototypes. So the question is how much of a block can still be as the baseline was. Whatever is mixed in, if a share u
of the records is unchanged, any set A of values that has the mass P(A) in the baseline has at least u P(A) in the
block; so u is at most the block's share of A over P(A) (the bound of Ramaswamy, Scott, Tewari 2016, for one fixed
family of sets). A look at a block takes the smallest of such bounds, with the sampling error of both sides (Clopper,
Pearson 1934) and what sessions do to counts, so that it errs towards "unchanged". An encoder is suspected where at most
one record in ten is unchanged by one of these:

* far: nearly every record is stranger than 63 in 64 of the baseline. Traffic that was replaced altogether by another
  domain is not: a fifth of it still lies closer than that (measured: docs/canaries.md).
* moved: the p-values say so at some other level, and the records are spread over the prototypes as ever;
* shifted: the mean lies 2.5 standard deviations of single records away, and no more than a tenth of them crowds where
  there were fewer: a topic that moves the mean so far by being mixed in is more than that;
* norms: the lengths of the vectors say so, by the one-sided inequality of Cantelli (1928): the bound on what lies where
  the baseline's lengths lie.

The first and the last rest on the bounds alone. That a look is no world that was replaced altogether rests on what was
measured (docs/canaries.md).

What a person is told is a suspicion: replaced preprocessing, or a world in which all records change alike at once,
looks the same. A numeric change that is small against the spread of the records is not seen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors.baseline import TICK, Constants, payoff_inflation
from detectors.conformal import P_EDGES
from detectors.norms import NORMS, Norms
from detectors.reference import Reference
from detectors.summary import BlockSummary

Floats = npt.NDArray[np.float64]

# Levels of p at which a look asks how much of the baseline is still there.
LEVELS: Floats = np.array([2.0**-13, 2.0**-10, 2.0**-8, 2.0**-6, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2])
FAR = 2.0**-6
UNCHANGED = 0.1  # an encoder leaves less than this as it was; a flood of 80 % leaves twice as much
CHANCE = 1e-6  # that a bound of a look is wrong
# Cosine of the shares of the prototypes, from which on records are spread as ever. A domain in place of another has .1
# to .65, a cut-off or centred encoder .94 and more on the vectors that these were chosen on; a domain that takes over
# half of the traffic has up to .87, and leaves half of it unchanged.
ALIKE_MIX = 0.7
# Standard deviations of single records. What is mixed in lies up to ten away, so it would be a quarter of the records.
SHIFT = 2.5
GROWN = 0.1  # floods that move the mean so far have .14 and more, centred encoders up to .11
NORM_SPREADS = 4.0  # spreads of the baseline's lengths within which a length is as before
LEAST = 256  # records of a look: with none above the middle of p, fewer cannot show that nine in ten changed
LEAST_OF_SEGMENT = 64  # records of a segment's look, which only has to show half

_BINS = np.searchsorted(P_EDGES, LEVELS) + 1  # bins up to each level
_POOL = struct.Struct("<q")


class Usual:
    """What a reference says of blocks in which nothing changed.

    Args:
        reference: of a space of ready vectors.
        constants: of the drift rule, of the whole traffic or of one segment.
        sessions: measure what sessions do to counts, which takes some milliseconds.
    """

    def __init__(self, reference: Reference, constants: Constants, *, sessions: bool = True) -> None:
        self.mean = np.asarray(constants["level_mean"], dtype=np.float64)
        self.covariance = reference.covariance
        self.shares = reference.prototype_counts / reference.prototype_counts.sum()
        self.inflation = np.ones(len(LEVELS))
        if sessions:
            counted = (LEVELS[:, None] * (1.0 + 1e-12) >= P_EDGES).astype(np.float64)
            self.inflation, _ = payoff_inflation(constants["block_histogram"], counted)
        size = float(np.asarray(constants["calibration"], dtype=np.float64)[0])
        error = np.sqrt(self.inflation * LEVELS * (1.0 - LEVELS) / max(size, 1.0))
        self.above = np.maximum(1.0 - LEVELS - 5.0 * error, 0.0)  # the baseline's share above each level, at least
        stored = reference.drift.get(NORMS)
        self.norms = None if stored is None else Norms(*np.asarray(stored, dtype=np.int64).tolist())


@dataclass(frozen=True, slots=True)
class Look:
    """What some blocks together say.

    Attributes:
        n: records.
        far: largest share of them that can be unchanged, by how many are stranger than 63 in 64 of the baseline.
        unchanged: the same at whatever level says least.
        shift: distance of the mean, in standard deviations of single records.
        mix: cosine of the shares of the prototypes with the baseline's, 1 where records are spread as ever.
        grown: share of the records that prototypes have beyond their old share and twice its sampling error.
        norms: largest share that can be unchanged by the lengths; 1 where they are not known.
    """

    n: int
    far: float
    unchanged: float
    shift: float
    mix: float
    grown: float
    norms: float

    @property
    def why(self) -> str:
        """What says that the encoder changed: norms, far, moved or shifted; "" where nothing does."""
        alike = self.mix >= ALIKE_MIX
        if self.norms <= UNCHANGED:
            return "norms"
        if self.far <= UNCHANGED:
            return "far"
        if alike and self.unchanged <= UNCHANGED:
            return "moved"
        if self.grown <= GROWN and self.shift >= SHIFT:
            return "shifted"
        return ""

    def with_norms(self, usual: Usual, norms: Norms) -> Look:
        """The same look, with what the lengths of its vectors say."""
        return replace(self, norms=_norms(usual.norms, norms))

    @property
    def as_before(self) -> bool:
        """Half of the records or more can be unchanged, by whatever is looked at."""
        return self.unchanged >= 0.5 and self.norms >= 0.5 and self.shift < SHIFT / 2


def look_at(usual: Usual, summary: BlockSummary, norms: Norms | None = None) -> Look:
    """Compare what some blocks hold with the baseline."""
    from scipy.special import betaincinv

    n = summary.n
    above = n - np.cumsum(summary.h)[_BINS - 1]
    worth = n / usual.inflation
    k = above / usual.inflation
    certain = k >= worth - 1e-9
    upper = np.where(certain, 1.0, betaincinv(k + 1.0, np.maximum(worth - k, 1e-9), 1.0 - CHANCE / len(LEVELS)))
    bounds = np.where(usual.above > 0.0, np.minimum(upper / np.maximum(usual.above, 1e-12), 1.0), 1.0)
    return Look(
        n=n,
        far=float(bounds[LEVELS <= FAR].min()),
        unchanged=float(bounds.min()),
        shift=_shift(usual, summary),
        mix=_mix(usual.shares, summary.c),
        grown=_grown(usual.shares, summary.c),
        norms=_norms(usual.norms, norms),
    )


def _shift(usual: Usual, summary: BlockSummary) -> float:
    """How far the mean went, beyond what the sampling of so many records does, in their spread in that direction."""
    moved = summary.s * TICK / summary.n - usual.mean
    length = float(moved @ moved)
    beyond = length - float(np.trace(usual.covariance)) / summary.n
    if beyond <= 0.0:
        return 0.0
    spread = float(moved @ usual.covariance @ moved) / length
    return sqrt(beyond / max(spread, TICK**2))


def _mix(shares: Floats, counts: npt.NDArray[np.int64]) -> float:
    """Cosine of two sets of shares, with the chance agreement of records with themselves taken out of the square."""
    n = int(counts.sum())
    if n < 2:
        return 0.0
    found = counts.astype(np.float64)
    square = float(found @ (found - 1.0)) / (n * (n - 1.0))
    if square <= 0.0:
        return 1.0  # no two records at the same prototype: nothing crowds
    return float(found @ shares) / n / sqrt(square * float(shares @ shares))


def _grown(shares: Floats, counts: npt.NDArray[np.int64]) -> float:
    n = int(counts.sum())
    return float(np.maximum(counts / n - shares - 2.0 * np.sqrt(shares / n), 0.0).sum())


def _norms(usual: Norms | None, found: Norms | None) -> float:
    if usual is None or found is None or usual.n < 2 or found.n < 1:
        return 1.0
    # Half-precision vectors of length one differ by a thousandth; what is less is no spread.
    spread = max(sqrt(usual.variance), 2e-3)
    beyond = abs(found.mean - usual.mean) - NORM_SPREADS * spread
    if beyond <= 0.0:
        return 1.0
    return min(found.variance / (found.variance + beyond**2) / (1.0 - NORM_SPREADS**-2), 1.0)


class Pool:
    """Adds up blocks until they hold records enough for a look.

    Args:
        least: records of a look.
        held: what `to_bytes` gave; empty to begin anew.
    """

    def __init__(self, least: int, held: bytes = b"") -> None:
        self._least = least
        self._first = _POOL.unpack_from(held)[0] if held else 0
        self._pending = BlockSummary.from_bytes(held[_POOL.size :]) if held else None

    def push(self, block: int, summary: BlockSummary, *, span: int = 1) -> tuple[int, BlockSummary] | None:
        """Take in one block, or so many as one up to this one.

        Returns:
            The first block of a look and its summary, where there are records enough now; a new look begins then.
        """
        if self._pending is None:
            self._first, self._pending = block - span + 1, summary
        else:
            self._pending = self._pending.merge(summary)
        if self._pending.n < self._least:
            return None
        found, self._pending = self._pending, None
        return self._first, found

    def to_bytes(self) -> bytes:
        """What is not a look yet; empty where nothing is."""
        return b"" if self._pending is None else _POOL.pack(self._first) + self._pending.to_bytes()


Stage = Literal["usual", "mixed", "changed", "other"]


@dataclass(frozen=True, slots=True)
class Jump:
    """What the looks so far say of the encoder of one space.

    Attributes:
        stage: usual: as the baseline. mixed: since one look, which may lie across the change. changed: the encoder is
            suspected. other: changed otherwise, by and by or in a part, which is a world's way.
        since: first block of the look with which the stage began; of "changed", of the look across the change.
        why: of "changed", see `Look.why`.
    """

    stage: Stage = "usual"
    since: int = 0
    why: str = ""

    def push(self, look: Look, first: int, *, some_as_before: bool) -> Jump:
        """The next look at the whole traffic.

        Args:
            first: its first block.
            some_as_before: a segment of its own looks as before in the same blocks.
        """
        why = "" if some_as_before else look.why
        if self.stage == "changed":
            if look.as_before:
                return Jump("usual", first)
            return Jump("other", first) if some_as_before else self
        if self.stage in ("usual", "mixed") and why:
            return Jump("changed", self.since if self.stage == "mixed" else first, why)
        if look.as_before:
            return Jump("usual", first)
        return Jump("mixed" if self.stage == "usual" else "other", first)
