"""The report's section about fraud scores: labels, how good the alerts are over time, hits, waves, marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dashboards.report_data import FraudHit, FraudSection, SharePoint, ShareSeries
from dashboards.report_parts import card, left_out, pill, side, table
from dashboards.scales import (
    Linear,
    clock,
    count,
    number_ticks,
    period,
    safe_text,
    small,
    time_tick_label,
    time_ticks,
)

MAX_POINTS: Final = 120  # of a chart
MAX_HITS: Final = 20
MAX_ROWS: Final = 60
_WIDE, _TALL, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 190, 48, 350, 12, 156
_ANSWERS: Final = {"fraud": "page", "cleared": "ok"}


def fraud_section(fraud: FraudSection) -> str:
    """The section as HTML."""
    said = "".join(f"<li>{safe_text(line, at_most=600)}</li>" for line in fraud.said)
    parts = [
        card("Fraud", "What the fraud scores rest on, and how good their alerts are.", f"<ul>{said}</ul>"),
        _labels(fraud),
        _shares(fraud.series),
        _entities(fraud),
        _hits(fraud.hits),
        _incidents(fraud),
        _marks(fraud),
    ]
    return "\n".join(part for part in parts if part)


def _labels(fraud: FraudSection) -> str:
    if not fraud.labels:
        return ""
    rows = [[safe_text(source), count(known), count(cleared)] for source, known, cleared in fraud.labels]
    states = [[safe_text(state), count(number)] for state, number in fraud.states]
    return card(
        "Fraud: labels",
        "What people and other systems said of single records. Labels are only ever added; of one record the stronger "
        "source counts (chargeback, analyst, rule), then the later one.",
        table(["source", "fraud", "cleared"], rows, numbers=(1, 2))
        + table(["of them", "labels or records"], states, numbers=(1,)),
    )


def _shares(series: Sequence[ShareSeries]) -> str:
    if not series:
        return ""
    charts = "".join(
        f"<figure><h3>{safe_text(one.name)}: {safe_text(_share(one.whole))}</h3>{_share_svg(one)}</figure>"
        for one in series
    )
    caption = (
        "Each with its 95 % interval, from analysts' answers about the alerts and about a random sample of everything "
        "else; what nobody has answered counts neither way. A wide interval means: too few answers to know. Where "
        "there is no dot, there is no answer at all."
    )
    return card("Fraud: precision, recall, prevalence", caption, f'<div class="shares">{charts}</div>')


def _share(point: SharePoint) -> str:
    known = "unknown" if point.value is None else _percent(point.value)
    return f"{known} ({_percent(point.low)} to {_percent(point.high)})"


def _share_svg(series: ShareSeries) -> str:
    """A dot for each stretch of time, on the line of its interval."""
    points = series.points[-MAX_POINTS:]
    start_ms, end_ms = points[0].start_ms, points[-1].end_ms
    top = min(1.0, 1.08 * max(max(point.high for point in points), 1e-6))
    x, y = Linear(start_ms, end_ms, _LEFT, _RIGHT), Linear(0.0, top, _BOTTOM, _TOP)
    spoken = f"{series.name}: {_share(series.whole)}, in {len(points)} stretches of time."
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDE} {_TALL}" role="img" aria-label="{safe_text(spoken)}">']
    for value in number_ticks(0.0, top, at_most=5):
        at = y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{_percent(value)}</text>'
        )
    parts += [
        f'<text class="tick" x="{x(time):.1f}" y="{_BOTTOM + 17}" text-anchor="middle">'
        f"{safe_text(time_tick_label(time, end_ms - start_ms))}</text>"
        for time in time_ticks(start_ms, end_ms, at_most=4)
    ]
    for point in points:
        at = x((point.start_ms + point.end_ms) / 2)
        told = f"<title>{safe_text(period(point.start_ms, point.end_ms))}: {safe_text(_share(point))}</title>"
        parts.append(
            f'<line class="interval" x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}">'
            f"{told}</line>"
        )
        if point.value is not None:
            parts.append(f'<circle class="share" cx="{at:.1f}" cy="{y(point.value):.1f}" r="3">{told}</circle>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/></svg>')
    return "".join(parts)


def _entities(fraud: FraudSection) -> str:
    if not fraud.entities:
        return ""
    rows = [
        [
            clock(row.start_ms),
            count(row.entities),
            count(row.fraud),
            count(row.cleared),
            count(row.entities - row.fraud - row.cleared),
            _percent(row.fraud / (row.fraud + row.cleared)) if row.fraud + row.cleared else "",
        ]
        for row in fraud.entities[-MAX_ROWS:]
    ]
    titles = ["from", "alerted", "fraud", "cleared", "no answer yet", "precision of those answered"]
    return card(
        "Fraud: precision by entity",
        "Cards, users or merchants with an alert, each counted once in its stretch of time; one that was found to be "
        "fraud is not counted again." + left_out(len(fraud.entities), MAX_ROWS),
        table(titles, rows, numbers=(1, 2, 3, 4, 5), times=(0,)),
    )


def _hits(hits: Sequence[FraudHit]) -> str:
    if not hits:
        return ""
    title, caption = (
        "Fraud: the most suspicious alerts",
        "Each with the confirmed cases nearest to it, and how far normal records are. p is the share of normal records "
        "that would look at least as suspicious." + left_out(len(hits), MAX_HITS),
    )
    if any(hit.record is not None and hit.record.pixels is not None for hit in hits):
        finds = "".join(_find(hit) for hit in hits[:MAX_HITS])
        return card(title, caption, f'<div class="finds">{finds}</div>')
    rows = [
        [
            f'<span class="mono">{safe_text(hit.id)}</span>',
            clock(hit.time_ms),
            _probability(hit),
            small(hit.p_value),
            _cases(hit),
            "" if hit.opinion is None else _percent(hit.opinion),
            pill(_ANSWERS[hit.answer], hit.answer) if hit.answer in _ANSWERS else "",
        ]
        for hit in hits[:MAX_HITS]
    ]
    titles = ["record", "time", "probability", "p", "nearest cases (distance)", "second opinion", "answer"]
    return card(title, caption, table(titles, rows, numbers=(3,), times=(1,)))


def _find(hit: FraudHit) -> str:
    facts = [
        ("id", f'<span class="mono">{safe_text(hit.id)}</span>'),
        ("time", clock(hit.time_ms)),
        ("fraud", f"{_percent(hit.probability)}, p {small(hit.p_value)}"),
    ]
    if hit.low is not None and hit.high is not None:
        facts.append(("range", f"{_percent(hit.low)} to {_percent(hit.high)}"))
    if hit.opinion is not None:
        facts.append(("opinion", f"{_percent(hit.opinion)} (second)"))
    if hit.cases:
        case, distance = hit.cases[0]
        facts.append(("case", f"{safe_text(case)} at {small(distance)}"))
    if hit.distance_to_normal is not None:
        facts.append(("normal", f"at {small(hit.distance_to_normal)}"))
    if hit.missed_by:
        facts.append(("missed by", safe_text(", ".join(hit.missed_by))))
    if hit.answer in _ANSWERS:
        facts.append(("answer", pill(_ANSWERS[hit.answer], hit.answer)))
    if hit.note:
        facts.append(("truth", safe_text(hit.note)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    shown = ((hit.record, "record"), (hit.case, "case"), (hit.normal, "normal"))
    sides = "".join(side(excerpt, label) for excerpt, label in shown if excerpt is not None)
    return f'<div class="find"><div class="sides three">{sides}</div><dl>{listed}</dl></div>'


def _probability(hit: FraudHit) -> str:
    if hit.low is None or hit.high is None:
        return _percent(hit.probability)
    return f"{_percent(hit.probability)}<small>{_percent(hit.low)} to {_percent(hit.high)}</small>"


def _cases(hit: FraudHit) -> str:
    found = ", ".join(f"{safe_text(case)} ({small(distance)})" for case, distance in hit.cases)
    more = "" if hit.distance_to_normal is None else f"normal records: {small(hit.distance_to_normal)}"
    if hit.missed_by:
        more += ("; " if more else "") + f"missed by {safe_text(', '.join(hit.missed_by))}"
    return found + (f"<small>{more}</small>" if more else "")


def _incidents(fraud: FraudSection) -> str:
    if not fraud.incidents:
        return ""
    rows = [
        [
            pill(incident.severity, incident.severity),
            safe_text(incident.title),
            clock(incident.onset_ms),
            "still open" if incident.resolved_ms is None else clock(incident.resolved_ms),
        ]
        for incident in fraud.incidents[:MAX_ROWS]
    ]
    return card(
        "Fraud: waves, floods, changes",
        "Many similar hits are one incident." + left_out(len(fraud.incidents), MAX_ROWS),
        table(["", "what", "began", "resolved"], rows, times=(2, 3)),
    )


def _marks(fraud: FraudSection) -> str:
    if not fraud.marks:
        return ""
    rows = [
        [
            f'<span class="mono">{safe_text(mark.id)}</span>' + (" (withdrawn)" if mark.withdrawn else ""),
            safe_text(mark.by),
            clock(mark.time_ms) if mark.time_ms else "",
            count(mark.records),
            count(mark.hits),
            small(mark.most),
        ]
        for mark in fraud.marks[:MAX_ROWS]
    ]
    titles = ["marked record", "by", "at", "moved records", "alerts all the same", "most log odds taken"]
    return card(
        "Fraud: false-alarm marks",
        "Which kept records each mark moved down, and by how much; what one mark may take is limited."
        + left_out(len(fraud.marks), MAX_ROWS),
        table(titles, rows, numbers=(3, 4, 5), times=(2,)),
    )


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"  # before the first case
    return f"{float(f'{100.0 * share:.3g}'):g}\u00a0%"
