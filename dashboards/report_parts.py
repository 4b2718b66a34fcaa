"""What every section of the report is made of. Cells and contents are HTML already; titles and captions are text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from dashboards.images import data_uri
from dashboards.report_data import Excerpt
from dashboards.scales import count, safe_text

MAX_EXCERPT: Final = 800  # characters of a record's text


def card(title: str, caption: str, content: str) -> str:
    """A section with its title and what it shows."""
    heading = f'<h2>{safe_text(title)}</h2><p class="caption">{safe_text(caption, at_most=2_000)}</p>'
    return f'<section class="card">{heading}{content}</section>'


def pill(kind: str, word: str) -> str:
    """A word in the colour of its kind: page, warn, calm, ok or neutral."""
    return f'<span class="pill {kind}">{safe_text(word)}</span>'


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), times: Sequence[int] = ()
) -> str:
    """A table of cells that are HTML already."""

    def kind(column: int) -> str:
        return ' class="number"' if column in numbers else ' class="time"' if column in times else ""

    head = "".join(f"<th{kind(i)}>{escape(title)}</th>" for i, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def side(excerpt: Excerpt, label: str) -> str:
    """What can be shown of a record: a picture, a text, or the word that nothing was kept."""
    shown = ""
    if excerpt.pixels is not None:
        shown += f'<img alt="{label}" src="{data_uri(excerpt.pixels)}">'
    if excerpt.text:
        shown += f"<blockquote>{safe_text(excerpt.text, at_most=MAX_EXCERPT)}</blockquote>"
    return f"<figure>{shown or '<blockquote>not kept</blockquote>'}<figcaption>{label}</figcaption></figure>"


def left_out(given: int, shown: int) -> str:
    """What a caption says where a list was cut; "" where it was not."""
    return f" {count(given - shown)} more are not shown." if given > shown else ""
