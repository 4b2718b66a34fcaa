"""How rare a fraud score is among normal records: the scale on which scorers of different versions are comparable."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detectors import conformal

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_TAIL = 0.05  # share of the normal scores, and
_MOST = 100  # how many of them at most, that the tail is learned from


class Ranks:
    """Ranks scores among those of normal records that neither index nor model has seen (split conformal).

    Args:
        scores: float32 (n,), n >= 1, of such records, in any order.
    """

    def __init__(self, scores: Floats) -> None:
        self.scores = np.sort(scores)
        self.scores.flags.writeable = False
        n = len(self.scores)
        excesses = min(max(int(_TAIL * n), 1), _MOST, n - 1)
        largest = self.scores[n - excesses - 1 :].astype(np.float64)
        mean_excess = float((largest[1:] - largest[0]).mean()) if excesses else 0.0
        levels = np.unique(self.scores)
        self._levels = levels.astype(np.float64)
        self._surprises = -np.log10(conformal.p_values(levels, self.scores))
        self._mean_excess = mean_excess if mean_excess > 0 else float(np.abs(largest[-1])) or 1.0

    def p_values(self, scores: Floats, *, uniforms: Doubles | None = None) -> Doubles:
        """Probability that a normal record scores as high, float64 (n,) in (0, 1]; ties by ``uniforms`` if given."""
        if uniforms is None:
            return conformal.p_values(scores, self.scores)
        return conformal.randomised_p_values(scores, self.scores, uniforms=uniforms)

    def surprise(self, scores: Floats) -> Floats:
        """-log10 of the p-value, float32 (n,), a multiple of 1e-4, never falling as the score rises.

        Between the normal scores it is interpolated, so that it ranks as finely as the score does; it is at most
        -log10 p there. Beyond the highest an exponential tail continues it, with the mean excess of the highest ones:
        the limit for all but heavy tails (Pickands 1975).
        """
        inside = np.interp(scores.astype(np.float64), self._levels, self._surprises)
        beyond = np.maximum(scores.astype(np.float64) - self._levels[-1], 0.0) / self._mean_excess
        return np.asarray(np.rint((inside + beyond / np.log(10.0)) * 1e4) * 1e-4, np.float32)
