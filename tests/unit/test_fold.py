"""The drift rule: windows, null tails, payoffs, state, alarms, recovery."""

from __future__ import annotations

import copy
import dataclasses
import struct

import numpy as np
import pytest
from scipy import special, stats

from detectors.baseline import Moments
from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput, InvalidReference
from detectors.fold import (
    CHANNELS,
    MIN_RECORDS,
    FoldSettings,
    FoldState,
    QuadraticNull,
    Rule,
    fold,
    fold_many,
    onset_interval,
    pearson3_log_tail,
)
from detectors.payoffs import build_experts, calibration_bound
from detectors.windows import Windows, most_windows
from tests.streams import Baseline, Block, Topics

BLOCK = 64


@pytest.fixture(scope="module")
def topics():
    return Topics()


@pytest.fixture(scope="module")
def reference(topics):
    random = np.random.default_rng(1)
    return Baseline(topics.draw(60_000, random), random)


def settings(page=1e5, warn=1e3, **changes):
    return FoldSettings(page_run_length_blocks=page, warn_run_length_blocks=warn, max_blocks=256, **changes)


def fold_all(state, blocks, rule):
    readings = []
    for block in blocks:
        state, found = fold(state, block, rule)
        readings.append(found)
    return state, readings


def run(rule, blocks, state=None):
    return fold_all(state or FoldState.start(rule), blocks, rule)


def first_page(readings):
    for index, found in enumerate(readings):
        if any(reading.page for reading in found):
            return index, max(found, key=lambda reading: reading.strength)
    return None, None


# --- windows ---------------------------------------------------------------------------------------------------------


def push_all(records, max_blocks=10**6, max_records=10**9):
    windows = Windows.empty(1)
    for block, n in enumerate(records):
        windows = windows.push(np.array([float(n)]), n, block=block, max_blocks=max_blocks, max_records=max_records)
    return windows


def test_window_starts_after_eight_blocks_are_those_worked_out_by_hand():
    # Four starts of class 0 (blocks 0 to 3): the oldest becomes class 1, start 1 goes. Again at blocks 5 and 7.
    assert list(push_all([1] * 3).first_block) == [0, 1, 2]
    windows = push_all([1] * 4)
    assert list(windows.first_block) == [0, 2, 3]
    assert list(windows.size_class) == [1, 0, 0]
    windows = push_all([1] * 8)
    assert list(windows.first_block) == [0, 2, 4, 6, 7]
    assert list(windows.size_class) == [1, 1, 1, 0, 0]
    # Block 9 makes a fourth bucket of class 1: the two oldest become one of class 2, and start 2 goes.
    windows = push_all([1] * 10)
    assert list(windows.first_block) == [0, 4, 6, 8, 9]
    assert list(windows.size_class) == [2, 1, 1, 0, 0]


def test_every_window_holds_the_sum_of_all_blocks_since_its_start():
    records = np.random.default_rng(0).integers(0, 50, size=777)
    windows = push_all([int(n) for n in records])
    expected = [records[start:].sum() for start in windows.first_block]
    assert list(windows.records) == expected
    assert list(windows.sums[:, 0]) == expected


def test_window_lengths_grow_by_less_than_two_and_their_number_is_bounded():
    windows = Windows.empty(1)
    for block in range(3000):
        windows = windows.push(np.ones(1), 1, block=block, max_blocks=512, max_records=10**9)
        assert len(windows) <= most_windows(512)
        lengths = block - windows.first_block + 1
        assert (lengths[:-1] <= 2 * lengths[1:]).all()
        assert (np.diff(windows.size_class) <= 0).all()
        assert lengths[0] >= min(512, block + 1) and (len(lengths) == 1 or lengths[1] < 512)


def test_the_stated_number_of_windows_is_that_of_the_formula():
    assert most_windows(4096) == 36
    assert most_windows(1024) == 30
    assert most_windows(1) == 6


def test_windows_are_pruned_by_records_and_one_always_stays():
    windows = push_all([1000] * 50, max_records=8000)
    assert windows.records[0] >= 8000 > windows.records[1]
    assert list(push_all([10_000] * 5, max_records=8000).first_block) == [4]


