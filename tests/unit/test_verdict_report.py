"""The verdict in the report and in a picture: everything that is known is drawn, safe, bounded and legible."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from connectors.database.rows import FoldResult
from connectors.database.store import Store
from dashboards.report import render
from dashboards.report_data import Header, MeasuredPoint, Report, Traffic, VerdictSection, WordSpan
from dashboards.report_verdict import MAX_MEASURED, MAX_POINTS, lowest, shown_measured, thinned, verdict_svg
from dashboards.verdict_picture import write_verdict
from detectors.errors import InvalidInput
from monitor.standing import Standing
from monitor.verdict_drawing import verdict_section
from tests.contract.verdict_rows import verdict

START, BLOCK = 1_772_438_400_000, 60_000
EVIL = "<script>alert('x')</script>\"'&{{body}}"


def section(blocks: int = 100, **more: Any) -> VerdictSection:
    """A model that degrades in the second half, with gaps in what is known."""
    starts = START + BLOCK * np.arange(blocks, dtype=np.int64)
    lost = np.arange(blocks) >= blocks // 2
    low = np.where(lost, 0.78, 0.945)
    low[blocks // 10] = np.nan
    half = int(starts[blocks // 2])
    values: dict[str, Any] = {
        "word": "degraded",
        "level": "page",
        "since_ms": half,
        "reasons": ("New content.",),
        "numbers": (("estimated", "78 % to 91 % right"),),
        "unseen": "Wrong answers cannot be seen.",
        "next_step": "roll back; `driftd verdict`",
        "spans": (
            WordSpan(START, half, "fresh", "fine"),
            WordSpan(half, int(starts[-1]) + BLOCK, "degraded", "page"),
        ),
        "starts_ms": starts,
        "block_ms": BLOCK,
        "low": low,
        "high": np.where(lost, 0.91, 0.955),
        "floor": np.full(blocks, 0.94),
        "novel": np.where(lost, 0.12, 0.0),
        "measured": (MeasuredPoint(half, 0.95, 0.92, 0.97, 120), MeasuredPoint(half + BLOCK, 0.86, 0.8, 0.9, 160)),
    }
    return VerdictSection(**(values | more))


def report(found: VerdictSection | None) -> Report:
    return Report(
        header=Header("orders", START, START + 100 * BLOCK, "calm", "Nothing to report."),
        traffic=Traffic(1000, 0),
        references=(),
        verdict=found,
    )


def elements(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg.replace("\u00a0", " ")).iter())


def draw(found: VerdictSection) -> list[ElementTree.Element]:
    end_ms = int(found.starts_ms[-1]) + found.block_ms
    return elements(verdict_svg(found, start_ms=START, end_ms=end_ms))


def test_the_report_begins_with_the_word_and_tells_why() -> None:
    page = render(report(section()))
    assert page.index('<span class="pill page">degraded</span><span>Nothing to report.') < page.index("Is the model")
    assert page.index("Is the model still good?") < page.index("<h2>Incidents</h2>")
    assert "<li>New content.</li>" in page and "<dt>estimated</dt><dd>78 % to 91 % right</dd>" in page
    assert "Wrong answers cannot be seen." in page and "<code>driftd verdict</code>" in page


def test_a_report_without_a_verdict_is_as_it_was() -> None:
    page = render(report(None))
    assert "Is the model" not in page and '<span class="pill calm">calm</span>' in page


def test_the_chart_holds_the_band_the_floor_the_dots_and_the_words() -> None:
    drawn = draw(section())
    kinds = [element.get("class") for element in drawn]
    assert kinds.count("band") == 2, "the band has a hole where nothing is known"
    assert kinds.count("threshold page") == 1
    assert [element.tag.rpartition("}")[2] for element in drawn].count("circle") == 2
    words = [element.text for element in drawn if (element.get("class") or "").startswith("word-label")]
    assert words == ["fresh", "degraded"]
    assert any("floor 94 %" in (element.text or "") for element in drawn)


def test_what_is_higher_is_drawn_higher() -> None:
    found = draw(section())
    first, second = (float(e.get("cy") or 0) for e in found if e.tag.endswith("circle"))
    (floor,) = (e.get("d") or "" for e in found if e.get("class") == "threshold page")
    height = float(floor.split()[1].split("L")[0])
    assert first < height < second, "95 % above the floor of 94 %, 86 % below it"


def test_texts_cannot_act() -> None:
    evil = section(
        reasons=(EVIL,),
        numbers=((EVIL, EVIL),),
        unseen=EVIL,
        next_step=EVIL,
        spans=(WordSpan(START, START + 99 * BLOCK, EVIL, "page"),),
    )
    page = render(report(evil))
    assert page.count("<script>") == 1 and "alert(&#x27;x" in page


@pytest.mark.parametrize("blocks", [1, 2, 50_000])
def test_size_is_bounded_and_the_worst_of_each_place_is_kept(blocks: int) -> None:
    found = section(blocks)
    low = found.low.copy()
    low[blocks // 3] = 0.3
    found = replace(found, low=low)
    times, lows, highs, floors, novel = thinned(found)
    assert len({len(times), len(lows), len(highs), len(floors), len(novel)}) == 1 <= len(times) <= MAX_POINTS
    assert np.nanmin(lows) == 0.3 and (np.diff(times) > 0).all()
    points = tuple(MeasuredPoint(START + n, 0.9, 0.8, 0.95, n) for n in range(5000))
    shown = shown_measured(points)
    assert len(shown) <= MAX_MEASURED and shown[-1] == points[-1]
    assert len(verdict_svg(replace(found, measured=points), start_ms=START, end_ms=START + blocks * BLOCK)) < 200_000


def test_a_verdict_of_which_nothing_is_known_but_the_word_is_drawn(tmp_path: Path) -> None:
    nothing = np.full(100, np.nan)
    empty = section(low=nothing, high=nothing, floor=nothing, novel=nothing, measured=(), reasons=(), since_ms=None)
    kinds = [element.get("class") for element in draw(empty)]
    assert "band" not in kinds and "threshold page" not in kinds
    write_verdict(tmp_path / "v.png", "orders", empty)
    write_verdict(tmp_path / "v.html", "orders", empty)


def test_the_axis_begins_under_all_there_is() -> None:
    nothing = np.full(3, np.nan)
    assert lowest(np.array([0.78, 0.9, np.nan]), np.array([0.94] * 3), ()) == 0.75
    assert lowest(nothing, nothing, [MeasuredPoint(0, 0.5, 0.42, 0.6, 9)]) == 0.4
    assert lowest(nothing, nothing, ()) == 0.0 and lowest(np.array([0.999]), nothing, ()) == 0.95


def test_a_png_can_be_read_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_verdict(tmp_path / name, EVIL, section())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.02
    with pytest.raises(InvalidInput):
        write_verdict(tmp_path / "a.jpg", "orders", section())


def test_stored_verdicts_are_drawn_as_spans_and_as_what_labels_newly_said(tmp_path: Path) -> None:
    rows = [
        verdict(0),
        verdict(1),
        verdict(2, word="watch", labels=50, truths=50, realised=0.9, realised_low=0.8, realised_high=0.95),
        verdict(3, word="watch", labels=50, truths=50, realised=0.9, realised_low=0.8, realised_high=0.95),
        verdict(4, labels=60, truths=60, realised=0.92, realised_low=0.85, realised_high=0.96),
    ]
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        with store.begin_fold("m") as step:
            step.commit(FoldResult(5, [], [], [], [], [], verdicts=rows))
        standing = Standing("m", "blind", 5, rows[-1], ("No records.",), (), "", "`driftd doctor`")
        found = verdict_section(store, standing)
        assert verdict_section(store, standing, from_ms=10**9) is None
    assert found is not None
    assert (found.word, found.level) == ("blind", "blind"), "what is said now, not what was judged last"
    assert [(span.word, span.start_ms, span.end_ms) for span in found.spans] == [
        ("fresh", 0, 20_000),
        ("watch", 20_000, 40_000),
        ("fresh", 40_000, 50_000),
    ]
    assert [(point.value, point.labels) for point in found.measured] == [(0.9, 50), (0.92, 60)]
    assert re.search("blind", render(report(replace(found, starts_ms=found.starts_ms + START))))


def test_a_time_at_the_right_edge_is_written_inside_of_the_chart() -> None:
    ticks = [one for blocks in range(90, 150) for one in draw(section(blocks)) if one.get("class") == "tick"]
    edge = [one for one in ticks if float(one.get("x", "0")) > 1092]
    assert edge and {one.get("text-anchor") for one in edge} == {"end"}
