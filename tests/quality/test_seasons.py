"""A rule that knows the hour keeps the contract, and sees at once what looks like the season at the wrong time."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.baseline import measure
from detectors.fold import FoldSettings, FoldState, Rule, fold
from detectors.seasons import Trial
from tests.streams import Baseline, Topics

pytestmark = pytest.mark.quality

BLOCK, CYCLE, CYCLES = 64, 12_800, 8  # records
TOPICS = Topics()


def stream(random, start, n, *, amplitude=1.0, late=0, prior=1.0, **change):
    """Records ``start`` to ``start + n`` of a mix that swings once a cycle by 2^amplitude in both directions."""
    parts = []
    for clock in range(start, start + n, 128):
        swing = 2.0 ** (amplitude * np.sin(2 * np.pi * (clock - late) / CYCLE))
        parts.append(TOPICS.draw(128, random, prior=prior * swing, **change))
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def baseline():
    random = np.random.default_rng(1)
    return Baseline(stream(random, 0, CYCLES * CYCLE), random, block=BLOCK)


@pytest.fixture(scope="module")
def seasonal(baseline):
    constants = measure(**baseline.measured, seasons=(CYCLE / BLOCK,))
    assert [trial.used for trial in Trial.read(constants)] == [True]
    return constants


def rule(constants, page, warn):
    return Rule(constants, FoldSettings(page / BLOCK, warn / BLOCK, hold_off_blocks=0, max_blocks=25_600 // BLOCK))


def alarms(found, baseline, vectors, start):
    """Blocks with a page and with a warning; records to the first page, or None."""
    state, pages, warnings, first = FoldState.start(found, block=start // BLOCK), 0, 0, None
    for index, summary in enumerate(baseline.summaries(vectors, BLOCK)):
        state, readings = fold(state, summary, found)
        warnings += any(reading.warn for reading in readings)
        if any(reading.page for reading in readings):
            pages += 1
            first = first or (index + 1) * BLOCK
    return pages, warnings, first


def test_the_contract_holds_on_a_season_that_is_followed(baseline, seasonal, record_property):
    random, records = np.random.default_rng(2), 20 * CYCLE
    vectors = stream(random, 3_200, records)
    pages, warnings, _ = alarms(rule(seasonal, 2_000, 500), baseline, vectors, 3_200)
    record_property("records_per_page", float(records / max(pages, 1)))
    record_property("records_per_warning", float(records / max(warnings, 1)))
    assert pages <= records / 2_000 / 5
    assert 3 <= warnings <= records / 500 / 5
    # The same records under a clock that is half a cycle wrong: forecast and stream contradict each other.
    wrong = 3_200 + CYCLE // 2
    assert alarms(rule(seasonal, 2_000, 500), baseline, vectors[: 4 * CYCLE], wrong)[0] > 20


def test_two_cycles_keep_the_contract_with_terms_that_are_hardly_known(record_property):
    random, records = np.random.default_rng(3), 10 * CYCLE
    short = Baseline(stream(random, 0, 2 * CYCLE), random, block=BLOCK, prototypes=100)
    constants = measure(**short.measured, seasons=(CYCLE / BLOCK,))
    assert Trial.read(constants)[0].used
    pages, warnings, _ = alarms(rule(constants, 2_000, 500), short, stream(random, 0, records), 0)
    record_property("records_per_page", float(records / max(pages, 1)))
    assert pages <= records / 2_000 / 5
    assert warnings <= records / 500 / 5


@pytest.mark.parametrize(
    ("change", "sooner"),
    [({"prior": 3.0}, 3.0), ({"bias": 0.03}, 2.0), ({"new_topic": 0.02}, 0.8)],
    ids=["prior x3", "bias 0.03", "new topic 2 %"],
)
def test_changes_are_found_sooner_by_a_rule_that_knows_the_hour(baseline, seasonal, change, sooner, record_property):
    delays = {"plain": [], "seasonal": []}
    for run in range(4):
        start = run * CYCLE // 4 // BLOCK * BLOCK
        vectors = stream(np.random.default_rng(100 + run), start, 25_600, **change)
        for name, constants in (("plain", baseline.constants), ("seasonal", seasonal)):
            first = alarms(rule(constants, 1e7, 1e7), baseline, vectors, start)[2]
            delays[name].append(25_600 if first is None else first)
    record_property("plain_delay_in_records", float(np.mean(delays["plain"])))
    record_property("seasonal_delay_in_records", float(np.mean(delays["seasonal"])))
    assert max(delays["seasonal"]) < 25_600
    assert np.mean(delays["seasonal"]) * sooner <= np.mean(delays["plain"])


def test_a_season_that_grows_is_drift(baseline, seasonal):
    vectors = stream(np.random.default_rng(4), 0, 2 * CYCLE, amplitude=2.0)
    assert alarms(rule(seasonal, 1e7, 1e7), baseline, vectors, 0)[2] <= CYCLE
