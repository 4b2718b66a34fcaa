"""Nearest neighbours, k-means and matrix products that do not depend on how rows are batched."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.errors import InvalidInput
from detectors.index import NearestIndex, k_means, squared_lengths, stable_product, triangular_product

CUTS = (1, 2, 3, 31, 63, 64, 65, 1000)


def cuts(n: int, seed: int) -> list[slice]:
    """Slices of all the awkward lengths, at places that change with the seed."""
    random = np.random.default_rng(seed)
    starts = {size: random.integers(0, n - size, 3) for size in CUTS}
    return [slice(int(start), int(start) + size) for size, places in starts.items() for start in places]


@pytest.mark.parametrize(("n", "d"), [(1, 3), (50, 7), (3000, 24)])
def test_search_finds_what_brute_force_finds(n: int, d: int) -> None:
    random = np.random.default_rng(n)
    vectors = random.standard_normal((n, d)).astype(np.float32)
    queries = random.standard_normal((40, d)).astype(np.float32)
    k = min(5, n)
    distances, indices = NearestIndex(vectors).search(queries, k)
    exact = np.linalg.norm(queries[:, None].astype(np.float64) - vectors[None], axis=2)
    assert np.array_equal(indices, np.argsort(exact, axis=1)[:, :k])
    assert np.allclose(distances, np.sort(exact, axis=1)[:, :k], rtol=1e-5)
    assert distances.dtype == np.float32
    assert indices.dtype == np.int64


@pytest.mark.parametrize(("k_vectors", "d"), [(56, 64), (500, 100), (1000, 384), (500, 5), (7, 30)])
def test_a_result_is_the_same_bit_for_bit_in_every_batch(k_vectors: int, d: int) -> None:
    random = np.random.default_rng(d)
    index = NearestIndex(random.standard_normal((k_vectors, d)).astype(np.float32))
    queries = random.standard_normal((2500, d)).astype(np.float32)
    for k in (1, 5):
        distances, indices = index.search(queries, k)
        for cut in cuts(len(queries), seed=d):
            part_distances, part_indices = index.search(queries[cut], k)
            assert np.array_equal(part_distances, distances[cut])
            assert np.array_equal(part_indices, indices[cut])


@pytest.mark.parametrize("d", [1, 2, 9, 15, 16, 17, 64, 100, 200, 384, 385, 400])
def test_a_product_is_the_same_bit_for_bit_in_every_batch(d: int) -> None:
    random = np.random.default_rng(d)
    matrix = random.standard_normal((d, d)).astype(np.float32)
    rows = random.standard_normal((2500, d)).astype(np.float32)
    lower = np.tril(matrix)
    whole, triangular, lengths = stable_product(rows, matrix), triangular_product(rows, lower), squared_lengths(rows)
    assert np.allclose(whole, rows.astype(np.float64) @ matrix, atol=1e-3)
    assert np.allclose(triangular, rows.astype(np.float64) @ lower, atol=1e-3)
    for cut in cuts(len(rows), seed=d):
        assert np.array_equal(stable_product(rows[cut], matrix), whole[cut])
        assert np.array_equal(triangular_product(rows[cut], lower), triangular[cut])
        assert np.array_equal(squared_lengths(rows[cut]), lengths[cut])


def test_a_vector_of_the_index_is_at_distance_zero_and_ties_go_to_the_smaller_number() -> None:
    vectors = np.random.default_rng(1).standard_normal((200, 48)).astype(np.float32) * 100
    vectors[150] = vectors[20]
    distances, indices = NearestIndex(vectors).search(vectors, 2)
    assert (distances[:, 0] == 0).all()
    assert indices[150].tolist() == indices[20].tolist() == [20, 150]


def test_more_neighbours_than_vectors_are_refused() -> None:
    index = NearestIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(InvalidInput, match=r"k: expected 1 to 3 .*, got 4"):
        index.search(np.eye(3, dtype=np.float32), 4)
    with pytest.raises(InvalidInput, match="got 0"):
        index.search(np.eye(3, dtype=np.float32), 0)


def test_faiss_never_sees_what_it_would_misread() -> None:
    index = NearestIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(InvalidInput, match="queries have 4 dimensions, the index has 3"):
        index.search(np.zeros((2, 4), np.float32), 1)
    with pytest.raises(InvalidInput, match="expected float32, got float64"):
        index.search(np.zeros((2, 3)), 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"two-dimensional array \(n, d\), got shape \(3,\)"):
        index.search(np.zeros(3, np.float32), 1)
    with pytest.raises(InvalidInput, match="row 1 holds NaN or infinity"):
        index.search(np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), 1)
    with pytest.raises(InvalidInput, match="at least one vector"):
        NearestIndex(np.zeros((0, 3), np.float32))
    with pytest.raises(InvalidInput, match="row 0 holds NaN or infinity"):
        NearestIndex(np.full((1, 3), np.inf, np.float32))


def test_rows_in_another_memory_order_give_the_same_answer() -> None:
    random = np.random.default_rng(0)
    vectors, queries = random.standard_normal((2, 90, 12)).astype(np.float32)
    index = NearestIndex(vectors)
    plain = index.search(queries, 3)
    for strange in (np.asfortranarray(queries), np.repeat(queries, 2, axis=0)[::2]):
        for one, other in zip(index.search(strange, 3), plain, strict=True):
            assert np.array_equal(one, other)


def test_no_queries_give_no_neighbours() -> None:
    distances, indices = NearestIndex(np.eye(3, dtype=np.float32)).search(np.zeros((0, 3), np.float32), 2)
    assert distances.shape == indices.shape == (0, 2)


def test_k_means_finds_separate_clusters_and_repeats_itself() -> None:
    random = np.random.default_rng(3)
    centres = random.standard_normal((6, 10)) * 20
    vectors = (centres[random.integers(0, 6, 3000)] + random.standard_normal((3000, 10))).astype(np.float32)
    before = vectors.copy()
    found = k_means(vectors, 24, seed=4)
    distances, _ = NearestIndex(found).search(centres.astype(np.float32), 1)
    assert found.shape == (24, 10)
    assert (distances < 3).all()
    assert np.array_equal(found, k_means(vectors, 24, seed=4))
    assert not np.array_equal(found, k_means(vectors, 24, seed=5))
    assert np.array_equal(vectors, before)


def test_k_means_refuses_more_centroids_than_vectors() -> None:
    with pytest.raises(InvalidInput, match=r"k: expected 1 to 5 .*, got 6"):
        k_means(np.eye(5, dtype=np.float32), 6)


def test_of_many_equal_vectors_the_first_is_the_nearest_in_every_batch() -> None:
    random = np.random.default_rng(3)
    distinct = random.normal(size=(40, 16)).astype(np.float32)
    rows = random.integers(0, 40, size=1_000)
    index = NearestIndex(distinct[rows])
    first = {int(row): int(np.flatnonzero(rows == row)[0]) for row in np.unique(rows)}
    queries = distinct[random.integers(0, 40, size=300)] + np.float32(1e-3)
    whole = index.nearest(queries)
    assert set(whole.tolist()) <= set(first.values())
    for size in (1, 7, 64, 255):
        cut = [index.nearest(queries[start : start + size]) for start in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(cut), whole)


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("k", [1, 5])
def test_a_result_is_the_same_where_many_vectors_are_about_as_near(spread: float, k: int) -> None:
    # What a sure classifier puts out: corners of a simplex, and hardly anything between.
    random = np.random.default_rng(7)
    corners = np.eye(8, dtype=np.float32)
    vectors = (corners[random.integers(0, 8, 500)] + spread * random.random((500, 8))).astype(np.float32)
    queries = (corners[random.integers(0, 8, 2500)] + spread * random.random((2500, 8))).astype(np.float32)
    index = NearestIndex(vectors)
    distances, indices = index.search(queries, k)
    exact = np.linalg.norm(queries[:, None].astype(np.float64) - vectors[None], axis=2)
    assert np.allclose(distances, np.sort(exact, axis=1)[:, :k], rtol=1e-4, atol=1e-9)
    for cut in [*cuts(len(queries), seed=1), slice(0, 7), slice(7, 14), slice(100, 356)]:
        part_distances, part_indices = index.search(queries[cut], k)
        assert np.array_equal(part_distances, distances[cut])
        assert np.array_equal(part_indices, indices[cut])
