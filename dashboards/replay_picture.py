"""What several settings would have told, in one picture: as a PNG for a chat, or as an HTML file that needs nothing.

On one axis of time: a lane for each choice of settings with its pages and warnings as bars, what truly happened shaded
behind them, and below how strong the evidence was. Where settings were suggested, a second panel shows what the choice
was between: false pages against missed time.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dashboards.charts import MAX_POINTS, thin_out, timeline_svg
from dashboards.report import framed
from dashboards.report_data import Period, Timeline
from dashboards.report_parts import card, left_out
from dashboards.scales import (
    Linear,
    Strengths,
    count,
    duration,
    number_ticks,
    period,
    safe_text,
    small,
    time_tick_label,
    time_ticks,
)
from dashboards.whole_file import is_png, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LANES: Final = 24
MAX_BARS: Final = 2_000  # of a lane
MAX_TRUTHS: Final = 500
MAX_CHOICES: Final = 100

_WIDE, _LEFT, _RIGHT = 1120, 46, 1108
_LANE: Final = 38  # pixels
_LETTER: Final = 6.1
_INK = {"page": "#d2352b", "warn": "#d98a0b"}
_DOTTED: Final = "Dotted: settings are chosen on what lies before, and reported on what lies after."
_TEXT, _SOFT, _GRID, _CALM, _OK, _TRUTH = "#17202b", "#586474", "#e1e5ea", "#2466b0", "#1d6f42", "#7454be"


@dataclass(frozen=True, slots=True)
class Told:
    """From when to when people knew of something, and how urgent it was."""

    start_ms: int
    end_ms: int
    level: Literal["page", "warn"]


@dataclass(frozen=True, slots=True)
class Lane:
    """One choice of settings: its name, what came of it in a few words, and what people would have been told."""

    name: str
    said: str
    told: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the settings that were compared when some were suggested.

    Attributes:
        on_front: no other one has fewer false pages and less missed time.
    """

    name: str
    false_a_month: float
    missed_s: float
    kind: Literal["now", "suggested", "other"]
    on_front: bool


@dataclass(frozen=True, slots=True, eq=False)
class ReplayPicture:
    """What is drawn.

    Attributes:
        start_ms, end_ms: the period.
        said: sentences; the first is the answer.
        lanes: at least one; what is set now comes first.
        truth: what truly happened.
        strength: the evidence for drift over the period; None to leave it out.
        choices: what the suggestion was chosen from, on the time before ``split_ms``; empty where none was asked for.
        split_ms: where the part that chooses ends.
    """

    title: str
    start_ms: int
    end_ms: int
    said: tuple[str, ...]
    lanes: tuple[Lane, ...]
    truth: tuple[Period, ...] = ()
    strength: Timeline | None = None
    choices: tuple[Choice, ...] = ()
    split_ms: int | None = None


def write_replay(path: Path, picture: ReplayPicture) -> None:
    """Write the picture as .png or .html, whichever the name ends with. The same picture gives the same bytes.

    Raises:
        InvalidInput: another ending, or the file cannot be written.
    """
    drawn = replay_png(picture) if is_png(path, example="replay") else replay_html(picture).encode()
    write_whole(path, drawn, what="The picture")


# --- HTML -------------------------------------------------------------------------------------------------------------


def replay_html(picture: ReplayPicture) -> str:
    """The picture as the text of an HTML page: nothing from elsewhere, light and dark, at most about 2 MB."""
    span = duration(picture.end_ms - picture.start_ms)
    answer, more = picture.said[:1], picture.said[1:]
    head = (
        f'<header><div class="brand">driftd replay</div><h1>{safe_text(picture.title)}</h1>'
        f'<p class="soft">{period(picture.start_ms, picture.end_ms)} · {span}</p></header>'
    )
    verdict = "".join(f'<div class="verdict"><span>{safe_text(text)}</span></div>' for text in answer)
    words = "".join(f'<p class="caption">{safe_text(text)}</p>' for text in more)
    caption = (
        "A bar lasts from when people would have been told until it was over: red pages, amber warnings. Shaded: what "
        "truly happened."
        + (f" {_DOTTED}" if picture.split_ms is not None else "")
        + left_out(len(picture.lanes), MAX_LANES)
    )
    sections = [
        head,
        verdict,
        words,
        card("What would have been told", caption, f'<div class="scroll">{lanes_svg(picture)}</div>'),
        _strength_card(picture),
        _choices_card(picture),
        "<footer>All times are UTC. This file needs no network and sends nothing.</footer>",
    ]
    return framed(f"{picture.title}, {period(picture.start_ms, picture.end_ms)}", sections)


