"""Which hits become alerts: within a budget, whatever comes, and the same in every replay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import FoldState, FraudHit
from connectors.records import Partition
from detectors.rate import RateRule
from monitor.fraud_alerts import FraudAlerts, FraudReading, in_segment
from monitor.fraud_settings import FraudAlertSettings, FraudSettings
from monitor.record_counts import FraudCounts, fraud_counts_of

BLOCK_S, PER_BLOCK = 60.0, 2000
BLOCK_MS = round(BLOCK_S * 1000)
DAY = 144  # blocks of a period; shorter than a day, so that a test sees several
P0 = Partition("payments", 0)


@dataclass(frozen=True)
class Block:
    """Records of one block, and what they were scored with."""

    number: int
    surprise: np.ndarray
    countries: list[str]
    probability: np.ndarray | None = None

    def counts(self) -> FraudCounts:
        p = 10.0 ** -self.surprise.astype(np.float64)
        here = np.array([country == "de" for country in self.countries])
        return fraud_counts_of(
            np.full(len(p), self.number),
            self.surprise,
            p,
            alpha=0.001,
            segments={"country=de": here},
            probability=self.probability,
        )[self.number]

    def read(self, at_least: float, most: int) -> Sequence[FraudHit]:
        rows = np.flatnonzero((10.0 ** -self.surprise.astype(np.float64) <= 0.001) & (self.surprise >= at_least))
        rows = rows[np.argsort(-self.surprise[rows], kind="stable")][:most]
        labels = 0 if self.probability is None else 1
        chances = np.zeros(len(self.surprise)) if self.probability is None else self.probability
        return [
            FraudHit(
                "fraud",
                P0,
                self.number * 100_000 + row,
                0,
                float(self.surprise[row]),
                float(chances[row]),
                labels,
                {"country": self.countries[row]},
            )
            for row in rows.tolist()
        ]


def normal(number: int, rng: np.random.Generator, *, n: int = PER_BLOCK, fraud: int = 0, de: float = 0.1) -> Block:
    """Normal records, whose p-values are uniform, and ``fraud`` of a surprise of about 8."""
    surprise = np.concatenate([-np.log10(1.0 - rng.random(n)), 8.0 + rng.normal(0, 0.5, fraud)])
    countries = np.where(rng.random(n + fraud) < de, "de", "fr").tolist()
    return Block(number, (np.rint(surprise * 1e4) * 1e-4).astype(np.float32), countries)


def chosen(**alerts: object) -> FraudSettings:
    return FraudSettings(alerts=FraudAlertSettings(**{"most": 20, "every": DAY * BLOCK_S, **alerts}))


def rule() -> RateRule:
    return RateRule(calibration=10_000, alpha=0.001, page_run_length_blocks=1e5, warn_run_length_blocks=1e3, share=0.1)


def alerts_of(chosen: FraudSettings, stored: FoldState | None = None, *, version: int = 1) -> FraudAlerts:
    return FraudAlerts(chosen, rule(), version=version, block_ms=BLOCK_MS, stored=stored, first_block=1000)


def readings(alerts: FraudAlerts, blocks: Sequence[Block]) -> list[FraudReading]:
    return [alerts.push(block.number, block.counts(), block.read) for block in blocks]


def numbers_by_block(found: Sequence[FraudReading]) -> np.ndarray:
    return np.array([len(reading.alerts) for reading in found])


def most_in_a_period(counts: np.ndarray) -> int:
    return int(np.convolve(counts, np.ones(DAY, int)).max())


@pytest.fixture(scope="module")
def usual() -> list[Block]:
    """Five periods of normal traffic: about 288 candidates in each."""
    rng = np.random.default_rng(1)
    return [normal(1000 + number, rng) for number in range(5 * DAY)]


def test_normal_traffic_gives_about_as_many_alerts_as_people_can_look_at(usual: list[Block]) -> None:
    counts = numbers_by_block(readings(alerts_of(chosen()), usual))
    assert most_in_a_period(counts) <= 20
    by_period = counts.reshape(-1, DAY).sum(axis=1)
    assert by_period.mean() > 12, by_period  # people's hours are used
    assert counts[:DAY].sum() > 5  # from the first period on


def test_traffic_of_which_a_part_is_always_fraud_stays_within_the_budget_and_shows_the_strangest() -> None:
    rng = np.random.default_rng(2)
    blocks = [normal(1000 + number, rng, fraud=int(rng.random() < 0.5)) for number in range(4 * DAY)]
    found = readings(alerts_of(chosen()), blocks)
    counts = numbers_by_block(found)
    assert most_in_a_period(counts) <= 20
    assert found[-1].level > 7.0  # 72 frauds in a period, of which 20 fit
    later = [hit.surprise for reading in found[2 * DAY :] for hit in reading.alerts]
    assert min(later) > 7.0


def test_a_burst_is_cut_at_the_budget_and_what_is_left_out_is_counted(usual: list[Block]) -> None:
    rng = np.random.default_rng(3)
    burst = normal(1000 + DAY, rng, fraud=500)
    found = readings(alerts_of(chosen()), [*usual[:DAY], burst, *usual[DAY + 1 : 3 * DAY]])
    counts = numbers_by_block(found)
    assert most_in_a_period(counts) == 20
    at = found[DAY]
    assert at.unlisted >= 480
    assert at.period == 20
    assert at.period_unlisted >= at.unlisted
    assert all(hit.surprise > 6.0 for hit in at.alerts)
    assert found[2 * DAY + 4].period_unlisted < 100  # it is forgotten after a period
    assert found[3 * DAY - 1].level < 5.0  # and hides nothing that comes later
    assert 10 < counts[2 * DAY + 4 :].sum() <= 20


def test_a_segment_has_alerts_of_its_own_and_takes_none_from_the_others() -> None:
    rng = np.random.default_rng(4)
    # The others have fraud enough to fill the whole budget.
    blocks = []
    for number in range(3 * DAY):
        quiet = normal(1000 + number, rng, n=500, de=1.0)
        loud = normal(1000 + number, rng, fraud=1, de=0.0)
        surprise = np.concatenate([quiet.surprise, loud.surprise])
        blocks.append(Block(1000 + number, surprise, [*quiet.countries, *loud.countries]))
    alone = readings(alerts_of(chosen()), blocks)
    with_own = readings(alerts_of(chosen(segments={"country=de": 6})), blocks)

    def of(found: Sequence[FraudReading], country: str) -> np.ndarray:
        return np.array([sum(hit.segments["country"] == country for hit in r.alerts) for r in found])

    assert of(alone, "de")[DAY:].sum() <= 1
    assert of(with_own, "de")[DAY:].sum() >= 6
    assert most_in_a_period(of(with_own, "de")) <= 6
    assert (of(with_own, "fr") == of(alone, "fr")).all()


def test_a_precision_is_kept_by_what_the_scorer_promises() -> None:
    rng = np.random.default_rng(5)
    blocks = []
    for number in range(2 * DAY):
        plain = normal(1000 + number, rng, fraud=3)
        # Candidates are fraud with the probability that is said of them.
        chances = np.where(plain.surprise > 3.0, rng.random(len(plain.surprise)), 0.001).astype(np.float32)
        blocks.append(Block(plain.number, plain.surprise, plain.countries, chances))
    found = readings(alerts_of(chosen(most=10_000, precision=0.8)), blocks)
    late = [hit.probability for reading in found[DAY:] for hit in reading.alerts]
    # Of uniform probabilities, those above .6 have a mean of .8.
    assert np.mean(late) == pytest.approx(0.8, abs=0.02)
    assert found[-1].probability == pytest.approx(0.6, abs=0.04)
    unbound = readings(alerts_of(chosen(most=10_000)), blocks)
    assert numbers_by_block(unbound).sum() > 1.5 * numbers_by_block(found).sum()


def test_without_labels_a_precision_holds_nothing_back(usual: list[Block]) -> None:
    asked = readings(alerts_of(chosen(precision=0.9)), usual[:DAY])
    plain = readings(alerts_of(chosen()), usual[:DAY])
    assert [r.alerts for r in asked] == [r.alerts for r in plain]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 2 * DAY - 1), max_size=5), st.integers(0, 2**31))
def test_a_state_that_was_stored_anywhere_flags_the_same(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [normal(1000 + n, rng, n=300, fraud=int(rng.random() < 0.1)) for n in range(2 * DAY)]
    wanted = chosen(most=5, segments={"country=de": 2}, precision=0.5)
    straight = alerts_of(wanted)
    expected = readings(straight, blocks)
    stored: FoldState | None = None
    found: list[FraudReading] = []
    edges = sorted({0, 2 * DAY, *cuts})
    for first, end in itertools.pairwise(edges):
        part = alerts_of(wanted, stored)
        found += readings(part, blocks[first:end])
        stored = part.row()
    assert found == expected
    assert stored == straight.row()


def test_a_new_baseline_begins_anew_but_not_with_more_alerts(usual: list[Block]) -> None:
    first = alerts_of(chosen())
    before = numbers_by_block(readings(first, usual[:DAY]))
    second = alerts_of(chosen(), first.row(), version=2)
    after = numbers_by_block(readings(second, usual[DAY : 2 * DAY]))
    assert most_in_a_period(np.concatenate([before, after])) <= 20
    assert second.row().reference == 2


def test_a_long_silence_makes_the_level_no_lower_than_calibration_does(usual: list[Block]) -> None:
    alerts = alerts_of(chosen())
    readings(alerts, usual[:DAY])
    rng = np.random.default_rng(6)
    late = [normal(1000 + 9 * DAY + number, rng) for number in range(DAY)]
    assert most_in_a_period(numbers_by_block(readings(alerts, late))) <= 20


def test_a_wave_is_seen_and_what_was_always_there_is_none(usual: list[Block]) -> None:
    quiet = readings(alerts_of(chosen()), usual)
    assert not any(reading.rate.page for reading in quiet)
    rng = np.random.default_rng(7)
    wave = [normal(1000 + DAY + number, rng, fraud=20) for number in range(6)]
    found = readings(alerts_of(chosen()), [*usual[:DAY], *wave])
    assert any(reading.rate.page for reading in found[DAY:])
    assert not any(reading.rate.warn for reading in found[:DAY])
    # As many again and again are what this stream has: after a period nothing is new about them.
    steady = [normal(1000 + number, rng, fraud=8) for number in range(4 * DAY)]
    paged = [reading.rate.page for reading in readings(alerts_of(chosen()), steady)]
    assert any(paged[:DAY])  # more than the baseline had
    assert not any(paged[2 * DAY :])


@pytest.mark.parametrize(
    ("name", "expected"), [("country=de", True), ("country=fr", False), ("shop=de", False), ("country", False)]
)
def test_a_segment_is_a_field_and_its_value(name: str, expected: bool) -> None:
    assert in_segment({"country": "de"}, name) is expected
