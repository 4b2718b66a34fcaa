"""The report's charts as SVG, drawn by hand: crisp at every size, themed by the page, readable without scripts.

Every function returns one <svg> element. Colours are classes; `report.html` holds them. Texts are escaped here.
"""

from __future__ import annotations

import json
from html import escape
from itertools import pairwise
from typing import Final

import numpy as np

from dashboards.report_data import Counts, FlatMap, Floats, Mark, ScoreHistogram, Timeline
from dashboards.scales import (
    Linear,
    Logarithmic,
    Strengths,
    clock,
    count,
    duration,
    number_ticks,
    ratio_ticks,
    safe_text,
    small,
    time_tick_label,
    time_ticks,
)

MAX_POINTS: Final = 480  # places along a timeline; more blocks than this share a place, which shows their maximum
MAX_DOTS: Final = 2_500  # dots of a layer of the map
MAX_LABELLED_DOTS: Final = 150

_WIDE, _TALL = 1120, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 1108, 24, 144
_STRIP_TOP, _STRIP_BOTTOM = 150, 166
_LETTER: Final = 6.1  # width of a letter of an 11 px label, about

_MARK_WORDS: Final = {
    "onset": "onset",
    "page": "paged",
    "warn": "warned",
    "resolved": "resolved",
    "opinion": "second opinion",
}


