"""Principal components (Pearson 1901): the directions in which a baseline varies most, or is longest along."""

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
        mean: float32 (features,), zeros where rows are not centred.
        matrix: float32 (features, dimension), orthonormal columns, the largest entry of each positive.
    """

    features: int
    dimension: int
    mean: bytes
    matrix: bytes

    @classmethod
    def fit(cls, rows: Floats, dimension: int, *, centred: bool = True) -> Projection:
        """Components of the covariance of ``rows``, float32 (n, features).

        Args:
            centred: take the mean away first. Without, it is the truncated singular value decomposition (Eckart, Young
                1936), which leaves at zero what is zero.

        Raises:
            InvalidInput: there are fewer features than components.
        """
        n, features = rows.shape
        if dimension > features:
            raise InvalidInput(
                f"dimension: {dimension} components were asked for, but there are only {features} features.",
                hint=f"Set dimension to {features} or less, or leave it out.",
            )
        mean = rows.sum(axis=0, dtype=np.float64) / n if centred else np.zeros(features)
        scatter = np.zeros((features, features))
        for start in range(0, n, _CHUNK):
            part = rows[start : start + _CHUNK] - mean
            scatter += part.T @ part
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

    def lost(self, rows: Floats) -> float:
        """Sum of squares of what the components cannot say of ``rows``, float32 (n, features)."""
        mean = np.frombuffer(self.mean, dtype="<f4")
        matrix = np.frombuffer(self.matrix, dtype="<f4").reshape(self.features, self.dimension)
        total = 0.0
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK] - mean
            rest = part - (part @ matrix) @ matrix.T
            total += float(np.sum(rest * rest, dtype=np.float64))
        return total
