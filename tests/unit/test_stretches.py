"""Which stretch of a stream may teach what is normal: changes are found, seasons and sessions are none, bursts show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detectors.contamination import find_contamination
from detectors.reference import ANGULAR, STANDARD
from detectors.stretches import features_of, find_changes

DAY_MS = 86_400_000
N = 6_000
TOPICS = 24
SEEDS = range(4)

Vectors = npt.NDArray[np.float32]
Times = npt.NDArray[np.int64]


def centres() -> Vectors:
    return np.random.default_rng(99).normal(size=(TOPICS + 1, 32)).astype(np.float32)


def times(random: np.random.Generator, days: float = 14.0) -> Times:
    return np.sort(random.integers(0, round(days * DAY_MS), N))


def around(topics: npt.NDArray[np.int64], random: np.random.Generator) -> Vectors:
    """Records of some topics; topic 24 is of a kind that is not usual."""
    return (centres()[topics] + random.normal(scale=0.4, size=(len(topics), 32))).astype(np.float32)


def usual(random: np.random.Generator) -> Vectors:
    return around(random.integers(0, TOPICS, N), random)


def changed_days(vectors: Vectors, at: Times, **options: object) -> list[float]:
    features = features_of(vectors, at, geometry=ANGULAR)
    assert features is not None
    seasons = (float(DAY_MS), 7.0 * DAY_MS)
    return [change.time_ms / DAY_MS for change in find_changes(features, seasons_ms=seasons).changes]


def test_a_stream_that_stays_the_same_has_no_changes_and_no_bursts() -> None:
    refused = 0
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        features = features_of(usual(random), times(random), geometry=ANGULAR)
        assert features is not None
        refused += bool(find_changes(features).changes) + bool(find_contamination(features).bursts)
    assert refused <= 1  # at 1 % each, two of eight have a chance of 0.3 %


def test_sessions_are_neither_changes_nor_bursts() -> None:
    refused = 0
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        whole = usual(random)[: N // 8].repeat(8, axis=0)
        features = features_of(
            (whole + random.normal(scale=0.05, size=whole.shape)).astype(np.float32), times(random), geometry=ANGULAR
        )
        assert features is not None
        refused += bool(find_changes(features).changes) + bool(find_contamination(features).bursts)
    assert refused <= 1


def test_a_day_that_comes_again_is_no_change() -> None:
    refused = 0
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        at = times(random, 10.3)
        low = random.random(N) < 0.5 + 0.35 * np.sin(2 * np.pi * at / DAY_MS)
        topics = np.where(low, random.integers(0, TOPICS // 2, N), random.integers(TOPICS // 2, TOPICS, N))
        refused += bool(changed_days(around(topics, random), at))
    assert refused <= 1


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_new_kind_of_record_is_a_change_where_it_begins(share: float) -> None:
    found = 0
    for seed in range(3):
        random = np.random.default_rng(seed)
        at, topics = times(random), random.integers(0, TOPICS, N)
        topics[(at > 9.3 * DAY_MS) & (random.random(N) < share)] = TOPICS
        found += any(abs(day - 9.3) < 0.7 for day in changed_days(around(topics, random), at))
    assert found >= 2


def test_an_incident_of_a_day_has_a_begin_and_an_end() -> None:
    random = np.random.default_rng(5)
    at, topics = times(random), random.integers(0, TOPICS, N)
    topics[(at > 6 * DAY_MS) & (at < 7.5 * DAY_MS) & (random.random(N) < 0.3)] = TOPICS
    begin, end = changed_days(around(topics, random), at)
    assert begin == pytest.approx(6.0, abs=0.3)
    assert end == pytest.approx(7.5, abs=0.3)


@pytest.mark.parametrize("kind", ["copies", "alike", "noise"])
def test_a_burst_within_half_an_hour_is_found_with_its_time(kind: str) -> None:
    random = np.random.default_rng(3)
    at, vectors, many = times(random), usual(random), 30
    begin = 4 * DAY_MS
    at[:many] = random.integers(begin, begin + 1_800_000, many)
    vectors[:many] = {
        "copies": np.tile(centres()[TOPICS], (many, 1)),
        "alike": around(np.full(many, TOPICS), random),
        "noise": random.normal(scale=20.0, size=(many, 32)),
    }[kind]
    features = features_of(vectors, at, geometry=STANDARD if kind == "noise" else ANGULAR)
    assert features is not None
    found = find_contamination(features).bursts
    assert len(found) == 1
    assert begin - 600_000 <= found[0].first_ms <= found[0].last_ms <= begin + 2_400_000
    assert found[0].share == pytest.approx(many / N, rel=0.3)


def test_copies_are_counted() -> None:
    random = np.random.default_rng(0)
    vectors = usual(random)
    vectors[::10] = vectors[0]
    features = features_of(vectors, times(random), geometry=ANGULAR)
    assert features is not None
    found = find_contamination(features)
    assert found.commonest == pytest.approx(0.1, abs=0.001)
    assert found.copies == pytest.approx(0.1, abs=0.001)


def test_equal_vectors_have_no_features() -> None:
    assert features_of(np.ones((500, 8), np.float32), np.arange(500), geometry=ANGULAR) is None
