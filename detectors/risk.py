"""Whether labels prove that a model answers worse than a floor: bets on its losses, label by label.

A loss is 0 for a right answer and 1 for a wrong one, or between for answers that are numbers. As long as the mean loss
of what comes next is at most a bound, whatever came before, the factor

    L = 1 + bet * (loss - bound) / bound,    0 <= bet < 1

is at least 0 and 1 on the average at most (betting on a mean; Waudby-Smith and Ramdas 2024; as a watch on a model:
Podkopaev and Ramdas 2022). A Shiryaev-Roberts sum of products of such factors, M = (M + 1) L, is an e-detector (Shin,
Ramdas, Rinaldo 2024): until it exceeds A, at least A labels pass on the average, in the worst case that the bound
allows. Seven bets, each half the one before, share the stake: the best bet for a mean loss m is (m - bound) /
(1 - bound), so they are made for losses that are from .008 to .5 above the bound.

Labels that stand for more than themselves bring a weight. What is bet on is weight * (loss - bound): with weights of
one over the chance to be asked about, its mean over all records is that of loss - bound. Weights are taken relative to
the usual one among the labels before, and the bets are so small that the largest of those, within `LARGEST`, could not
ruin them. All of this is known before the label is. A weight that is larger than all before it counts as the largest of
those once, and one beyond `LARGEST` always: what is guaranteed holds as far as such weights are rare.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float64]

BETS: Floats = np.array([2.0**-k for k in range(1, 8)])
# A record asked about with less than a twentieth of the usual chance counts as if it had been a twentieth: without a
# limit, bets would have to be so small that nothing is ever found.
LARGEST = 20.0
MEMORY = 1_000.0  # labels that the usual weight is an average over
# Evidence stops growing at ten times what an alarm needs, in every bet: else a model that was mended would have to
# refute all the labels of its bad days. Before the alarm that changes nothing.
MORE_THAN_ENOUGH = 10.0
LEAST_RUN = 500.0  # labels between false alarms, however few labels there are
_HEADER = struct.Struct("<4sBBQddd")
_MAGIC, _VERSION = b"RISK", 1


@dataclass(frozen=True, slots=True)
class RiskRule:
    """What labels are held against.

    Attributes:
        bound: highest mean loss that is no degradation: 1 - floor; 0 < bound < 1.
        run_length: labels between two false alarms, on the average and at least; > 1.

    Raises:
        InvalidInput: a number outside its range.
    """

    bound: float
    run_length: float

    def __post_init__(self) -> None:
        if not 0.0 < self.bound < 1.0:
            raise InvalidInput(
                f"a mean loss of {self.bound:g} cannot be watched: expected more than 0 and less than 1.",
                hint="Set performance.floor between 0 and 1, or give calibration records of which some are wrong.",
            )
        if not self.run_length > 1.0:
            raise InvalidInput(f"expected more than 1 label between false alarms, found {self.run_length:g}.")


def run_length(labels: float, span_days: float, *, every_days: float) -> float:
    """Labels between false alarms, for alarms that come by chance once in so many days.

    Args:
        labels: how many came.
        span_days: in which time.
        every_days: `drift.page_every_days` or `warn_every_days`.

    Returns:
        What comes in ``every_days`` at that rate, 500 at least: evidence that often comes by chance proves nothing,
        however long the days between.
    """
    if span_days <= 0.0:
        return LEAST_RUN
    return max(LEAST_RUN, labels / span_days * every_days)


@dataclass(frozen=True, slots=True, eq=False)
class RiskState:
    """All labels so far. Immutable; treat the arrays as read-only.

    Attributes:
        n: labels taken in.
        bound: that the evidence is against; 0 before the first label.
        usual: average weight of the labels before, with a memory of 1,000.
        largest: largest weight among them relative to the usual one, 1 to 20; slowly forgotten.
        sums: float64 (7,), Shiryaev-Roberts sum of every bet.
        runs: float64 (7,), product since the bet last began anew (e-CUSUM), for the onset.
        began: int64 (7,), the label it then began with.
    """

    n: int
    bound: float
    usual: float
    largest: float
    sums: Floats
    runs: Floats
    began: npt.NDArray[np.int64]

    @classmethod
    def start(cls) -> RiskState:
        """Before any label."""
        return cls(0, 0.0, 0.0, 1.0, np.zeros(len(BETS)), np.ones(len(BETS)), np.zeros(len(BETS), np.int64))

    def push(self, losses: Floats, weights: Floats | None = None, *, rule: RiskRule) -> RiskState:
        """Take in labels, in the order in which they count. However they are cut, the state is the same to the byte.

        A rule of another bound asks another question, so the evidence begins anew.

        Args:
            losses: float64 (n,), 0 to 1.
            weights: float64 (n,), > 0; all alike if not given.

        Raises:
            InvalidInput: a loss or a weight outside its range, or not as many of both.
        """
        losses = np.asarray(losses, np.float64)
        weights = np.ones(len(losses)) if weights is None else np.asarray(weights, np.float64)
        if len(losses) != len(weights):
            raise InvalidInput(
                f"{len(losses)} losses and {len(weights)} weights: expected one of each for every label."
            )
        if not ((losses >= 0.0) & (losses <= 1.0)).all():
            raise InvalidInput("a loss is not between 0 (right) and 1 (wrong).")
        if not ((weights > 0.0) & np.isfinite(weights)).all():
            raise InvalidInput("the weight of a label is not a number above 0.")
        state = self if self.bound == rule.bound else replace(RiskState.start(), n=self.n, bound=rule.bound)
        if not len(losses):
            return state
        usual, largest = state.usual, state.largest
        sums, runs, began = state.sums.copy(), state.runs.copy(), state.began.copy()
        most = MORE_THAN_ENOUGH * rule.run_length
        for place, (loss, weight) in enumerate(zip(losses.tolist(), weights.tolist(), strict=True), start=state.n):
            if usual == 0.0:
                usual = weight
            relative = min(weight / usual, LARGEST)
            factors = 1.0 + BETS * (min(relative, largest) / largest * (loss - rule.bound) / rule.bound)
            sums = np.minimum((sums + 1.0) * factors, most)
            anew = runs <= 1.0
            began[anew] = place
            runs = np.minimum(np.where(anew, 1.0, runs) * factors, most)
            usual += (weight - usual) / min(place + 2.0, MEMORY)
            largest = max(1.0, relative, largest * (1.0 - 1.0 / MEMORY))
        return RiskState(state.n + len(losses), rule.bound, usual, largest, sums, runs, began)

    @property
    def evidence(self) -> float:
        """log10 of the labels that pass until as much appears by chance, on the average and at least; -inf at first."""
        mean = float(self.sums.mean())
        return float(np.log10(mean)) if mean > 0.0 else float("-inf")

    def degraded(self, rule: RiskRule) -> bool:
        """Whether labels prove that answers are worse than the bound. False if the state is about another bound."""
        return self.bound == rule.bound and self.evidence >= float(np.log10(rule.run_length))

    @property
    def onset(self) -> int | None:
        """The label with which the clearest rise of losses began, counted from 0; None where nothing rises."""
        best = int(np.argmax(self.runs))
        return int(self.began[best]) if self.runs[best] > 1.0 else None

    def to_bytes(self) -> bytes:
        """All of it; equal states have equal bytes."""
        header = _HEADER.pack(_MAGIC, _VERSION, len(BETS), self.n, self.bound, self.usual, self.largest)
        return header + b"".join(
            part.tobytes() for part in (self.sums.astype("<f8"), self.runs.astype("<f8"), self.began.astype("<i8"))
        )

    @classmethod
    def from_bytes(cls, blob: bytes) -> RiskState:
        """Go on from what `to_bytes` gave.

        Raises:
            InvalidInput: cut off, or of another release.
        """
        k = len(BETS)
        if len(blob) != _HEADER.size + 24 * k or _HEADER.unpack_from(blob)[:3] != (_MAGIC, _VERSION, k):
            raise InvalidInput(
                f"{len(blob)} bytes are no state of a watch on labels.",
                hint="Fold again from the first stored block: labels are stored with what they said.",
            )
        *_, n, bound, usual, largest = _HEADER.unpack_from(blob)
        sums, runs = np.frombuffer(blob, "<f8", 2 * k, _HEADER.size).astype(np.float64).reshape(2, k)
        began = np.frombuffer(blob, "<i8", k, _HEADER.size + 16 * k).astype(np.int64)
        return cls(n, bound, usual, largest, sums, runs, began)
