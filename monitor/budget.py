"""One alarm budget for the whole deployment, divided by explicit shares that add up to one.

"One false page in 90 days" (`alarms.page_every_days`) is said once and holds for everything that driftd watches
together:

    the deployment ──► (model, space)      in proportion to weight of the model x weight of the space
                       ──► a tenth to waves of fraud, where the space's vectors are scored as fraud
                       ──► of the rest, half to the whole traffic, half to the segments, in proportion to their weights
                           (all to the whole traffic where there are no segments)
                           ──► a tenth to the outlier rate, nine tenths to drift
                               ──► level .4, shape .4, mix .2

An alarm with share w of a run length of T blocks is raised at a strength of log10(T / w), so the false alarms of all
together are at most one in T blocks on average: a union bound, which holds however the alarms depend on each other and
however long the blocks of each model are. A share that is not used is nobody's: not that of a muted channel, nor that
of a segment without records. What a rare segment gets was fixed when its reference was built.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from connectors.database.rows import IncidentRow
from connectors.database.store import Store
from detectors.baseline import Constants, Moments
from detectors.fold import CHANNELS, MIN_BASELINE_TO_PAGE, MIN_RECORDS, OMEGA, Channel, FoldSettings, Rule
from monitor.fraud_settings import FRAUD_SPACE
from monitor.incident_list import incident_id_of
from monitor.settings import ModelSettings, Settings

DAY_S = 86_400.0
FRAUD_SHARE = 0.1  # of a space's share, where its vectors are scored as fraud: for waves of fraud
RATE_SHARE = 0.1  # of an alarm's share: for the outlier rate; the rest is for drift
SEGMENTS_SHARE = 0.5  # of a space's share: for its segments, where it has any; the rest is for the whole traffic
OUTLIER_RATE = "outlier_rate"
FRAUD_WAVE = "fraud_wave"
# Effective records below which a baseline may only warn, however many it holds: null runs with 10,000 kept the stated
# run length (docs/drift.md), smaller ones were not run.
MIN_EFFECTIVE_TO_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Share:
    """What one alarm may spend of the deployment's budget.

    Attributes:
        space: a space, or "fraud" for waves of fraud.
        segment: "" for the whole traffic of the space.
        channel: level, shape, mix, outlier_rate or fraud_wave.
        share: part of the whole budget, above 0.
        alarm_share: of the alarm that the channel speaks for, which decides at what strength: the three channels of
            drift share one, the outlier rate has its own.
        muted: the channel is switched off; its share stays unused.
    """

    model: str
    space: str
    segment: str
    channel: str
    share: float
    alarm_share: float
    muted: bool


def share_of_space(settings: Settings, model: str, space: str) -> float:
    """The share of one (model, space); those of the deployment add up to one."""
    total = math.fsum(
        entry.weight * inner.weight for entry in settings.models.values() for inner in entry.spaces.values()
    )
    chosen = settings.models[model]
    return chosen.weight * chosen.spaces[space].weight / total


def segment_shares(settings: Settings, model: str, space: str, segments: Sequence[str]) -> dict[str, float]:
    """The share of every segment of a (model, space), "" for the whole traffic; drift and outlier rate together.

    Args:
        segments: every segment with an alarm of its own, such as "country=de".
    """
    whole = share_of_space(settings, model, space)
    if _is_scored(settings, model, space):
        whole -= fraud_share(settings, model)
    if not segments:
        return {"": whole}
    weights = {name: weight_of_segment(settings.models[model], name) for name in segments}
    total = math.fsum(weights.values())
    return {"": whole * (1.0 - SEGMENTS_SHARE)} | {
        name: whole * SEGMENTS_SHARE * (weight / total) for name, weight in weights.items()
    }


def fraud_share(settings: Settings, model: str) -> float:
    """The share of a model's waves of fraud; 0 where no fraud scores are configured."""
    chosen = settings.models[model]
    return 0.0 if chosen.fraud is None else FRAUD_SHARE * share_of_space(settings, model, chosen.fraud_space)


def _is_scored(settings: Settings, model: str, space: str) -> bool:
    chosen = settings.models[model]
    return chosen.fraud is not None and chosen.fraud_space == space


