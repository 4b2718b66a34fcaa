"""Seasons: what counts as one, what is forecast from it, and what the forecast costs."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.baseline import _middles, measure
from detectors.drift import DriftMonitor
from detectors.errors import InvalidInput
from detectors.fold import FoldSettings, Rule
from detectors.reference import Reference
from detectors.seasons import Design, Season, Trial, seek, trials_array, widened
from tests.streams import Baseline, Topics

PERIOD = 60.0  # blocks


def noise(random, blocks=600, dimension=8):
    """Sums of 64 independent whitened records per block."""
    return random.standard_normal((blocks, dimension)) * 8.0


def wave(blocks=600, *, harmonic=1, size=0.5, period=PERIOD, phase=0.3):
    """A mean that swings along the first direction, as sums of 64 records."""
    swing = np.cos(2 * np.pi * harmonic * (np.arange(blocks) + 0.5) / period + phase)
    return 64 * size * swing[:, None] * np.eye(8)[0]


def look(*channels, periods=(PERIOD,), records=None):
    blocks = len(channels[0])
    return seek(np.arange(blocks) + 0.5, np.full(blocks, 64.0) if records is None else records, channels, periods)


def test_the_harmonics_of_a_season_are_found_and_no_others():
    z = noise(np.random.default_rng(0)) + wave() + wave(harmonic=3, size=0.3)
    (trial,), design = look(z, noise(np.random.default_rng(1)))
    assert design.harmonics == (1, 3)
    assert trial.used and trial.cycles == 10 and trial.p_value < 1e-10 and trial.gain > 0.01


@pytest.mark.parametrize("kind", ["independent", "sessions", "wandering in one direction", "uneven traffic"])
def test_a_baseline_without_a_season_is_believed_to_have_one_in_a_hundredth_of_cases(kind):
    random = np.random.default_rng(2)
    found = 0
    for _ in range(150):
        z, records = noise(random, 300, 6), np.full(300, 64.0)
        if kind == "sessions":
            z = z + np.roll(z, 1, axis=0) + np.roll(z, 2, axis=0)
        elif kind == "wandering in one direction":
            steps = random.standard_normal(300) * 16
            for block in range(1, 300):
                steps[block] += 0.8 * steps[block - 1]
            z[:, 0] += steps
        elif kind == "uneven traffic":
            records = 64.0 * 3.0 ** np.sin(2 * np.pi * np.arange(300) / PERIOD)
            z *= np.sqrt(records / 64.0)[:, None]
        found += look(z, noise(random, 300, 6), records=records)[1] is not None
    assert found <= 6  # 1.5 expected; more than 6 by chance once in 1,000 times


def test_fewer_than_two_cycles_are_no_season():
    z = noise(np.random.default_rng(3), 110) + wave(110, size=2.0)
    (trial,), design = look(z)
    assert design is None and (trial.cycles, trial.p_value, trial.used) == (1, 1.0, False)
    (trial,), design = look(np.concatenate([z, z])[:120])
    assert trial.cycles == 2


def test_two_cycles_of_a_strong_season_are_enough():
    _, design = look(noise(np.random.default_rng(4), 120) + wave(120))
    assert design is not None and design.harmonics == (1,)


def test_a_wave_of_another_period_is_no_season_of_this_one():
    (trial,), design = look(noise(np.random.default_rng(5)) + wave(period=47.0))
    assert design is None and not trial.used


def test_among_several_periods_the_one_that_forecasts_best_is_taken():
    week = 7 * 20.0
    daily = noise(np.random.default_rng(6), 560) + wave(560, period=20.0)
    trials, design = look(daily, periods=(20.0, week))
    assert [trial.used for trial in trials].count(True) == 1
    # A week's seventh line is the day's first: the same forecast, from fewer cycles.
    assert design.period in (20.0, week) and all(h * 20.0 % design.period == 0 for h in design.harmonics)
    both = daily + wave(560, period=week, size=0.4)
    trials, design = look(both, periods=(20.0, week))
    assert design.period == week and design.harmonics == (1, 7)


def test_a_channel_that_never_varies_and_an_empty_baseline_are_no_season():
    assert look(np.zeros((600, 4)))[1] is None
    assert look(np.zeros((0, 4)))[1] is None
    assert look(np.zeros((1, 4)))[1] is None


def test_traffic_at_few_phases_only_is_no_reason_to_fail():
    z = noise(np.random.default_rng(7)) + wave() + wave(harmonic=2)
    open_hours = np.flatnonzero(np.arange(600) % 60 < 4)  # a fifteenth of each cycle
    _, design = seek(open_hours + 0.5, np.full(len(open_hours), 64.0), [z[open_hours]], (PERIOD,))
    assert design is None or np.isfinite(design.residuals(z[open_hours])).all()


def test_residuals_are_what_the_other_cycles_do_not_forecast():
    z = noise(np.random.default_rng(8)) + wave()
    _, design = look(z)
    left = design.residuals(z)
    own = np.flatnonzero(design.fold == 3)
    others = np.flatnonzero(design.fold != 3)
    weighted = design.features[others] * 64.0
    coefficients = np.linalg.lstsq(weighted.T @ design.features[others], design.features[others].T @ z[others])[0]
    assert np.allclose(left[own], z[own] - 64.0 * design.features[own] @ coefficients)
    changed = z.copy()
    changed[own] += 5.0
    assert np.array_equal(design.residuals(changed)[own] - left[own], np.full((60, 8), 5.0)) or np.allclose(
        design.residuals(changed)[own] - left[own], 5.0
    )


def test_the_stated_error_of_the_forecast_is_the_true_one_for_windows_of_every_length():
    random = np.random.default_rng(9)
    errors = []
    design = None
    for _ in range(400):
        z = noise(random, 300)
        _, found = look(z + wave(300, size=3.0))
        design = design or Design.of(
            np.arange(300) + 0.5, np.full(300, 64.0), np.arange(300) // 60, period=PERIOD, harmonics=(1, 2)
        )
        # The forecast's error at each block, whatever the season is.
        errors.append(design.features @ design.coefficients(z))
        assert found is not None
    table = design.error()
    for column, width in enumerate((1, 2, 4, 8, 16, 32, 64, 128)):
        # n times the squared error of the mean of a window, per direction, in the worst window.
        sums = np.array([error[20 : 20 + width].mean(axis=0) for error in errors])
        n = 64.0 * width
        measured = n * float((sums**2).mean()) - n / (64.0 * 300)
        assert table[0, column] == n
        assert measured == pytest.approx(table[1, column], rel=0.15, abs=0.004) or measured < table[1, column]
    short = 2.0 * 2 * 64.0 / (64.0 * 300)  # two harmonics, two numbers each
    assert table[1, 0] == pytest.approx(short, rel=0.01)
    assert table[1, 6] < 0.1 * table[1, 4]  # a window of about a whole cycle averages them out


def test_windows_of_forecasts_stay_within_one_fold():
    design = Design.of(np.arange(300) + 0.5, np.full(300, 64.0), np.arange(300) // 60, period=PERIOD, harmonics=(1,))
    starts, error = design.windows(np.arange(0, 285, 4), 16)
    assert (starts // 60 == (starts + 15) // 60).all() and len(starts) < len(np.arange(0, 285, 4))
    # Four of five cycles: more error than the whole baseline's.
    assert (error > 16 / 300).all()


def test_the_null_law_is_widened_by_the_error_and_keeps_what_was_measured():
    inflation = np.array([[64.0, 256.0], [1.0, 2.0], [1.0, 3.0]])
    error = np.array([[64.0, 128.0, 512.0], [0.1, 0.2, 0.0]])
    wide = widened(inflation, error, 1.5)
    assert wide[0].tolist() == [64.0, 128.0, 256.0, 512.0]
    assert np.allclose(wide[1], [1.15, 1.8, 2.15, 2.0])
    assert np.allclose(wide[2], [1.0, 2.0, 3.0, 3.0])


@pytest.fixture(scope="module")
def seasonal():
    topics, random = Topics(dimension=8, topics=10), np.random.default_rng(10)
    parts = [
        topics.draw(64, random, prior=3.0 ** np.sin(2 * np.pi * (block + 0.5) / PERIOD)) for block in range(6 * 60)
    ]
    return Baseline(np.concatenate(parts), random, prototypes=20)


def test_the_rule_expects_what_the_season_says(seasonal):
    constants = measure(**seasonal.measured, seasons=(PERIOD,))
    settings = FoldSettings(1e4, 1e3)
    rule, plain = Rule(constants, settings), Rule(seasonal.constants, settings)
    sums = seasonal.measured["block_s"] * 2.0**-20
    counts = seasonal.measured["block_c"]
    for block in (15, 45):  # the top and the bottom of the wave
        rows = np.arange(block, 360, 60)
        near = np.concatenate([rows + step for step in range(-4, 5)])
        mean, shares = sums[near].sum(axis=0) / (64 * len(near)), counts[near].sum(axis=0) / (64 * len(near))
        assert np.linalg.norm(rule.mean_at(block) - mean) < 0.4 * np.linalg.norm(plain.mean_at(block) - mean)
        assert np.linalg.norm(rule.shares_at(block) - shares) < 0.7 * np.linalg.norm(plain.shares_at(block) - shares)
    assert (rule.shares_at(15) >= 0).all()
    assert rule.shares_at(15).sum() == pytest.approx(1.0, abs=0.01)
    # A whole number of cycles away it is the same hour, to the last bit, and so it is when asked again.
    assert np.array_equal(rule.mean_at(15), rule.mean_at(15 + 60 * 2_000_000))
    assert np.array_equal(rule.shares_at(15), rule.shares_at(15))
    assert np.array_equal(plain.mean_at(15), plain.mean_at(45))


def test_what_a_season_leaves_over_needs_no_inflation_but_the_forecast_has_an_error(seasonal):
    constants = measure(**seasonal.measured, seasons=(PERIOD,))
    before, after = seasonal.constants["level_inflation"], constants["level_inflation"]
    assert before[1].max() > 1.3 and after[1].max() < 1.1
    rule = Rule(constants, FoldSettings(1e4, 1e3))
    wide = np.interp(1024.0, rule.level.inflation[0], rule.level.inflation[1])
    assert wide > np.interp(1024.0, after[0], after[1])
    assert rule.level.moments.n == 360 * 64


def test_a_season_that_is_not_there_changes_nothing(seasonal):
    constants = measure(**seasonal.measured, seasons=(PERIOD * 0.77,))
    assert set(constants) == set(seasonal.constants) | {"season_trials"}
    for name, array in seasonal.constants.items():
        assert np.array_equal(array, constants[name]), name
    assert [trial.used for trial in Trial.read(constants)] == [False]
    assert Season.read(constants) is None
    assert Trial.read(seasonal.constants) == ()


def test_trials_survive_their_array():
    trials = (Trial(8640.0, 14, 1e-9, 0.25, used=True), Trial(60480.0, 2, 1.0, 0.0, used=False))
    assert Trial.read({"season_trials": trials_array(trials)}) == trials


@pytest.mark.parametrize("period", [1.0, -3.0, np.inf, np.nan])
def test_a_period_no_longer_than_a_block_is_refused(seasonal, period):
    with pytest.raises(InvalidInput, match="longer than a block"):
        measure(**seasonal.measured, seasons=(period,))


def test_merged_blocks_with_closed_nights_still_tell_the_hour():
    """Four live blocks in one of the baseline, numbered from 1970, with traffic in three quarters of the day only."""
    random = np.random.default_rng(11)
    day, start = 96, 1_760_000_000 // 900
    live = np.array([b for b in range(start, start + 12 * day) if b % day < 72])
    number = live[::4]
    hour = (live.reshape(-1, 4) + 0.5).mean(axis=1) % day / day
    z = noise(random, len(number)) + 64 * np.sin(2 * np.pi * hour)[:, None] * np.eye(8)[0]
    middles = _middles(number)
    assert np.allclose(middles, live.reshape(-1, 4).mean(axis=1) + 0.5)
    (trial,), design = seek(middles, np.full(len(number), 64.0), [z], (float(day),))
    assert trial.used and trial.cycles == 12 and design.harmonics[0] == 1
    forecast = Season(
        float(day), design.harmonics, design.coefficients(z), np.zeros((3, 1)), np.zeros((2, 1))
    ).level_at(start - start % day + 24)
    assert forecast[0] == pytest.approx(1.0, abs=0.1)
    assert _middles(number[:1]).tolist() == [number[0] + 0.5]


def test_a_monitor_counts_the_season_in_the_blocks_of_its_reference():
    topics, random = Topics(dimension=8, topics=10), np.random.default_rng(12)

    def days(count):
        hours = np.arange(count * 24) * (2 * np.pi / 24)
        return np.concatenate([topics.draw(128, random, prior=3.0 ** np.sin(hour)) for hour in hours])

    reference = Reference.build(days(8), block=128, prototypes=20, seasons=(24.0,))
    with pytest.raises(InvalidInput, match="blocks of 128 records, not of 64"):
        DriftMonitor(reference, block=64)
    right, wrong = DriftMonitor(reference, block=128), DriftMonitor(reference, block=128)
    following = days(3)
    assert not any(reading.page for reading in right.update(following))
    assert any(reading.page for reading in wrong.update(following[128 * 12 :]))  # half a day late