def test_pushing_leaves_the_old_windows_as_they_were():
    before = push_all([1] * 5)
    copy = Windows(*(getattr(before, field.name).copy() for field in dataclasses.fields(before)))
    before.push(np.ones(1), 3, block=5, max_blocks=100, max_records=100)
    for field in dataclasses.fields(before):
        assert np.array_equal(getattr(before, field.name), getattr(copy, field.name))


# --- null tails ------------------------------------------------------------------------------------------------------


def test_pearson_tail_of_equal_weights_is_the_chi_square_tail():
    t = np.array([40.0, 80.0, 300.0])
    one = np.ones(3)
    found = pearson3_log_tail(t, 20 * one, 40 * one, 160 * one)
    assert found == pytest.approx(stats.chi2(20).logsf(t), rel=1e-9)


def test_pearson_tail_goes_on_beyond_the_range_of_floats():
    t = np.array([1000.0, 1400.0, 1500.0, 4000.0, 1e6])
    one = np.ones(5)
    found = pearson3_log_tail(t, 20 * one, 40 * one, 160 * one)
    assert np.isfinite(found).all() and (np.diff(found) < 0).all()
    # For an even number of degrees of freedom the tail is a finite sum.
    k = np.arange(10)[:, None]
    exact = special.logsumexp(k * np.log(t / 2) - special.gammaln(k + 1), axis=0) - t / 2
    assert found == pytest.approx(exact, abs=1e-3)


def test_pearson_tail_of_unequal_weights_agrees_with_simulation():
    random = np.random.default_rng(1)
    weights = np.linspace(0.05, 0.95, 30)
    t = (random.standard_normal((200_000, 30)) ** 2) @ weights
    k1, k2, k3 = weights.sum(), 2 * (weights**2).sum(), 8 * (weights**3).sum()
    for quantile in (0.99, 0.999):
        value = np.quantile(t, quantile)
        found = np.exp(pearson3_log_tail(*(np.array([x]) for x in (value, k1, k2, k3))))[0]
        assert found == pytest.approx(1 - quantile, rel=0.1)


def test_p_values_of_null_windows_are_at_most_as_small_as_they_say(reference, topics):
    rule = Rule(reference.constants, settings())
    blocks = reference.summaries(topics.draw(400_000, np.random.default_rng(2)), 256)
    for null, part in ((rule.level, slice(0, 32)), (rule.mix, slice(32, -N_BINS))):
        sums = [fold(FoldState.start(rule), block, rule)[0].windows.sums[0, part] for block in blocks]
        t = np.array([(row**2).sum() / 256 for row in sums])
        p = np.exp(null.log_p(t, np.full(len(t), 256.0)))
        assert (p <= 0.01).mean() <= 0.016  # 1,562 windows: 0.01 + 2.4 standard errors
        assert (p <= 0.01).mean() >= 0.002  # and the bound is not void


def test_tolerance_and_a_small_baseline_raise_the_cumulants(reference):
    moments = Rule(reference.constants, settings()).level.moments
    inflation = np.array([[1.0], [1.0], [1.0]])
    n = np.array([1000.0])

    def first(moments, tolerance):
        null = QuadraticNull.build(moments, inflation, tolerance=tolerance, rounding=0.0)
        return [float(value[0]) for value in null.cumulants(n)]

    plain = first(moments, 0.0)
    for larger in (first(moments, 0.1), first(dataclasses.replace(moments, n=2000.0), 0.0)):
        assert all(a > b for a, b in zip(larger, plain, strict=True))


def test_cumulants_are_those_of_the_formula():
    moments = Moments(t1=2.0, t2=1.5, t3=1.2, s1=0.9, k4=3.0, c3=5.0, floor=1.0, n=1e4)
    inflation = np.array([[100.0, 400.0], [1.5, 1.5], [1.0, 3.0]])
    null = QuadraticNull.build(moments, inflation, tolerance=0.05, rounding=0.0)
    reference = (1 + 3.09 * np.sqrt(3.0) / 2) * 1.5 / 1e4
    user = 0.05**2 + 2 * 0.05 * np.sqrt(reference * 2.0)
    k1, k2, k3 = (float(value[0]) for value in null.cumulants(np.array([200.0])))  # half-way: v2 = 2
    plain = 2 * 1.5 * 1.5**2 + 3 / 200
    assert k1 == pytest.approx(2 * 1.5 + 200 * (reference * 2 + user))
    assert k2 == pytest.approx(plain * 2 + 4 * 200 * 1.5 * (reference * 1.5 + user * 0.9))
    added = (plain * 2 - 2 * 1.5 * 1.5**2) / 2
    tolerated = 24 * 200 * 1.5**2 * (reference * 1.2 + user * 0.81)
    assert k3 == pytest.approx(8 * 1.2 * 1.5**3 + 5 / 200 + 8 * added**1.5 + tolerated)


