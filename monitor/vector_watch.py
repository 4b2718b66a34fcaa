"""Whether vectors say anything of their records: zero vectors, and vectors that are all the same.

What is normal is asked of the reference. Its exemplars say how many zero vectors a baseline holds where these are
allowed at all (an empty table, a black picture); vectors of unit length cannot be zero, such records are dead letters.
Its calibration vectors say how often records have the same one: with ``s`` the share of the most common, a run of n
records that are all the same comes with a chance of at most s^(n - 1).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from detectors.reference import Reference

FEWEST_SAME = 256
CHANCE_OF_A_RUN = 1e-12  # a hundred days of a thousand records a second begin 1e10 runs

Floats = npt.NDArray[np.float32]


class VectorWatch:
    """Looks at the vectors of one space, batch after batch.

    Args:
        reference: says what is normal.

    Attributes:
        zeros: zero vectors since the caller last set it to 0.
        usual_zeros: share of them in the reference.
        same: so many of the last vectors are the very same.
        too_many_same: a run that chance does not bring.
    """

    def __init__(self, reference: Reference) -> None:
        self.zeros = 0
        self.same = 0
        self._allowed = not reference.geometry.unit
        self.usual_zeros = _share_of_zeros(reference) if self._allowed else 0.0
        self.too_many_same = _too_long_a_run(reference)
        self._last: Floats | None = None

    def push(self, vectors: Floats, distance: Floats) -> None:
        """Take note of a batch, in the order of the records.

        Args:
            vectors: float32 (n, d).
            distance: float32 (n,), what the reference said of them: equal for equal vectors.
        """
        if len(vectors) == 0:
            return
        if self._allowed:
            self.zeros += len(vectors) - int(np.count_nonzero(vectors.any(axis=1)))
        # Equal vectors have equal distances, which are looked at in a thousandth of the time.
        same = bool((distance == distance[-1]).all()) and bool((vectors == vectors[-1]).all())
        if not same:
            self.same = 1  # some of the last few may be the same: what is looked for is a whole batch of them
        elif self._last is not None and np.array_equal(self._last, vectors[-1]):
            self.same += len(vectors)
        else:
            self.same = len(vectors)
        self._last = vectors[-1].copy()


def _share_of_zeros(reference: Reference) -> float:
    exemplars = reference.exemplars
    if len(exemplars) == 0:
        return 0.0
    zero = reference.prepare(np.zeros((1, reference.dimension), dtype=np.float32))[0]
    return float((exemplars == zero).all(axis=1).mean())


def _too_long_a_run(reference: Reference) -> int:
    vectors = np.ascontiguousarray(reference.calibration_vectors)
    if len(vectors) == 0:
        return FEWEST_SAME
    _, counts = np.unique(vectors.view(np.dtype((np.void, vectors.strides[0]))), return_counts=True)
    share = min(float(counts.max()) / len(vectors), 1.0 - 1e-6)
    return max(FEWEST_SAME, 1 + math.ceil(math.log(CHANCE_OF_A_RUN) / math.log(share)))