def lanes_svg(picture: ReplayPicture) -> str:
    """The lanes of the settings over what truly happened, as one <svg>."""
    lanes = picture.lanes[:MAX_LANES]
    top, bottom = 22, 22 + _LANE * len(lanes)
    tall = bottom + 26
    x = Linear(picture.start_ms, picture.end_ms, _LEFT, _RIGHT)
    spoken = "; ".join(f"{lane.name}: {lane.said}" for lane in lanes)
    parts = [
        f'<svg class="chart timeline" viewBox="0 0 {_WIDE} {tall}" role="img" data-points="[]" '
        f'aria-label="{safe_text(spoken)}">'
    ]
    taken = -1e9
    for one in picture.truth[:MAX_TRUTHS]:
        start, end = max(x(one.start_ms), _LEFT), min(x(one.end_ms), _RIGHT)
        parts.append(
            f'<rect class="truth" x="{start:.1f}" y="{top - 6}" width="{max(end - start, 1.5):.1f}" '
            f'height="{bottom - top + 6}"><title>{safe_text(one.label)}</title></rect>'
        )
        width = len(one.label) * _LETTER
        at = min(max((start + end) / 2, _LEFT + width / 2), _RIGHT - width / 2)
        if at - width / 2 > taken + 8 and width < 300:  # names that would lie over one another are in the tooltips
            taken = at + width / 2
            parts.append(
                f'<text class="truth-label" x="{at:.1f}" y="11" text-anchor="middle">{safe_text(one.label)}</text>'
            )
    parts.append(_time_axis(x, picture, y=bottom + 2))
    for number, lane in enumerate(lanes):
        y = top + _LANE * number
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y + _LANE - 7}" y2="{y + _LANE - 7}"/>'
            f'<text class="lane-name" x="{_LEFT}" y="{y + 12}">{safe_text(lane.name, at_most=90)}</text>'
            f'<text x="{_RIGHT}" y="{y + 12}" text-anchor="end">{safe_text(lane.said, at_most=110)}</text>'
        )
        for told in sorted(lane.told[:MAX_BARS], key=lambda told: told.level != "warn"):  # pages on top
            start, end = max(x(told.start_ms), _LEFT), min(x(told.end_ms), _RIGHT)
            lasted = duration(told.end_ms - told.start_ms)
            parts.append(
                f'<rect class="open {told.level}" x="{start:.1f}" y="{y + 18}" height="12" rx="1.5" '
                f'width="{max(end - start, 2.5):.1f}"><title>{told.level} '
                f"{period(told.start_ms, told.end_ms)}, {safe_text(lasted)}</title></rect>"
            )
    if picture.split_ms is not None:
        at = x(picture.split_ms)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{bottom}">'
            "<title>chosen on what lies before, reported on what lies behind</title></line>"
        )
    return "".join([*parts, "</svg>"])


def _time_axis(x: Linear, picture: ReplayPicture, *, y: float) -> str:
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>']
    for time in time_ticks(picture.start_ms, picture.end_ms, at_most=12):
        at, label = x(time), time_tick_label(time, picture.end_ms - picture.start_ms)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{y}" y2="{y + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{y + 18}" text-anchor="middle">{safe_text(label)}</text>'
        )
    return "".join(parts)


def _strength_card(picture: ReplayPicture) -> str:
    if picture.strength is None:
        return ""
    caption = (
        "The strongest evidence of any alarm of the whole traffic, as it was stored, against its two thresholds. "
        "Strength s means: without drift, evidence like this appears once in 10ˢ blocks."
    )
    chart = timeline_svg(picture.strength, start_ms=picture.start_ms, end_ms=picture.end_ms, name="strength")
    return card("Evidence for drift", caption, f'<div class="scroll">{chart}</div>')


