"""DriftMonitor: vectors in, readings out, however they are cut."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import detectors.drift
from detectors.drift import DriftMonitor
from detectors.errors import InvalidInput
from detectors.reference import Reference
from tests.streams import Topics


@pytest.fixture(scope="module")
def topics():
    return Topics(dimension=24, topics=20)


@pytest.fixture(scope="module")
def reference(topics):
    return Reference.build(topics.draw(30_000, np.random.default_rng(0)), prototypes=200)


@pytest.fixture(scope="module")
def stream(topics):
    random = np.random.default_rng(1)
    return np.concatenate([topics.draw(6_000, random), topics.draw(4_000, random, new_topic=0.2)])


def test_the_example_in_the_documentation_runs():
    result = doctest.testmod(detectors.drift)
    assert result.failed == 0 and result.attempted > 5


def test_a_new_topic_is_paged_with_an_onset_in_records(reference, stream):
    readings = DriftMonitor(reference).update(stream)
    page = next(reading for reading in readings if reading.page)
    assert abs(page.onset - 6_000) <= 512
    assert page.block * 256 <= 7_500
    assert page.window_start % 256 == 0 and page.n >= 1
    assert page.onset_earliest % 256 == 0 and page.onset_latest % 256 == 255
    assert page.onset_earliest <= 6_000 <= page.onset_latest < page.onset_earliest + 2_560


@pytest.mark.parametrize("cuts", [[1, 2, 3], [255, 256, 257], [5_000], [6_000, 6_001, 9_999]])
def test_any_cut_gives_the_same_readings(reference, stream, cuts):
    whole = DriftMonitor(reference).update(stream)
    monitor = DriftMonitor(reference)
    pieces = [reading for part in np.split(stream, cuts) for reading in monitor.update(part)]
    assert pieces == whole
    assert monitor.records == len(stream)
    assert len(whole) == len(stream) // 256 * 3


def test_single_vectors_give_the_same_readings_as_one_array(reference, stream):
    monitor = DriftMonitor(reference, block=64)
    pieces = [reading for row in stream[:300] for reading in monitor.update(row[None, :])]
    assert pieces == DriftMonitor(reference, block=64).update(stream[:300])
    assert pieces


def test_the_order_within_a_block_does_not_matter(reference, stream):
    random = np.random.default_rng(2)
    shuffled = np.concatenate([random.permutation(stream[i : i + 256]) for i in range(0, 9_984, 256)])
    assert DriftMonitor(reference).update(shuffled) == DriftMonitor(reference).update(stream[:9_984])


def test_nothing_in_gives_nothing_out(reference):
    monitor = DriftMonitor(reference)
    assert monitor.update(np.zeros((0, 24), np.float32)) == []
    assert monitor.records == 0


def test_a_refused_array_leaves_the_monitor_as_it_was(reference, stream):
    monitor, untouched = DriftMonitor(reference), DriftMonitor(reference)
    bad = stream[:5_000].copy()
    bad[4_500, 3] = np.nan
    with pytest.raises(InvalidInput):
        monitor.update(bad)
    assert monitor.records == 0
    assert monitor.update(stream[:512]) == untouched.update(stream[:512])


def test_a_saved_and_loaded_reference_gives_the_same_readings(reference, stream, tmp_path):
    reference.save(tmp_path / "reference")
    loaded = Reference.load(tmp_path / "reference")
    assert DriftMonitor(loaded).update(stream[:2_560]) == DriftMonitor(reference).update(stream[:2_560])


@pytest.mark.parametrize(("block", "page", "warn"), [(0, 1e7, 2e4), (256, 1e4, 2e4), (256, 1e7, 100)])
def test_run_lengths_that_make_no_sense_are_refused(reference, block, page, warn):
    with pytest.raises(InvalidInput, match="in records"):
        DriftMonitor(reference, block=block, page_every=page, warn_every=warn)


def test_vectors_of_another_dimension_are_refused(reference):
    with pytest.raises(InvalidInput, match="24"):
        DriftMonitor(reference).update(np.ones((10, 7), np.float32))