def thin_out(values: Floats, n: Counts, *, at_most: int) -> tuple[Counts, Counts, Counts]:
    """Choose which blocks to draw: neighbours share a place, where the strongest speaks for all.

    Args:
        values: float64 (m,), what decides.
        n: int64 (m,), summed within a place.

    Returns:
        int64 (k,) each, k <= at_most: the first block of each place, the strongest, and the sum of n.
    """
    per_place = -(-len(values) // at_most)
    firsts = np.arange(0, len(values), max(per_place, 1), dtype=np.int64)
    if len(firsts) == 0:
        return firsts, firsts, firsts
    places = np.arange(len(values)) // max(per_place, 1)
    order = np.lexsort((-values, places))
    strongest = order[np.searchsorted(places[order], np.arange(len(firsts)))].astype(np.int64)
    return firsts, strongest, np.add.reduceat(n.astype(np.int64), firsts)


def timeline_svg(timeline: Timeline, *, start_ms: int, end_ms: int, name: str) -> str:
    """The evidence of one space and segment over [start, end] against its two thresholds.

    ``name`` is unique on the page; the chart's clipping areas are called after it.
    """
    strongest = timeline.strongest
    firsts, peaks, sizes = thin_out(strongest, timeline.n, at_most=MAX_POINTS)
    strengths = strongest[peaks]
    x = Linear(start_ms, end_ms, _LEFT, _RIGHT)
    page = max(timeline.page, 0.1)
    height = Strengths(page, max(float(strengths.max(initial=0.0)) * 1.04, page * 1.35), _BOTTOM, _TOP)
    middles = timeline.starts_ms[peaks] + timeline.block_ms / 2
    places = [(x(float(t)), height(float(s))) for t, s in zip(middles, strengths, strict=True)]
    page_y, warn_y = height(timeline.page), height(timeline.warn)
    where = f"space {timeline.space}" + (f", {timeline.segment}" if timeline.segment else "")
    spoken = (
        f"Evidence for drift in {where}: {len(strongest)} blocks, "
        f"strongest {small(float(strengths.max(initial=0.0)))}, page at {small(timeline.page)}."
    )
    by_channel = np.array([channel.evidence for channel in timeline.channels])
    channels = [timeline.channels[int(best)].name for best in by_channel[:, peaks].argmax(axis=0)]
    points = [
        [int(timeline.starts_ms[first]), round(float(s), 2), int(size), channel, round(px, 1), round(py, 1)]
        for first, s, size, channel, (px, py) in zip(firsts, strengths, sizes, channels, places, strict=True)
    ]
    data = escape(json.dumps(points, separators=(",", ":")))
    parts = [
        f'<svg class="chart timeline" viewBox="0 0 {_WIDE} {_TALL}" role="img" tabindex="0" '
        f'aria-label="{safe_text(spoken)}" data-points="{data}" '
        f'data-page="{timeline.page:g}" data-warn="{timeline.warn:g}">',
        f'<defs><clipPath id="{name}-calm"><rect x="0" y="{warn_y:.1f}" width="{_WIDE}" height="{_TALL}"/></clipPath>'
        f'<clipPath id="{name}-warn"><rect x="0" y="{page_y:.1f}" width="{_WIDE}" height="{warn_y - page_y:.1f}"/>'
        f'</clipPath><clipPath id="{name}-page"><rect x="0" y="0" width="{_WIDE}" height="{page_y:.1f}"/></clipPath>'
        f"</defs>",
    ]
    shades = [(max(x(one.start_ms), _LEFT), min(x(one.end_ms), _RIGHT), one.label) for one in timeline.truth]
    parts += [_shaded(*shade) for shade in shades]
    for value in height.ticks():
        at = height(value)
        # The thresholds' own labels come first.
        if abs(at - page_y) > 9 or value == 0:
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for level, at in (("page", page_y), ("warn", warn_y)):
        threshold = timeline.page if level == "page" else timeline.warn
        by_chance = duration(10.0**threshold * timeline.block_ms) if threshold < 300 else f"10^{threshold:g} blocks"
        parts.append(
            f'<line class="threshold {level}" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="threshold-label {level}" x="{_LEFT + 6}" y="{at - 4:.1f}">{level}'
            f'<tspan class="faint">, by chance once in {safe_text(by_chance)}</tspan></text>'
        )
    parts.append(_time_axis(x, start_ms, end_ms, y_text=_TALL - 12, y_line=_STRIP_BOTTOM))
    parts.append(_sizes_strip(x, timeline, firsts, sizes))
    runs = _runs(places, timeline, firsts)
    line = "".join("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in run) for run in runs)
    area = "".join(
        f"M{run[0][0]:.1f} {_BOTTOM}L{'L'.join(f'{px:.1f} {py:.1f}' for px, py in run)}L{run[-1][0]:.1f} {_BOTTOM}Z"
        for run in runs
    )
    for kind, path in (("area", area), ("line", line)):
        parts += [
            f'<path class="{kind} {level}" clip-path="url(#{name}-{level})" d="{path}"/>'
            for level in ("calm", "warn", "page")
            if path
        ]
    parts += [_shade_label(*shade) for shade in shades]
    parts.append(_open_strips(x, timeline, end_ms))
    parts.append(_marks(x, timeline))
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{_STRIP_BOTTOM}"/><circle class="cursor" r="4"/>')
    parts.append("</svg>")
    return "".join(parts)


def histogram_svg(histogram: ScoreHistogram) -> str:
    """Two score distributions as shares, on a logarithmic axis: the reference filled, the stream as a line."""
    wide, tall, left, right, top, bottom = 540, 330, 66, 530, 16, 286
    seen = np.asarray(histogram.reference, dtype=np.float64), np.asarray(histogram.stream, dtype=np.float64)
    shares = [counts / max(float(counts.sum()), 1.0) for counts in seen]
    filled = np.flatnonzero(seen[0] + seen[1] > 0)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(histogram.edges) - 1)
    edges = np.asarray(histogram.edges, dtype=np.float64)[first : last + 1]
    positive = np.concatenate([share[share > 0] for share in shares] + [np.array([1.0])])
    lowest = float(np.floor(np.log10(positive.min()) - 0.01))
    widths = np.diff(edges)
    x: Linear | Logarithmic
    if len(widths) > 2 and widths.max() > 5 * widths.min() and edges[1] > 0:
        # Bars of equal ratio; the lowest may begin at zero, and is drawn as wide as the next.
        edges = np.append(max(edges[0], edges[1] ** 2 / edges[2]), edges[1:])
        x = Logarithmic(float(edges[0]), float(edges[-1]), left, right)
        ticks = ratio_ticks(float(edges[0]), float(edges[-1]), at_most=8)
    else:
        x = Linear(float(edges[0]), float(edges[-1]), left, right)
        ticks = number_ticks(float(edges[0]), float(edges[-1]), at_most=7)
    y = Linear(lowest, 0.0, bottom, top)

    def steps(share: Floats) -> str:
        drawn = np.log10(np.maximum(share[first:last], 10.0**lowest))
        heights = [y(float(value)) for value in drawn]
        places = [x(float(edge)) for edge in edges]
        path = f"M{places[0]:.1f} {bottom}"
        for start, end, at in zip(places, places[1:], heights, strict=False):
            path += f"L{start:.1f} {at:.1f}L{end:.1f} {at:.1f}"
        return path + f"L{places[-1]:.1f} {bottom}"

    spoken = f"Outlier scores in space {histogram.space}: reference and stream."
    parts = [f'<svg class="chart" viewBox="0 0 {wide} {tall}" role="img" aria-label="{safe_text(spoken)}">']
    if histogram.flag_at is not None and histogram.flag_at < edges[-1]:
        at = min(max(x(histogram.flag_at), left), right)
        room = right - at
        parts.append(
            f'<rect class="flagged-area" x="{at:.1f}" y="{top}" width="{room:.1f}" height="{bottom - top}">'
            f"<title>Flagged: scores from {small(histogram.flag_at)} on</title></rect>"
            f'<line class="threshold page" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>'
            f'<text class="threshold-label page" x="{at + (6 if room > 60 else -6):.1f}" y="{top + 12}" '
            f'text-anchor="{"start" if room > 60 else "end"}">flagged</text>'
        )
    for power in range(int(lowest), 1, 1 if lowest >= -5 else 2):
        at = y(power)
        label = f"{10.0 ** (power + 2):g} %"
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{left - 7}" y="{at + 3.5:.1f}" text-anchor="end">{label}</text>'
        )
    for value in ticks:
        at = x(value)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="tick" x="{(left + right) / 2}" y="{tall - 8}" text-anchor="middle">'
        f"outlier score (stranger →)</text>"
    )
    parts.append(f'<path class="reference-area" d="{steps(shares[0])}Z"/>')
    parts.append(f'<path class="stream-line" d="{steps(shares[1])}"/>')
    parts.append("</svg>")
    return "".join(parts)


