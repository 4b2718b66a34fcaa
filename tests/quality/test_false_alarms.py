"""The contract of the drift rule, counted: false alarms are rarer than stated, and changes are found.

Streams are seeded mixtures on the sphere (`tests.streams`). Run lengths are set far shorter than anyone would, so
that there are alarms to count. The union bound over windows costs a factor of about 20, so the measured run length
lies that far above the stated one; a count of zero would say that the test cannot see, and fails.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from detectors.drift import DriftMonitor
from detectors.fold import CHANNELS, FoldSettings, FoldState, Rule, fold
from detectors.reference import Reference
from tests.streams import Baseline, Topics

pytestmark = pytest.mark.quality

PAGE_EVERY, WARN_EVERY = 2_000, 500  # records
CHUNK = 64_000


@pytest.fixture(scope="module")
def topics():
    return Topics()


@pytest.fixture(scope="module")
def baseline(topics):
    random = np.random.default_rng(1)
    return Baseline(topics.draw(100_000, random), random)


def settings(block, page=PAGE_EVERY, warn=WARN_EVERY, **changes):
    # Held off for no time, so that every false alarm counts.
    return FoldSettings(page / block, warn / block, **{"hold_off_blocks": 0, "max_blocks": 25_000 // block, **changes})


def count(rule, baseline, draw, records, block):
    """Blocks with a page, blocks with a warning, and warnings per channel."""
    state, pages, warnings, by_channel = FoldState.start(rule), 0, 0, dict.fromkeys(CHANNELS, 0)
    for start in range(0, records, CHUNK):
        for summary in baseline.summaries(draw(min(CHUNK, records - start)), block):
            state, readings = fold(state, summary, rule)
            pages += any(reading.page for reading in readings)
            warnings += any(reading.warn for reading in readings)
            for reading in readings:
                by_channel[reading.channel] += reading.warn
    return pages, warnings, by_channel


@pytest.mark.parametrize("block", [64, 256])
def test_an_unchanged_stream_alarms_more_rarely_than_stated(topics, baseline, block, record_property):
    random = np.random.default_rng(2)
    records = 640_000
    rule = Rule(baseline.constants, settings(block))
    pages, warnings, by_channel = count(rule, baseline, lambda n: topics.draw(n, random), records, block)
    record_property("records_per_page", float(records / max(pages, 1)))
    record_property("records_per_warning", float(records / max(warnings, 1)))
    assert 1 <= pages <= records / PAGE_EVERY / 5
    assert 5 <= warnings <= records / WARN_EVERY / 5
    assert all(by_channel.values())  # each channel takes part


def test_a_small_baseline_does_not_alarm_more(topics):
    random = np.random.default_rng(3)
    small = Baseline(topics.draw(10_000, random), random, prototypes=100)
    rule = Rule(small.constants, settings(64, max_blocks=40))
    pages, warnings, _ = count(rule, small, lambda n: topics.draw(n, random), 192_000, 64)
    assert pages <= 192_000 / PAGE_EVERY / 5
    assert warnings <= 192_000 / WARN_EVERY / 5


def test_sessions_of_copies_do_not_alarm_where_the_baseline_shows_them(topics, baseline):
    random = np.random.default_rng(4)
    sessions = Baseline(topics.draw(100_000, random, copies=8), random)
    measured = Rule(sessions.constants, settings(64))
    assert measured.inflation_measured
    pages, warnings, _ = count(measured, sessions, lambda n: topics.draw(n, random, copies=8), 256_000, 64)
    assert pages <= 256_000 / PAGE_EVERY
    assert warnings <= 256_000 / WARN_EVERY
    # The rule that believes in independent records alarms without pause on the same stream.
    believer = Rule(baseline.constants, settings(64))
    assert count(believer, baseline, lambda n: topics.draw(n, random, copies=8), 12_800, 64)[0] > 20


def test_a_season_that_the_baseline_holds_is_no_drift(topics):
    random = np.random.default_rng(5)
    clock = 0

    def season(n):
        nonlocal clock
        parts = []
        for _ in range(n // 100):
            parts.append(topics.draw(100, random, prior=2.0 ** np.sin(2 * np.pi * clock / 8_000)))
            clock += 100
        return np.concatenate(parts)

    cycles = Baseline(season(96_000), random)
    clock = 0
    pages, warnings, _ = count(Rule(cycles.constants, settings(64)), cycles, season, 192_000, 64)
    assert pages <= 192_000 / PAGE_EVERY
    assert warnings <= 192_000 / WARN_EVERY
    ignorant = dict(cycles.constants, level_inflation=np.ones((3, 1)), mix_inflation=np.ones((3, 1)))
    assert count(Rule(ignorant, settings(64)), cycles, season, 64_000, 64)[0] > 64_000 / PAGE_EVERY


def shifted(topics, random, shift, n):
    return (topics.draw(n, random) + shift).astype(np.float32)


def test_shifts_within_the_tolerance_are_ignored(topics, baseline):
    to_x = np.linalg.pinv(baseline.constants["level_map"])
    shift = 0.1 * to_x[-1]  # a tenth of a whitened standard deviation along the leading direction, the worst one
    pages = {}
    for tolerance in (0.0, 0.1):
        random = np.random.default_rng(6)
        chosen = settings(64, page=20_000, warn=20_000, tolerance=tolerance, channels=("level",))
        rule = Rule(baseline.constants, chosen)
        draw = partial(shifted, topics, random, shift)
        pages[tolerance] = count(rule, baseline, draw, 192_000, 64)[0]
    assert pages[0.0] > 20
    assert pages[0.1] <= 2


@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        ({"new_topic": 0.1}, 128),
        ({"new_topic": 0.02}, 600),
        ({"prior": 3.0}, 700),
        ({"bias": 0.03}, 2_000),
        ({"spread": 1.1}, 300),
    ],
    ids=["new topic 10 %", "new topic 2 %", "prior x3", "bias 0.03", "spread x1.1"],
)
def test_changes_are_found_soon_at_one_false_page_in_ten_million_records(
    topics, baseline, change, at_most, record_property
):
    rule = Rule(baseline.constants, settings(64, page=1e7, warn=2e4))
    delays, held, widths = [], 0, []
    for run in range(5):
        random = np.random.default_rng(100 + run)
        stream = np.concatenate([topics.draw(2_048, random), topics.draw(8_192, random, **change)])
        state = FoldState.start(rule)
        for summary in baseline.summaries(stream, 64):
            state, readings = fold(state, summary, rule)
            if any(reading.page for reading in readings):
                delays.append(state.block * 64 - 2_048)
                page = max((reading for reading in readings if reading.page), key=lambda reading: reading.strength)
                held += page.onset_earliest <= 32 <= page.onset_latest
                widths.append((page.onset_latest - page.onset_earliest + 1) * 64)
                break
    record_property("mean_delay_in_records", float(np.mean(delays)))
    assert len(delays) == 5 and min(delays) > 0
    assert np.mean(delays) <= at_most
    record_property("mean_width_of_the_onset_in_records", float(np.mean(widths)))
    assert held >= 4 and np.mean(widths) <= 2_000


def test_the_whole_path_from_vectors_keeps_the_contract(topics, record_property):
    random = np.random.default_rng(7)
    reference = Reference.build(topics.draw(100_000, random))
    monitor = DriftMonitor(reference, block=64, page_every=PAGE_EVERY, warn_every=WARN_EVERY)
    records, pages, warnings = 192_000, set(), set()
    for _ in range(records // CHUNK):
        for reading in monitor.update(topics.draw(CHUNK, random)):
            pages |= {reading.block} if reading.page else set()
            warnings |= {reading.block} if reading.warn else set()
    record_property("records_per_page", float(records / max(len(pages), 1)))
    assert len(pages) <= records / PAGE_EVERY / 5
    assert len(warnings) <= records / WARN_EVERY / 3