def test_the_strength_of_a_reading_is_that_of_the_formula(reference, topics):
    rule = Rule(reference.constants, settings(page=1e300, warn=1e300))
    blocks = reference.summaries(topics.draw(20 * BLOCK, np.random.default_rng(20), bias=0.05, prior=3.0), BLOCK)
    level, shape, mix = run(rule, blocks[:12])[1][-1]
    windows = most_windows(256)
    assert level.p_value < 0.01 and mix.p_value < 0.01
    assert level.strength == pytest.approx(np.log10(0.4 / (2 * windows)) - np.log10(level.p_value))
    assert mix.strength == pytest.approx(np.log10(0.2 / (2 * windows)) - np.log10(mix.p_value))
    assert shape.strength == pytest.approx(np.log10(0.4 / 2) + shape.statistic)


def test_dependence_in_the_baseline_slows_every_expert_down(topics):
    random = np.random.default_rng(21)
    sessions = Baseline(topics.draw(20_000, random, copies=8), random, prototypes=50)
    rule = Rule(sessions.constants, settings())
    factors = rule.experts.phi[:, -1] / rule.gain[-1]
    assert factors.min() > 4
    assert np.isclose(factors, factors.min()).sum() >= 21  # the lower half has that of the median
    assert rule.cost == pytest.approx(rule.experts.psi / factors)


# --- payoffs ---------------------------------------------------------------------------------------------------------


def test_forty_two_experts_share_one_stake():
    experts = build_experts(size=50_000, effective=50_000)
    assert experts.phi.shape == (42, N_BINS) and experts.psi.shape == (42,)
    assert np.exp(experts.log_weight).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [20, 1000, 50_000])
@pytest.mark.parametrize("effective_share", [1.0, 0.1])
def test_no_expert_gains_on_average_inside_the_band(size, effective_share):
    experts = build_experts(size=size, effective=size * effective_share)
    low, high = calibration_bound(P_EDGES, size=size, effective=size * effective_share, failure=1e-4)
    for edge in (low, high, (low + high) / 2, np.clip(P_EDGES, low, high)):
        # No p-value lies below 1 / (size + 1), so the bins down there are empty, whatever the distribution.
        reachable = np.where(P_EDGES * (size + 1.0) + 1e-9 >= 1.0, edge, 0.0)
        shares = np.diff(np.append(0.0, np.maximum.accumulate(reachable)))
        gain = np.log(np.exp(experts.phi) @ shares) - experts.psi
        # A band of 1e-4 per side lies inside the experts' own (0.01 / 98 is a little more than 1e-4), up to rounding.
        assert gain.max() <= 0.02 * (edge is low or edge is high) + 1e-9


def test_calibration_bounds_are_those_of_clopper_and_pearson():
    low, high = calibration_bound(np.array([0.1, 1.0]), size=999, effective=999, failure=0.05)
    assert low[0] == pytest.approx(stats.beta(100, 900).ppf(0.05))
    assert high[0] == pytest.approx(stats.beta(100, 900).ppf(0.95))
    assert low[1] == high[1] == 1.0


def test_records_that_all_score_the_same_gain_nothing():
    # All p-values are 1 then, which looks as if the records had moved closer to the prototypes.
    tied = build_experts(size=5_000, effective=5_000, above=np.zeros(N_BINS, dtype=np.int64))
    distinct = build_experts(size=5_000, effective=5_000)
    assert (tied.phi[:, -1] - tied.psi).max() <= 1e-6
    assert (distinct.phi[:, -1] - distinct.psi).max() > 0.1