def map_svg(flat: FlatMap) -> str:
    """Vectors on the two principal axes of the reference: reference, recent, flagged. Far points sit on the frame."""
    wide, tall, edge = 540, 330, 12
    known = flat.reference if len(flat.reference) else np.zeros((1, 2))
    low, high = known.min(axis=0), known.max(axis=0)
    room = np.maximum(high - low, 1e-9) * 0.25
    low, high = low - room, high + room
    x, y = (
        Linear(float(low[0]), float(high[0]), edge, wide - edge),
        Linear(float(low[1]), float(high[1]), tall - edge, edge),
    )

    def places(points: Floats) -> list[tuple[float, float]]:
        held = np.clip(points, low, high)
        return [(round(x(float(a)), 1), round(y(float(b)), 1)) for a, b in held]

    spoken = (
        f"Map of space {flat.space}: {len(flat.reference)} reference records, {len(flat.recent)} recent ones, "
        f"{len(flat.flagged)} flagged."
    )
    parts = [
        f'<svg class="chart map" viewBox="0 0 {wide} {tall}" role="img" aria-label="{safe_text(spoken)}">'
        f'<rect class="frame" x="0.5" y="0.5" width="{wide - 1}" height="{tall - 1}" rx="6"/>'
    ]
    for points, layer in ((flat.reference, "reference"), (flat.recent, "recent")):
        chosen = points[:: max(-(-len(points) // MAX_DOTS), 1)]
        if len(chosen):
            dots = "".join(f"M{a:g} {b:g}h0" for a, b in places(chosen))
            parts.append(f'<path class="dots {layer}" d="{dots}"/>')
    for i, (a, b) in enumerate(places(flat.flagged[:MAX_LABELLED_DOTS])):
        title = f"<title>{safe_text(flat.labels[i], at_most=120)}</title>" if i < len(flat.labels) else ""
        parts.append(f'<circle class="dot flagged" cx="{a:g}" cy="{b:g}" r="3.6">{title}</circle>')
    parts.append("</svg>")
    return "".join(parts)


def _runs(places: list[tuple[float, float]], timeline: Timeline, firsts: Counts) -> list[list[tuple[float, float]]]:
    """Places without a gap between them; where no record came for a while, the line has a hole."""
    if not places:
        return []
    steps = np.diff(timeline.starts_ms[firsts])
    usual = max(timeline.block_ms, int(np.median(steps)) if len(steps) else 0)
    cuts = [0, *(np.flatnonzero(steps > 3 * usual) + 1).tolist(), len(places)]
    return [places[start:end] for start, end in pairwise(cuts)]


def _time_axis(x: Linear, start_ms: int, end_ms: int, *, y_text: float, y_line: float) -> str:
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{y_line}" y2="{y_line}"/>']
    for time in time_ticks(start_ms, end_ms, at_most=12):
        at = x(time)
        anchor = "end" if at > _RIGHT - 16 else "middle"  # at the edge, half of it would be cut off
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{y_line}" y2="{y_line + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{y_text}" text-anchor="{anchor}">'
            f"{safe_text(time_tick_label(time, end_ms - start_ms))}</text>"
        )
    return "".join(parts)


def _sizes_strip(x: Linear, timeline: Timeline, firsts: Counts, sizes: Counts) -> str:
    """How many records each place holds, as small bars under the chart."""
    if len(firsts) == 0:
        return ""
    tallest = max(int(sizes.max()), 1)
    ends = np.append(timeline.starts_ms[firsts[1:]], timeline.starts_ms[-1] + timeline.block_ms)
    path = "".join(
        f"M{x(float(start)):.1f} {_STRIP_BOTTOM}v{-(_STRIP_BOTTOM - _STRIP_TOP) * size / tallest:.1f}"
        f"H{max(x(float(end)) - 0.4, x(float(start)) + 0.4):.1f}V{_STRIP_BOTTOM}Z"
        for start, end, size in zip(timeline.starts_ms[firsts], ends, sizes, strict=True)
    )
    return f'<path class="sizes" d="{path}"><title>Records per block, at most {count(tallest)}</title></path>'


def _shaded(start: float, end: float, label: str) -> str:
    """A stretch of known trouble."""
    return (
        f'<rect class="truth" x="{start:.1f}" y="{_TOP}" width="{max(end - start, 0):.1f}" '
        f'height="{_STRIP_BOTTOM - _TOP}"><title>{safe_text(label)}</title></rect>'
    )


def _shade_label(start: float, end: float, label: str) -> str:
    """The name of a shaded stretch at its foot, where no line runs while all is calm; over the line where one does."""
    if end <= start:
        return ""
    width = len(label) * _LETTER
    if width < end - start - 8:
        anchor, at = "middle", (start + end) / 2
    else:
        anchor, at = ("start", start + 5) if start + width < _RIGHT - 8 else ("end", end - 5)
    words = f'x="{at:.1f}" y="{_BOTTOM - 6}" text-anchor="{anchor}">{safe_text(label)}'
    return f'<text class="truth-label" {words}</text>'


def open_stretches(marks: tuple[Mark, ...], end_ms: int) -> list[tuple[int, int, str]]:
    """From each alarm to its resolution, or to the end: (start, end, worst level). Alarms in between belong to it."""
    stretches: list[tuple[int, int, str]] = []
    start, level = 0, ""
    for mark in sorted(marks, key=lambda mark: (mark.time_ms, mark.kind == "resolved")):
        if mark.kind == "resolved" and level:
            stretches.append((start, mark.time_ms, level))
            level = ""
        elif mark.kind in ("page", "warn"):
            start, level = (start if level else mark.time_ms), ("page" if "page" in (level, mark.kind) else "warn")
    return [*stretches, (start, end_ms, level)] if level else stretches


def _open_strips(x: Linear, timeline: Timeline, end_ms: int) -> str:
    """While an incident is open, a strip runs along the top: after an alarm the evidence itself begins anew."""
    return "".join(
        f'<rect class="open {level}" x="{max(x(start), _LEFT):.1f}" y="{_TOP - 4}" height="4" '
        f'width="{max(min(x(end), _RIGHT) - max(x(start), _LEFT), 0):.1f}"><title>incident open for '
        f"{safe_text(duration(end - start))}</title></rect>"
        for start, end, level in open_stretches(timeline.marks, end_ms)
    )


def _marks(x: Linear, timeline: Timeline) -> str:
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for mark in sorted(timeline.marks, key=lambda mark: mark.time_ms):
        at = x(mark.time_ms)
        if not _LEFT <= at <= _RIGHT:
            continue
        words = f"{_MARK_WORDS[mark.kind]} {clock(mark.time_ms)[11:]}"
        title = f"<title>{_MARK_WORDS[mark.kind]} {clock(mark.time_ms)} UTC</title>"
        width = len(words) * _LETTER
        start, anchor, place = (at - width - 4, "end", at - 4) if mark.kind == "onset" else (at + 4, "start", at + 4)
        if start < _LEFT or start + width > _WIDE:
            start, anchor, place = (at + 4, "start", at + 4) if start < _LEFT else (at - width - 4, "end", at - 4)
        parts.append(f'<line class="mark {mark.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="8" y2="{_BOTTOM}">{title}</line>')
        if all(start > end + 6 or start + width + 6 < begin for begin, end in taken):
            taken.append((start, start + width))
            parts.append(
                f'<text class="mark-label {mark.kind}" x="{place:.1f}" y="16" text-anchor="{anchor}">{words}</text>'
            )
    return "".join(parts)


def telling(timeline: Timeline) -> tuple[bool, bool, float]:
    """Sorts timelines: alarms first, of the whole traffic before those of segments, the strongest on top."""
    height = _times_the_page_level(timeline)
    return height == 0.0, timeline.segment != "", -height


def _times_the_page_level(timeline: Timeline) -> float:
    """How far above its page level a timeline came; 0 for all that stayed under their warning level."""
    highest = float(timeline.strongest.max(initial=0.0))
    return highest / max(timeline.page, 1e-9) if highest >= timeline.warn else 0.0
