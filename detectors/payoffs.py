"""Betting experts on the bins of conformal p-values: what the shape channel multiplies up.

If nothing changed, a record falls into bin j with a probability inside a known band around the width of the bin: the
p-values are conformal, and the band covers the error of the finite calibration set (Clopper and Pearson, 1934, at every
edge). Each expert bets on one way to leave the band; its payoff per record is 1 on average at most, for *every*
distribution in the band, because it is divided by its mean under the extreme one. Products of such payoffs are
e-values (Shafer, 2021; Vovk and Wang, 2021), and a Shiryaev-Roberts sum of them is an e-detector (Shin, Ramdas and
Rinaldo, 2024).

Seven families with equal weight (the last with half of one):

* beyond: more records below a small p; tail, far, wide: powers of p, from the finest tail to a broad widening;
* up, down: the normal score of p rises or falls; near: too many records that lie too close to a prototype.

scipy.special is used for inverse incomplete beta functions (betaincinv) and the normal quantile (ndtri).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.conformal import N_BINS, P_EDGES

Floats = npt.NDArray[np.float64]

BAND_FAILURE = 0.01  # probability that the band misses the true distribution at any edge, on any side


@dataclass(frozen=True, slots=True)
class Experts:
    """Bets of the shape channel.

    Attributes:
        phi: (E, 49), log of the payoff of a record in each bin, before division by its mean.
        psi: (E,), log of the greatest mean payoff in the band.
        log_weight: (E,), log of each expert's share of the stake; the shares add up to 1.
        names: for the explanation of an alarm, such as "tail".
    """

    phi: Floats
    psi: Floats
    log_weight: Floats
    names: tuple[str, ...]


def calibration_bound(
    edges: Floats, *, size: float, effective: float, failure: float, above: npt.NDArray[np.int64] | None = None
) -> tuple[Floats, Floats]:
    """Lower and upper confidence bound of P(p <= edge), each missed with probability ``failure``.

    Args:
        edges: p-values, in (0, 1].
        size: calibration scores behind the p-values.
        effective: how many independent ones they are worth; less than ``size`` where records come in sessions.
        failure: probability of a miss, per edge and side.
        above: calibration scores strictly above the one at which p crosses each edge, which matter where scores are
            tied (`detectors.baseline.scores_above_edges`); None for scores that are all different.
    """
    from scipy.special import betaincinv

    factor = effective / size
    below = np.floor(edges * (size + 1.0) + 1e-9)
    inner = below < size + 1.0
    rest = np.where(inner, (size + 1.0 - below) * factor, 1.0)
    upper = np.where(inner, betaincinv(np.maximum(below * factor, 1.0), rest, 1.0 - failure), 1.0)
    # Ties go to the larger p. That never makes P(p <= edge) larger, but it makes it smaller: then only the scores
    # above the tie count for sure.
    hits = below if above is None else np.where(above < below - 1.0, above, below)
    some = hits > 0
    bound = betaincinv(np.where(some, hits * factor, 1.0), np.maximum((size + 1.0 - hits) * factor, 1e-9), failure)
    lower = np.where(inner, np.where(some, bound, 0.0), 1.0)
    return lower, upper


def build_experts(
    *, size: float, effective: float, contamination: float = 0.0, above: npt.NDArray[np.int64] | None = None
) -> Experts:
    """The 42 experts for a calibration set.

    Args:
        size, effective, above: see `calibration_bound`.
        contamination: share of the records that may have any p-values at all; a mixture with so much of another law
            counts as no change (Huber's contamination model, 1964).
    """
    from scipy.special import ndtri

    lower, upper = calibration_bound(
        P_EDGES, size=size, effective=effective, failure=BAND_FAILURE / (2 * N_BINS), above=above
    )
    high = np.maximum.accumulate(upper) * (1.0 - contamination) + contamination
    low = np.maximum.accumulate(lower) * (1.0 - contamination)
    low[P_EDGES >= 1.0] = 1.0
    # No p-value is below 1 / (size + 1): the mass of the edges down there belongs to the first bin that has records.
    reachable = np.floor(P_EDGES * (size + 1.0) + 1e-9) > 0.0
    high_before = np.where(np.append(False, reachable[:-1]), np.append(0.0, high[:-1]), 0.0)
    low_before = np.append(0.0, low[:-1])
    middle = ndtri(1.0 - (P_EDGES + np.append(0.0, P_EDGES[:-1])) / 2.0)

    phi: list[Floats] = []
    psi: list[float] = []
    share: list[float] = []
    names: list[str] = []

    def family(name: str, payoffs: list[Floats], bins: Floats, weight: float) -> None:
        for payoff in payoffs:
            phi.append(np.log(payoff))
            psi.append(float(np.log(bins @ payoff)))
            share.append(weight / len(payoffs))
            names.append(name)

    def bets(gain: Floats, stakes: tuple[float, ...]) -> list[Floats]:
        return [1.0 + stake * (gain - 1.0) for stake in stakes]

    rising, falling = np.where(reachable, high - high_before, 0.0), low - low_before
    family(
        "beyond",
        [
            payoff
            for edge in (2.0**-13, 2.0**-10, 2.0**-7, 2.0**-5)
            for payoff in bets((edge >= P_EDGES) / high[edge >= P_EDGES][-1], (0.003, 0.01, 0.03, 0.1))
        ],
        rising,
        1.0,
    )
    family("tail", bets(_mean_power(high_before, high, 0.05), (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)), rising, 1.0)
    family("far", bets(_mean_power(high_before, high, 0.25), (0.01, 0.03, 0.1, 0.3)), rising, 1.0)
    family("wide", bets(_mean_power(high_before, high, 0.5), (0.03, 0.1, 0.3, 1.0)), rising, 1.0)
    family("up", [np.exp(tilt * middle) for tilt in (0.05, 0.1, 0.2, 0.4, 0.8)], rising, 1.0)
    family("down", [np.exp(-tilt * middle) for tilt in (0.05, 0.1, 0.2, 0.4)], falling, 1.0)
    family("near", bets(_mean_power(1.0 - low, 1.0 - low_before, 0.25), (0.03, 0.1, 0.3)), falling, 0.5)
    weights = np.array(share) / sum(share)
    return Experts(np.stack(phi), np.array(psi), np.log(weights), tuple(names))


def _mean_power(left: Floats, right: Floats, power: float) -> Floats:
    """Mean of power * x^(power - 1) over each interval (left, right); its limit where an interval has no width."""
    width = right - left
    wide = width > 1e-12
    edge = power * np.maximum(right, 1e-300) ** (power - 1.0)
    return np.where(wide, (right**power - left**power) / np.where(wide, width, 1.0), edge)
