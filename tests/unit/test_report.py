"""The report: everything that it is given is there, safe, bounded, and legible for machines and people."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from dashboards.charts import MAX_POINTS, histogram_svg, map_svg, open_stretches, thin_out, timeline_svg
from dashboards.images import MAX_SIDE, png, thumbnail
from dashboards.picture import MAX_BYTES, write_picture
from dashboards.report import MAX_INCIDENTS, MAX_STRANGEST, MAX_TIMELINES, render, write_report
from dashboards.report_data import (
    AlarmBudget,
    AlarmShare,
    Channel,
    Comparison,
    Excerpt,
    FraudHit,
    FraudSection,
    Header,
    Incident,
    Mark,
    Period,
    ReferenceIdentity,
    Report,
    ScoreHistogram,
    StrangeRecord,
    Timeline,
    Traffic,
    flat_map,
)
from dashboards.report_fraud import fraud_section
from dashboards.scales import Strengths, clock, duration, number_ticks, period, safe_text, small, time_ticks
from detectors.errors import InvalidInput

START = 1_772_438_400_000
BLOCK = 10_000
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{body}}"


def _timeline(
    *, blocks: int = 60, peak: float = 0.0, space: str = "input", segment: str = "scanner south", label: str = "digit 9"
) -> Timeline:
    strength = np.full(blocks, 0.5)
    strength[blocks // 2 : blocks // 2 + 5] = max(peak, 0.5)
    starts = START + np.arange(blocks, dtype=np.int64) * BLOCK
    return Timeline(
        space=space,
        segment=segment,
        starts_ms=starts,
        block_ms=BLOCK,
        channels=(Channel("level", strength), Channel("mix", strength / 2)),
        n=np.full(blocks, 256, dtype=np.int64),
        page=6.0,
        warn=4.0,
        marks=(Mark(int(starts[blocks // 2]), "onset"), Mark(int(starts[blocks // 2 + 1]), "page")) if peak > 6 else (),
        truth=(Period(int(starts[blocks // 2]), int(starts[-1]), label),),
    )


def _plain() -> Report:
    """What an ordinary user has: no truth, no pixels, no map, nothing strange."""
    return Report(
        header=Header("support_triage", START, START + 60 * BLOCK, "calm", "No drift."),
        traffic=Traffic(records=1000, flagged=0),
        references=(ReferenceIdentity("input", 3, 200_000, 512, "0123456789abcdef0123", START, "text"),),
        timelines=(replace(_timeline(segment=""), truth=(), marks=()),),
    )


def _full(text: str = "plain", *, times: int = 1) -> Report:
    """Every part filled, ``times`` over, with ``text`` wherever a text may come from outside."""
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (8, 8)).astype(np.uint8)
    reference = chance.normal(size=(200, 5))
    edges = np.linspace(0, 10, 21)
    return Report(
        header=Header(text, START, START + 60 * BLOCK, "page", text, text),
        traffic=Traffic(12_345, 17, 3, {f"{text}{i}": 2 + i for i in range(times)}, 0.001),
        references=(ReferenceIdentity(text, 1, 100_000, 64, text, START, text),) * times,
        incidents=(
            Incident("page", text, text, text, text, START + 20_000, START + 10_000, START + 90_000, 42.0),
            Incident("warn", "outliers", "many", "input", "", START + 20_000, None, None),
        )
        * times,
        timelines=(_timeline(peak=80.0, space=text, segment=text, label=text), _timeline(segment="scanner north"))
        * times,
        histograms=(ScoreHistogram(text, edges, np.arange(20), np.arange(20)[::-1], 8.0),) * times,
        maps=(flat_map(text, reference, recent=reference[:50], flagged=reference[:3] * 9, labels=(text,) * 3),) * times,
        strangest=(
            StrangeRecord(
                text, START, text, text, 9.5, 1e-5, Excerpt(pixels=pixels), Excerpt(pixels=pixels), text, 0.41, text
            ),
            StrangeRecord(text, START, text, "", 9.1, 0.0, Excerpt(text=text), None),
        )
        * times,
        comparisons=(Comparison(text, text, True), Comparison(text, text, False), Comparison(text, text, None)) * times,
        settings=((text, text),) * times,
    )


class _Page(HTMLParser):
    """What a browser would see: elements, their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "


def _page(report: Report) -> _Page:
    page = _Page()
    page.feed(render(report))
    page.close()
    assert page.open == [], "an element is not closed"
    return page


