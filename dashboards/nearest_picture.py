"""A map of a reference with a query and its neighbours: as a PNG for a chat, or as an HTML file that needs nothing.

Left, records of the baseline on their two principal axes, in the colours of their groups; the query, the terms it was
made of, and its neighbours, numbered. Right, the neighbours in words, nearest first. What is near on the map need not
be near: it shows two dimensions of many, and says how much of the whole that is.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from dashboards.report import framed
from dashboards.report_parts import card, left_out
from dashboards.scales import Linear, count, safe_text
from dashboards.whole_file import is_png, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DOTS: Final = 4_000
MAX_TITLED: Final = 1_500  # dots that say what they are
MAX_GROUPS: Final = 8
MAX_NEIGHBOURS: Final = 16

_TEXT, _SOFT, _GRID, _QUERY = "#17202b", "#586474", "#e1e5ea", "#d2352b"
_OTHER: Final = "#98a3af"
# Readable on white and on the dark ground of the page, told apart by people who do not see all colours.
_INKS: Final = ("#3b82c4", "#e08b27", "#2fa37c", "#c765a8", "#8a6fd1", "#a08338", "#4fb3cf", "#d0694f")
_WIDE, _TALL, _MAP, _LIST = 1120, 640, 690, 722
_RADIUS: Final = 8.5  # of a numbered mark

Floats = npt.NDArray[np.float32]
Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Nearby:
    """A neighbour.

    Attributes:
        at: on the map.
        words: what it is.
        closeness: to the query, in digits.
        bar: 0 to 1, how near it is among the neighbours that are shown.
        group: its colour; -1 for none.
    """

    at: Place
    words: str
    closeness: str
    bar: float
    group: int


@dataclass(frozen=True, slots=True)
class Named:
    """A term of the query."""

    at: Place
    name: str
    sign: Literal[1, -1]


@dataclass(frozen=True, slots=True, eq=False)
class NearestMap:
    """What is drawn.

    Attributes:
        title, said: what was looked for, and what was found, in a sentence.
        dots: float32 (n, 2), records of the baseline.
        dot_words: n texts, or none.
        group_of: int64 (n,), the group of each, -1 for none.
        groups: their names, at most `MAX_GROUPS`.
        grouped_by: what they are.
        explained: share of the variance that the two axes show.
        measure: what closeness is.
        query: where it lies.
        terms: what it was made of; empty for one term.
        neighbours: nearest first.
    """

    title: str
    said: str
    dots: Floats
    dot_words: tuple[str, ...]
    group_of: npt.NDArray[np.int64]
    groups: tuple[str, ...]
    grouped_by: str
    explained: float
    measure: str
    query: Place
    terms: tuple[Named, ...]
    neighbours: tuple[Nearby, ...]


def write_map(path: Path, picture: NearestMap) -> None:
    """Write the map as .png or .html, whichever the name ends with. The same map gives the same bytes.

    Raises:
        InvalidInput: another ending, or the file cannot be written.
    """
    drawn = nearest_png(picture) if is_png(path, example="map") else nearest_html(picture).encode()
    write_whole(path, drawn, what="The map")


def caption_of(picture: NearestMap) -> str:
    """What the axes show, and what they do not."""
    return (
        f"{count(len(picture.dots))} records of the baseline on their two principal axes, which show "
        f"{100 * picture.explained:.0f} % of how they differ: neighbours may lie apart here. "
        f"Colours: {picture.grouped_by}."
    )


# --- HTML -------------------------------------------------------------------------------------------------------------


def nearest_html(picture: NearestMap) -> str:
    """The map as the text of an HTML page: nothing from elsewhere, light and dark."""
    head = f'<header><div class="brand">driftd nearest</div><h1>{safe_text(picture.title, at_most=160)}</h1></header>'
    verdict = f'<div class="verdict"><span>{safe_text(picture.said)}</span></div>'
    legend = "".join(
        f'<span><i style="background:{_ink(number)}"></i>{safe_text(name, at_most=60)}</span>'
        for number, name in enumerate(picture.groups)
    )
    content = f'{_STYLE}<div class="legend">{legend}</div><div class="scroll">{map_svg(picture)}</div>'
    sections = [
        head,
        verdict,
        card("Where it lies", caption_of(picture) + left_out(len(picture.neighbours), MAX_NEIGHBOURS), content),
        "<footer>This file needs no network and sends nothing.</footer>",
    ]
    return framed(picture.title, sections)


_STYLE: Final = (
    "<style>.nearest { min-width: 860px; } .nearest .cloud { fill-opacity: .5; } "
    ".nearest .ray { stroke: var(--axis); stroke-width: 1; } .nearest .step { stroke: var(--soft); "
    "stroke-width: 1.4; stroke-dasharray: 5 4; fill: none; } .nearest .halo { stroke: var(--card); "
    "stroke-width: 1.6; } .nearest .query { fill: var(--page-line); stroke: var(--card); stroke-width: 1.6; } "
    ".nearest text.number { fill: #fff; font-weight: 700; font-size: 10px; } .nearest text.name { fill: var(--text); "
    "font-weight: 650; font-size: 12.5px; paint-order: stroke; stroke: var(--card); stroke-width: 3.5px; "
    "stroke-linejoin: round; } .nearest text.words { fill: var(--text); font-size: 12.5px; } "
    ".nearest .track { fill: var(--grid); }</style>"
)


def map_svg(picture: NearestMap) -> str:
    """The map and the list beside it, as one <svg>."""
    x, y = _scales(picture, (16, _MAP - 16), (_TALL - 16, 16))

    def at(place: Place) -> Place:
        return round(x(place[0]), 1), round(y(place[1]), 1)

    shown = picture.neighbours[:MAX_NEIGHBOURS]
    spoken = f"{picture.title}: " + "; ".join(f"{i}. {mark.words}" for i, mark in enumerate(shown, 1))
    parts = [
        f'<svg class="chart nearest" viewBox="0 0 {_WIDE} {_TALL}" role="img" '
        f'aria-label="{safe_text(spoken, at_most=1_000)}">'
        f'<rect class="frame" x="0.5" y="0.5" width="{_MAP - 1}" height="{_TALL - 1}" rx="8"/>'
    ]
    step = max(-(-len(picture.dots) // MAX_DOTS), 1)
    for number in range(-1, len(picture.groups)):
        rows = np.flatnonzero(picture.group_of == number)[::step].tolist()
        dots = []
        for row in rows:
            px, py = at((float(picture.dots[row, 0]), float(picture.dots[row, 1])))
            words = picture.dot_words[row] if row < len(picture.dot_words) and row < MAX_TITLED * step else ""
            title = f"<title>{safe_text(words, at_most=120)}</title>" if words else ""
            dots.append(f'<circle cx="{px:g}" cy="{py:g}" r="2.6">{title}</circle>')
        if dots:
            parts.append(f'<g class="cloud" fill="{_ink(number)}">{"".join(dots)}</g>')
    query = at(picture.query)
    parts += [
        f'<line class="ray" x1="{query[0]}" y1="{query[1]}" x2="{px}" y2="{py}"/>'
        for px, py in (at(mark.at) for mark in shown)
    ]
    parts += [
        f'<line class="step" x1="{at(term.at)[0]}" y1="{at(term.at)[1]}" x2="{query[0]}" y2="{query[1]}"/>'
        for term in picture.terms
    ]
    anchors = [at(mark.at) for mark in shown]
    spots = spread(
        anchors, avoid=[query, *(at(term.at) for term in picture.terms)], room=2 * _RADIUS + 1.5, within=(_MAP, _TALL)
    )
    for number, (mark, anchor, spot) in enumerate(zip(shown, anchors, spots, strict=True), 1):
        if hypot(spot[0] - anchor[0], spot[1] - anchor[1]) > 1:
            parts.append(
                f'<line class="ray" x1="{anchor[0]:.1f}" y1="{anchor[1]:.1f}" x2="{spot[0]:.1f}" y2="{spot[1]:.1f}"/>'
                f'<circle class="halo" cx="{anchor[0]:.1f}" cy="{anchor[1]:.1f}" r="3.6" fill="{_ink(mark.group)}"/>'
            )
        parts.append(
            f"<g><title>{safe_text(mark.words, at_most=200)}</title>"
            f'<circle class="halo" cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="{_RADIUS}" fill="{_ink(mark.group)}"/>'
            f'<text class="number" x="{spot[0]:.1f}" y="{spot[1] + 3.5:.1f}" text-anchor="middle">{number}</text></g>'
        )
    for term in picture.terms:
        px, py = at(term.at)
        parts.append(
            f'<path class="query" d="M{px} {py - 6.5}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>'
            + _name(f"{'+' if term.sign > 0 else '−'} {term.name}", px, py)
        )
    parts.append(f'<path class="query" d="{_star(*query)}"/>')
    parts.append(_name(picture.title if not picture.terms else "the sum", *query))
    return "".join([*parts, *_list_svg(picture, shown), "</svg>"])


def _list_svg(picture: NearestMap, shown: Sequence[Nearby]) -> list[str]:
    right, row = _WIDE - 4, min(38.0, (_TALL - 30) / max(len(shown), 1))
    parts = [
        f'<text x="{_LIST}" y="14">nearest first</text>'
        f'<text x="{right}" y="14" text-anchor="end">{safe_text(picture.measure)}</text>'
    ]
    for number, mark in enumerate(shown, 1):
        top = 24 + row * (number - 1)
        wide = right - _LIST - 26
        parts.append(
            f'<circle cx="{_LIST + 9}" cy="{top + 13:.1f}" r="{_RADIUS}" fill="{_ink(mark.group)}"/>'
            f'<text class="number" x="{_LIST + 9}" y="{top + 16.5:.1f}" text-anchor="middle">{number}</text>'
            f'<text class="words" x="{_LIST + 26}" y="{top + 15:.1f}"><title>{safe_text(mark.words, at_most=400)}'
            f"</title>{safe_text(_cut(mark.words, 49))}</text>"
            f'<text x="{right}" y="{top + 15:.1f}" text-anchor="end">{safe_text(mark.closeness)}</text>'
            f'<rect class="track" x="{_LIST + 26}" y="{top + 20:.1f}" width="{wide}" height="3" rx="1.5"/>'
            f'<rect x="{_LIST + 26}" y="{top + 20:.1f}" width="{max(wide * mark.bar, 1):.1f}" height="3" rx="1.5" '
            f'fill="{_ink(mark.group)}"/>'
        )
    return parts


def _name(text: str, x: float, y: float) -> str:
    left = x > _MAP - 190
    place = f'x="{x - 12:.1f}" text-anchor="end"' if left else f'x="{x + 12:.1f}"'
    return f'<text class="name" {place} y="{max(y - 9, 14):.1f}">{safe_text(_cut(text, 42))}</text>'


def _star(x: float, y: float, size: float = 11.0) -> str:
    points = [
        (x + radius * sin(pi * i / 5), y - radius * cos(pi * i / 5))
        for i in range(10)
        for radius in [size if i % 2 == 0 else size * 0.45]
    ]
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points) + "z"


def spread(
    anchors: Sequence[Place], *, avoid: Sequence[Place], room: float, within: Place | None = None
) -> list[Place]:
    """A place for each numbered mark, near its anchor, so that none lies on another.

    Places are tried on rings around the anchor; where all are taken, the mark stays where its record is. All of a mark
    stays between 0 and ``within``, if that is given.

    >>> spread([(0.0, 0.0), (0.0, 0.0)], avoid=[], room=10.0)[0]
    (0.0, 0.0)
    >>> a, b = spread([(0.0, 0.0), (0.0, 0.0)], avoid=[], room=10.0)
    >>> hypot(a[0] - b[0], a[1] - b[1]) >= 10.0
    True
    """
    taken, edge = list(avoid), room / 2
    spots: list[Place] = []
    for x, y in anchors:
        tried = [(x, y)]
        tried += [
            (x + ring * room * cos(turn * pi / 8), y + ring * room * sin(turn * pi / 8))
            for ring in (1.05, 1.6, 2.2, 3.0, 4.0)
            for turn in range(16)
        ]
        inside = [one for one in tried if within is None or _lies_within(one, edge, within)]
        spot = next((one for one in inside if all(hypot(one[0] - a, one[1] - b) >= room for a, b in taken)), (x, y))
        spots.append(spot)
        taken.append(spot)
    return spots


def _lies_within(place: Place, edge: float, most: Place) -> bool:
    return all(edge <= at <= end - edge for at, end in zip(place, most, strict=True))


def _scales(picture: NearestMap, across: tuple[float, float], up: tuple[float, float]) -> tuple[Linear, Linear]:
    """From the map to a picture; both axes have the same scale, so that distances are what they are."""
    marks = [mark.at for mark in picture.neighbours] + [term.at for term in picture.terms] + [picture.query]
    points = np.concatenate([picture.dots, np.array(marks, dtype=np.float32)])
    low, high = points.min(axis=0).astype(float), points.max(axis=0).astype(float)
    scale = max((high[0] - low[0]) / abs(across[1] - across[0]), (high[1] - low[1]) / abs(up[1] - up[0]), 1e-9)
    middle, half_x, half_y = (low + high) / 2, scale * abs(across[1] - across[0]) / 2, scale * abs(up[1] - up[0]) / 2
    return (
        Linear(float(middle[0] - half_x), float(middle[0] + half_x), *across),
        Linear(float(middle[1] - half_y), float(middle[1] + half_y), *up),
    )


def _ink(group: int) -> str:
    return _INKS[group % len(_INKS)] if group >= 0 else _OTHER


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


# --- PNG --------------------------------------------------------------------------------------------------------------


def nearest_png(picture: NearestMap, *, resolution: int = 130) -> bytes:
    """The map as a PNG file, about 1,450 pixels wide."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words = textwrap.wrap(picture.said, 150)[:2] + textwrap.wrap(caption_of(picture), 158)[:2]
    head, wide, body = 0.55 + 0.18 * len(words), 11.2, 6.2
    legend = 0.32 * -(-len(picture.groups) // 4) if picture.groups else 0.0
    tall = head + body + legend + 0.15
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "driftd"}):
        figure = Figure(figsize=(wide, tall), dpi=resolution, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.02, 1 - 0.3 / tall, _plain(_cut(picture.title, 90)), size=14, weight="bold", color=_TEXT)
        for number, line in enumerate(words):
            figure.text(0.02, 1 - (0.55 + 0.18 * number) / tall, _plain(line), size=9, color=_SOFT)
        axes = figure.add_axes((0.02, (legend + 0.1) / tall, _MAP / _WIDE - 0.02, body / tall))
        _draw_map(axes, picture)
        listed = figure.add_axes((_LIST / _WIDE, (legend + 0.1) / tall, 0.985 - _LIST / _WIDE, body / tall))
        _draw_list(listed, picture)
        for number, name in enumerate(picture.groups):
            left, down = 0.02 + 0.245 * (number % 4), (legend - 0.2 - 0.28 * (number // 4)) / tall
            figure.text(left, down, "●", size=9, color=_ink(number))
            figure.text(left + 0.014, down, _plain(_cut(name, 40)), size=8, color=_SOFT)
        written = io.BytesIO()
        # Without the library's version in it, the same map gives the same bytes.
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _draw_map(axes: Axes, picture: NearestMap) -> None:
    x, y = _scales(picture, (16, _MAP - 16), (_TALL - 16, 16))

    def at(place: Place) -> Place:
        return x(place[0]), y(place[1])

    step = max(-(-len(picture.dots) // MAX_DOTS), 1)
    for number in range(-1, len(picture.groups)):
        rows = np.flatnonzero(picture.group_of == number)[::step]
        if len(rows):
            places = np.array([at((float(a), float(b))) for a, b in picture.dots[rows]])
            axes.scatter(places[:, 0], places[:, 1], s=7, color=_ink(number), alpha=0.5, lw=0)
    shown, query = picture.neighbours[:MAX_NEIGHBOURS], at(picture.query)
    anchors = [at(mark.at) for mark in shown]
    spots = spread(
        anchors, avoid=[query, *(at(term.at) for term in picture.terms)], room=2 * _RADIUS + 3, within=(_MAP, _TALL)
    )
    for anchor in anchors:
        axes.plot(*zip(query, anchor, strict=True), color="#a9b2bd", lw=0.8, zorder=2)
    for term in picture.terms:
        axes.plot(*zip(query, at(term.at), strict=True), color=_SOFT, lw=1.1, ls=(0, (5, 4)), zorder=2)
    for number, (mark, anchor, spot) in enumerate(zip(shown, anchors, spots, strict=True), 1):
        axes.plot(*zip(anchor, spot, strict=True), color="#a9b2bd", lw=0.8, zorder=3)
        axes.scatter(*anchor, s=16, color=_ink(mark.group), edgecolor="white", lw=0.8, zorder=3)
        axes.scatter(*spot, s=150, color=_ink(mark.group), edgecolor="white", lw=1, zorder=4)
        axes.text(
            *spot, str(number), size=7.5, weight="bold", color="white", ha="center", va="center_baseline", zorder=5
        )
    named = [(term.at, f"{'+' if term.sign > 0 else '−'} {term.name}", "D", 36) for term in picture.terms]
    named.append((picture.query, "the sum" if picture.terms else picture.title, "*", 190))
    from matplotlib.patheffects import withStroke

    for place, name, shape, size in named:
        px, py = at(place)
        axes.scatter(px, py, s=size, marker=shape, color=_QUERY, edgecolor="white", lw=1, zorder=6)
        left = px > _MAP - 190
        axes.text(
            px - 12 if left else px + 12,
            py - 9,
            _plain(_cut(name, 42)),
            size=9,
            weight="bold",
            color=_TEXT,
            ha="right" if left else "left",
            zorder=7,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    axes.set(xlim=(0, _MAP), ylim=(_TALL, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(_GRID)


def _draw_list(axes: Axes, picture: NearestMap) -> None:
    wide = _WIDE - 4 - _LIST
    shown = picture.neighbours[:MAX_NEIGHBOURS]
    row = min(38.0, (_TALL - 30) / max(len(shown), 1))
    axes.text(0, 14, "nearest first", size=8, color=_SOFT)
    axes.text(wide, 14, picture.measure, size=8, color=_SOFT, ha="right")
    for number, mark in enumerate(shown, 1):
        top = 24 + row * (number - 1)
        axes.scatter(9, top + 13, s=150, color=_ink(mark.group), lw=0)
        axes.text(9, top + 13, str(number), size=7.5, weight="bold", color="white", ha="center", va="center_baseline")
        axes.text(26, top + 15, _plain(_cut(mark.words, 47)), size=8.5, color=_TEXT)
        axes.text(wide, top + 15, mark.closeness, size=8, color=_SOFT, ha="right")
        for length, colour in ((1.0, _GRID), (mark.bar, _ink(mark.group))):
            axes.plot([26, 26 + (wide - 26) * length], [top + 21.5] * 2, color=colour, lw=2.2, solid_capstyle="butt")
    axes.set(xlim=(0, wide), ylim=(_TALL, 0))
    axes.axis("off")


def _plain(text: str) -> str:
    """As it is: a dollar would begin a formula."""
    return text.replace("$", r"\$")
