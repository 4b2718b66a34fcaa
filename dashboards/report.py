"""The HTML report: one file that opens anywhere, without a network, on paper too.

`write_report` draws a `Report` (report_data.py) into the frame of report.html. Everything is inline; the page's own
content security policy admits its one script and data images, and nothing else, so that no text of a record can act.
The file's size is bounded whatever the report holds: long timelines keep their maxima, long lists say what they leave
out.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from dashboards.charts import histogram_svg, map_svg, telling, timeline_svg
from dashboards.picture import write_picture
from dashboards.report_data import (
    AlarmBudget,
    Comparison,
    FlatMap,
    Growth,
    Header,
    Incident,
    ReferenceIdentity,
    Report,
    ScoreHistogram,
    StrangeRecord,
    Timeline,
    Traffic,
)
from dashboards.report_fraud import fraud_section
from dashboards.report_parts import MAX_EXCERPT, card, left_out, pill, side, table
from dashboards.report_verdict import PILLS, verdict_section
from dashboards.scales import clock, count, duration, period, safe_text, small
from dashboards.whole_file import write_whole

__all__ = ["render", "write_picture", "write_report"]

MAX_TIMELINES: Final = 10
MAX_INCIDENTS: Final = 60
MAX_CAUSES: Final = 4
MAX_PARTS: Final = 6  # segments of a cause
MAX_GROWTHS: Final = 6  # prototypes of a cause
MAX_STRANGEST: Final = 20
MAX_CHARTS: Final = 4  # histograms, and maps
MAX_REASONS: Final = 20
MAX_ROWS: Final = 60  # settings, comparisons, references

_STATUS_WORDS: Final = {"calm": "calm", "warn": "warning", "page": "page"}


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, at most about 3 MB.

    The same report gives the same bytes. The file appears whole or not at all.

    Raises:
        InvalidInput: the file cannot be written there.
    """
    write_whole(path, render(report).encode(), what="The report")


def render(report: Report) -> str:
    """The report as the text of an HTML page."""
    sections = (
        _header(report.header),
        _verdict(report),
        _tiles(report),
        ""
        if report.verdict is None
        else verdict_section(report.verdict, start_ms=report.header.start_ms, end_ms=report.header.end_ms),
        _comparisons(report.comparisons),
        _timelines(report.timelines, report.header),
        _incidents(report.incidents, report.header),
        _causes(report.incidents),
        _strangest(report.strangest),
        _pairs(report.histograms, report.maps),
        "" if report.fraud is None else fraud_section(report.fraud),
        _budget(report.budget),
        _traffic(report.traffic),
        _references_and_settings(report.references, report.settings),
        _footer(report.header),
    )
    return framed(f"{report.header.title}, {period(report.header.start_ms, report.header.end_ms)}", sections)


def framed(title: str, sections: Iterable[str]) -> str:
    """A whole page: the frame of report.html around sections that are HTML already."""
    frame = resources.files("dashboards").joinpath("report.html").read_text(encoding="utf-8")
    script = frame[frame.index("<script>") + len("<script>") : frame.index("</script>")]
    values = {
        "script-hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": safe_text(title),
        "body": "\n".join(section for section in sections if section),
    }
    # In one pass, so that a text of a record that looks like a place is left alone.
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda place: values[place[1]], frame)


def _header(header: Header) -> str:
    span = duration(header.end_ms - header.start_ms)
    return (
        f'<header><div class="brand">driftd report</div><h1>{safe_text(header.title)}</h1>'
        f'<p class="soft">{period(header.start_ms, header.end_ms)} · {span}</p></header>'
    )


def _verdict(report: Report) -> str:
    header, verdict = report.header, report.verdict
    if verdict is None:
        status = pill(header.status, _STATUS_WORDS[header.status])
        return f'<div class="verdict {header.status}">{status}<span>{safe_text(header.verdict)}</span></div>'
    kind = PILLS[verdict.level]
    said = safe_text(header.verdict)
    return f'<div class="verdict {kind}">{pill(kind, verdict.word)}<span>{said}</span></div>'