def test_a_plain_report_has_its_parts_and_nothing_of_a_demo() -> None:
    text = _page(_plain()).text
    for expected in ("support_triage", "No drift.", "1,000", "None in this period.", "200,000", "0123456789abcdef"):
        assert expected in text
    for absent in ("what driftd reported", "Strangest", "Shaded", "truth", "None,", "nan"):
        assert absent not in text


def test_a_report_without_blocks_or_a_reference_says_so() -> None:
    text = _page(replace(_plain(), timelines=(), references=())).text
    assert "No block of this period is closed yet" in text
    assert "No reference was built yet" in text


def test_a_full_report_shows_every_number_it_was_given() -> None:
    text = _page(_full("orders")).text
    for expected in (
        "12,345",
        "42",
        "08:00:20",
        "08:00:10",
        "08:01:30",
        "still open",
        "≤ 1.0e-05",
        "41\u00a0% sure",
        "100,000",
    ):
        assert expected in text
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_texts_from_outside_never_become_elements() -> None:
    ours, theirs = _page(_full("plain")), _page(_full(EVIL))
    assert [tag for tag, _ in theirs.elements] == [tag for tag, _ in ours.elements]
    handlers = [name for _, attributes in theirs.elements for name in attributes if name.startswith("on")]
    assert handlers == []
    assert "alert('x')" in theirs.text


def test_a_text_that_looks_like_a_place_of_the_frame_is_left_alone() -> None:
    assert render(replace(_plain(), settings=(("a", "{{body}}"),))).count("<main>") == 1


