"""Signals beside the vector, made fit for a linear model and, before there are labels, combined into one score.

Numbers are brought to a scale of their own, z = (value - median) / (1.4826 median deviation) over normal records, and
then to sign(z) log(1 + |z|): amounts, counts and ages spread over powers of ten, so that one huge amount would own the
model; the logarithm keeps their order, needs no positive values, and is a straight line through the usual ones.
Surprises are logarithms already and are only centred and scaled. What is unknown counts as usual.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detectors.fraud_baseline import Signal

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_NORMAL = 1.4826  # median deviations in a standard deviation of the normal distribution
_FARTHEST = 8.0  # standard deviations at which a column is cut
_MOST = 300.0  # a surprise of more is that of a p-value that float64 cannot hold
_USUAL = 0.4343  # mean of -log10 p of a normal record: 1 / log(10)


class SignalScale:
    """Maps signals to columns of mean about 0 and deviation about 1.

    Args:
        signals: float32 (n, s), of normal records, NaN where unknown.
        columns: s of them.
    """

    def __init__(self, signals: Floats, columns: tuple[Signal, ...]) -> None:
        self.columns = columns
        self.n_surprises = sum(column.kind == "surprise" for column in columns)
        self._numbers = np.array([column.kind == "number" for column in columns], bool)
        known = np.isfinite(signals)
        centre, spread = np.zeros(len(columns)), np.ones(len(columns))
        for column in range(len(columns)):
            values = signals[known[:, column], column].astype(np.float64)
            if len(values):
                centre[column], spread[column] = _centre_and_spread(values, robust=bool(self._numbers[column]))
        self._centre, self._spread = centre, spread

    def __call__(self, signals: Floats) -> Doubles:
        """Signals as the model sees them, float64 (n, s), each within 8 of 0."""
        z = (signals.astype(np.float64) - self._centre) / self._spread
        z[np.isnan(z)] = 0.0
        z[:, self._numbers] = np.sign(z[:, self._numbers]) * np.log1p(np.abs(z[:, self._numbers]))
        return np.clip(z, -_FARTHEST, _FARTHEST)

    def combined(self, signals: Floats) -> Floats:
        """Sum of the surprises, float32 (n,): -log10 of the product of p-values (Fisher 1932). To be ranked, not read.

        Unknown ones count as usual. Dependence between the columns does no harm where the sum is ranked among those of
        normal records, as it is here.
        """
        surprises = signals[:, ~self._numbers].astype(np.float64)
        surprises = np.clip(np.where(np.isnan(surprises), _USUAL, surprises), -_MOST, _MOST)
        total = np.zeros(len(signals))
        for column in range(surprises.shape[1]):  # in this order for every batch
            total += surprises[:, column]
        return (np.rint(total * 1e4) * 1e-4).astype(np.float32)


def _centre_and_spread(values: Doubles, *, robust: bool) -> tuple[float, float]:
    deviation = float(values.std())
    if not robust:
        return float(values.mean()), deviation if deviation > 0 else 1.0
    centre = float(np.median(values))
    spread = _NORMAL * float(np.median(np.abs(values - centre)))
    return centre, spread if spread > 0 else (deviation if deviation > 0 else 1.0)