def _tiles(report: Report) -> str:
    traffic = report.traffic
    dead = sum(traffic.dead.values())
    still_open = sum(incident.resolved_ms is None for incident in report.incidents)
    tiles = [
        (count(traffic.records), "records"),
        (count(traffic.flagged), f"flagged as outliers{_of(traffic.flagged, traffic.records - dead)}"),
        (count(len(report.incidents)), f"incidents, {count(still_open)} open"),
        (count(dead), f"dead letters{_of(dead, traffic.records)}"),
    ]
    drawn = "".join(f'<div class="tile"><b>{value}</b><span>{safe_text(label)}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{drawn}</div>'


def _of(part: int, whole: int) -> str:
    return f", {small(100 * part / whole)}\u00a0%" if part and whole > 0 else ""


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    rows = [
        [
            safe_text(row.happened),
            safe_text(row.reported),
            "" if row.right is None else pill("ok", "✓ right") if row.right else pill("page", "✗ wrong"),
        ]
        for row in comparisons[:MAX_ROWS]
    ]
    return card(
        "What happened, and what driftd reported",
        "The events of this stream are known, because they were put there. driftd saw the records only.",
        table(["happened", "reported", ""], rows),
    )


def _timelines(timelines: Sequence[Timeline], header: Header) -> str:
    caption = (
        "Each block of records adds evidence for or against drift. Strength s means: without drift, evidence like this "
        "appears once in 10ˢ blocks. Above the red line driftd pages someone, above the amber line it warns; after an "
        "alarm the evidence begins anew, and the strip on top lasts until the incident is resolved. High above the red "
        "line the axis is compressed. Bars below: records per block."
    )
    if any(timeline.truth for timeline in timelines):
        caption += " Shaded: when it truly happened."
    if not timelines:
        return card("Drift", "No block of this period is closed yet, so there is nothing to draw.", "")
    # Alarms come first, of the whole traffic before those of segments, the strongest on top; then the calm ones.
    chosen = sorted(timelines, key=telling)[:MAX_TIMELINES]
    parts = []
    for i, timeline in enumerate(chosen):
        name = f"space <code>{safe_text(timeline.space)}</code>" + (
            f", {safe_text(timeline.segment)}" if timeline.segment else ", all records"
        )
        chart = timeline_svg(timeline, start_ms=header.start_ms, end_ms=header.end_ms, name=f"timeline-{i}")
        parts.append(f'<h3>{name}</h3><div class="scroll">{chart}</div>')
    if len(timelines) > len(chosen):
        parts.append(f'<p class="caption">{count(len(timelines) - len(chosen))} more are not drawn.</p>')
    return card("Drift, block by block", caption, "".join(parts))


def _incidents(incidents: Sequence[Incident], header: Header) -> str:
    if not incidents:
        return card("Incidents", "None in this period.", "")
    rows = [
        [
            pill(incident.severity, incident.severity),
            f"{safe_text(incident.title)}<small>{safe_text(incident.text, at_most=MAX_EXCERPT)}</small>",
            _moment(incident.onset_ms, header),
            _moment(incident.opened_ms, header),
            "still open" if incident.resolved_ms is None else _moment(incident.resolved_ms, header),
            "" if incident.strength is None else small(incident.strength),
        ]
        for incident in incidents[:MAX_INCIDENTS]
    ]
    listed = table(
        ["", "what", "began (estimate)", "opened", "resolved", "strength"], rows, times=(2, 3, 4), numbers=(5,)
    )
    return card(
        "Incidents",
        "One line for each reason to alert, however often it was seen." + left_out(len(incidents), MAX_INCIDENTS),
        listed,
    )


def _causes(incidents: Sequence[Incident]) -> str:
    """What changed, for the incidents that matter most: pages before warnings, the whole before its segments."""
    known = [incident for incident in incidents if incident.cause and (incident.cause.parts or incident.cause.growths)]
    ranked = sorted(known, key=lambda one: (one.severity != "page", one.segment != "", -(one.strength or 0.0)))
    if not ranked:
        return ""
    parts = []
    for incident in ranked[:MAX_CAUSES]:
        cause = incident.cause
        assert cause is not None
        parts.append(f"<h3>{safe_text(incident.title)}, {count(cause.records)} records</h3>")
        if cause.parts:
            rows = [
                [f"<code>{safe_text(part.segment)}</code>", _meter(part.part), _percent(part.share)]
                for part in cause.parts[:MAX_PARTS]
            ]
            parts.append(table(["segment", "part of the change", "of the records"], rows, numbers=(2,)))
        if cause.growths:
            kinds = "".join(_growth(growth) for growth in cause.growths[:MAX_GROWTHS])
            parts.append(f'<div class="finds">{kinds}</div>')
    caption = (
        "From the sums of the blocks since the onset: which segments carry the change, and which kinds of records grew "
        "or shrank, each with a record kept since then and one that the reference knows of this kind. The parts of one "
        "field add up to 100 %." + left_out(len(ranked), MAX_CAUSES)
    )
    return card("What changed", caption, "".join(parts))


def _growth(growth: Growth) -> str:
    sides = "" if growth.now is None else side(growth.now, "now")
    sides += "" if growth.usual is None else side(growth.usual, "reference")
    shown = [side for side in (growth.now, growth.usual) if side is not None]
    kind = "find" if shown and all(side.pixels is not None for side in shown) else "find words"
    change = f"{_percent(growth.expected)} → {_percent(growth.share)}"
    facts = f"<dt>{safe_text(growth.name)}</dt><dd>{change}</dd>"
    return f'<div class="{kind}"><div class="sides">{sides}</div><dl>{facts}</dl></div>'


def _meter(part: float) -> str:
    """A share as a bar and a number; a part may lie a little outside of 0 to 1, by chance."""
    width = round(100 * min(max(part, 0.0), 1.0))
    return f'<span class="meter"><i style="width:{width}%"></i></span> {_percent(part)}'


def _percent(share: float) -> str:
    value = 100.0 * share
    return f"{value:.0f}\u00a0%" if abs(value) >= 9.95 or abs(value) < 0.005 else f"{value:.2g}\u00a0%"


def _moment(time_ms: int | None, header: Header) -> str:
    """A time; without its date where the whole report lies in one day."""
    if time_ms is None:
        return ""
    one_day = clock(header.start_ms)[:10] == clock(header.end_ms)[:10] == clock(time_ms)[:10]
    return clock(time_ms)[11 if one_day else 0 :]


def _strangest(records: Sequence[StrangeRecord]) -> str:
    if not records:
        return ""
    caption = (
        "The most outlying records, each beside the reference record nearest to it. p is the share of normal records "
        "that would look at least as strange." + left_out(len(records), MAX_STRANGEST)
    )
    finds = "".join(_find(record) for record in records[:MAX_STRANGEST])
    return card("Strangest records", caption, f'<div class="finds">{finds}</div>')


def _find(record: StrangeRecord) -> str:
    rarely = f"p {'≤' if record.p_value > 0 else '='} {small(record.p_value)}"
    facts = [
        ("id", f'<span class="mono">{safe_text(record.id)}</span>'),
        ("time", clock(record.time_ms)),
        ("space", safe_text(record.space) + (f", {safe_text(record.segment)}" if record.segment else "")),
        ("score", f"{small(record.score)}, {rarely}"),
    ]
    if record.prediction is not None:
        sure = "" if record.confidence is None else f", {100 * record.confidence:.0f}\u00a0% sure"
        facts.append(("model", safe_text(record.prediction) + sure))
    if record.note:
        facts.append(("truth", safe_text(record.note)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    sides = side(record.record, "record") + ("" if record.nearest is None else side(record.nearest, "nearest"))
    kind = "find" if record.record.pixels is not None else "find words"
    return f'<div class="{kind}"><div class="sides">{sides}</div><dl>{listed}</dl></div>'


def _pairs(histograms: Sequence[ScoreHistogram], maps: Sequence[FlatMap]) -> str:
    cards = [(histogram.space, 0, _histogram(histogram)) for histogram in histograms[:MAX_CHARTS]]
    cards += [(flat.space, 1, _map(flat)) for flat in maps[:MAX_CHARTS]]
    if not cards:
        return ""
    # A space's histogram and map stand side by side.
    return f'<div class="pair">{"".join(card for _, _, card in sorted(cards))}</div>'


def _histogram(histogram: ScoreHistogram) -> str:
    caption = (
        "Share of records at each outlier score, on a logarithmic axis. Where both shapes agree, the stream is as "
        "normal as the reference; a line above the grey on the right means more strange records than normal."
    )
    legend = _legend(
        ("var(--reference)", "reference (calibration records)", True), ("var(--calm)", "this period", True)
    )
    return card(f"Scores, {histogram.space}", caption, legend + histogram_svg(histogram))


def _map(flat: FlatMap) -> str:
    caption = (
        "Records on the two directions in which the reference spreads most; they hold "
        f"{100 * flat.explained:.0f}\u00a0% of its spread, so what is strange in another direction may lie "
        "among the grey. Points beyond the frame are drawn on it."
    )
    legend = _legend(
        ("var(--reference)", "reference", False),
        ("var(--calm)", "recent", False),
        ("var(--page-line)", "flagged", False),
    )
    return card(f"Map, {flat.space}", caption, legend + map_svg(flat))


def _legend(*entries: tuple[str, str, bool]) -> str:
    drawn = "".join(
        f'<span><i{" class=bar" if bar else ""} style="background:{colour}"></i>{label}</span>'
        for colour, label, bar in entries
    )
    return f'<div class="legend">{drawn}</div>'


def _budget(budget: AlarmBudget | None) -> str:
    if budget is None:
        return ""
    rows = [
        [
            f"<code>{safe_text(share.space)}</code>",
            safe_text(share.segment or "all records"),
            f"{small(100 * share.share)}\u00a0%",
            f"{share.pages_at:.2f}",
            f"only warns<small>{safe_text(share.only_warns)}</small>" if share.only_warns else "",
        ]
        for share in budget.shares[:MAX_ROWS]
    ]
    caption = (
        f"{budget.said[:1].upper()}{budget.said[1:]}. Every alarm has a share of that one budget; the smaller it is, "
        "the stronger its evidence must be. Was a page false? Say so: driftd incidents --false ID."
        + left_out(len(budget.shares), MAX_ROWS)
    )
    titles = ["space", "segment", "share", "pages at strength", ""]
    return card("Alarm budget", caption, table(titles, rows, numbers=(2, 3)) if rows else "")


def _traffic(traffic: Traffic) -> str:
    dead = sum(traffic.dead.values())
    budget = "" if traffic.flag_budget is None else f" (budget {small(100 * traffic.flag_budget)} %)"
    rows = [
        ["records read", count(traffic.records)],
        ["scored", count(traffic.records - dead)],
        [f"flagged as outliers{budget}", count(traffic.flagged)],
        ["late: came after their block was closed", count(traffic.late)],
        ["dead letters: could not be used", count(dead)],
    ]
    reasons = sorted(traffic.dead.items(), key=lambda reason: (-reason[1], reason[0]))
    rows += [[f'<span class="soft">— {safe_text(reason)}</span>', count(n)] for reason, n in reasons[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        rows.append(["— other reasons", count(sum(n for _, n in reasons[MAX_REASONS:]))])
    return card("Traffic", "Every record is counted exactly once.", table(["", "records"], rows, numbers=(1,)))


def _references_and_settings(references: Sequence[ReferenceIdentity], settings: Sequence[tuple[str, str]]) -> str:
    rows = [
        [
            safe_text(reference.space),
            str(reference.version),
            count(reference.records),
            count(reference.dimension),
            clock(reference.created_ms),
            safe_text(reference.embedder),
            f"<code>{safe_text(reference.checksum[:16])}</code>",
        ]
        for reference in references[:MAX_ROWS]
    ]
    titles = ["space", "version", "records", "dimensions", "built (UTC)", "embedder", "checksum"]
    shown = card(
        "Reference",
        "What normal looks like: every record was compared with these." if rows else "No reference was built yet.",
        table(titles, rows, numbers=(1, 2, 3), times=(4,)) if rows else "",
    )
    if not settings:
        return shown
    listed = table(
        ["setting", "value"],
        [[f"<code>{safe_text(key)}</code>", f"<code>{safe_text(value)}</code>"] for key, value in settings[:MAX_ROWS]],
    )
    return shown + card("Settings", "As they were in force." + left_out(len(settings), MAX_ROWS), listed)


def _footer(header: Header) -> str:
    version = f"driftd {safe_text(header.version)}" if header.version else "driftd"
    return f"<footer>Made by {version}. All times are UTC. This file needs no network and sends nothing.</footer>"
