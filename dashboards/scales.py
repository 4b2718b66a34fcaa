"""From numbers to places and words: axes, ticks, times and counts as a reader wants them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

MAX_TEXT: Final = 400  # characters of one sentence

_SECOND: Final = 1_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR

# Steps that a clock face or a calendar has.
_TIME_STEPS: Final = (
    *(n * _SECOND for n in (1, 2, 5, 10, 15, 30)),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 14, 28, 91, 182, 364)),
)


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight map of [low, high] onto the places [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """An even map of the ratios in [low, high], both above 0, onto the places [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        spread = math.log(self.high / self.low) or 1.0
        return self.start + (self.end - self.start) * math.log(max(value, self.low) / self.low) / spread


@dataclass(frozen=True, slots=True)
class Strengths:
    """Heights of strengths between ``floor`` and ``top``: straight up to the page level, logarithmic above it.

    A drift can be a hundred times as strong as its threshold; on a straight axis the threshold would lie on the floor.
    Where nothing is that strong, the axis is straight all the way.
    """

    page: float
    highest: float
    floor: float
    top: float

    @property
    def compressed(self) -> bool:
        return self.highest > 2.0 * self.page

    @property
    def knee(self) -> float:
        """The page level's height, as a share of the axis."""
        return 0.5 if self.compressed else self.page / self.highest

    def __call__(self, strength: float) -> float:
        held = min(max(strength, 0.0), self.highest)
        if held <= self.page or not self.compressed:
            share = held / self.page * self.knee
        else:
            share = self.knee + (1 - self.knee) * math.log(held / self.page) / math.log(self.highest / self.page)
        return self.floor + (self.top - self.floor) * share

    def ticks(self) -> list[float]:
        """Round strengths, far enough apart to be read."""
        if not self.compressed:
            return number_ticks(0.0, self.highest, at_most=5)
        ticks = number_ticks(0.0, self.page, at_most=2)
        apart = abs(self.top - self.floor) * 0.12
        power = 10.0 ** math.floor(math.log10(self.page))
        for value in (power * factor * decade for decade in (1, 10, 100, 1e3, 1e4, 1e5, 1e6) for factor in (1, 2, 5)):
            if self.page < value <= self.highest and abs(self(value) - self(ticks[-1])) >= apart:
                ticks.append(value)
        return ticks


def number_ticks(low: float, high: float, *, at_most: int) -> list[float]:
    """Round numbers within [low, high], in steps of 1, 2 or 5 times a power of ten.

    >>> number_ticks(0.0, 7.3, at_most=5)
    [0.0, 2.0, 4.0, 6.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(at_most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def ratio_ticks(low: float, high: float, *, at_most: int) -> list[float]:
    """Round numbers within [low, high], both above 0, about evenly spread over their ratios.

    >>> ratio_ticks(0.3, 40.0, at_most=8)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1,)):
        ticks = [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]
        if len(ticks) <= at_most:
            break
    return ticks[:: -(-len(ticks) // at_most) or 1] or number_ticks(low, high, at_most=at_most)


def time_ticks(start_ms: int, end_ms: int, *, at_most: int) -> list[int]:
    """Times within [start, end] that fall on a clock's or a calendar's marks, UTC, in milliseconds."""
    span = max(end_ms - start_ms, 1)
    step = next((step for step in _TIME_STEPS if span / step <= at_most), _TIME_STEPS[-1])
    while span / step > at_most:
        step *= 2
    first = -(-start_ms // step) * step
    return list(range(first, end_ms + 1, step))


def time_tick_label(time_ms: int, span_ms: int) -> str:
    """A tick's label: as much of the time as the span of the axis leaves open.

    >>> time_tick_label(1_772_438_400_000, 3_600_000)
    '08:00'
    """
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    if span_ms <= 5 * _MINUTE:
        return moment.strftime("%H:%M:%S")
    if span_ms <= 2 * _DAY:
        return moment.strftime("%H:%M")
    if span_ms <= 300 * _DAY:
        return moment.strftime("%d %b %H:%M" if time_ms % _DAY else "%d %b")
    return moment.strftime("%b %Y")


def clock(time_ms: int) -> str:
    """Date and time to the second, UTC.

    >>> clock(1_772_438_400_000)
    '2026-03-02 08:00:00'
    """
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def period(start_ms: int, end_ms: int) -> str:
    """A stretch of time; the date is said once where it is the same.

    >>> period(1_772_438_400_000, 1_772_441_200_000)
    '2026-03-02 08:00:00 to 08:46:40 UTC'
    """
    start, end = clock(start_ms), clock(end_ms)
    return f"{start} to {end[11:] if start[:10] == end[:10] else end} UTC"


def duration(span_ms: float) -> str:
    """A length of time in its two greatest units.

    >>> duration(2_800_000), duration(90 * 86_400_000)
    ('46 min 40 s', '90 days')
    """
    if span_ms < _SECOND:
        return f"{round(span_ms)} ms"
    if span_ms < 1.995 * _MINUTE:
        return f"{round(span_ms / _SECOND)} s"
    if span_ms < _HOUR:
        minutes, seconds = divmod(round(span_ms / _SECOND), 60)
        return f"{minutes} min" + (f" {seconds} s" if seconds else "")
    if span_ms < 1.995 * _DAY:
        if abs(span_ms - _DAY) < _MINUTE:
            return "1 day"
        hours, minutes = divmod(round(span_ms / _MINUTE), 60)
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    if span_ms < 730 * _DAY:
        return f"{round(span_ms / _DAY):,} days"
    years = span_ms / (365.25 * _DAY)
    if years < 1e6:
        return f"{float(f'{years:.2g}'):,.0f} years"
    return f"10^{round(math.log10(years))} years"


def count(n: int) -> str:
    """A count with separators, such as 71,680."""
    return f"{n:,}"


def small(value: float) -> str:
    """A score, a share or a p-value with two to four telling digits; nothing is rounded down to zero.

    >>> small(0.0000123), small(4.25), small(0.0)
    ('1.2e-05', '4.25', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"


def safe_text(text: str, *, at_most: int = MAX_TEXT) -> str:
    """A text of the user or of a record, safe between tags and in quoted attributes, and cut to ``at_most`` characters.

    >>> safe_text('<b> & "quote"')
    '&lt;b&gt; &amp; &quot;quote&quot;'
    """
    # HTML allows no control characters but tab and line break, and UTF-8 no lone surrogates.
    visible = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[\ud800-\udfff]", "\ufffd", text[: at_most + 1])
    return escape(visible if len(visible) <= at_most else visible[:at_most] + "…")