def weight_of_segment(model: ModelSettings, segment: str) -> float:
    """The weight of a segment such as "country=de" among the others: its own, else that of its field, else 1."""
    weights = model.drift.segment_weights
    return weights.get(segment, weights.get(segment.partition("=")[0], 1.0))


def channels_in_use(model: ModelSettings) -> tuple[Channel, ...]:
    """The channels of drift that may alarm."""
    return tuple(name for name in CHANNELS if model.drift.channels.get(name, True))


def shares(settings: Settings, segments: Mapping[tuple[str, str], Sequence[str]]) -> list[Share]:
    """Every alarm of the deployment with its share; muted ones included, they add up to one.

    Args:
        segments: the segments of each (model, space) that have an alarm of their own; none where absent.
    """
    parts: dict[str, tuple[float, float]] = {name: (1.0 - RATE_SHARE, part) for name, part in OMEGA.items()}
    parts[OUTLIER_RATE] = (RATE_SHARE, 1.0)
    found = []
    for model, entry in settings.models.items():
        heard: set[str] = {*channels_in_use(entry), OUTLIER_RATE}
        for space in entry.spaces:
            for segment, share in segment_shares(settings, model, space, segments.get((model, space), ())).items():
                found += [
                    Share(model, space, segment, channel, share * alarm * part, share * alarm, channel not in heard)
                    for channel, (alarm, part) in parts.items()
                ]
        if (share := fraud_share(settings, model)) > 0:
            found.append(Share(model, FRAUD_SPACE, "", FRAUD_WAVE, share, share, False))
    return found


def run_length(every_days: float, block_s: float) -> float:
    """Blocks of ``block_s`` seconds in so many days of event time."""
    return every_days * DAY_S / block_s


def threshold(every_days: float, block_s: float, share: float) -> float:
    """The strength, in log10 blocks, at which an alarm with this share is raised."""
    return math.log10(run_length(every_days, block_s) / share)


def fold_settings(settings: Settings, model: str, share: float) -> FoldSettings:
    """How sure a drift alarm must be that has this share of the budget (`Share.alarm_share`)."""
    chosen = settings.models[model]
    return FoldSettings.in_days(
        settings.page_every_days,
        settings.warn_every_days,
        block_s=chosen.drift.block,
        share=share,
        tolerance=chosen.drift.tolerance,
        contamination=chosen.outliers.budget,
        channels=channels_in_use(chosen),
    )


def smallest_shift(rule: Rule, records: int) -> float | None:
    """The shift of the mean, in whitened standard deviations, that a window of so many records pages at on average.

    The statistic T of `detectors.fold` grows by n times the squared shift; it pages where its p-value is small enough.
    None for windows that the rule does not keep: shorter than 256 records, or longer than a quarter of the baseline.
    """
    if "level" not in rule.channels or not MIN_RECORDS <= records <= rule.max_records:
        return None
    n = np.array([float(records)])
    price = math.log10(OMEGA["level"] / (2.0 * rule.max_windows))
    needed = (price - rule.settings.page_threshold) * math.log(10.0)
    mean = float(rule.level.cumulants(n)[0][0])
    low, high = mean, 2.0 * mean + 1.0
    while float(rule.level.log_p(np.array([high]), n)[0]) > needed:
        low, high = high, 2.0 * high
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if float(rule.level.log_p(np.array([middle]), n)[0]) > needed else (low, middle)
    return math.sqrt((high - mean) / records)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the alarm budget looks like from outside.

    Attributes:
        days: event time that was judged, of the last `Settings.page_every_days` at most.
        pages: incidents of drift, the outlier rate or a wave of fraud that became a page in it.
        called_false: of them, those of which a person said that nothing had changed.
    """

    days: float
    pages: int
    called_false: int

    @property
    def pages_per_day(self) -> float:
        """Pages per day of event time; 0 before anything was judged."""
        return self.pages / self.days if self.days > 0 else 0.0

    @property
    def false_per_day(self) -> float:
        """Pages that people called false, per day of event time; 0 before anything was judged."""
        return self.called_false / self.days if self.days > 0 else 0.0


def observed(incidents: Iterable[IncidentRow], *, judged_ms: tuple[int, int] | None, window_days: float) -> Observed:
    """Count the pages of the last ``window_days``.

    Args:
        incidents: of one model, or of all.
        judged_ms: from when to when blocks were judged, in event time; None before the first.
    """
    if judged_ms is None:
        return Observed(0.0, 0, 0)
    start = max(judged_ms[0], judged_ms[1] - round(window_days * DAY_S * 1000))
    pages = [row for row in incidents if is_page(row) and paged_ms(row) >= start]
    false = sum(row.detail.get("verdict") == "false" for row in pages)
    return Observed((judged_ms[1] - start) / 1000 / DAY_S, len(pages), false)


def observed_by_model(settings: Settings, store: Store) -> dict[str, Observed]:
    """What the database knows of every model's pages in the last `Settings.page_every_days`."""
    return {
        model: observed(
            store.incidents(model=model), judged_ms=store.judged_ms(model), window_days=settings.page_every_days
        )
        for model in settings.models
    }


