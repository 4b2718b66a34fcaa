"""Nearest neighbours and k-means: the only file that imports faiss, and it checks everything before faiss sees it.

faiss is set up once, on first use: matrix products for every batch size (the default of faiss 1.15 switches to loops
below 334 rows of 384 dimensions and is 2 to 6 times slower there), and one thread, because driftd runs one
single-threaded process per core.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float32]

_ROWS = 64
# OpenBLAS leaves its ordinary kernels below this many multiplications, with sums in another order.
_SMALL_PRODUCT = 1_100_000
_MOST_PADDING = 4352  # what 16 x 16 needs
_COLUMNS = 96
_TILE = 1024
_CLOSE = 31  # neighbours more, where the first ones lie within the rounding error


@functools.cache
def _faiss() -> Any:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.omp_set_num_threads(1)
    return faiss


def stable_product(rows: Floats, matrix: Floats) -> Floats:
    """``rows @ matrix``, where a row's result does not depend on the rows around it, to the last bit.

    A BLAS chooses its kernel, and with it the order of its sums, by the number of rows; rows are padded so that it is
    always the same. (Measured on OpenBLAS 0.3.31; equality is promised for one build on one kind of CPU.)

    Args:
        rows: float32 (n, d).
        matrix: float32 (d, m).
    """
    n, dimension = rows.shape
    if dimension < 16:
        return _summed_columns(rows, matrix)
    padded = _padded(rows, dimension * matrix.shape[1])
    return np.asarray(np.matmul(padded, matrix)[:n], np.float32)


def triangular_product(rows: Floats, lower: Floats) -> Floats:
    """`stable_product` with a lower triangular matrix, which takes down to half the time.

    Args:
        rows: float32 (n, d).
        lower: float32 (d, d), zero above the diagonal.
    """
    n, dimension = rows.shape
    if dimension < 2 * _COLUMNS:
        return stable_product(rows, lower)
    padded = _padded(rows, _COLUMNS * _COLUMNS)
    result = np.empty_like(padded)
    starts = range(0, dimension - _COLUMNS + 1, _COLUMNS)  # the last piece takes the columns that are left over
    for start in starts:
        columns = slice(start, dimension if start == starts[-1] else start + _COLUMNS)
        np.matmul(padded[:, start:], lower[start:, columns], out=result[:, columns])
    return result[:n]


def _summed_columns(rows: Floats, matrix: Floats) -> Floats:
    total = rows[:, :1] * matrix[0]
    for column in range(1, rows.shape[1]):
        total += rows[:, column : column + 1] * matrix[column]
    return np.asarray(total, np.float32)


def _padded(rows: Floats, multiplications: int) -> Floats:
    """The rows, followed by zeros up to a multiple of 64 for which a product is not a small one."""
    n, dimension = rows.shape
    least = max(n, min(_SMALL_PRODUCT // multiplications + 1, _MOST_PADDING))
    longer = -(-least // _ROWS) * _ROWS
    if longer == n:
        return np.ascontiguousarray(rows)
    result = np.zeros((longer, dimension), np.float32)
    result[:n] = rows
    return result


def squared_lengths(rows: Floats) -> Floats:
    """Sum of squares of every row, float32 (n,); a row's result does not depend on the rows around it."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)


def _checked(name: str, vectors: Floats) -> Floats:
    if vectors.ndim != 2 or 0 in vectors.shape[1:]:
        raise InvalidInput(f"{name}: expected a two-dimensional array (n, d), got shape {vectors.shape}.")
    if vectors.dtype != np.float32:
        raise InvalidInput(
            f"{name}: expected float32, got {vectors.dtype}.", hint="Convert it: .astype(numpy.float32)."
        )
    vectors = np.ascontiguousarray(vectors)
    # One number tells: a NaN or an infinity anywhere makes the sum of squares not finite. So does an overflow.
    if not np.isfinite(np.dot(vectors.ravel(), vectors.ravel())):
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise InvalidInput(f"{name}: row {bad[0]} holds NaN or infinity.")
    return vectors