def test_each_family_gains_on_the_change_that_it_is_for():
    experts = build_experts(size=1e6, effective=1e6)
    widths = np.diff(np.append(0.0, P_EDGES))
    middle = P_EDGES - widths / 2

    def best(shares):
        growth = experts.phi @ (shares / shares.sum()) - experts.psi
        return experts.names[int(growth.argmax())]

    outliers = widths * 0.98
    outliers[0] += 0.02
    assert best(outliers) in ("tail", "beyond")
    assert best(widths * middle**-0.1) in ("wide", "up")
    assert best(widths * middle**0.5) == "down"


@pytest.mark.parametrize("at", [0, 10, N_BINS - 1])
def test_as_many_strange_records_as_are_allowed_gain_nothing_wherever_they_lie(at):
    widths = np.diff(np.append(0.0, P_EDGES))
    mixed = widths * 0.99
    mixed[at] += 0.01

    def gain(allowed):
        experts = build_experts(size=1e6, effective=1e6, contamination=allowed)
        return (np.log(np.exp(experts.phi) @ mixed) - experts.psi).max()

    assert gain(0.01) <= 0.0 < 1e-4 < gain(0.0)


def test_a_block_is_compared_with_the_mean_and_the_shares_of_its_own_number(reference, topics):
    class Alternating(Rule):
        def mean_at(self, block):
            return self.mean + (block % 2)

        def shares_at(self, block):
            return self.shares * (1.0 - block % 2)

    constant, seasonal = (kind(reference.constants, settings()) for kind in (Rule, Alternating))
    block = reference.summaries(topics.draw(BLOCK, np.random.default_rng(15)), BLOCK)[0]

    def pushed(rule, number):
        return fold(FoldState.start(rule, block=number), block, rule)[0].windows.sums[0]

    assert np.array_equal(pushed(seasonal, 4), pushed(constant, 4))
    odd = pushed(seasonal, 5) - pushed(constant, 5)
    assert odd[:32] == pytest.approx(-BLOCK * constant.map.sum(axis=0))
    assert odd[32:-N_BINS] == pytest.approx(BLOCK * constant.scale * constant.shares)


# --- settings --------------------------------------------------------------------------------------------------------


def test_days_become_blocks_and_a_share_of_the_budget_raises_the_threshold():
    days = FoldSettings.in_days(90, 1, block_s=10)
    assert days.page_run_length_blocks == 90 * 8640 and days.warn_run_length_blocks == 8640
    quarter = dataclasses.replace(days, share=0.25)
    assert quarter.page_threshold == pytest.approx(days.page_threshold + np.log10(4))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"page_run_length_blocks": 10.0}, "page >= warn"),
        ({"share": 0.0}, "share"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"contamination": 1.0}, "contamination"),
        ({"max_blocks": 0}, "max_blocks"),
        ({"hold_off_blocks": -1}, "hold_off_blocks"),
        ({"channels": ("level", "colour")}, "channels"),
        ({"channels": ()}, "channels"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(change, word):
    with pytest.raises(InvalidInput, match=word):
        dataclasses.replace(settings(), **change)


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "channels"),
    [
        ({"new_topic": 0.1}, {"shape"}),
        ({"spread": 1.2}, {"shape"}),
        ({"prior": 4.0}, {"level", "mix"}),
        ({"bias": 0.06}, {"level", "shape"}),
    ],
)
def test_a_change_is_paged_with_its_onset(reference, topics, change, channels):
    rule = Rule(reference.constants, settings())
    random = np.random.default_rng(3)
    before, after = topics.draw(64 * BLOCK, random), topics.draw(40 * BLOCK, random, **change)
    state, quiet = run(rule, reference.summaries(before, BLOCK))
    assert first_page(quiet) == (None, None)
    delay, reading = first_page(run(rule, reference.summaries(after, BLOCK), state)[1])
    assert delay is not None and delay < 30
    assert reading.channel in channels
    assert 64 - 8 <= reading.onset <= 64 + delay
    assert reading.warn and reading.active
    assert reading.strength >= reading.threshold > reading.warn_threshold
    assert reading.p_value < 1e-4 and reading.effect > 0 and reading.n >= 1


def swapped_kinds(topics):
    """The same topics with other shares, chosen so that the mean of all records stays where it is."""
    fixed = np.column_stack([topics.centres, np.ones(len(topics.prior))]).T
    free = np.linalg.svd(fixed)[2][len(fixed) :]
    change = free.T @ free @ (np.where(np.arange(len(topics.prior)) % 2, 1.0, -1.0) * topics.prior)
    swapped = copy.copy(topics)
    swapped.prior = topics.prior + change * 0.95 / (-change / topics.prior).max()
    return swapped