def _choices_card(picture: ReplayPicture) -> str:
    if not picture.choices:
        return ""
    caption = (
        "All settings that were tried, on the first part of the time, which chooses: what they would have told for "
        "nothing, and how long they would have left people in the dark. The line joins those that no other one beats. "
        "What is said of the suggestion is of the second part."
    )
    return card("What was chosen from", caption, f'<div class="choices">{choices_svg(picture.choices)}</div>')


def choices_svg(choices: Sequence[Choice]) -> str:
    """False pages a month against missed time, as one <svg>."""
    wide, tall, left, right, top, bottom = 720, 330, 66, 700, 16, 286
    shown = choices[:MAX_CHOICES]
    scale, unit = _time_unit(max(one.missed_s for one in shown))
    high_x = max(max(one.false_a_month for one in shown) * 1.1, 0.5)
    high_y = max(max(one.missed_s for one in shown) / scale * 1.1, 1.0)
    x, y = Linear(0.0, high_x, left, right), Linear(0.0, high_y, bottom, top)
    spoken = f"False pages a month against missed time of {count(len(shown))} settings."
    parts = [f'<svg class="chart" viewBox="0 0 {wide} {tall}" role="img" aria-label="{safe_text(spoken)}">']
    parts += [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text class="tick" x="{left - 7}" y="{y(value) + 3.5:.1f}" text-anchor="end">{value:g}</text>'
        for value in number_ticks(0.0, high_y, at_most=5)
    ]
    for value in number_ticks(0.0, high_x, at_most=7):
        at = x(value)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="tick" x="{(left + right) / 2}" y="{tall - 8}" text-anchor="middle">false pages a month</text>'
        f'<text class="tick" x="{left + 6}" y="{top + 4}">missed, {unit}</text>'
    )
    front = "L".join(f"{x(px):.1f} {y(py / scale):.1f}" for px, py in front_line(shown))
    if front:
        parts.append(f'<path class="front" d="M{front}"/>')
    for one in sorted(shown, key=lambda one: one.kind != "other"):
        at, height = x(one.false_a_month), y(one.missed_s / scale)
        title = f"{one.name}: {small(one.false_a_month)} false pages a month, missed {duration(one.missed_s * 1000)}"
        parts.append(
            f'<circle class="choice {one.kind}" cx="{at:.1f}" cy="{height:.1f}" r="{4 if one.kind == "other" else 6}">'
            f"<title>{safe_text(title)}</title></circle>"
        )
        if one.kind != "other":
            beyond = at + 12 + len(one.name) * _LETTER > wide
            place = f'x="{at - 10:.1f}" text-anchor="end"' if beyond else f'x="{at + 10:.1f}"'
            # The suggestion may lie on what is set now: one name above, one below.
            lower = height - 8 if one.kind == "now" else height + 17
            parts.append(f'<text class="choice-label {one.kind}" {place} y="{lower:.1f}">{safe_text(one.name)}</text>')
    return "".join([*parts, "</svg>"])


def front_line(choices: Sequence[Choice]) -> list[tuple[float, float]]:
    """The steps between the choices of the front: (false pages a month, missed seconds), fewest false pages first.

    >>> front_line([Choice("a", 2.0, 10.0, "now", True), Choice("b", 0.0, 30.0, "other", True)])
    [(0.0, 30.0), (2.0, 30.0), (2.0, 10.0)]
    """
    corners: list[tuple[float, float]] = []
    for one in sorted((one for one in choices if one.on_front), key=lambda one: (one.false_a_month, one.missed_s)):
        if corners:
            corners.append((one.false_a_month, corners[-1][1]))
        corners.append((one.false_a_month, one.missed_s))
    return corners


def _time_unit(longest_s: float) -> tuple[float, str]:
    """Seconds of the unit in which times up to the longest are read best, and its name."""
    for size, unit in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if longest_s >= 2 * size:
            return size, unit
    return 1.0, "seconds"


