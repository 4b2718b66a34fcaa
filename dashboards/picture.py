"""A picture of a report for a README or a chat: the telling timelines and some finds, as one small PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashboards.charts import MAX_POINTS, open_stretches, telling, thin_out
from dashboards.images import thumbnail
from dashboards.report_data import Excerpt, Report, StrangeRecord, Timeline
from dashboards.scales import Strengths, clock, duration, period, small, time_tick_label, time_ticks
from detectors.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BYTES: Final = 200_000
MAX_ROWS: Final = 2
MAX_FINDS: Final = 8
_STRIP: Final = 1.5  # inches
MAX_LETTERS: Final = 125  # of the verdict, which has one line

_TEXT, _SOFT, _GRID = "#17202b", "#586474", "#e1e5ea"
_CALM, _WARN, _PAGE, _OK, _TRUTH = "#2466b0", "#d98a0b", "#d2352b", "#1d6f42", "#7454be"


def write_picture(path: Path, report: Report) -> None:
    """Draw the report's two most telling timelines and its most telling pictures into a PNG of at most 200 kB.

    Raises:
        InvalidInput: there is no timeline to draw, or the file cannot be written.
    """
    if not report.timelines:
        raise InvalidInput(
            "The report has no timeline, so there is nothing to draw.", hint="Wait until a block is closed."
        )
    resolution = 150
    while len(drawn := _draw(report, resolution)) > MAX_BYTES and resolution > 50:
        resolution -= 25
    try:
        path.write_bytes(drawn)
    except OSError as error:
        raise InvalidInput(
            f"The picture cannot be written to {path}: {error.strerror or error}.",
            hint="Name a file in a directory that exists and may be written.",
        ) from error


def _draw(report: Report, resolution: int) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _telling(report.timelines)
    finds = _varied([record for record in report.strangest if record.record.pixels is not None])[:MAX_FINDS]
    strips = [
        (
            "strangest records, each beside its nearest normal one",
            [(one.record, one.nearest, one.note or f"score {small(one.score)}") for one in finds],
        ),
        (
            "most suspicious fraud alerts, each beside its nearest confirmed case",
            [
                (hit.record, hit.case, hit.note or f"p {small(hit.p_value)}")
                for hit in (() if report.fraud is None else report.fraud.hits)
                if hit.record is not None and hit.record.pixels is not None
            ][:MAX_FINDS],
        ),
    ]
    strips = [strip for strip in strips if strip[1]]
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "driftd"}):
        tall = 0.85 + 1.75 * len(rows) + _STRIP * len(strips)
        figure = Figure(figsize=(10.6, tall), dpi=resolution, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.045, 1 - 0.26 / tall, report.header.title, size=14, weight="bold", color=_TEXT)
        figure.text(
            0.045,
            1 - 0.50 / tall,
            textwrap.shorten(report.header.verdict, MAX_LETTERS, placeholder=" ..."),
            size=9.5,
            color=_PAGE if report.header.status == "page" else _SOFT,
        )
        covered = period(report.header.start_ms, report.header.end_ms)
        figure.text(0.985, 1 - 0.26 / tall, covered, size=8.5, color=_SOFT, ha="right")
        for i, timeline in enumerate(rows):
            bottom = tall - 0.85 - 1.75 * (i + 1) + 0.42
            axes = figure.add_axes((0.045, bottom / tall, 0.94, 1.13 / tall))
            _timeline(axes, timeline, report.header.start_ms, report.header.end_ms)
        for i, (title, pairs) in enumerate(strips):
            _strip(figure, title, pairs, bottom=_STRIP * (len(strips) - 1 - i), tall=tall)
        written = io.BytesIO()
        # Without the library's version in it, the same report gives the same bytes.
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _telling(timelines: tuple[Timeline, ...]) -> list[Timeline]:
    """The most telling timeline, and the calmest of the same space: where it happened, and where it did not."""
    strongest = min(timelines, key=telling)
    others = [one for one in timelines if one is not strongest and one.space == strongest.space]
    calmest = sorted(others, key=lambda timeline: float(timeline.strongest.max(initial=0.0)))[:1]
    return [strongest, *calmest][:MAX_ROWS]


def _varied(records: list[StrangeRecord]) -> list[StrangeRecord]:
    """The records in an order that shows something of every kind (by truth, else by the model's answer) first."""
    seen: dict[str, int] = {}

    def turn(record: StrangeRecord) -> int:
        kind = record.note or record.prediction or ""
        seen[kind] = seen.get(kind, 0) + 1
        return seen[kind]

    return [record for _, _, record in sorted((turn(record), i, record) for i, record in enumerate(records))]


def _timeline(axes: Axes, timeline: Timeline, start_ms: int, end_ms: int) -> None:
    strongest = timeline.strongest
    _, peaks, _ = thin_out(strongest, timeline.n, at_most=MAX_POINTS)
    page = max(timeline.page, 0.1)
    height = Strengths(page, max(float(strongest.max(initial=0.0)) * 1.04, page * 1.35), 0.0, 1.0)
    x = timeline.starts_ms[peaks] + timeline.block_ms / 2
    y = np.array([height(float(value)) for value in strongest[peaks]])
    levels = {"calm": _CALM, "warn": _WARN, "page": _PAGE}
    limits = {
        "calm": (-1.0, height(timeline.warn)),
        "warn": (height(timeline.warn), height(page)),
        "page": (height(page), 2.0),
    }
    for shaded in timeline.truth:
        axes.axvspan(shaded.start_ms, shaded.end_ms, color=_TRUTH, alpha=0.12, lw=0)
        # About 150 letters fit along the axis; a label that is longer than its stretch begins where the stretch does.
        fits = len(shaded.label) / 150 < (shaded.end_ms - shaded.start_ms) / (end_ms - start_ms)
        at, anchor = ((shaded.start_ms + shaded.end_ms) / 2, "center") if fits else (shaded.start_ms, "left")
        axes.text(at, 0.04, shaded.label if fits else f" {shaded.label}", color="#5d3fae", size=8, ha=anchor)
    from matplotlib.patches import Rectangle

    for level, colour in levels.items():
        low, high = limits[level]
        window = Rectangle((start_ms, low), end_ms - start_ms, high - low, transform=axes.transData)
        line = axes.plot(x, y, color=colour, lw=1.4, solid_joinstyle="round")[0]
        area = axes.fill_between(x, y, color=colour, alpha=0.15, lw=0)
        for drawn in (line, area):
            drawn.set_clip_path(window)
    for word, threshold, colour in (("page", timeline.page, _PAGE), ("warn", timeline.warn, "#8f5a00")):
        at = height(threshold)
        axes.axhline(at, color=levels[word], lw=0.9, ls=(0, (5, 4)))
        by_chance = duration(10.0**threshold * timeline.block_ms) if threshold < 300 else f"10^{threshold:g} blocks"
        axes.text(start_ms, at + 0.03, f"  {word}, by chance once in {by_chance}", color=colour, size=7.5)
    words = {
        "onset": ("onset", _TEXT),
        "page": ("paged", _PAGE),
        "warn": ("warned", "#8f5a00"),
        "resolved": ("resolved", _OK),
        "opinion": ("second opinion", _TEXT),
    }
    labelled: set[str] = set()
    for mark in sorted(timeline.marks, key=lambda mark: mark.time_ms):
        word, colour = words[mark.kind]
        axes.axvline(mark.time_ms, color=colour, lw=1, ls=":" if mark.kind in ("onset", "opinion") else "-", ymax=1.0)
        if mark.kind not in labelled:
            labelled.add(mark.kind)
            before = mark.kind == "onset" or mark.time_ms > start_ms + 0.88 * (end_ms - start_ms)
            axes.annotate(
                f"{word} {clock(mark.time_ms)[11:]}",
                (mark.time_ms, 1.0),
                xytext=(-3 if before else 3, 2),
                textcoords="offset points",
                color=colour,
                size=8,
                weight="bold",
                ha="right" if before else "left",
            )
    for start, end, level in open_stretches(timeline.marks, end_ms):
        axes.axhspan(
            0.975,
            1.0,
            (start - start_ms) / (end_ms - start_ms),
            (end - start_ms) / (end_ms - start_ms),
            color=levels[level],
            lw=0,
        )
    where = timeline.segment or "all records"
    axes.annotate(
        f"drift in {timeline.space}, {where}",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3),
        textcoords="offset points",
        size=9,
        weight="bold",
        color=_TEXT,
    )
    ticks = time_ticks(start_ms, end_ms, at_most=10)
    axes.set(xlim=(start_ms, end_ms), ylim=(0, 1))
    axes.set_xticks(ticks, [time_tick_label(tick, end_ms - start_ms) for tick in ticks])
    axes.set_yticks([height(tick) for tick in height.ticks()], [f"{tick:g}" for tick in height.ticks()])
    axes.tick_params(colors=_SOFT, labelsize=8, length=3)
    axes.grid(axis="y", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)


def _strip(
    figure: Any, title: str, pairs: Sequence[tuple[Excerpt, Excerpt | None, str]], *, bottom: float, tall: float
) -> None:
    """Pairs of pictures: the record framed in red, the one that it is held against beside it, a label below.

    Args:
        bottom: inches above the foot.
        tall: height of the figure, inches.
    """
    figure.text(0.045, (bottom + 1.27) / tall, title, size=9, weight="bold", color=_TEXT)
    wide = 0.94 / MAX_FINDS
    for i, (record, other, label) in enumerate(pairs):
        for j, pixels in enumerate((record.pixels, None if other is None else other.pixels)):
            if pixels is None:
                continue
            place = (0.045 + i * wide + j * 0.052, (bottom + 0.42) / tall, 0.048, 0.048 * 10.6 / tall * 1.45)
            axes = figure.add_axes(place)
            axes.imshow(thumbnail(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=_PAGE if j == 0 else _GRID, linewidth=1.6 if j == 0 else 0.8)
        shown = textwrap.shorten(label, 24, placeholder=" ...")
        figure.text(0.045 + i * wide, (bottom + 0.22) / tall, shown, size=7.5, color=_SOFT)
