"""One alarm budget for the whole deployment, divided by explicit shares that add up to one.

"One false page in 90 days" holds for everything that driftd watches together. Every (model, space) has an equal share;
where a model has segments, half of a space's share goes to its whole traffic and the other half equally to the
segments. A tenth of each part is the outlier rate's, the rest the drift's. An alarm with share w of a run length of T
blocks pages at a strength of log10(T / w), so the expected false pages of all alarms together are at most one in T
blocks (a union bound, which holds however the alarms depend on each other).
"""

from __future__ import annotations

import math

from monitor.settings import Settings

DAY_S = 86_400.0
RATE_SHARE = 0.1  # of an alarm's share: for the outlier rate; the rest is for drift


def share_of_segment(settings: Settings, model: str, segment: str, *, segments: int) -> float:
    """The share of one (space, segment) of a model.

    Args:
        segment: "" for the whole traffic of the space.
        segments: how many named segments the space has, "(other)" included.
    """
    spaces = sum(len(entry.spaces) for entry in settings.models.values())
    if segments == 0:
        return 1.0 / spaces
    return (0.5 if segment == "" else 0.5 / segments) / spaces


def run_length(every_days: float, block_s: float) -> float:
    """Blocks of ``block_s`` seconds in so many days of event time."""
    return every_days * DAY_S / block_s


def threshold(every_days: float, block_s: float, share: float) -> float:
    """The strength, in log10 blocks, at which an alarm with this share is raised."""
    return math.log10(run_length(every_days, block_s) / share)
