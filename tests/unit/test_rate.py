"""The outlier-rate alarm: exact tails, run lengths, state, the end of an alarm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput
from detectors.rate import RateRule, RateState, fold_rate


def rule(page=1e5, warn=1e3, **changes):
    return RateRule(
        **{
            "calibration": 50_000,
            "alpha": 2.0**-10,
            "page_run_length_blocks": page,
            "warn_run_length_blocks": warn,
            "max_blocks": 256,
            **changes,
        }
    )


def run(rule, blocks, state=None):
    state = state or RateState.start(rule)
    readings = []
    for n, count in blocks:
        state, reading = fold_rate(state, n, count, rule)
        readings.append(reading)
    return state, readings


def blocks(random, rate, number, n=256):
    return [(n, int(count)) for count in random.binomial(n, rate, size=number)]


def test_p_values_are_the_exact_binomial_tail_at_the_bound():
    one = rule()
    counts, records = np.array([3.0, 5.0, 40.0]), np.array([256.0, 1024.0, 1024.0])
    expected = stats.binom(records, one.bound).logsf(counts - 1)
    assert one.log_p(counts, records) == pytest.approx(expected, rel=1e-9)


def test_the_bound_lies_above_the_calibrated_rate_and_shrinks_with_the_calibration():
    assert rule(calibration=1_000).bound > rule().bound > 2.0**-10
    assert rule().bound == pytest.approx(stats.beta(48, 49_953).ppf(0.999))
    assert rule(tolerance=1.0).bound == pytest.approx(2 * rule().bound)


def test_p_values_go_on_beyond_the_range_of_floats():
    found = rule().log_p(np.array([500.0, 1000.0, 2000.0]), np.array([2000.0, 2000.0, 2000.0]))
    assert np.isfinite(found).all() and (np.diff(found) < 0).all() and found[-1] < -10_000


def test_a_burst_of_outliers_is_paged_at_once_and_a_slow_rise_later():
    random = np.random.default_rng(0)
    quiet = blocks(random, 2.0**-10, 50)
    state, before = run(rule(), quiet)
    assert not any(reading.page for reading in before)
    _, burst = run(rule(), [(256, 20)], state)
    assert burst[0].page and burst[0].onset == 50 and burst[0].count == 20
    assert burst[0].effect == pytest.approx(20 / 256 * 1024)
    _, slow = run(rule(), blocks(random, 6 * 2.0**-10, 100), state)
    page = next(reading for reading in slow if reading.page)
    assert 1 < page.block - 50 < 60
    assert abs(page.onset - 50) < 20


def test_few_records_are_enough_where_the_counts_are_clear():
    _, readings = run(rule(), [(5, 5)])
    assert readings[0].page and readings[0].n == 5


@pytest.mark.parametrize("run_length", [20, 100])
def test_false_alarms_are_rarer_than_stated(run_length):
    random = np.random.default_rng(1)
    one = rule(page=run_length, warn=run_length, hold_off_blocks=0, calibration=10**7, alpha=2.0**-7)
    _, readings = run(one, blocks(random, 2.0**-7, 6_000))
    alarms = sum(reading.page for reading in readings)
    assert 1 <= alarms <= 6_000 / run_length


def test_sessions_do_not_alarm_where_the_baseline_has_them():
    random = np.random.default_rng(2)
    widths = np.diff(np.append(0.0, P_EDGES))
    baseline = random.multinomial(64, widths, size=1_500) * 8
    constants = {"block_histogram": baseline}
    aware = rule(alpha=2.0**-6, constants=constants)
    naive = rule(alpha=2.0**-6)
    stream = [(512, 8 * count) for _, count in blocks(random, 2.0**-6, 1_500, n=64)]
    assert aware.inflation > 5
    assert any(reading.page for reading in run(naive, stream)[1])
    assert not any(reading.page for reading in run(aware, stream)[1])


def test_an_alarm_ends_when_the_recent_records_are_normal_again():
    random = np.random.default_rng(3)
    state, during = run(rule(), blocks(random, 0.02, 40))
    first = next(index for index, reading in enumerate(during) if reading.page)
    assert all(reading.active for reading in during[first:])
    _, after = run(rule(), blocks(random, 2.0**-10, 40), state)
    assert not after[-1].active
    assert not any(reading.page for reading in after[5:])


def test_a_warning_does_not_use_up_the_evidence_for_a_page():
    random = np.random.default_rng(4)
    stream = blocks(random, 3 * 2.0**-10, 300)
    with_warnings = run(rule(page=1e5, warn=10), stream)[1]
    without = run(rule(page=1e5, warn=1e5), stream)[1]
    assert [r.page for r in with_warnings] == [r.page for r in without]
    assert sum(r.warn for r in with_warnings) > sum(r.warn for r in without) > 0


def test_empty_blocks_raise_nothing():
    _, readings = run(rule(), [(0, 0)] * 5)
    assert all(reading.rate == 0 and reading.p_value == 1 and reading.onset is None for reading in readings)


def test_a_state_written_and_read_in_mid_stream_gives_the_same_readings():
    random = np.random.default_rng(5)
    one, stream = rule(), blocks(random, 4 * 2.0**-10, 120)
    end, whole = run(one, stream, RateState.start(one, block=77))
    state, pieces = RateState.start(one, block=77), []
    for n, count in stream:
        state, reading = fold_rate(RateState.from_bytes(state.to_bytes()), n, count, one)
        pieces.append(reading)
    assert pieces == whole and state.to_bytes() == end.to_bytes()
    assert whole[0].block == 77


@pytest.mark.parametrize("damage", [b"", b"x" * 100, "cut", "version"])
def test_damaged_states_are_refused(damage):
    blob = run(rule(), [(10, 0)])[0].to_bytes()
    damaged = {"cut": blob[:-1], "version": blob[:9] + b"\x09\x00" + blob[11:]}.get(damage, damage)
    with pytest.raises(InvalidInput, match="state"):
        RateState.from_bytes(damaged)


def test_counts_and_settings_that_cannot_be_are_refused():
    with pytest.raises(InvalidInput, match="5 records"):
        fold_rate(RateState.start(rule()), 5, 6, rule())
    for change in ({"calibration": 0}, {"alpha": 1.0}, {"share": 0.0}, {"page": 1.0}, {"max_blocks": 0}):
        with pytest.raises(InvalidInput, match="outlier-rate"):
            rule(**change)


def test_a_baseline_of_few_blocks_gives_no_inflation():
    assert rule(constants={"block_histogram": np.ones((3, N_BINS), dtype=np.int64)}).inflation == 1.0
