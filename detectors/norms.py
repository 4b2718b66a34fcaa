"""Lengths of vectors as sums that add up, for `detectors.encoder_jump`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

NORMS: Final = "norm_sums"  # among the constants of a reference: the three sums of `Norms`
NORM_UNIT: Final = 2.0**-12  # of a norm's logarithm, in sums


@dataclass(frozen=True, slots=True)
class Norms:
    """Lengths of vectors on the scale of their logarithm, as sums that add up.

    Attributes:
        n: vectors.
        total, squares: sum, and sum of squares, of `log_norms`.
    """

    n: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, logs: npt.NDArray[np.int64]) -> Norms:
        """Add up what `log_norms` gave."""
        return cls(len(logs), int(logs.sum()), int((logs * logs).sum()))

    def merge(self, other: Norms) -> Norms:
        """The sums of both."""
        return Norms(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """In doublings of the length; 0 of no vectors."""
        return self.total * NORM_UNIT / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """In squares of doublings; 0 of no vectors."""
        if not self.n:
            return 0.0
        return max(self.squares * self.n - self.total * self.total, 0) / self.n**2 * NORM_UNIT**2


def log_norms(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """About log2 of the lengths, int64 (n,) in steps of 2**-12: read off the bits of the float, so no library decides.

    Between two powers of two it is a straight line, at most .09 too small.

    Args:
        vectors: float32 (n, d), finite.
    """
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    bits = np.sqrt(squares).view(np.int32).astype(np.int64)
    return np.asarray((bits - (127 << 23)) >> 11, np.int64)