def test_control_characters_and_lone_surrogates_do_not_reach_the_file(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _full("a\x00b\x1bc\ud800d"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\x00" not in page
    assert "a�b�c�d" in page


def test_nothing_is_fetched_from_anywhere() -> None:
    for tag, attributes in _page(_full("https://example.org/x")).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(http" not in render(_full())
    assert "@import" not in render(_full())


def test_the_policy_admits_the_page_s_own_script_and_no_other() -> None:
    page = render(_full(EVIL))
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(a["content"] for t, a in _page(_full(EVIL)).elements if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.count("<script") == 1


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, _full())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_stays_small_whatever_the_report_holds(tmp_path: Path) -> None:
    report = _full("ä€😀 <&>" * 400, times=300)
    huge = tuple(_timeline(blocks=20_000, peak=5.0 + i) for i in range(40))
    pixels = np.random.default_rng(1).integers(0, 256, (700, 500, 3)).astype(np.uint8)
    large = replace(report.strangest[0], record=Excerpt(pixels=pixels), nearest=Excerpt(pixels=pixels))
    points = np.random.default_rng(1).normal(size=(50_000, 3))
    crowded = flat_map("input", points, recent=points, flagged=points, labels=("x" * 5_000,) * 50_000)
    write_report(tmp_path / "r.html", replace(report, timelines=huge, strangest=(large,) * 500, maps=(crowded,) * 50))
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    text = _page(replace(report, timelines=huge, strangest=(large,) * 500)).text
    assert f"{500 - MAX_STRANGEST} more are not shown" in text
    assert f"{600 - MAX_INCIDENTS} more are not shown" in text
    assert f"{40 - MAX_TIMELINES} more are not drawn" in text


def test_the_loudest_timelines_are_the_ones_kept() -> None:
    quiet = tuple(_timeline(segment=f"quiet {i}") for i in range(30))
    text = _page(replace(_plain(), timelines=(*quiet, _timeline(peak=30.0, segment="loud")))).text
    assert text.index("loud") < text.index("quiet 0") < text.index("quiet 1")
    assert "quiet 29" not in text


def test_a_report_that_cannot_be_written_says_where_and_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", _plain())
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_picture(tmp_path / "missing" / "report.png", _plain())
    assert list(tmp_path.iterdir()) == []


# Charts


def _parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def _draw(timeline: Timeline) -> ElementTree.Element:
    return _parsed(timeline_svg(timeline, start_ms=START, end_ms=START + 60 * BLOCK, name="t"))


def test_thinning_keeps_every_maximum_and_every_record() -> None:
    values = np.random.default_rng(3).random(1_000)
    values[[0, 499, 999]] = 9.0, 7.0, 8.0
    firsts, peaks, sizes = thin_out(values, np.full(1_000, 3), at_most=7)
    assert len(firsts) == len(peaks) == len(sizes) <= 7
    assert {0, 499, 999} <= set(peaks.tolist())
    assert sizes.sum() == 3_000
    assert all(values[first : first + 143].max() == values[peak] for first, peak in zip(firsts, peaks, strict=True))


def test_a_short_timeline_is_drawn_block_by_block() -> None:
    firsts, peaks, sizes = thin_out(np.arange(5.0), np.arange(5), at_most=MAX_POINTS)
    assert firsts.tolist() == peaks.tolist() == sizes.tolist() == [0, 1, 2, 3, 4]
    assert [len(part) for part in thin_out(np.zeros(0), np.zeros(0, np.int64), at_most=5)] == [0, 0, 0]


def test_a_timeline_carries_its_points_for_the_pointer_and_a_sentence_for_a_screen_reader() -> None:
    chart = _draw(_timeline(peak=80.0))
    points = np.array(json.loads(chart.attrib["data-points"]), dtype=object)
    assert len(points) == 60
    assert points[30, :4].tolist() == [START + 30 * BLOCK, 80.0, 256, "level"]
    assert "strongest 80" in chart.attrib["aria-label"]
    words = " ".join(text for text in chart.itertext())
    assert "onset 08:05:00" in words
    assert "paged 08:05:10" in words
    assert "digit 9" in words


def test_evidence_above_the_page_level_is_drawn_above_the_page_line() -> None:
    chart = _draw(_timeline(peak=6.2))
    line = next(element for element in chart.iter() if element.attrib.get("class") == "threshold page")
    page_y = float(line.attrib["y1"])
    heights = [point[5] for point in json.loads(chart.attrib["data-points"])]
    assert heights[30] < page_y < heights[29]


@pytest.mark.parametrize("strength", [np.nan, -np.inf, np.inf])
def test_a_strength_that_is_no_number_still_gives_a_chart(strength: float) -> None:
    timeline = _timeline()
    values = timeline.channels[0].strength.copy()
    values[3] = strength
    chart = timeline_svg(
        replace(timeline, channels=(Channel("level", values),)), start_ms=START, end_ms=START + 60 * BLOCK, name="t"
    )
    assert "nan" not in chart
    assert "inf" not in chart


def test_channels_with_smaller_shares_of_the_budget_need_more_strength() -> None:
    strengths = np.array([5.0, 7.0])
    timeline = replace(
        _timeline(),
        starts_ms=START + np.arange(2) * BLOCK,
        n=np.array([1, 1]),
        channels=(Channel("level", strengths, 0.1), Channel("mix", strengths - 0.5)),
        marks=(),
    )
    assert timeline.strongest.tolist() == [4.5, 6.5]


def test_a_line_has_a_hole_where_no_records_came() -> None:
    whole = _timeline(blocks=20)
    gone = np.delete(np.arange(20), np.arange(8, 14))
    torn = replace(
        whole,
        starts_ms=whole.starts_ms[gone],
        n=whole.n[gone],
        channels=tuple(Channel(channel.name, channel.strength[gone]) for channel in whole.channels),
    )

    def strokes(timeline: Timeline) -> int:
        return next(e.attrib["d"] for e in _draw(timeline).iter() if e.attrib.get("class") == "line calm").count("M")

    assert (strokes(whole), strokes(torn)) == (1, 2)


def test_an_incident_is_open_from_its_first_alarm_to_its_resolution_or_the_end() -> None:
    def stretches(*marks: tuple[int, str]) -> list[tuple[int, int, str]]:
        return open_stretches(tuple(Mark(time, kind) for time, kind in marks), 100)  # type: ignore[arg-type]

    assert stretches((5, "onset"), (10, "warn"), (20, "page"), (30, "resolved")) == [(10, 30, "page")]
    assert stretches((10, "warn"), (30, "resolved"), (40, "page")) == [(10, 30, "warn"), (40, 100, "page")]
    assert stretches((5, "onset"), (30, "resolved")) == []


def test_a_timeline_with_columns_of_different_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="5 blocks"):
        Timeline("input", "", np.arange(5), 1, (Channel("level", np.zeros(4)),), np.ones(5, np.int64), 6.0, 4.0)
    with pytest.raises(InvalidInput, match="at least one channel"):
        Timeline("input", "", np.arange(5), 1, (), np.ones(5, np.int64), 6.0, 4.0)


def test_the_histogram_shows_shares_and_survives_empty_sides() -> None:
    edges = np.linspace(0, 1, 11)
    some, none = np.array([5, 3, 1, 0, 0, 0, 0, 0, 0, 1]), np.zeros(10, np.int64)
    for reference, stream in ((some, none), (none, some), (none, none), (some, some * 1000)):
        svg = histogram_svg(ScoreHistogram("input", edges, reference, stream, 0.9))
        assert "nan" not in svg
        _parsed(svg)
    equal = _parsed(histogram_svg(ScoreHistogram("input", edges, some, some * 1000)))
    paths = {e.attrib["class"]: e.attrib["d"].rstrip("Z") for e in equal.iter() if "d" in e.attrib}
    assert paths["reference-area"] == paths["stream-line"]
    with pytest.raises(InvalidInput, match="11 edges, 10 reference counts and 9 stream counts"):
        ScoreHistogram("input", edges, some, some[:9])


def test_bars_of_equal_ratio_are_drawn_equally_wide() -> None:
    edges = np.append(0.0, np.geomspace(0.01, 100.0, 41))
    chart = _parsed(histogram_svg(ScoreHistogram("input", edges, np.arange(1, 42), np.arange(1, 42), 50.0)))
    path = next(e.attrib["d"] for e in chart.iter() if e.attrib.get("class") == "stream-line")
    places = [float(step.split()[0]) for step in re.split("[ML]", path)[1:]]
    widths = np.diff(sorted(set(places)))
    assert len(widths) == 41
    assert widths.max() - widths.min() < 0.3
    assert {"0.1", "10", "flagged"} <= set(chart.itertext())


def test_the_map_finds_the_direction_of_the_greatest_spread() -> None:
    chance = np.random.default_rng(2)
    vectors = chance.normal(size=(500, 6)) * np.array([1, 1, 9, 1, 4, 1])
    flat = flat_map("input", vectors, recent=vectors[:5], flagged=np.zeros((0, 6)))
    assert abs(np.corrcoef(flat.reference[:, 0], vectors[:, 2])[0, 1]) > 0.99
    assert abs(np.corrcoef(flat.reference[:, 1], vectors[:, 4])[0, 1]) > 0.99
    np.testing.assert_allclose(flat.recent, flat.reference[:5])
    assert flat.explained == pytest.approx(97 / 101, abs=0.02)
    assert flat.flagged.shape == (0, 2)


def test_the_map_takes_vectors_of_one_dimension_and_points_far_away() -> None:
    flat = flat_map("score", np.arange(10.0)[:, None], recent=np.zeros((0, 1)), flagged=np.array([[1e9]]))
    circle = next(e for e in _parsed(map_svg(flat)).iter() if e.tag.endswith("circle"))
    assert 0 <= float(circle.attrib["cx"]) <= 540
    with pytest.raises(InvalidInput, match="at least two"):
        flat_map("input", np.zeros((1, 3)), recent=np.zeros((0, 3)), flagged=np.zeros((0, 3)))


# Axes and words


def test_strengths_share_one_place_for_the_page_level_however_strong_the_drift() -> None:
    strong, stronger = Strengths(6.0, 50.0, 100.0, 0.0), Strengths(6.0, 5_000.0, 100.0, 0.0)
    assert strong(6.0) == stronger(6.0) == 50.0
    heights = [stronger(value) for value in np.linspace(0, 5_000, 200)]
    assert heights == sorted(heights, reverse=True)
    assert (stronger(0.0), stronger(5_000.0)) == (100.0, 0.0)
    assert not Strengths(6.0, 8.0, 100.0, 0.0).compressed


@pytest.mark.parametrize("highest", [8.0, 13.0, 90.0, 3_000.0, 1e6])
def test_ticks_of_strengths_are_apart_and_within_the_axis(highest: float) -> None:
    axis = Strengths(6.0, highest, 120.0, 0.0)
    places = [axis(tick) for tick in axis.ticks()]
    assert len(places) >= 3
    assert all(0 <= place <= 120 for place in places)
    assert min(-np.diff(places)) >= 10


@pytest.mark.parametrize("span", [30_000, 2_800_000, 86_400_000, 40 * 86_400_000, 3 * 365 * 86_400_000])
def test_time_ticks_are_few_and_within_the_period(span: int) -> None:
    ticks = time_ticks(START + 123, START + 123 + span, at_most=12)
    assert 2 <= len(ticks) <= 13
    assert START + 123 <= ticks[0] <= ticks[-1] <= START + 123 + span


def test_number_ticks_cover_negative_and_empty_ranges() -> None:
    assert number_ticks(-1.0, 1.0, at_most=4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert number_ticks(2.0, 2.0, at_most=4) == [2.0]


def test_times_and_numbers_are_written_for_people() -> None:
    assert clock(START) == "2026-03-02 08:00:00"
    assert period(START, START + 86_400_000) == "2026-03-02 08:00:00 to 2026-03-03 08:00:00 UTC"
    spans = (500, 90_000, 3_600_000, 90 * 60_000, 86_400_000, 3 * 86_400_000, 1e12, 1e25)
    words = ["500 ms", "90 s", "1 h", "1 h 30 min", "1 day", "3 days", "32 years", "10^15 years"]
    assert [duration(span) for span in spans] == words
    assert [small(value) for value in (0.5, 1234.0, 1e-9, float("nan"))] == ["0.5", "1.23e+03", "1.0e-09", "nan"]
    assert len(safe_text("x" * 5_000)) == 401


# Pictures


def _decoded(image: bytes) -> Any:
    return np.rint(matplotlib.image.imread(io.BytesIO(image), format="png") * 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (1, 5), (7, 3, 3)])
def test_a_png_holds_the_pixels_it_was_given(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(_decoded(png(pixels)), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8)), np.zeros(8, np.uint8), np.zeros((2, 2, 4), np.uint8)])
def test_a_png_of_something_else_is_refused(pixels: Any) -> None:
    with pytest.raises(InvalidInput, match="shape"):
        png(pixels)


