"""The verdict on a model over time as one picture: a PNG for a chat, or an HTML file that needs nothing."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dashboards.report import framed
from dashboards.report_data import VerdictSection
from dashboards.report_verdict import (
    MAX_REASONS,
    MAX_SPANS,
    lowest,
    runs,
    shown_measured,
    thinned,
    verdict_section,
)
from dashboards.scales import clock, number_ticks, period, safe_text, time_tick_label, time_ticks
from dashboards.verdict_words import Level
from dashboards.whole_file import is_png, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT, _SOFT, _GRID, _CALM, _OK, _PAGE = "#17202b", "#586474", "#e1e5ea", "#2466b0", "#1d6f42", "#d2352b"
_INK: Final[dict[Level, str]] = {
    "blind": "#7454be",
    "page": _PAGE,
    "warn": "#d98a0b",
    "caution": "#e5b84a",
    "neutral": "#c6ced8",
    "fine": "#7db894",
}


def write_verdict(path: Path, model: str, verdict: VerdictSection) -> None:
    """Draw a verdict over the time that its blocks span, as the ending of the name says. The file appears whole or not.

    Raises:
        InvalidInput: the name ends in neither .png nor .html, or the file cannot be written.
    """
    drawn = _png(model, verdict) if is_png(path, example="verdict") else _page(model, verdict).encode()
    write_whole(path, drawn, what="The picture")


def _bounds(verdict: VerdictSection) -> tuple[int, int]:
    return int(verdict.starts_ms[0]), int(verdict.starts_ms[-1]) + verdict.block_ms


def _page(model: str, verdict: VerdictSection) -> str:
    start_ms, end_ms = _bounds(verdict)
    header = (
        f'<header><div class="brand">driftd verdict</div><h1>{safe_text(model)}</h1>'
        f'<p class="soft">{period(start_ms, end_ms)}</p></header>'
    )
    return framed(f"Verdict on {model}", (header, verdict_section(verdict, start_ms=start_ms, end_ms=end_ms)))


def _png(model: str, verdict: VerdictSection) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    start_ms, end_ms = _bounds(verdict)
    said = [line for reason in verdict.reasons[:MAX_REASONS] for line in textwrap.wrap(reason, 150)][:MAX_REASONS]
    tall = 3.5 + 0.17 * len(said)
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "driftd"}):
        figure = Figure(figsize=(10.6, tall), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        since = "" if verdict.since_ms is None else f" since {clock(verdict.since_ms)} UTC"
        title = textwrap.shorten(f"{model}: {verdict.word}{since}", 85, placeholder=" ...")
        figure.text(0.055, 1 - 0.26 / tall, title, size=13, weight="bold", color=_TEXT)
        figure.text(0.985, 1 - 0.26 / tall, period(start_ms, end_ms), size=8.5, color=_SOFT, ha="right")
        for number, line in enumerate(said):
            figure.text(0.055, 1 - (0.5 + 0.17 * number) / tall, line, size=9, color=_SOFT)
        words = figure.add_axes((0.055, 2.72 / tall, 0.93, 0.16 / tall))
        axes = figure.add_axes((0.055, 0.62 / tall, 0.93, 2.02 / tall))
        _draw_words(words, verdict, start_ms, end_ms)
        _draw_right(axes, verdict, start_ms, end_ms)
        legend = "Share of right answers. Blue: estimated, its interval. Green: measured with labels, 95 %. Red: floor."
        if not np.isnan(verdict.novel).all():
            legend += f" Grey: new content, at most {100 * float(np.nanmax(verdict.novel)):.2g} % of the records."
        figure.text(0.055, 0.14 / tall, legend, size=8, color=_SOFT)
        written = io.BytesIO()
        # Without the library's version in it, the same verdict gives the same bytes.
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _draw_words(axes: Axes, verdict: VerdictSection, start_ms: int, end_ms: int) -> None:
    for span in verdict.spans[-MAX_SPANS:]:
        first, last = max(span.start_ms, start_ms), min(span.end_ms, end_ms)
        if last <= first:
            continue
        axes.broken_barh([(first, last - first)], (0, 1), color=_INK[span.level], lw=0)
        if len(span.word) / 150 < (last - first) / (end_ms - start_ms):
            ink = "white" if span.level in ("blind", "page") else _TEXT
            axes.text(first, 0.5, f" {span.word}", size=7.5, va="center", color=ink)
    axes.set(xlim=(start_ms, end_ms), ylim=(0, 1))
    axes.axis("off")


def _draw_right(axes: Axes, verdict: VerdictSection, start_ms: int, end_ms: int) -> None:
    times, low, high, floor, novel = thinned(verdict)
    measured = shown_measured(verdict.measured)
    bottom = lowest(low, floor, measured)
    for run in runs(times, novel, verdict.block_ms):
        tall = [bottom + float(novel[i]) * (1.0 - bottom) for i in run]
        axes.fill_between(times[run], bottom, tall, color="#c6ced8", alpha=0.7, lw=0)
    for run in runs(times, low, verdict.block_ms):
        axes.fill_between(times[run], low[run], high[run], color=_CALM, alpha=0.2, lw=0)
        axes.plot(times[run], low[run], color=_CALM, lw=1)
        axes.plot(times[run], high[run], color=_CALM, lw=1)
    for run in runs(times, floor, verdict.block_ms):
        axes.plot(times[run], floor[run], color=_PAGE, lw=1, ls=(0, (5, 4)))
    for point in measured:
        axes.plot([point.time_ms] * 2, [point.low, point.high], color=_OK, lw=1, alpha=0.6)
        axes.plot(point.time_ms, point.value, "o", color=_OK, ms=3)
    ticks = time_ticks(start_ms, end_ms, at_most=10)
    axes.set_xticks(ticks, [time_tick_label(tick, end_ms - start_ms) for tick in ticks])
    levels = number_ticks(bottom, 1.0, at_most=5)
    axes.set_yticks(levels, [f"{100 * level:.3g} %" for level in levels])
    axes.set(xlim=(start_ms, end_ms), ylim=(bottom, 1.0))
    axes.grid(axis="y", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=8, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