# --- PNG --------------------------------------------------------------------------------------------------------------


def replay_png(picture: ReplayPicture, *, resolution: int = 130) -> bytes:
    """The picture as a PNG file, about 1,400 pixels wide."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lanes = picture.lanes[:MAX_LANES]
    legend = "Red: pages. Amber: warnings. Shaded: what truly happened."
    legend += f" {_DOTTED}" if picture.split_ms is not None else ""
    said = [line for text in picture.said[:4] for line in textwrap.wrap(text, 158)][:6]
    if len(picture.said) > 4:
        said.append(f"and {len(picture.said) - 4} more sentences: driftd replay says them")
    said.append(legend)
    head, of_lanes = 0.62 + 0.17 * len(said), 0.5 + 0.4 * len(lanes)
    of_strength = 0.0 if picture.strength is None else 1.75
    of_choices = 3.1 if picture.choices else 0.0
    tall = head + of_lanes + of_strength + of_choices + 0.1
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "driftd"}):
        figure = Figure(figsize=(10.6, tall), dpi=resolution, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.045, 1 - 0.26 / tall, textwrap.shorten(picture.title, 70), size=14, weight="bold", color=_TEXT)
        covered = period(picture.start_ms, picture.end_ms)
        figure.text(0.985, 1 - 0.26 / tall, covered, size=8.5, color=_SOFT, ha="right")
        for number, line in enumerate(said):
            figure.text(0.045, 1 - (0.5 + 0.17 * number) / tall, line, size=9, color=_SOFT)
        bottom = tall - head - of_lanes
        _draw_lanes(_axes(figure, bottom + 0.3, of_lanes - 0.5, tall), picture, lanes)
        if picture.strength is not None:
            bottom -= of_strength
            _draw_strength(_axes(figure, bottom + 0.32, of_strength - 0.62, tall), picture, picture.strength)
        if picture.choices:
            bottom -= of_choices
            _draw_choices(_axes(figure, bottom + 0.5, of_choices - 0.85, tall, wide=0.6), picture.choices)
        written = io.BytesIO()
        # Without the library's version in it, the same picture gives the same bytes.
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _axes(figure: Figure, bottom: float, height: float, tall: float, *, wide: float = 0.94) -> Axes:
    """Axes at so many inches above the foot of a figure that is so many inches tall."""
    return figure.add_axes((0.045, bottom / tall, wide, height / tall))


def _draw_lanes(axes: Axes, picture: ReplayPicture, lanes: Sequence[Lane]) -> None:
    span = picture.end_ms - picture.start_ms
    least = span / 500  # what is shorter is drawn this long, to be seen
    taken = -1e18
    for one in picture.truth[:MAX_TRUTHS]:
        axes.axvspan(one.start_ms, max(one.end_ms, one.start_ms + least), color=_TRUTH, alpha=0.14, lw=0)
        width = len(one.label) / 150 * span
        at = min(max((one.start_ms + one.end_ms) / 2, picture.start_ms + width / 2), picture.end_ms - width / 2)
        if at - width / 2 > taken and len(one.label) <= 50:
            taken = at + width / 2
            axes.annotate(
                one.label, (at, 0), xytext=(0, 3), textcoords="offset points", size=7.5, color="#5d3fae", ha="center"
            )
    for number, lane in enumerate(lanes):
        foot = number + 0.86
        axes.axhline(foot + 0.05, color=_GRID, lw=0.7)
        for told in sorted(lane.told[:MAX_BARS], key=lambda told: told.level != "warn"):
            length = max(told.end_ms - told.start_ms, least)
            axes.broken_barh([(told.start_ms, length)], (foot - 0.34, 0.34), color=_INK[told.level], lw=0)
        axes.text(picture.start_ms, number + 0.44, _cut(lane.name, 80), size=8.5, weight="bold", color=_TEXT)
        axes.text(picture.end_ms, number + 0.44, _cut(lane.said, 90), size=8, color=_SOFT, ha="right")
    if picture.split_ms is not None:
        axes.axvline(picture.split_ms, color=_TEXT, lw=1, ls=":")
    _time_ticks(axes, picture)
    axes.set(ylim=(len(lanes), 0), yticks=[])
    _plain(axes)


def _draw_strength(axes: Axes, picture: ReplayPicture, timeline: Timeline) -> None:
    strongest = timeline.strongest
    _, peaks, _ = thin_out(strongest, timeline.n, at_most=MAX_POINTS)
    page = max(timeline.page, 0.1)
    height = Strengths(page, max(float(strongest.max(initial=0.0)) * 1.04, page * 1.35), 0.0, 1.0)
    times = timeline.starts_ms[peaks] + timeline.block_ms / 2
    heights = np.array([height(float(value)) for value in strongest[peaks]])
    for one in picture.truth[:MAX_TRUTHS]:
        axes.axvspan(one.start_ms, one.end_ms, color=_TRUTH, alpha=0.14, lw=0)
    axes.plot(times, heights, color=_CALM, lw=1.2, solid_joinstyle="round")
    axes.fill_between(times, heights, color=_CALM, alpha=0.13, lw=0)
    for word, threshold in (("page", timeline.page), ("warn", timeline.warn)):
        axes.axhline(height(threshold), color=_INK[word], lw=0.9, ls=(0, (5, 4)))
        axes.text(picture.start_ms, height(threshold) + 0.03, f"  {word}", color=_INK[word], size=7.5)
    axes.annotate(
        "strongest evidence for drift, whole traffic, as it was stored",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        size=8.5,
        weight="bold",
        color=_TEXT,
    )
    _time_ticks(axes, picture)
    axes.set(ylim=(0, 1))
    axes.set_yticks([height(tick) for tick in height.ticks()], [f"{tick:g}" for tick in height.ticks()])
    _plain(axes)


def _draw_choices(axes: Axes, choices: Sequence[Choice]) -> None:
    shown = choices[:MAX_CHOICES]
    scale, unit = _time_unit(max(one.missed_s for one in shown))
    corners = front_line(shown)
    axes.plot([x for x, _ in corners], [y / scale for _, y in corners], color=_SOFT, lw=1, ls=(0, (4, 3)))
    inks = {"other": "#a9b2bd", "now": _CALM, "suggested": _OK}
    for one in sorted(shown, key=lambda one: one.kind != "other"):
        size, face = (26, "white") if one.kind == "other" else (52, inks[one.kind])
        place = one.false_a_month, one.missed_s / scale
        axes.scatter(*place, s=size, facecolor=face, edgecolor=inks[one.kind], lw=1.2, zorder=3, clip_on=False)
        if one.kind != "other":
            offset = (8, 6) if one.kind == "now" else (8, -12)
            axes.annotate(
                _cut(one.name, 60),
                place,
                xytext=offset,
                textcoords="offset points",
                size=8.5,
                weight="bold",
                color=inks[one.kind],
            )
    axes.annotate(
        "false pages a month and missed time of all that was tried, on the first part, which chooses",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        size=8.5,
        weight="bold",
        color=_TEXT,
    )
    axes.set_xlabel("false pages a month", color=_SOFT, size=8.5)
    axes.set_ylabel(f"missed, {unit}", color=_SOFT, size=8.5)
    axes.set_xlim(0, max(max(one.false_a_month for one in shown) * 1.1, 0.5))
    axes.set_ylim(0, max(max(one.missed_s for one in shown) / scale * 1.1, 1.0))
    axes.grid(color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    _plain(axes)


def _time_ticks(axes: Axes, picture: ReplayPicture) -> None:
    ticks = time_ticks(picture.start_ms, picture.end_ms, at_most=10)
    axes.set(xlim=(picture.start_ms, picture.end_ms))
    axes.set_xticks(ticks, [time_tick_label(tick, picture.end_ms - picture.start_ms) for tick in ticks])


def _plain(axes: Axes) -> None:
    axes.tick_params(colors=_SOFT, labelsize=8, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)


def _cut(text: str, at_most: int) -> str:
    return textwrap.shorten(text, at_most, placeholder=" ...")
