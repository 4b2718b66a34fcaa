"""One alarm budget for the whole deployment, divided by explicit shares that add up to one.

"One false page in 90 days" (`alarms.page_every_days`) is said once and holds for everything that driftd watches
together:

    the deployment ──► (model, space)      in proportion to weight of the model x weight of the space
                       ──► half to the whole traffic, half to the segments, in proportion to their weights
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detectors.fold import CHANNELS, MIN_RECORDS, OMEGA, Channel, FoldSettings, Rule
from monitor.settings import ModelSettings, Settings

DAY_S = 86_400.0
RATE_SHARE = 0.1  # of an alarm's share: for the outlier rate; the rest is for drift
SEGMENTS_SHARE = 0.5  # of a space's share: for its segments, where it has any; the rest is for the whole traffic
OUTLIER_RATE = "outlier_rate"


@dataclass(frozen=True, slots=True)
class Share:
    """What one alarm may spend of the deployment's budget.

    Attributes:
        segment: "" for the whole traffic of the space.
        channel: level, shape, mix or outlier_rate.
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
    if not segments:
        return {"": whole}
    weights = {name: weight_of_segment(settings.models[model], name) for name in segments}
    total = math.fsum(weights.values())
    return {"": whole * (1.0 - SEGMENTS_SHARE)} | {
        name: whole * SEGMENTS_SHARE * (weight / total) for name, weight in weights.items()
    }


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
