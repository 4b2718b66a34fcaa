"""The report's section about the model itself: the verdict, why, and right answers over time against the floor."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from dashboards.report_data import Counts, Floats, MeasuredPoint, VerdictSection, WordSpan
from dashboards.report_parts import card, pill
from dashboards.scales import Linear, clock, count, duration, number_ticks, safe_text, time_tick_label, time_ticks
from dashboards.verdict_words import Level

MAX_POINTS: Final = 480  # places along the chart; blocks that share a place show the widest interval
MAX_SPANS: Final = 400
MAX_MEASURED: Final = 120
MAX_REASONS: Final = 8

PILLS: Final[dict[Level, str]] = {
    "blind": "blind",
    "page": "page",
    "warn": "warn",
    "caution": "warn",
    "neutral": "neutral",
    "fine": "ok",
}

_WIDE, _TALL = 1120, 268
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 1108, 34, 200
_WORDS_TOP, _WORDS_BOTTOM = 10, 24
_NOVEL_TOP, _NOVEL_BOTTOM = 208, 232
_LETTER: Final = 6.1


def verdict_section(verdict: VerdictSection, *, start_ms: int, end_ms: int) -> str:
    """The section as HTML, over [start, end]."""
    since = "" if verdict.since_ms is None else f' <span class="soft">since {clock(verdict.since_ms)}</span>'
    parts = [f"<p>{pill(PILLS[verdict.level], verdict.word)}{since}</p>"]
    if verdict.reasons:
        reasons = "".join(f"<li>{safe_text(reason, at_most=600)}</li>" for reason in verdict.reasons[:MAX_REASONS])
        parts.append(f"<ul>{reasons}</ul>")
    if len(verdict.starts_ms):
        parts.append(f'<div class="scroll">{verdict_svg(verdict, start_ms=start_ms, end_ms=end_ms)}</div>{_LEGEND}')
    if verdict.numbers:
        facts = "".join(f"<dt>{safe_text(name)}</dt><dd>{safe_text(text)}</dd>" for name, text in verdict.numbers)
        parts.append(f'<dl class="facts">{facts}</dl>')
    if verdict.unseen:
        parts.append(f'<p class="caption"><b>Not seen:</b> {safe_text(verdict.unseen, at_most=600)}</p>')
    if verdict.next_step != "nothing":
        parts.append(f'<p class="caption"><b>Next:</b> {_commands(verdict.next_step)}</p>')
    caption = (
        "Share of right answers: estimated from the model's own confidence, calibrated on the baseline, and from how "
        "much of the traffic is like nothing in the baseline; measured where true answers are known."
    )
    return card("Is the model still good?", caption, "".join(parts))


_LEGEND: Final = (
    '<div class="legend"><span><i class="bar" style="background:var(--calm)"></i>estimated, its interval</span>'
    '<span><i style="background:var(--ok)"></i>measured with labels, 95 %</span>'
    '<span><i class="bar" style="background:var(--page-line)"></i>floor</span>'
    '<span><i class="bar" style="background:var(--bar)"></i>new content, below</span></div>'
)


def _commands(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe_text(text, at_most=600))


def verdict_svg(verdict: VerdictSection, *, start_ms: int, end_ms: int) -> str:
    """Right answers over time: the estimate's interval as a band, what is measured as dots, the floor as a line."""
    times, low, high, floor, novel = thinned(verdict)
    measured = shown_measured(verdict.measured)
    bottom = lowest(low, floor, measured)
    x, y = Linear(start_ms, end_ms, _LEFT, _RIGHT), Linear(bottom, 1.0, _BOTTOM, _TOP)
    spoken = f"Share of right answers over {len(verdict.starts_ms)} blocks; the verdict now is {verdict.word}."
    parts = [f'<svg class="chart wide" viewBox="0 0 {_WIDE} {_TALL}" role="img" aria-label="{safe_text(spoken)}">']
    for value in number_ticks(bottom, 1.0, at_most=5):
        at = y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{_percent(value)}</text>'
        )
    parts += [_span(x, span) for span in verdict.spans[-MAX_SPANS:]]
    for run in runs(times, low, verdict.block_ms):
        upper = "L".join(f"{x(float(times[i])):.1f} {y(float(high[i])):.1f}" for i in run)
        lower = "L".join(f"{x(float(times[i])):.1f} {y(float(low[i])):.1f}" for i in reversed(run))
        parts.append(f'<path class="band" d="M{upper}L{lower}Z"/><path class="line calm" d="M{upper}"/>')
        parts.append(f'<path class="line calm" d="M{lower}"/>')
    for run in runs(times, floor, verdict.block_ms):
        path = "L".join(f"{x(float(times[i])):.1f} {y(float(floor[i])):.1f}" for i in run)
        parts.append(f'<path class="threshold page" fill="none" d="M{path}"/>')
    known = floor[~np.isnan(floor)]
    if len(known):
        parts.append(
            f'<text class="threshold-label page" x="{_LEFT + 6}" y="{y(float(known[0])) + 13:.1f}">floor '
            f"{_percent(float(known[0]))}</text>"
        )
    parts += [_dot(x, y, point, bottom) for point in measured]
    parts.append(_novel(x, times, novel, verdict.block_ms))
    for time in time_ticks(start_ms, end_ms, at_most=12):
        at = x(time)
        label = safe_text(time_tick_label(time, end_ms - start_ms))
        anchor = "end" if at > _RIGHT - 16 else "middle"
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_NOVEL_BOTTOM}" y2="{_NOVEL_BOTTOM + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{_NOVEL_BOTTOM + 18}" text-anchor="{anchor}">{label}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_NOVEL_BOTTOM}" y2="{_NOVEL_BOTTOM}"/></svg>')
    return "".join(parts)


def thinned(verdict: VerdictSection) -> tuple[Counts, Floats, Floats, Floats, Floats]:
    """Middles of at most `MAX_POINTS` places, and their low, high, floor and new content: the worst of each place."""
    n = len(verdict.starts_ms)
    per_place = max(-(-n // MAX_POINTS), 1)
    firsts = np.arange(0, n, per_place)
    columns = [np.asarray(values, dtype=np.float64) for values in (verdict.low, verdict.high, verdict.floor)]
    low, high, floor = (np.fmin.reduceat(columns[0], firsts), np.fmax.reduceat(columns[1], firsts), columns[2][firsts])
    novel = np.fmax.reduceat(np.asarray(verdict.novel, dtype=np.float64), firsts)
    lasts = np.minimum(firsts + per_place, n) - 1
    middles = (verdict.starts_ms[firsts] + verdict.starts_ms[lasts] + verdict.block_ms) // 2
    return middles, low, high, floor, novel


def lowest(low: Floats, floor: Floats, measured: Sequence[MeasuredPoint]) -> float:
    """Where the axis begins: a little under all there is, on a whole twentieth, at most 0.95."""
    seen = [float(value) for values in (low, floor) for value in values if not math.isnan(value)]
    seen += [point.low if not math.isnan(point.low) else point.value for point in measured]
    least = min(seen, default=0.0)
    return max(min(math.floor(20.0 * (least - 0.01)) / 20.0, 0.95), 0.0)


def shown_measured(points: Sequence[MeasuredPoint]) -> list[MeasuredPoint]:
    """Points that are known, at most `MAX_MEASURED`, evenly chosen; the last one always."""
    known = [point for point in points if not math.isnan(point.value)]
    step = max(-(-len(known) // MAX_MEASURED), 1)
    return known[::-1][::step][::-1]


def runs(times: Counts, values: Floats, block_ms: int) -> list[list[int]]:
    """Places that hold a number and have no gap between them: a line is drawn for each."""
    found: list[list[int]] = []
    usual = max(block_ms, int(np.median(np.diff(times))) if len(times) > 1 else 0)
    for place in np.flatnonzero(~np.isnan(values)).tolist():
        if found and place == found[-1][-1] + 1 and times[place] - times[place - 1] <= 3 * usual:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _span(x: Linear, span: WordSpan) -> str:
    """A stretch of the strip on top, with its word where there is room."""
    start, end = max(x(span.start_ms), _LEFT), min(x(span.end_ms), _RIGHT)
    if end <= start:
        return ""
    told = f"{span.word} from {clock(span.start_ms)}, for {duration(span.end_ms - span.start_ms)}"
    kind, wide = PILLS[span.level], max(end - start - 1, 0.6)
    drawn = (
        f'<rect class="word {kind}" x="{start:.1f}" y="{_WORDS_TOP}" width="{wide:.1f}" '
        f'height="{_WORDS_BOTTOM - _WORDS_TOP}"><title>{safe_text(told)}</title></rect>'
    )
    if len(span.word) * _LETTER + 8 < wide:
        place = f'x="{start + 5:.1f}" y="{_WORDS_BOTTOM - 3.5}"'
        drawn += f'<text class="word-label {kind}" {place}>{safe_text(span.word)}</text>'
    return drawn


def _dot(x: Linear, y: Linear, point: MeasuredPoint, bottom: float) -> str:
    at = x(point.time_ms)
    if not _LEFT <= at <= _RIGHT:
        return ""
    told = f"<title>{clock(point.time_ms)}: {_percent(point.value)} of {count(point.labels)} labelled</title>"
    whisker = ""
    if not math.isnan(point.low):
        ends = y(max(point.low, bottom)), y(min(point.high, 1.0))
        whisker = (
            f'<line class="measured" x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}">{told}</line>'
        )
    return (
        f'{whisker}<circle class="measured" cx="{at:.1f}" cy="{y(max(point.value, bottom)):.1f}" r="3">{told}</circle>'
    )


def _novel(x: Linear, times: Counts, novel: Floats, block_ms: int) -> str:
    """The share of new content as a small area under the chart; its height is said."""
    known = novel[~np.isnan(novel)]
    if not len(known):
        return ""
    top = max(float(known.max()), 0.01)
    y = Linear(0.0, top, _NOVEL_BOTTOM, _NOVEL_TOP)
    drawn = []
    for run in runs(times, novel, block_ms):
        line = "L".join(f"{x(float(times[i])):.1f} {y(float(novel[i])):.1f}" for i in run)
        first, last = x(float(times[run[0]])), x(float(times[run[-1]]))
        drawn.append(f"M{first:.1f} {_NOVEL_BOTTOM}L{line}L{last:.1f} {_NOVEL_BOTTOM}Z")
    told = f"<title>New content: at most {_percent(top)} of the records</title>"
    label = f'<text class="tick" x="{_LEFT - 7}" y="{_NOVEL_TOP + 6}" text-anchor="end">{_percent(top)}</text>'
    return f'<path class="sizes" d="{"".join(drawn)}">{told}</path>{label}'


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g}\u00a0%"