@pytest.mark.parametrize(
    ("channel", "change", "within"),
    [("level", {"bias": 0.03}, 40), ("shape", {"spread": 1.1}, 20), ("mix", "swapped kinds", 60)],
)
def test_a_change_that_one_channel_is_for_is_missed_without_it(reference, topics, channel, change, within):
    random = np.random.default_rng(40)
    before = reference.summaries(topics.draw(40 * BLOCK, random), BLOCK)
    source, changes = (swapped_kinds(topics), {}) if change == "swapped kinds" else (topics, change)
    after = reference.summaries(source.draw(within * BLOCK, random, **changes), BLOCK)

    def page(channels):
        rule = Rule(reference.constants, settings(page=1e6, warn=1e4, channels=channels))
        return first_page(run(rule, before + after)[1])[0]

    others = tuple(name for name in CHANNELS if name != channel)
    assert page((channel,)) >= 40 and page(CHANNELS) >= 40
    assert page(others) is None


def test_level_and_mix_wait_for_256_records(reference, topics):
    rule = Rule(reference.constants, settings(channels=("level", "mix")))
    blocks = reference.summaries(topics.draw(8 * BLOCK, np.random.default_rng(4), bias=3.0), BLOCK)
    delay, reading = first_page(run(rule, blocks)[1])
    assert (delay + 1) * BLOCK == MIN_RECORDS
    assert reading.n == MIN_RECORDS and reading.onset == 0


def test_the_onset_of_an_overwhelming_change_is_exact(reference, topics):
    random = np.random.default_rng(5)
    rule = Rule(reference.constants, settings(channels=("level",)))
    blocks = reference.summaries(topics.draw(30 * 512, random), 512)
    blocks += reference.summaries(topics.draw(512, random, bias=5.0), 512)
    delay, reading = first_page(run(rule, blocks)[1])
    assert delay == 30 and reading.onset == 30
    assert reading.p_value == pytest.approx(1e-300) and np.isfinite(reading.strength)


@pytest.mark.parametrize(
    ("profile", "drop", "since", "expected"),
    [
        # Starts 20 and 24 are as good as each other: it began after 10 had, and before 26 did.
        ([1.0, 3.0, 9.5, 9.9, 2.0, 0.0], 1.0, 0, (10, 25)),
        ([1.0, 3.0, 9.5, 9.9, 2.0, 0.0], 0.0, 0, (20, 25)),
        ([9.9, 3.0, 2.0, 1.0, 0.0, 0.0], 1.0, 0, (0, 9)),  # nothing is known of what came before the first start
        ([0.0, 0.0, 1.0, 2.0, 3.0, 9.9], 1.0, 0, (26, 28)),  # up to the latest block
        ([9.9, 3.0, 2.0, 1.0, 0.0, 5.0], 1.0, 24, (26, 28)),  # an earlier page has used up the first starts
    ],
)
def test_the_onset_lies_between_the_neighbours_of_the_likely_starts(profile, drop, since, expected):
    starts = np.array([0, 10, 20, 24, 26, 28])
    assert onset_interval(np.array(profile), starts, 28, drop=drop, since=since) == expected


