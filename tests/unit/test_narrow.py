"""Whole numbers in few bytes: exact, alike for equal numbers, and as small as they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.errors import InvalidInput
from detectors.narrow import counts_from_bytes, counts_to_bytes, narrowest, signed_from_bytes, signed_to_bytes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.integers(0, 63))
def test_signed_numbers_of_any_size_come_back(numbers: list[int], shift: int) -> None:
    array = np.array(numbers, np.int64) >> shift
    data = signed_to_bytes(array)
    found, end = signed_from_bytes(b"before" + data + b"after", 6, len(array))
    assert end == 6 + len(data)
    assert found.dtype == np.int64
    assert found.tolist() == array.tolist()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.one_of(st.integers(1, 20), st.integers(1, 2**62))), max_size=60),
    st.integers(0, 600),
)
def test_counts_of_any_size_at_any_distance_come_back(steps: list[tuple[int, int]], rest: int) -> None:
    places = np.cumsum([0, *(gap for gap, _ in steps)])[1:] - 1
    counts = np.zeros((int(places[-1]) + 1 if len(places) else 0) + rest, np.int64)
    counts[places] = [count for _, count in steps]
    data = counts_to_bytes(counts)
    found, end = counts_from_bytes(b"before" + data + b"after", 6, len(counts))
    assert end == 6 + len(data)
    assert found.dtype == np.int64
    assert found.tolist() == counts.tolist()


@pytest.mark.parametrize("share", [0.001, 0.05, 0.12, 0.5, 1.0])
@pytest.mark.parametrize("mean", [0.2, 3, 40, 3000])
def test_dense_and_sparse_histograms_come_back(share: float, mean: float) -> None:
    random = np.random.default_rng(0)
    counts = np.where(random.random(2123) < share, random.geometric(1 / (1 + mean), 2123), 0)
    data = counts_to_bytes(counts)
    assert counts_from_bytes(data, 0, 2123)[0].tolist() == counts.tolist()


def test_numbers_take_as_many_bits_as_the_largest_needs() -> None:
    for bits in range(1, 65):
        least = np.full(384, -(2 ** (bits - 1)), np.int64)
        assert len(signed_to_bytes(least)) == 1 + 48 * bits
        assert len(signed_to_bytes(~least)) == 1 + 48 * bits


def test_a_few_counts_take_a_byte_and_a_half_and_many_take_a_bit_for_each_bin() -> None:
    few = np.zeros(2000, np.int64)
    few[::50] = 9
    header = len(counts_to_bytes(np.zeros(2000, np.int64)))
    assert len(counts_to_bytes(few)) == header + 40 + 20
    assert len(counts_to_bytes(np.full(2000, 2))) == header + 250 + 250
    few[50] = 300
    assert len(counts_to_bytes(few)) == header + 40 + 20 + 3, "a place, a width and what is above four bits"


def test_bytes_that_end_too_early_are_refused_and_never_read_beyond() -> None:
    random = np.random.default_rng(1)
    counts = random.geometric(0.01, 500) * (random.random(500) < 0.5)
    signed, counted = signed_to_bytes(random.integers(-(2**21), 2**21, 100)), counts_to_bytes(counts)
    for length in range(len(signed)):
        with pytest.raises(InvalidInput):
            signed_from_bytes(signed[:length], 0, 100)
    for length in range(len(counted)):
        with pytest.raises(InvalidInput):
            counts_from_bytes(counted[:length], 0, 500)


def test_damage_is_refused_or_gives_other_numbers_but_no_other_error() -> None:
    random = np.random.default_rng(2)
    counts = random.geometric(0.01, 300) * (random.random(300) < 0.1)
    data = counts_to_bytes(counts)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                found, _ = counts_from_bytes(bytes(damaged), 0, 300)
            except InvalidInput:
                continue
            assert len(found) == 300


def test_the_narrowest_type_holds_the_largest_number() -> None:
    for largest, width in ((0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**32, 8), (2**64 - 1, 8)):
        assert narrowest(largest).itemsize == width