def test_thumbnails_keep_small_images_and_average_large_ones() -> None:
    little = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert thumbnail(little) is little
    halves = np.zeros((640, 10), np.uint8)
    halves[:320] = 200
    shrunk = thumbnail(halves)
    assert shrunk.shape == (MAX_SIDE, 1)
    assert shrunk[0, 0] == 200
    assert shrunk[-1, 0] == 0
    assert thumbnail(np.zeros((130, 70, 3), np.uint8)).shape == (43, 23, 3)


def test_the_picture_is_a_small_png_of_the_loudest_timeline(tmp_path: Path) -> None:
    write_picture(tmp_path / "full.png", _full("orders", times=4))
    write_picture(tmp_path / "plain.png", _plain())
    full = (tmp_path / "full.png").read_bytes()
    assert len(full) < MAX_BYTES
    assert _decoded(full).shape[1] > 1_200
    assert _decoded((tmp_path / "plain.png").read_bytes()).shape[0] < _decoded(full).shape[0]
    with pytest.raises(InvalidInput, match="no timeline"):
        write_picture(tmp_path / "none.png", replace(_plain(), timelines=()))


def test_the_alarm_budget_shows_what_was_promised_what_came_and_who_may_only_warn() -> None:
    said = "expected at most 1 false page in 90 days; 2 pages in 31 days, 1 called false"
    shares = (AlarmShare("input", "", 0.225, 6.54), AlarmShare("input", EVIL, 1e-5, 10.9, "it holds 500 records"))
    page = render(replace(Report(_header_only(), Traffic(1, 0), ()), budget=AlarmBudget(said, shares)))
    assert "Expected at most 1 false page in 90 days; 2 pages in 31 days, 1 called false" in page
    assert "22.5" in page and "all records" in page and "it holds 500 records" in page and EVIL not in page
    assert "Alarm budget" not in render(Report(_header_only(), Traffic(1, 0), ()))


def _header_only() -> Header:
    return Header("Digits", START, START + BLOCK, "calm", "Nothing to report.")


def test_fraud_hits_with_pictures_stand_beside_the_nearest_case_and_others_in_a_table() -> None:
    def section(record: Excerpt | None) -> str:
        hit = FraudHit(
            id="s1",
            time_ms=1_772_438_400_000,
            probability=0.5,
            low=0.25,
            high=0.75,
            p_value=1e-4,
            answer="fraud",
            cases=(("s0", 0.3),),
            distance_to_normal=0.4,
            record=record,
            case=record,
            note="altered",
        )
        return fraud_section(FraudSection(said=("Five cases.",), labels=(), states=(), hits=(hit,)))

    shown = section(Excerpt(pixels=np.eye(8, dtype=np.uint8) * 255))
    assert shown.count("data:image/png") == 2
    for word in ("s1", "25\u00a0% to 75\u00a0%", "s0 at 0.3", "at 0.4", "altered", "fraud"):
        assert word in shown
    assert "<table" not in shown
    listed = section(None)
    assert "<table" in listed and "data:image/png" not in listed and "s0" in listed