class NearestIndex:
    """Exact nearest neighbours under the Euclidean distance.

    Args:
        vectors: float32 (n, d), n >= 1, finite. Kept; must not be changed afterwards.
    """

    def __init__(self, vectors: Floats) -> None:
        self.vectors = _checked("vectors of an index", vectors)
        if len(self.vectors) == 0:
            raise InvalidInput("an index needs at least one vector, got none.")
        self._index = _faiss().IndexFlatL2(self.vectors.shape[1])
        self._index.add(self.vectors)
        self._longest = float(squared_lengths(self.vectors).max())
        # A sum of d products is off by at most d roundings (Higham, 2002); seldom by more than the second bound.
        self._error = np.float32(min((4 * self.vectors.shape[1] + 32) * 2.0**-24, 4e-5))

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The ``k`` nearest vectors of each query, nearest first; ties go to the smaller number.

        A query's result does not depend on the queries around it. faiss's own distances do, in the last bits of about
        one row in a hundred (its BLAS sums in another order, depending on where a row lies in the batch), so one
        neighbour more is searched and the distances are computed anew, row by row. Where more neighbours than that lie
        within the rounding error, as the outputs of a sure classifier do, more are looked at, in the end all.

        Args:
            queries: float32 (n, d), finite.
            k: 1 <= k <= len(self).

        Returns:
            distances float32 (n, k), indices int64 (n, k).

        Raises:
            InvalidInput: wrong shape or dtype, NaN or infinity, k out of range.
        """
        queries = _checked("queries", queries)
        if queries.shape[1] != self.vectors.shape[1]:
            raise InvalidInput(
                f"queries have {queries.shape[1]} dimensions, the index has {self.vectors.shape[1]}.",
                hint="Use vectors of the embedder that the index was made with.",
            )
        if not 1 <= k <= len(self):
            raise InvalidInput(f"k: expected 1 to {len(self)} (the size of the index), got {k}.")
        distances = np.empty((len(queries), k), np.float32)
        indices = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _TILE):
            tile = queries[start : start + _TILE]
            found = self._search_tile(tile, k)
            distances[start : start + _TILE], indices[start : start + _TILE] = found
        return distances, indices

    def nearest(self, queries: Floats) -> npt.NDArray[np.int64]:
        """The nearest vector of each query, int64 (n,); of vectors that are the same to the last bit, the first.

        Unlike `search` it leaves no tie of equal vectors to chance, however many there are.

        Raises:
            InvalidInput: as `search` does.
        """
        _, indices = self.search(queries, 1)
        return self._first_alike[indices[:, 0]]

    @functools.cached_property
    def _first_alike(self) -> npt.NDArray[np.int64]:
        """For each vector, the first that is the same."""
        whole = self.vectors.view(np.dtype((np.void, self.vectors.dtype.itemsize * self.vectors.shape[1])))[:, 0]
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)
        return np.asarray(first[group], dtype=np.int64)

    def _search_tile(self, queries: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        more = min(k + 1, len(self))
        rough, candidates = self._index.search(queries, more)
        exact = np.empty((len(queries), k), np.float32)
        buffer = np.empty_like(queries)
        for column in range(k):
            exact[:, column] = self._squared_distances(queries, candidates[:, column], buffer)
        close = np.flatnonzero(self._may_hide_others(rough, k)) if more > k else np.arange(0)
        candidates = candidates[:, :k]
        if k > 1:
            exact, candidates = _first(exact, candidates, k)
        if len(close):
            exact[close], candidates[close] = self._search_close(queries[close], k)
        return np.sqrt(exact), candidates

    def _may_hide_others(self, rough: Floats, k: int) -> npt.NDArray[np.bool_]:
        """Where a vector that was not found may be as near as the k-th: the last one found is within the error."""
        return np.asarray(rough[:, -1] - rough[:, k - 1] <= self._error * (self._longest + rough[:, -1]), np.bool_)

    def _search_close(self, queries: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Squared distances and numbers of the nearest, where many are about as near."""
        most = min(k + _CLOSE, len(self))
        rough, candidates = self._index.search(queries, most)
        exact, found = _first(self._all_squared(queries, candidates), candidates, k)
        unsure = np.flatnonzero(self._may_hide_others(rough, k)) if most < len(self) else np.arange(0)
        everything = np.arange(len(self), dtype=np.int64)[None]
        for start in range(0, len(unsure), _ROWS):
            rows = unsure[start : start + _ROWS]
            candidates = np.repeat(everything, len(rows), axis=0)
            exact[rows], found[rows] = _first(self._all_squared(queries[rows], candidates), candidates, k)
        return exact, found

    def _all_squared(self, queries: Floats, chosen: npt.NDArray[np.int64]) -> Floats:
        """Squared distances of each query to its own choice of vectors, float32 of the shape of ``chosen``."""
        many = np.repeat(queries, chosen.shape[1], axis=0)
        return self._squared_distances(many, chosen.ravel()).reshape(chosen.shape)

    def _squared_distances(
        self, queries: Floats, chosen: npt.NDArray[np.int64], buffer: Floats | None = None
    ) -> Floats:
        difference = np.take(self.vectors, chosen, axis=0, out=buffer, mode="clip")
        np.subtract(queries, difference, out=difference)
        return squared_lengths(difference)


def _first(exact: Floats, candidates: npt.NDArray[np.int64], k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The k nearest of each row's candidates; of ties those with the smaller numbers."""
    order = np.lexsort((candidates, exact), axis=1)[:, :k]
    return np.take_along_axis(exact, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def k_means(
    vectors: Floats,
    k: int,
    *,
    weights: Floats | None = None,
    seed: int = 0,
    iterations: int = 10,
    progress: Callable[[float], None] | None = None,
) -> Floats:
    """Centroids of k-means, float32 (k, d): the same for the same vectors, seed and build.

    Args:
        vectors: float32 (n, d), finite.
        k: 1 <= k <= n.
        weights: float32 (n,), records that each vector stands for; one by default.
        seed: of the first centroids.
        iterations: of Lloyd's rule.
        progress: called with the share done after every iteration.

    Raises:
        InvalidInput: wrong shape or dtype, NaN or infinity, k out of range.
    """
    vectors = _checked("vectors of k-means", vectors)
    if not 1 <= k <= len(vectors):
        raise InvalidInput(f"k: expected 1 to {len(vectors)} (the number of vectors), got {k}.")
    training = _faiss().Kmeans(
        vectors.shape[1],
        k,
        niter=1,  # faiss says nothing between iterations, and cannot be interrupted
        seed=seed & 0x7FFFFFFF,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    centroids: Floats | None = None
    for done in range(1, iterations + 1):
        training.train(vectors, weights=weights, init_centroids=centroids)
        centroids = np.array(training.centroids, np.float32)
        if progress is not None:
            progress(done / iterations)
    return np.ascontiguousarray(centroids, np.float32)
