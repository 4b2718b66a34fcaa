"""An auto-encoder of table rows: principal components that have learned to bend (Kramer 1991), in NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.index import squared_lengths, stable_product
from monitor.embedders.embedder import Floats
from monitor.embedders.projection import Projection

HIDDEN = 64  # units of the hidden layer on either side of the code
_BATCH = 256
_STEPS = 6_000  # at most, so that it takes seconds however many rows there are
_EPOCHS = 400  # at most
_LOOK = 200  # steps between two looks at the rows held out
_PATIENCE = 5  # looks without a better one, after which training ends
_RATE = 2e-3  # of Adam, falling along a cosine
_MOST_HELD_OUT = 10_000
_Parameters = list[npt.NDArray[np.float32]]


class AutoEncoder(msgspec.Struct, frozen=True):
    """A code of few numbers for each row, and how much of the row the code cannot say.

    Both the code and what is made of it are the sum of a straight part, which begins as principal components, and a
    bent one, with a hidden layer of rectified units. All of it is sums, products and comparisons, which every processor
    rounds alike.

    Attributes:
        features, dimension: columns of a row, and numbers of its code.
        groups: the group of each column; what the code cannot say is told by group.
        weights: float32, one after the other: see `_shapes`.
    """

    features: int
    dimension: int
    groups: tuple[int, ...]
    weights: bytes

    @classmethod
    def fit(
        cls, rows: Floats, held_out: Floats, dimension: int, *, groups: Sequence[int], seed: int = 0
    ) -> AutoEncoder:
        """Learn from ``rows``, float32 (n, features), and stop when ``held_out`` is not reconstructed any better.

        It starts as the principal components of the rows, to the reconstruction, so that it is never worse on what is
        held out; one hidden layer on either side then learns to bend them.

        Raises:
            InvalidInput: there are fewer columns than numbers in the code.
        """
        start = Projection.fit(rows, dimension)
        parameters = _first(start, np.random.default_rng(seed))
        held_out = held_out[:_MOST_HELD_OUT]
        best, least = [each.copy() for each in parameters], _loss(parameters, held_out)
        moments = [(np.zeros_like(each), np.zeros_like(each)) for each in parameters]
        random = np.random.default_rng(seed + 1)
        waited = 0
        order, place = random.permutation(len(rows)), 0
        steps = min(_STEPS, _EPOCHS * -(-len(rows) // _BATCH))
        for step in range(1, steps + 1):
            if place + _BATCH > len(order):
                order, place = random.permutation(len(rows)), 0
            batch = rows[order[place : place + _BATCH]]
            place += _BATCH
            rate = _RATE * 0.5 * (1.0 + np.cos(np.pi * step / steps))
            _adam(parameters, _gradients(parameters, batch), moments, rate, step)
            if step % _LOOK == 0:
                loss = _loss(parameters, held_out)
                waited = 0 if loss < least * 0.999 else waited + 1
                if loss < least:
                    best, least = [each.copy() for each in parameters], loss
                if waited >= _PATIENCE:
                    break
        packed = b"".join(np.ascontiguousarray(each, "<f4").tobytes() for each in best)
        return cls(rows.shape[1], dimension, tuple(groups), packed)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.dimension + len(self._groups)

    @property
    def _groups(self) -> list[int]:
        return sorted(set(self.groups))

    def apply(self, rows: Floats) -> Floats:
        """float32 (n, features) to (n, width): the code, and the length of the rest in every group of columns.

        A row's result does not depend on the rows around it.
        """
        parameters = self._parameters()
        code = _encoded(parameters, rows, stable_product)
        rest = rows - _decoded(parameters, code, stable_product)
        parts = [[column for column, each in enumerate(self.groups) if each == group] for group in self._groups]
        lengths = [np.sqrt(squared_lengths(np.ascontiguousarray(rest[:, part]))) for part in parts]
        return np.concatenate([code, np.stack(lengths, axis=1)], axis=1, dtype=np.float32)

    def lost(self, rows: Floats) -> float:
        """Sum of squares of what the code cannot say of the rows."""
        return _loss(self._parameters(), rows) * rows.size

    def _parameters(self) -> _Parameters:
        flat = np.frombuffer(self.weights, dtype="<f4")
        found, place = [], 0
        for shape in _shapes(self.features, self.dimension):
            size = int(np.prod(shape))
            found.append(flat[place : place + size].reshape(shape))
            place += size
        return found


def _shapes(features: int, dimension: int) -> list[tuple[int, ...]]:
    """Centre; of the encoder the straight part, hidden layer, its bias, the bend; the same of the decoder."""
    return [
        (features,),
        (features, dimension), (features, HIDDEN), (HIDDEN,), (HIDDEN, dimension),
        (dimension, features), (dimension, HIDDEN), (HIDDEN,), (HIDDEN, features),
    ]  # fmt: skip


def _first(start: Projection, random: np.random.Generator) -> _Parameters:
    features, dimension = start.features, start.dimension
    mean = np.frombuffer(start.mean, dtype="<f4").copy()
    straight = np.frombuffer(start.matrix, dtype="<f4").reshape(features, dimension).copy()

    def layer(rows: int) -> npt.NDArray[np.float32]:
        return random.normal(scale=np.sqrt(2.0 / rows), size=(rows, HIDDEN)).astype(np.float32)

    def zeros(*shape: int) -> npt.NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    return [
        mean,
        straight, layer(features), zeros(HIDDEN), zeros(HIDDEN, dimension),
        np.ascontiguousarray(straight.T), layer(dimension), zeros(HIDDEN), zeros(HIDDEN, features),
    ]  # fmt: skip


def _encoded(p: _Parameters, rows: Floats, product: Any) -> Floats:
    centred = rows - p[0]
    return np.asarray(product(centred, p[1]) + product(np.maximum(product(centred, p[2]) + p[3], 0.0), p[4]))


def _decoded(p: _Parameters, code: Floats, product: Any) -> Floats:
    return np.asarray(p[0] + product(code, p[5]) + product(np.maximum(product(code, p[6]) + p[7], 0.0), p[8]))


def _loss(p: _Parameters, rows: Floats) -> float:
    total = 0.0
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        rest = part - _decoded(p, _encoded(p, part, np.matmul), np.matmul)
        total += float(np.sum(rest * rest, dtype=np.float64))
    return total / rows.size


def _gradients(p: _Parameters, rows: Floats) -> _Parameters:
    """Of the mean square of the rest, by each of the parameters (back-propagation)."""
    centre, straight, first, bias, bend, straight_out, first_out, bias_out, bend_out = p
    x = rows - centre
    a = np.maximum(x @ first + bias, 0.0)
    z = x @ straight + a @ bend
    b = np.maximum(z @ first_out + bias_out, 0.0)
    error = (z @ straight_out + b @ bend_out - x) * np.float32(2.0 / rows.size)
    db = (error @ bend_out.T) * (b > 0)
    dz = error @ straight_out.T + db @ first_out.T
    da = (dz @ bend.T) * (a > 0)
    return [
        np.zeros_like(centre),
        x.T @ dz, x.T @ da, da.sum(axis=0), a.T @ dz,
        z.T @ error, z.T @ db, db.sum(axis=0), b.T @ error,
    ]  # fmt: skip


def _adam(
    p: _Parameters,
    gradients: _Parameters,
    moments: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    rate: float,
    step: int,
) -> None:
    """One step of Adam (Kingma, Ba 2015), in place."""
    size = np.float32(rate * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step))
    for value, gradient, (mean, square) in zip(p, gradients, moments, strict=True):
        mean += np.float32(0.1) * (gradient - mean)
        square += np.float32(0.001) * (gradient * gradient - square)
        value -= size * mean / (np.sqrt(square) + np.float32(1e-8))
