"""Surprise: -log10 of a conformal p-value, the scale on which scores of different kinds meet.

Up to the largest calibration score it is -log10((1 + #{calibration >= score}) / (n + 1)) (Bates, Candès, Lei, Romano,
Sesia 2023). Beyond, an exponential tail continues it, with the mean excess of the largest calibration scores (Pickands
1975), so that of two records stranger than all of the baseline the stranger one still counts for more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

STEP = 1e-4  # surprise is a multiple of it: what lies below is rounding
_TAIL_SHARE = 0.02  # of the calibration scores, the largest, give the mean excess
_TAIL_LEAST = 10


class SurpriseScale:
    """Turns scores into surprise.

    Args:
        calibration: float32 (n,), n >= 1, ascending: scores of normal records that the score did not know.
    """

    def __init__(self, calibration: Floats) -> None:
        self.calibration = np.ascontiguousarray(calibration, np.float32)
        n = len(self.calibration)
        tail = self.calibration[-min(n, max(_TAIL_LEAST, int(n * _TAIL_SHARE))) :].astype(np.float64)
        self._excess = float((tail - tail[0]).mean())

    def of(self, scores: npt.NDArray[np.floating]) -> Floats:
        """float32 (n,), at least 0, a multiple of 1e-4, never smaller for a larger score."""
        calibration, n = self.calibration, len(self.calibration)
        rounded = np.asarray(scores, np.float32)  # as the calibration scores are: equal scores must compare as equal
        at_least = n - np.searchsorted(calibration, rounded, side="left")
        surprise = np.log10((n + 1.0) / (1.0 + at_least))
        beyond = rounded > calibration[-1]
        if self._excess > 0.0 and beyond.any():
            excess = rounded[beyond].astype(np.float64) - float(calibration[-1])
            surprise[beyond] += excess / (self._excess * np.log(10.0))
        return np.asarray(np.rint(surprise / STEP) * STEP, np.float32)