def together(seen: Iterable[Observed]) -> Observed:
    """The pages of all models; the days are those of the model that was watched longest."""
    found = list(seen)
    return Observed(
        max((one.days for one in found), default=0.0),
        sum(one.pages for one in found),
        sum(one.called_false for one in found),
    )


def call_incident(store: Store, beginning: str, *, false: bool) -> str:
    """Store what a person says of the incident whose id begins so; returns its id.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    return store.call_incident(incident_id_of(store, beginning), "false" if false else "real").id


def is_page(row: IncidentRow) -> bool:
    """Whether an incident is one that the alarm budget is about: a page of drift, the outlier rate or a fraud wave."""
    return row.severity == "page" and row.kind in ("drift", OUTLIER_RATE, FRAUD_WAVE)


def paged_ms(row: IncidentRow) -> int:
    """Event time at which an incident first was a page."""
    found = row.detail.get("paged_ms")
    return found if isinstance(found, int) else row.opened_ms


def budget_so_far(settings: Settings, seen: Observed) -> str:
    """Expected beside observed, in words: "expected at most 1 in 90 days; 2 pages in 31 days, 1 called false"."""
    pages = f"{seen.pages} page{'s'[: seen.pages != 1]} in {_days(seen.days)}"
    said = f", {seen.called_false} called false" if seen.pages else ""
    return f"expected at most 1 false page in {_days(settings.page_every_days)}; {pages}{said}"


def _days(days: float) -> str:
    return f"{days:.3g} day{'s'[: days != 1]}"


def why_only_warns(constants: Constants) -> str:
    """In words, why an alarm with this baseline may only warn; "" if it may page.

    A page needs 50,000 baseline records, 50,000 of them for calibration, and 10,000 of each that are worth independent
    ones: below, the error of the baseline hides weak shifts and fakes strong ones.

    Args:
        constants: of the whole traffic or of a segment, from `detectors.segments.constants_of`.
    """
    records = Moments.from_array(constants["level_moments"]).n
    calibration, effective_calibration = (float(value) for value in np.asarray(constants["calibration"], np.float64))
    effective = records / float(np.asarray(constants["level_inflation"], np.float64)[1, -1])
    if min(records, calibration) < MIN_BASELINE_TO_PAGE:
        few, least = min(records, calibration), MIN_BASELINE_TO_PAGE
        found = f"{records:,.0f} records, {calibration:,.0f} of them for calibration"
    elif min(effective, effective_calibration) < MIN_EFFECTIVE_TO_PAGE:
        few, least = min(effective, effective_calibration), MIN_EFFECTIVE_TO_PAGE
        found = (
            f"{records:,.0f} records, {calibration:,.0f} of them for calibration, worth only {effective:,.0f} and "
            f"{effective_calibration:,.0f} independent ones, because neighbouring records resemble each other"
        )
    else:
        return ""
    wanted = _rounded_up(1.02 * records * least / max(few, 1.0))  # the halves are cut at blocks, not at the middle
    return f"it holds {found}; a page needs {least:,}, which a baseline of {wanted:,} records would give"


def _rounded_up(records: float) -> int:
    """To two significant digits."""
    unit = 10 ** max(math.floor(math.log10(records)) - 1, 0)
    return int(math.ceil(records / unit - 1e-9) * unit)