def test_a_page_says_between_which_blocks_the_change_began(reference, topics):
    rule = Rule(reference.constants, settings())
    held, widths = [], []
    for seed, change in enumerate([{"new_topic": 0.1}, {"spread": 1.2}, {"prior": 4.0}, {"bias": 0.06}] * 3):
        random = np.random.default_rng(20 + seed)
        state, quiet = run(rule, reference.summaries(topics.draw(48 * BLOCK, random), BLOCK))
        calm = [reading for found in quiet for reading in found if not reading.active]
        assert all(reading.onset_earliest is None and reading.onset_latest is None for reading in calm)
        # The change comes in the middle of a block.
        parts = topics.draw(BLOCK // 2, random), topics.draw(30 * BLOCK, random, **change)
        _, reading = first_page(run(rule, reference.summaries(np.concatenate(parts), BLOCK), state)[1])
        assert reading.onset_earliest <= reading.onset <= reading.onset_latest <= reading.block
        held.append(reading.onset_earliest <= 48 <= reading.onset_latest)
        widths.append(reading.onset_latest - reading.onset_earliest + 1)
    assert np.mean(held) >= 0.9
    assert np.mean(widths) <= 10


def test_muted_channels_give_no_reading_and_leave_the_others_as_they_were(reference, topics):
    blocks = reference.summaries(topics.draw(30 * BLOCK, np.random.default_rng(6)), BLOCK)
    _, everything = run(Rule(reference.constants, settings()), blocks)
    _, level = run(Rule(reference.constants, settings(channels=("level",))), blocks)
    assert [reading.channel for reading in everything[-1]] == list(CHANNELS)
    assert [found[0] for found in everything] == [found[0] for found in level]


def test_empty_blocks_age_the_windows_and_do_nothing_else(reference, topics):
    rule = Rule(reference.constants, settings())
    state, readings = run(rule, reference.summaries(topics.draw(30 * BLOCK, np.random.default_rng(7)), BLOCK))
    nothing = Block(0, np.zeros(32, np.int64), np.zeros(N_BINS, np.int64), np.zeros(200, np.int64))
    later, quiet = fold_all(state, [None, nothing] * 100, rule)
    assert later.block == state.block + 200
    assert max(reading.strength for found in quiet for reading in found) <= max(
        reading.strength for reading in readings[-1]
    )
    assert np.array_equal(later.page_wealth, state.page_wealth)
    # After max_blocks of silence nothing of the past is left in the windows.
    silent, _ = fold_all(later, [None] * 400, rule)
    assert silent.windows.records.max() == 0


def test_strengths_before_any_evidence_are_finite(reference):
    rule = Rule(reference.constants, settings())
    _, readings = fold(FoldState.start(rule), None, rule)
    assert [reading.onset for reading in readings] == [None] * 3
    assert all(np.isfinite(reading.strength) and reading.p_value == 1.0 for reading in readings)


def test_a_step_does_not_change_its_inputs(reference, topics):
    rule = Rule(reference.constants, settings())
    blocks = reference.summaries(topics.draw(20 * BLOCK, np.random.default_rng(8)), BLOCK)
    state, _ = run(rule, blocks[:-1])
    before = state.to_bytes()
    first, second = fold(state, blocks[-1], rule), fold(state, blocks[-1], rule)
    assert state.to_bytes() == before
    assert first[1] == second[1] and first[0].to_bytes() == second[0].to_bytes()


def test_a_persisting_change_stays_active_and_its_end_is_noticed(reference, topics):
    rule = Rule(reference.constants, settings())
    random = np.random.default_rng(9)
    blocks = reference.summaries(topics.draw(100 * BLOCK, random, prior=4.0), BLOCK)
    state, during = run(rule, blocks)
    page, reading = first_page(during)
    channel = CHANNELS.index(reading.channel)
    assert all(found[channel].active for found in during[page:])
    _, after = run(rule, reference.summaries(topics.draw(100 * BLOCK, random), BLOCK), state)
    assert after[0][channel].active
    gone = next(index for index, found in enumerate(after) if not any(reading.active for reading in found))
    assert gone < 60
    assert not any(reading.active for reading in after[-1])


def test_a_page_uses_up_the_evidence_and_the_next_needs_new_evidence(reference, topics):
    rule = Rule(reference.constants, settings(hold_off_blocks=10))
    blocks = reference.summaries(topics.draw(100 * BLOCK, np.random.default_rng(10), new_topic=0.2), BLOCK)
    _, readings = run(rule, blocks)
    pages = [index for index, found in enumerate(readings) if any(reading.page for reading in found)]
    assert len(pages) >= 2
    assert np.diff(pages).min() > 10
    state, _ = run(rule, blocks[: pages[0] + 1])
    assert len(state.windows) == 0
    assert np.isneginf(state.page_wealth).all() and np.isneginf(state.warn_wealth).all()
    for reading in readings[pages[1]]:
        assert reading.onset is None or reading.onset > pages[0]
        assert reading.channel == "shape" or reading.onset is None or reading.window_start > pages[0] + 10


def test_a_warning_does_not_use_up_the_evidence_for_a_page(reference, topics):
    blocks = reference.summaries(topics.draw(200 * BLOCK, np.random.default_rng(11), prior=1.6), BLOCK)
    with_warnings = run(Rule(reference.constants, settings(page=1e6, warn=10)), blocks)[1]
    without = run(Rule(reference.constants, settings(page=1e6, warn=1e6)), blocks)[1]
    assert first_page(with_warnings)[0] == first_page(without)[0] is not None
    warnings = [index for index, found in enumerate(with_warnings) if any(reading.warn for reading in found)]
    assert warnings[0] < first_page(without)[0]
    # Its own evidence is used up: 16 blocks of hold-off, and the next warning begins from nothing.
    assert np.diff(warnings).min() > 16
    at_rest = [reading.warn_strength for reading in with_warnings[warnings[0] + 1]]
    assert max(at_rest) < 0 < max(reading.strength for reading in with_warnings[warnings[0] + 1])


def test_stored_strengths_answer_for_any_other_run_length_until_its_first_alarm(reference, topics):
    blocks = reference.summaries(topics.draw(60 * BLOCK, np.random.default_rng(12), new_topic=0.03), BLOCK)
    strict = Rule(reference.constants, settings(page=1e9, warn=1e9))
    stored = [max(reading.strength for reading in found) for found in run(strict, blocks)[1]]
    for page in (1e3, 1e5):
        answer = next(index for index, strength in enumerate(stored) if strength >= np.log10(page))
        loose = Rule(reference.constants, settings(page=page, warn=page))
        assert first_page(run(loose, blocks)[1])[0] == answer


# --- many segments ---------------------------------------------------------------------------------------------------


def test_segments_folded_at_once_give_the_bytes_of_segments_folded_alone(reference, topics):
    random = np.random.default_rng(16)
    other = dict(reference.constants, mix_inflation=np.array([[64.0, 512.0], [1.0, 1.2], [1.0, 1.5]]))
    other["level_mean"] = reference.constants["level_mean"] + 1e-3
    other["calibration"] = np.array([5_000.0, 4_000.0])
    rules = [
        Rule(constants, settings(page=1e4, warn=50, hold_off_blocks=4, share=share, channels=channels))
        for share in (0.01, 0.2, 0.7, 1.0)
        for channels in (CHANNELS, ("level", "shape"), ("mix",))
        for constants in (reference.constants, other)
    ]
    streams = [
        reference.summaries(topics.draw(90 * BLOCK, random, new_topic=0.04 * (i % 3), bias=0.02 * (i % 4)), BLOCK)
        for i in range(len(rules))
    ]
    alone = [FoldState.start(rule, block=100 * i) for i, rule in enumerate(rules)]
    together = list(alone)
    pages = warnings = 0
    for step in range(90):
        # Segments begin at different blocks, lack records here and there, and come in any number and order.
        chosen = random.permutation(len(rules))[: random.integers(1, len(rules) + 1)]
        blocks = [streams[i][step] if random.random() < 0.8 else None for i in chosen]
        found = fold_many([together[i] for i in chosen], blocks, [rules[i] for i in chosen])
        for i, block, (state, readings) in zip(chosen, blocks, found, strict=True):
            alone[i], expected = fold(alone[i], block, rules[i])
            assert readings == expected
            assert state.to_bytes() == alone[i].to_bytes()
            together[i] = state
            pages += any(reading.page for reading in readings)
            warnings += any(reading.warn for reading in readings)
    assert pages > 5 and warnings > 20  # the paths behind an alarm were walked, too


def test_no_segments_are_folded_to_nothing():
    assert fold_many([], [], []) == []


def test_only_segments_of_one_reference_are_folded_at_once(reference, topics):
    rule = Rule(reference.constants, settings())
    start = FoldState.start(rule)
    with pytest.raises(InvalidInput, match="2 states, 1 blocks"):
        fold_many([start, start], [None], [rule, rule])
    random = np.random.default_rng(18)
    narrow = Baseline(topics.draw(2_000, random), random, prototypes=20)
    other = Rule(narrow.constants, settings())
    with pytest.raises(InvalidReference, match="numbers wide"):
        fold_many([start, FoldState.start(other)], [None, None], [rule, other])


def test_a_state_keeps_no_other_segment_in_memory(reference, topics):
    rule = Rule(reference.constants, settings())
    blocks = reference.summaries(topics.draw(2 * BLOCK, np.random.default_rng(17)), BLOCK)
    (state, _), _ = fold_many([FoldState.start(rule)] * 2, blocks, [rule] * 2)
    held = [state.windows.sums, state.page_wealth, state.warn_wealth, state.excursion, state.excursion_start]
    assert all(array.base is None for array in held)


# --- state -----------------------------------------------------------------------------------------------------------


def test_a_state_written_and_read_in_mid_stream_gives_the_same_readings(reference, topics):
    rule = Rule(reference.constants, settings())
    random = np.random.default_rng(13)
    blocks = reference.summaries(topics.draw(40 * BLOCK, random), BLOCK)
    blocks += reference.summaries(topics.draw(60 * BLOCK, random, new_topic=0.1), BLOCK)
    start = FoldState.start(rule, reference=7, block=1000)
    end, whole = fold_all(start, blocks, rule)
    state, pieces = start, []
    for block in blocks:
        state, found = fold(FoldState.from_bytes(state.to_bytes()), block, rule)
        pieces.append(found)
    assert pieces == whole
    assert state.to_bytes() == end.to_bytes()
    assert whole[0][0].block == 1000 and whole[0][0].reference == 7


def test_a_state_is_bounded(reference, topics):
    rule = Rule(reference.constants, settings())
    blocks = reference.summaries(topics.draw(64_000, np.random.default_rng(14)), 32)
    state, _ = run(rule, blocks)
    assert len(state.to_bytes()) <= most_windows(256) * (rule.width + 3) * 8 + 42 * 4 * 8 + 256


def test_bytes_of_format_1_are_read_for_ever():
    windows = Windows(np.array([[1.5, -2.0], [0.25, 3.0]]), np.array([300, 40]), np.array([7, 9]), np.array([1, 0]))
    state = FoldState(
        reference=3,
        block=10,
        windows=windows,
        page_from=2,
        warn_from=8,
        page_wealth=np.array([-np.inf, 0.5]),
        warn_wealth=np.array([0.125, -1.0]),
        excursion=np.array([0.0, 2.5]),
        excursion_start=np.array([10, 4]),
        alarm_records=np.array([0, 256, 0]),
    )
    numbers = struct.pack("<9sHqqqqI", b"driftfold", 1, 3, 10, 2, 8, 2)
    numbers += struct.pack("<6d5q", -np.inf, 0.5, 0.125, -1.0, 0.0, 2.5, 10, 4, 0, 256, 0)
    numbers += struct.pack("<II4d6q", 2, 2, 1.5, -2.0, 0.25, 3.0, 300, 40, 7, 9, 1, 0)
    assert state.to_bytes() == numbers
    assert FoldState.from_bytes(numbers).to_bytes() == numbers
    assert FoldState.from_bytes(numbers).windows.sums[1, 1] == 3.0


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "version"])
def test_damaged_states_are_refused(reference, damage):
    blob = FoldState.start(Rule(reference.constants, settings())).to_bytes()
    damaged = {"cut": blob[:-1], "empty": b"", "other": b"x" * 200, "version": blob[:9] + b"\x09\x00" + blob[11:]}
    with pytest.raises(InvalidInput, match="state"):
        FoldState.from_bytes(damaged[damage])


def test_a_block_or_a_state_of_another_reference_is_refused(reference):
    rule = Rule(reference.constants, settings())
    with pytest.raises(InvalidReference, match="5-dimensional"):
        fold(FoldState.start(rule), Block(1, np.zeros(5, np.int64), np.zeros(N_BINS), np.zeros(200, np.int64)), rule)
    other = dataclasses.replace(FoldState.start(rule), windows=Windows.empty(3))
    with pytest.raises(InvalidReference, match="3 numbers wide"):
        fold(other, None, rule)


def test_small_baselines_say_that_they_should_not_page(reference):
    assert not Rule(reference.constants, settings()).supports_page
    large = dict(reference.constants)
    large["level_moments"] = large["level_moments"].copy()
    large["level_moments"][7] = 50_000
    large["calibration"] = np.array([50_000.0, 50_000.0])
    assert Rule(large, settings()).supports_page
