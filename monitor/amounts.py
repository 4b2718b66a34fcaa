"""Durations and shares as people say them."""

from __future__ import annotations

_UNITS = ((365.25 * 86_400, "year"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least two of it: "90 seconds", "36 hours", "12 days"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size or unit == "second":
            count = round(seconds / size)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    raise AssertionError("unreachable: the last unit takes everything")


def percent(share: float) -> str:
    """A share with two significant digits: "0.12 %", "5 %", "62 %"."""
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"
