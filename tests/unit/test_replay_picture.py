"""The picture of replays: everything is there, safe, bounded, and the same each time."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from connectors.database.rows import BlockStatRow, FoldResult, ReadingRow
from connectors.database.store import Store
from dashboards.replay_picture import (
    MAX_BARS,
    MAX_LANES,
    MAX_TRUTHS,
    Choice,
    Lane,
    ReplayPicture,
    Told,
    choices_svg,
    front_line,
    lanes_svg,
    replay_html,
    replay_png,
    write_replay,
)
from dashboards.report_data import Channel, Period, Timeline
from detectors.errors import InvalidInput
from monitor.replay_choice import Suggestion
from monitor.replay_drawing import picture_of
from monitor.replay_truth import judge
from tests.unit.test_replay_choice import CAUGHT, FALSE_FIRST, FALSE_SECOND, NOW, TRUE, chosen_of
from tests.unit.test_replay_truth import END, HOUR, START, at, truth

EVIL = "<script>alert('x')</script>\"'&{{body}}"


def _picture(name: str = "as now") -> ReplayPicture:
    starts = START + np.arange(240, dtype=np.int64) * HOUR
    strength = np.where(np.arange(240) == 100, 30.0, 1.0)
    return ReplayPicture(
        title="Replay of triage",
        start_ms=START,
        end_ms=END,
        said=("It would have paged 3 times instead of 11.", "More of it."),
        lanes=(
            Lane(name, "11 pages", (Told(at(10), at(12), "page"), Told(at(50), at(50.01), "warn"))),
            Lane("drift.tolerance 0.1", "3 pages", (Told(at(10), at(12), "page"),)),
        ),
        truth=(Period(at(10), at(13), "new scanner"), Period(at(10.5), at(13), "the same again")),
        strength=Timeline("any", "", starts, HOUR, (Channel("strongest", strength),), np.full(240, 9), 6.0, 4.0),
        choices=(
            Choice("as now", 11.0, 7_200.0, "now", True),
            Choice("drift.tolerance 0.1", 3.0, 9_000.0, "suggested", True),
            Choice("without mix", 12.0, 9_000.0, "other", False),
        ),
        split_ms=at(144),
    )


def _drawn(picture: ReplayPicture) -> ElementTree.Element:
    return ElementTree.fromstring(lanes_svg(picture))


def test_every_lane_has_its_bars_where_people_knew_and_what_happened_is_shaded() -> None:
    svg = _drawn(_picture())
    bars = [one for one in svg.iter("rect") if one.get("class", "").startswith("open")]
    assert [one.get("class") for one in bars] == ["open warn", "open page", "open page"]
    first, hour = 46.0, (1108 - 46) / 240
    assert float(bars[1].get("x", "0")) == pytest.approx(first + 10 * hour, abs=0.1)
    assert float(bars[1].get("width", "0")) == pytest.approx(2 * hour, abs=0.1)
    assert float(bars[0].get("width", "0")) == 2.5  # half a minute is drawn as wide as can be seen
    shaded = [one for one in svg.iter("rect") if one.get("class") == "truth"]
    assert [one.findtext("title") for one in shaded] == ["new scanner", "the same again"]
    names = [one.text for one in svg.iter("text") if one.get("class") == "lane-name"]
    assert names == ["as now", "drift.tolerance 0.1"]
    # Names that would lie over one another: the first one alone is written.
    assert [one.text for one in svg.iter("text") if one.get("class") == "truth-label"] == ["new scanner"]


def test_texts_of_people_cannot_act_and_the_page_asks_nobody_for_anything() -> None:
    picture = replace(_picture(EVIL), title=EVIL, said=(EVIL, EVIL), truth=(Period(at(1), at(200), EVIL),))
    page = replay_html(replace(picture, choices=(Choice(EVIL, 1.0, 1.0, "now", True),)))
    assert "<script>alert" not in page and page.count("<script>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "http" not in page.replace("http-equiv", "")
    HTMLParser().feed(page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_a_page_holds_the_answer_the_lanes_the_evidence_and_the_choices() -> None:
    page = replay_html(_picture())
    for text in (
        "It would have paged 3 times instead of 11.",
        "What would have been told",
        "Evidence for drift",
        "What was chosen from",
        "3 false pages a month, missed 2 h 30 min",
        "Dotted: settings are chosen on what lies before",
    ):
        assert text in page
    plain = replay_html(replace(_picture(), strength=None, choices=(), split_ms=None))
    assert "Dotted" not in plain
    assert "Evidence for drift" not in plain and "What was chosen from" not in plain


@pytest.mark.parametrize("lanes", [1, 40])
def test_a_png_can_be_read_and_is_the_same_each_time(lanes: int) -> None:
    picture = replace(_picture(), lanes=_picture().lanes[:1] * lanes)
    drawn = replay_png(picture, resolution=60)
    assert drawn == replay_png(picture, resolution=60)
    pixels = matplotlib.image.imread(io.BytesIO(drawn), format="png")
    red = (np.abs(pixels[..., :3] - np.array([0xD2, 0x35, 0x2B]) / 255).max(axis=-1) < 0.02).sum()
    assert red > 20 * min(lanes, MAX_LANES)


def test_size_is_bounded_whatever_was_told() -> None:
    lane = Lane("x" * 10_000, "y" * 10_000, tuple(Told(at(n / 100), at(n / 100 + 1), "warn") for n in range(10_000)))
    picture = replace(_picture(), lanes=(lane, *_picture().lanes * 14), truth=_picture().truth * 2_000)
    svg = _drawn(picture)
    assert len([one for one in svg.iter("text") if one.get("class") == "lane-name"]) == MAX_LANES
    long = [one for one in svg.iter("rect") if one.get("class") == "open warn" and one.get("y") == "40"]
    assert len(long) == MAX_BARS and len([one for one in svg.iter("rect") if one.get("class") == "truth"]) == MAX_TRUTHS
    assert f"{29 - MAX_LANES} more are not shown" in replay_html(picture)


def test_a_picture_of_nothing_told_and_nothing_missed_is_drawn() -> None:
    calm = replace(
        _picture(),
        lanes=(Lane("as now", "0 pages", ()),),
        truth=(),
        choices=(Choice("as now", 0.0, 0.0, "now", True),),
        said=(),
    )
    assert replay_png(calm, resolution=50) and "as now" in replay_html(calm)
    assert ElementTree.fromstring(choices_svg(calm.choices)) is not None


def test_the_front_goes_down_in_steps() -> None:
    points = [Choice(str(x), x, y, "other", True) for x, y in ((2.0, 10.0), (0.0, 30.0), (5.0, 1.0))]
    hidden = Choice("hidden", 1.0, 50.0, "other", False)
    assert front_line([*points, hidden]) == [(0.0, 30.0), (2.0, 30.0), (2.0, 10.0), (5.0, 10.0), (5.0, 1.0)]
    assert front_line([]) == []


def test_the_file_appears_whole_under_a_name_that_says_what_it_is(tmp_path: Path) -> None:
    write_replay(tmp_path / "replay.HTML", _picture())
    assert (tmp_path / "replay.HTML").read_text(encoding="utf-8").startswith("<!doctype html>")
    write_replay(tmp_path / "replay.png", _picture())
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay.HTML", "replay.png"]
    with pytest.raises(InvalidInput, match="PNG or an HTML file") as raised:
        write_replay(tmp_path / "replay.pdf", _picture())
    assert "--picture replay.png" in (raised.value.hint or "")
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_replay(tmp_path / "none" / "replay.png", _picture())


# --- from replays -----------------------------------------------------------------------------------------------------


def _suggested() -> Suggestion:
    return chosen_of(CAUGHT + FALSE_FIRST + FALSE_SECOND, CAUGHT, TRUE)


def _drawn_of(store: Store) -> ReplayPicture:
    found = _suggested()
    replays = [(one.replayed, judge(one.replayed, TRUE)) for one in found.scored]
    happened = [*TRUE, truth(-9, 1), truth(300, 301), truth(5, 6, known=False)]
    return picture_of(store, "triage", NOW, replays, happened, said=("said",), suggestion=found)


def test_replays_are_drawn_with_what_they_told_what_happened_and_what_is_suggested(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        picture = _drawn_of(store)
    assert [lane.name for lane in picture.lanes] == [
        "as now",
        "drift.tolerance 0.1",
        "suggested: drift.tolerance 0.1",
    ]
    assert picture.lanes[0].said == "12 pages, caught 3 of 3, 9 false, missed 18 minutes"
    assert picture.lanes[2].said == "1 page, caught 1 of 1, 0 false, missed 6 minutes, second part"
    assert len(picture.lanes[0].told) == 12 and picture.lanes[0].told[0] == Told(at(10.1), at(13), "page")
    assert [(one.start_ms, one.end_ms) for one in picture.truth] == [
        (at(10), at(13)),
        (at(100), at(103)),
        (at(200), at(203)),
        (START, at(1)),
    ]
    assert picture.strength is None and picture.split_ms == at(144)
    assert [(one.kind, one.on_front) for one in picture.choices] == [("now", False), ("suggested", True)]
    assert replay_html(picture) and replay_png(picture, resolution=50)


def test_evidence_is_drawn_on_the_scale_of_the_run_length_that_is_set_now(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        first = START // 10_000
        with store.begin_fold("triage") as step:
            readings = [_reading(first + n, strength, 7.0) for n, strength in ((0, 1.0), (1, 8.0), (400, 6.0))]
            stats = [BlockStatRow("", first + n, START, START, 0, 100, 0, 0, 0.0, (0,) * 10) for n in range(1)]
            step.commit(FoldResult(first + 401, [], [], readings, [], [], stats=stats))
        strength = _drawn_of(store).strength
    assert strength is not None and strength.block_ms == 10_000
    assert strength.page == pytest.approx(np.log10(90 * 8640))
    # The first stretch holds both first blocks: the strongest speaks.
    assert strength.strongest.tolist() == pytest.approx([strength.page + 1.0, strength.page - 1.0])
    assert strength.n.tolist() == [100, 0]


def _reading(block: int, strength: float, threshold: float) -> ReadingRow:
    start_ms = block * 10_000
    times = start_ms, start_ms + 10_000
    return ReadingRow(
        "input", "", block, *times, "level", 0.0, strength, threshold, 3.0, 9, 0.1, start_ms, None, 1, False, False
    )
