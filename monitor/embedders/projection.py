"""Principal components (Pearson 1901): the directions in which a baseline varies most."""

from __future__ import annotations

import msgspec
import numpy as np

from detectors.errors import InvalidInput
from detectors.index import stable_product
from monitor.embedders.embedder import Floats

_CHUNK = 8192  # rows that are widened to float64 at a time


class Projection(msgspec.Struct, frozen=True):
    """A projection on the first components, as plain bytes.

    Attributes:
        features, dimension: of the vectors before and after.
        mean: float32 (features,).
        matrix: float32 (features, dimension), orthonormal columns, the largest entry of each positive.
    """

    features: int
    dimension: int
    mean: bytes
    matrix: bytes

    @classmethod
    def fit(cls, rows: Floats, dimension: int) -> Projection:
        """Components of the covariance of ``rows``, float32 (n, features).

        Raises:
            InvalidInput: there are fewer features than components.
        """
        n, features = rows.shape
        if dimension > features:
            raise InvalidInput(
                f"dimension: {dimension} components were asked for, but there are only {features} features.",
                hint=f"Set dimension to {features} or less, or leave it out.",
            )
        mean = rows.sum(axis=0, dtype=np.float64) / n
        scatter = np.zeros((features, features))
        for start in range(0, n, _CHUNK):
            centred = rows[start : start + _CHUNK] - mean
            scatter += centred.T @ centred
        _, vectors = np.linalg.eigh(scatter / n)
        matrix = vectors[:, ::-1][:, :dimension]
        largest = matrix[np.abs(matrix).argmax(axis=0), np.arange(dimension)]
        matrix = matrix * np.where(largest < 0, -1.0, 1.0)  # a component has no sign of its own
        return cls(
            features, dimension, mean.astype("<f4").tobytes(), np.ascontiguousarray(matrix, dtype="<f4").tobytes()
        )

    def apply(self, rows: Floats) -> Floats:
        """float32 (n, features) to (n, dimension); a row's result does not depend on the rows around it."""
        mean = np.frombuffer(self.mean, dtype="<f4")
        matrix = np.frombuffer(self.matrix, dtype="<f4").reshape(self.features, self.dimension)
        return np.ascontiguousarray(stable_product(rows - mean, matrix))
