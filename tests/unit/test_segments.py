"""Segments against their own past: each is quiet where nothing changes, however it differs from the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detectors.conformal import p_bins
from detectors.fold import FoldSettings, FoldState, Reading, Rule, fold
from detectors.rate import RateRule, RateState, fold_rate
from detectors.reference import STANDARD, Reference
from detectors.segments import (
    MIN_SEGMENT_RECORDS,
    OTHER,
    constants_of,
    measured_segments,
    segment_codes,
    thresholds_of,
    with_unseen,
)
from detectors.summary import summarise
from tests.streams import Topics

DIMENSION, BLOCK = 8, 256
CENTRES = np.random.default_rng(1).normal(size=(6, DIMENSION)) * 4.0
SHARES = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
KNOWN = ["c0", "c1", "c2", "c3", "c4"]  # c5 is too rare to be watched by itself
SETTINGS = FoldSettings(page_run_length_blocks=1e6, warn_run_length_blocks=1e4)

Floats = npt.NDArray[np.float32]


def draw(n: int, seed: int, *, moved: dict[str, float] | None = None) -> tuple[Floats, list[str]]:
    """Records of classes that lie far apart; ``moved`` shifts those of a class by so many of its own sigmas."""
    chance = np.random.default_rng(seed)
    label = chance.choice(len(SHARES), size=n, p=SHARES)
    x = CENTRES[label] + chance.normal(size=(n, DIMENSION)) * (1.0 + 0.2 * label)[:, None]
    for name, sigmas in (moved or {}).items():
        which = label == int(name[1:])
        x[which, 0] += sigmas * (1.0 + 0.2 * int(name[1:]))
    return x.astype(np.float32), [f"c{number}" for number in label.tolist()]


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors, labels = draw(40_000, 0)
    return Reference.build(
        vectors, geometry=STANDARD, segments={"prediction": KNOWN}, segment_values={"prediction": labels}
    )


def watch(
    reference: Reference, segment: str, vectors: Floats, labels: list[str], settings: FoldSettings = SETTINGS
) -> list[Reading]:
    """The readings of one segment ("" for all records) over a stream, in blocks of the whole traffic."""
    rule = Rule(constants_of(reference.drift, segment), settings)
    codes = segment_codes(labels, KNOWN)
    names = [f"prediction={name}" for name in (*KNOWN, OTHER)]
    state = FoldState.start(rule)
    found: list[Reading] = []
    for start in range(0, len(vectors) - BLOCK + 1, BLOCK):
        rows = np.arange(start, start + BLOCK)
        scored = reference.score(vectors[rows])
        if segment:
            inside = np.flatnonzero(codes[rows] == names.index(segment))
            thresholds = thresholds_of(reference.drift, segment)
            assert thresholds is not None
            scored = replace(
                scored,
                x=scored.x[inside],
                distance=scored.distance[inside],
                nearest=scored.nearest[inside],
                p_value=scored.p_value[inside],
                bin=p_bins(scored.distance[inside], thresholds),
            )
        (summary,) = summarise(np.zeros(len(scored), np.int64), scored).values() or (None,)
        state, readings = fold(state, summary, rule)
        found += readings
    return found


def test_every_segment_of_enough_records_has_a_baseline_of_its_own(reference: Reference) -> None:
    assert measured_segments(reference.drift) == [f"prediction={name}" for name in KNOWN]
    assert thresholds_of(reference.drift, f"prediction={OTHER}") is None
    assert 40_000 * SHARES[5] < MIN_SEGMENT_RECORDS
    with pytest.raises(KeyError):
        constants_of(reference.drift, f"prediction={OTHER}")


def test_the_constants_of_a_segment_are_those_of_its_records(reference: Reference) -> None:
    vectors, labels = draw(40_000, 0)
    own = constants_of(reference.drift, "prediction=c3")
    inside = reference.prepare(vectors[np.array(labels) == "c3"])
    np.testing.assert_allclose(np.asarray(own["level_mean"], dtype=np.float64), inside.mean(axis=0), atol=1e-4)
    assert np.asarray(own["calibration"])[0] == np.asarray(own["block_histogram"]).sum()
    assert set(own) >= set(constants_of(reference.drift, "")) - {"season_trials", "norm_sums"}


def test_segments_survive_on_disk(reference: Reference, tmp_path: Any) -> None:
    reference.save(tmp_path / "1")
    loaded = Reference.load(tmp_path / "1")
    for name, array in constants_of(reference.drift, "prediction=c1").items():
        np.testing.assert_array_equal(constants_of(loaded.drift, "prediction=c1")[name], array)


@pytest.mark.parametrize("segment", ["", "prediction=c0", "prediction=c3", "prediction=c4"])
def test_nothing_alarms_where_nothing_changed(reference: Reference, segment: str) -> None:
    readings = watch(reference, segment, *draw(60_000, 5))
    assert not any(reading.warn for reading in readings)


def test_a_segment_compared_with_the_whole_would_alarm_for_ever(reference: Reference) -> None:
    vectors, labels = draw(4_000, 5)
    inside = np.flatnonzero(np.array(labels) == "c3")
    scored = reference.score(vectors[inside])
    (summary,) = summarise(np.zeros(len(inside), np.int64), scored).values()
    rule = Rule(constants_of(reference.drift, ""), SETTINGS)
    _, readings = fold(FoldState.start(rule), summary, rule)
    assert all(reading.page for reading in readings if reading.channel != "shape")


def test_a_change_within_a_rare_class_is_found_by_its_segment_and_missed_by_the_whole(reference: Reference) -> None:
    vectors, labels = draw(20_000, 7, moved={"c4": 0.5})
    assert not any(reading.page for reading in watch(reference, "", vectors, labels))
    pages = [reading for reading in watch(reference, "prediction=c4", vectors, labels) if reading.page]
    assert pages and pages[0].channel == "level"
    assert not any(reading.page for reading in watch(reference, "prediction=c3", vectors, labels))


@pytest.mark.parametrize("channels", [("level",), ("shape",)])
def test_level_and_shape_each_find_a_change_within_a_class(reference: Reference, channels: Any) -> None:
    vectors, labels = draw(20_000, 8, moved={"c1": 1.5})
    settings = replace(SETTINGS, channels=channels)
    assert any(reading.page for reading in watch(reference, "prediction=c1", vectors, labels, settings))
    assert not any(reading.page for reading in watch(reference, "prediction=c0", vectors, labels, settings))


def test_more_outliers_in_a_segment_are_counted_by_its_own_scores(reference: Reference) -> None:
    thresholds = thresholds_of(reference.drift, "prediction=c0")
    assert thresholds is not None
    constants = constants_of(reference.drift, "prediction=c0")
    rule = RateRule(
        calibration=int(np.asarray(constants["calibration"], dtype=np.float64)[0]),
        alpha=2.0**-10,
        page_run_length_blocks=1e6,
        warn_run_length_blocks=1e4,
        constants=constants,
    )
    for sigmas, expected in ((0.0, False), (3.0, True)):
        vectors, labels = draw(20_000, 9, moved={"c0": sigmas})
        scored = reference.score(vectors[np.array(labels) == "c0"])
        bins = p_bins(scored.distance, thresholds)
        counted = int(np.count_nonzero(bins <= 7))  # p <= 2^-10
        assert fold_rate(RateState.start(rule), len(bins), counted, rule)[1].page is expected


def test_a_field_that_decides_the_vector_has_no_segments() -> None:
    label = np.random.default_rng(2).integers(0, 3, size=5_000)
    vectors = np.eye(3, dtype=np.float32)[label]
    values = [str(number) for number in label.tolist()]
    built = Reference.build(
        vectors, geometry=STANDARD, segments={"prediction": ["0", "1"]}, segment_values={"prediction": values}
    )
    assert measured_segments(built.drift) == []


def test_groups_that_a_small_segment_never_showed_have_their_part() -> None:
    usual = np.array([0.5, 0.3, 0.1, 0.1, 0.0])
    found = with_unseen(np.array([60.0, 39.0, 0.0, 1.0, 0.0]), usual)
    # One group was seen once: unseen ones have (1 + 1) / 100 together, and those that nobody ever saw have nothing.
    np.testing.assert_allclose(found, [60 * 0.98, 39 * 0.98, 2.0, 0.98, 0.0])
    everywhere = np.array([5.0, 4.0, 3.0, 2.0, 0.0])
    np.testing.assert_array_equal(with_unseen(everywhere, usual), everywhere)


def test_the_mix_of_a_small_segment_is_as_lively_as_its_null_law_says() -> None:
    """A tenth of each segment's records are of any other kind, most of which its baseline has not shown."""
    random = np.random.default_rng(12)
    topics = Topics(16, 40, seed=12)

    def batch(n: int) -> tuple[Floats, list[str]]:
        label = random.choice(40, size=n, p=topics.prior)
        x = topics.centres[label] + random.standard_normal((n, 16)) @ topics.factor
        said = np.where(random.random(n) < 0.1, random.integers(0, 40, n), label)
        return x.astype(np.float32), [str(value) for value in said.tolist()]

    vectors, labels = batch(20_000)
    known = [str(number) for number in range(20)]
    built = Reference.build(vectors, segments={"p": known}, segment_values={"p": labels})
    vectors, labels = batch(60_000)
    nearest = np.concatenate([built.score(vectors[start : start + 4_096]).nearest for start in range(0, 60_000, 4_096)])
    codes = segment_codes(labels, known)
    ratios = {}
    for name in measured_segments(built.drift):
        code = known.index(name[2:]) if name[2:] in known else len(known)
        rule = Rule(constants_of(built.drift, name), SETTINGS)
        shares = np.bincount(rule.groups[nearest[codes == code]], minlength=rule.group_count) / np.sum(codes == code)
        # E |scale (one-hot - shares)|^2 of a record that falls into a group with its true share.
        lively = float(((rule.scale**2) * (shares * (1.0 - 2.0 * rule.shares) + rule.shares**2)).sum())
        ratios[name] = lively / rule.mix.moments.t1
    assert len(ratios) > 8
    assert max(ratios.values()) < 1.1
