"""From fraud scores to what people are asked to look at: which hits become alerts, and when there are too many.

**Alerts.** People can look at `fraud.alerts.most` records in each `fraud.alerts.every` of event time. Of each block,
the candidates (p <= alpha) are alerts whose surprise reaches a level that no more than that reach in a usual period:
the smallest level that was reached at most `most` times in the median of up to seven periods before this one. The
median, because a burst on one day says nothing of the next. Within the first period, what is left of it is taken to be
normal traffic at the pace so far, of which the share 10^-s has a surprise of s or more. So calibrated p-values decide
at first, and what the stream shows takes over. Surprise is a rank among normal records, so the level stays valid when
new labels change the scorer.

A level does not hold back a burst, so in no period are there more alerts than `most`: hits beyond are counted, and a
wave tells of them. A segment with a number of its own gets alerts at a level of its own, up to that number.

With `fraud.alerts.precision`, a hit that was scored with labels must also reach the smallest probability above which
the mean probability of the candidates is at least the precision: that mean is the share of fraud that the calibrated
scorer promises.

**Waves.** The rate of candidates is tested like the rate of outliers (`detectors.rate`), against the calibrated rate
and, after the first period, against the median rate of the periods before, if that is more: fraud that was always there
is no wave.

All of it is a function of the blocks in their order: a replay flags the same records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from connectors.database.rows import FoldState, FraudHit
from detectors.rate import RateReading, RateRule, RateState, fold_rate
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.record_counts import PROBABILITY_BINS, SURPRISE_BINS, SURPRISE_STEP, FraudCounts, Sparse, added

Floats = npt.NDArray[np.float64]
ReadHits = Callable[[float, int], Sequence[FraudHit]]

MEMORY_PERIODS = 7  # with days, a week: each day of it counts as much
MOST_READ = 20_000  # hits of one block that are looked at, the most surprising
SLOTS = 256  # parts of a period that remember how many alerts there were
STATE = ("", FRAUD_SPACE)  # space and segment of the stored state: of everything, like counts of records
WHOLE = ""  # the pool of alerts that all records compete for

_EDGES = np.arange(SURPRISE_BINS) * SURPRISE_STEP
_PROBABLE = np.arange(PROBABILITY_BINS) / PROBABILITY_BINS


def in_segment(segments: Mapping[str, str], name: str) -> bool:
    """Whether a record with these values of segment fields belongs to a segment such as "country=de"."""
    field, _, value = name.partition("=")
    return segments.get(field) == value


@dataclass(frozen=True, slots=True)
class FraudReading:
    """What one block says about fraud.

    Attributes:
        rate: of the alarm of waves.
        level: surprise from which on a candidate of the whole traffic is an alert.
        probability: probability that an alert scored with labels must reach, too; 0 where no precision is asked for.
        alerts: the candidates that are alerts.
        unlisted: hits that reach the level, beyond the most of a period.
        period: alerts in the last period, these included; `period_unlisted`: hits beyond in it.
    """

    rate: RateReading
    level: float
    probability: float
    alerts: list[FraudHit]
    unlisted: int
    period: int
    period_unlisted: int


@dataclass(frozen=True, slots=True)
class _Period:
    """Counts of the last period, in slots: (slot, how many). A slot counts until all of it is older than the period."""

    every_ms: int
    slot_ms: int

    def recent(self, slots: Sequence[tuple[int, int]], end_ms: int) -> list[tuple[int, int]]:
        oldest = (end_ms - self.every_ms) // self.slot_ms
        return [entry for entry in slots if entry[0] >= oldest]

    def total(self, slots: Sequence[tuple[int, int]], end_ms: int) -> int:
        return sum(count for _, count in self.recent(slots, end_ms))

    def added(self, slots: Sequence[tuple[int, int]], count: int, end_ms: int) -> list[tuple[int, int]]:
        kept, slot = self.recent(slots, end_ms), end_ms // self.slot_ms
        if count and kept and kept[-1][0] == slot:
            return [*kept[:-1], (slot, kept[-1][1] + count)]
        return [*kept, (slot, count)] if count else kept


class _Past(msgspec.Struct):
    """What one period showed.

    Attributes:
        number: of the period, counted from the first block.
        probability: candidates scored with labels, by probability.
        surprise: records by their surprise, of everything and of each segment with alerts of its own.
    """

    number: int
    records: int = 0
    candidates: int = 0
    probability: Sparse = {}
    surprise: dict[str, Sparse] = {}


class _State(msgspec.Struct):
    """What the alerts know of the past.

    Attributes:
        start_ms: where the first period begins; None before the first block.
        periods: the last ones that had records, the current one last.
        given: alerts in the last period, by pool: (slot, how many).
        unlisted: hits beyond the budget in the last period.
    """

    rate: bytes
    start_ms: int | None = None
    periods: list[_Past] = []
    given: dict[str, list[tuple[int, int]]] = {}
    unlisted: list[tuple[int, int]] = []


class FraudAlerts:
    """The alerts of one model, block after block.

    Args:
        settings: of fraud scores.
        rule: of the rate of candidates.
        version: of the fraud baseline; another one begins anew, but for the alerts that were given.
        block_ms: event time of one block, in milliseconds.
        stored: the state as it was left; None at the beginning.
        first_block: the next block.
    """

    def __init__(
        self,
        settings: FraudSettings,
        rule: RateRule,
        *,
        version: int,
        block_ms: int,
        stored: FoldState | None,
        first_block: int,
    ) -> None:
        self._settings, self._rule, self._version, self._block_ms = settings, rule, version, block_ms
        self._every_ms = round(settings.alerts.every * 1000)
        self._period = _Period(self._every_ms, max(self._every_ms // SLOTS, block_ms))
        fresh = RateState.start(rule, block=first_block).to_bytes()
        state = _State(fresh) if stored is None else msgspec.msgpack.decode(stored.blob, type=_State)
        if stored is not None and stored.reference != version:
            # Ranks among other records: only what people were given to do is the same.
            state = _State(fresh, given=state.given, unlisted=state.unlisted)
        self._state = state
        self._rate = RateState.from_bytes(state.rate)
        self._most = {WHOLE: settings.alerts.most, **settings.alerts.segments}

    def push(self, block: int, counts: FraudCounts, read: ReadHits, *, span: int = 1) -> FraudReading:
        """Take in one block.

        Args:
            span: so many blocks are taken in as one, the last of which is ``block``.
            read: gives the block's candidates with such a surprise or more, at most so many, the strangest first.
        """
        state, period = self._state, self._period
        end_ms = (block + 1) * self._block_ms
        if state.start_ms is None:
            state.start_ms = end_ms - span * self._block_ms
        number = (end_ms - self._block_ms - state.start_ms) // self._every_ms
        if not state.periods or state.periods[-1].number != number:
            state.periods = [*state.periods[-MEMORY_PERIODS:], _Past(number)]
        levels = {name: self._level(name, counts, end_ms) for name in self._most}
        least = self._least_probability()
        before = {
            name: max(most - period.total(state.given.get(name, []), end_ms), 0) for name, most in self._most.items()
        }
        room = dict(before)
        alerts, unlisted = self._choose(counts, levels, least, room, read)
        state.given = {
            name: period.added(state.given.get(name, []), before[name] - room[name], end_ms) for name in self._most
        }
        state.unlisted = period.added(state.unlisted, unlisted, end_ms)
        rate = self._fold_rate(block, counts, span)
        self._remember(counts)
        return FraudReading(
            rate=rate,
            level=levels[WHOLE],
            probability=least,
            alerts=alerts,
            unlisted=unlisted,
            period=period.total(state.given[WHOLE], end_ms),
            period_unlisted=period.total(state.unlisted, end_ms),
        )

    def row(self) -> FoldState:
        """The state, to be stored."""
        self._state.rate = self._rate.to_bytes()
        return FoldState(*STATE, self._version, msgspec.msgpack.encode(self._state))

    def _level(self, name: str, counts: FraudCounts, end_ms: int) -> float:
        """The smallest surprise that is reached at most so often in a usual period as there may be alerts."""
        *past, current = self._state.periods
        if past:
            reached = np.array([_above(period.surprise.get(name, {})) for period in past])
            expected = np.sort(reached, axis=0)[(len(past) - 1) // 2]  # the lower median: of two, the quiet one
        else:
            own = counts if name == WHOLE else counts.segments.get(name)
            start_ms = end_ms - self._block_ms if self._state.start_ms is None else self._state.start_ms
            known = current.surprise.get(name, {})
            records = sum(known.values()) + (0 if own is None else own.n)
            left_ms = self._every_ms - (end_ms - self._block_ms - start_ms)
            expected = _above(known) + records / (end_ms - start_ms) * left_ms * 10.0**-_EDGES
        fits = np.flatnonzero(expected <= self._most[name])
        level = float(_EDGES[fits[0] if len(fits) else -1])
        return level if level > -math.log10(self._settings.alpha) else 0.0  # every candidate reaches it

    def _least_probability(self) -> float:
        """The smallest probability above which the candidates' mean is the precision that is asked for."""
        wanted = self._settings.alerts.precision
        if wanted is None:
            return 0.0
        counts = np.sum([_dense(past.probability, PROBABILITY_BINS) for past in self._state.periods], axis=0)[::-1]
        total = np.cumsum(counts)
        mean = np.cumsum(counts * (_PROBABLE[::-1] + 0.5 / PROBABILITY_BINS)) / np.maximum(total, 1.0)
        enough = np.flatnonzero((total > 0) & (mean >= wanted))
        # Those that are as probable as that themselves are welcome, whether there were any or not.
        own = math.ceil(wanted * PROBABILITY_BINS) / PROBABILITY_BINS
        return min(own, float(_PROBABLE[::-1][enough[-1]])) if len(enough) else own

    def _choose(
        self, counts: FraudCounts, levels: Mapping[str, float], least: float, room: dict[str, int], read: ReadHits
    ) -> tuple[list[FraudHit], int]:
        """The alerts of a block, and how many hits are beyond the budget. What they take is taken from ``room``."""
        lowest = min(levels.values())
        if counts.candidates == 0:
            return [], 0
        if not any(room.values()):
            reach = sum(count for index, count in counts.surprise.items() if _EDGES[index] >= lowest)
            return [], min(reach, counts.candidates)
        hits = read(lowest, MOST_READ)
        alerts: list[FraudHit] = []
        unlisted = counts.candidates - MOST_READ if len(hits) == MOST_READ else 0
        for hit in hits:
            if hit.labels and hit.probability < least:
                continue
            own = [name for name in levels if name != WHOLE and in_segment(hit.segments, name)]
            reached = [name for name in (WHOLE, *own) if hit.surprise >= levels[name]]
            if not any(room[name] for name in reached):
                unlisted += bool(reached)
                continue
            alerts.append(hit)
            if WHOLE in reached and room[WHOLE]:
                room[WHOLE] -= 1
            for name in own:
                room[name] = max(room[name] - 1, 0)
        return alerts, max(unlisted, 0)

    def _fold_rate(self, block: int, counts: FraudCounts, span: int) -> RateReading:
        rule = self._rule
        if past := [one for one in self._state.periods[:-1] if one.records]:
            usual = sorted(past, key=lambda one: one.candidates / one.records)[(len(past) - 1) // 2]
            rule = rule.against(usual.candidates / usual.records, records=usual.records)
        self._rate, reading = fold_rate(self._rate.at(block), counts.n, counts.candidates, rule, blocks=span)
        return reading

    def _remember(self, counts: FraudCounts) -> None:
        now = self._state.periods[-1]
        now.records += counts.n
        now.candidates += counts.candidates
        now.probability = added(now.probability, counts.probability)
        for name in self._most:
            own = counts if name == WHOLE else counts.segments.get(name)
            if own is not None:
                now.surprise = {**now.surprise, name: added(now.surprise.get(name, {}), own.surprise)}


def _above(counts: Sparse) -> Floats:
    """How many have a surprise of each edge or more."""
    return np.asarray(np.cumsum(_dense(counts, SURPRISE_BINS)[::-1])[::-1])


def _dense(counts: Sparse, size: int) -> Floats:
    found = np.zeros(size)
    found[list(counts)] = list(counts.values())
    return found
