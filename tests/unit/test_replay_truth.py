"""Was it right: tables of true incidents, what people said, and pages held against them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.database.rows import IncidentRow
from detectors.errors import InvalidInput
from monitor.replay_truth import (
    Judgement,
    Stretch,
    TrueIncident,
    count_interval,
    judge_stretches,
    read_truth,
    share_interval,
    stretches_of,
    truth_of,
)
from monitor.settings import ModelSettings
from monitor.times import parse_time

HOUR = 3_600_000
START = parse_time("2026-01-01T00:00:00Z")
END = START + 240 * HOUR


def at(hours: float) -> int:
    return START + round(hours * HOUR)


def row(number: int = 0, **changes: Any) -> IncidentRow:
    values: dict[str, Any] = {
        "id": f"{number:012x}",
        "model": "triage",
        "kind": "drift",
        "space": "input",
        "segment": "",
        "severity": "page",
        "status": "resolved",
        "opened_ms": at(1),
        "onset_ms": at(0.9),
        "updated_ms": at(2),
        "resolved_ms": at(2),
        "revision": 2,
        "reference": 1,
        "title": "Drift in input",
        "text": "",
        "detail": {},
    }
    return IncidentRow(**{**values, **changes})


def page(
    start: float, end: float | None = None, *, severity: Literal["page", "warn"] = "page", **changes: Any
) -> Stretch:
    return Stretch(at(start), None if end is None else at(end), severity, row(round(start * 100), **changes))


def truth(start: float, end: float | None, **changes: Any) -> TrueIncident:
    return TrueIncident(at(start), None if end is None else at(end), "new scanner", **changes)


def judged(stretches: list[Stretch], true: list[TrueIncident], *, within: tuple[float, float] = (0, 240)) -> Judgement:
    return judge_stretches(
        stretches,
        true,
        tolerance_ms=300_000,
        judged_ms=(START, END),
        within_ms=(at(within[0]), at(within[1])),
    )


# --- judging ----------------------------------------------------------------------------------------------------------


def test_a_page_within_a_true_incident_catches_it_and_the_time_before_it_is_missed() -> None:
    found = judged([page(10.5, 12)], [truth(10, 13)])
    assert (found.pages, found.caught, found.of, found.false_pages) == (1, 1, 1, 0)
    assert found.delay_s == (1800.0,) and found.missed_s == 1800.0 and found.truth_s == 3 * 3600


def test_without_a_page_all_of_it_is_missed() -> None:
    found = judged([], [truth(10, 13)])
    assert (found.caught, found.of, found.delay_s, found.missed_s) == (0, 1, (None,), 3 * 3600)


def test_a_page_shortly_after_the_end_catches_it_though_all_was_missed_and_a_later_one_is_false() -> None:
    soon = judged([page(13.05)], [truth(10, 13)])
    assert (soon.caught, soon.false_pages, soon.missed_s) == (1, 0, 3 * 3600)
    late = judged([page(13.1)], [truth(10, 13)])
    assert (late.caught, late.false_pages, late.missed_s) == (0, 1, 3 * 3600)


def test_several_pages_of_one_true_incident_catch_it_once() -> None:
    found = judged([page(10.5, 11), page(11.5, 12), page(12.5)], [truth(10, 13)])
    assert (found.caught, found.repeated, found.false_pages, found.pages) == (1, 2, 0, 3)


def test_a_false_page_that_still_stands_catches_with_no_delay_and_is_false_all_the_same() -> None:
    found = judged([page(4, 11)], [truth(10, 13)])
    assert (found.caught, found.false_pages, found.delay_s, found.missed_s) == (1, 1, (0.0,), 0.0)
    assert found.found[0].lingering and found.missed_alone_s == 3 * 3600


def test_a_page_of_its_own_behind_a_false_one_counts_from_itself_where_false_ones_do_not() -> None:
    found = judged([page(4, 11), page(11.5, 12)], [truth(10, 13)])
    assert (found.missed_s, found.missed_alone_s, found.false_pages, found.caught) == (0.0, 1.5 * 3600, 1, 1)


def test_a_page_just_before_the_beginning_belongs_to_it() -> None:
    found = judged([page(9.95, 11)], [truth(10, 13)])
    assert (found.caught, found.false_pages, found.missed_alone_s) == (1, 0, 0.0)


def test_the_page_of_one_true_incident_that_stands_when_the_next_begins_is_right_about_both() -> None:
    found = judged([page(10, 20)], [truth(10, 12), truth(15, 16)])
    assert (found.caught, found.false_pages, found.repeated) == (2, 0, 0)
    assert not found.found[1].lingering and found.missed_alone_s == 0.0


def test_warnings_catch_nothing_and_are_counted() -> None:
    found = judged([page(10.5, 12, severity="warn")], [truth(10, 13)])
    assert (found.pages, found.warnings, found.caught, found.false_pages) == (0, 1, 0, 0)


def test_a_true_incident_that_names_its_space_is_not_caught_by_a_page_of_another_one() -> None:
    found = judged([page(10.5, space="output")], [truth(10, 13, space="input")])
    assert (found.caught, found.false_pages) == (0, 1)
    assert judged([page(10.5, space="output")], [truth(10, 13)]).caught == 1


def test_a_segment_is_caught_by_its_own_page_and_by_one_of_the_whole_traffic_not_by_another_segment() -> None:
    asked = [truth(10, 13, space="input", segment="country=de")]
    assert judged([page(10.5, segment="country=de")], asked).caught == 1
    assert judged([page(10.5, segment="")], asked).caught == 1
    assert judged([page(10.5, segment="country=fr")], asked).caught == 0


def test_pages_in_what_nobody_judged_are_neither_right_nor_false() -> None:
    found = judged([page(10.5), page(20.5)], [truth(10, 13, known=False), truth(20, 21)])
    assert (found.unsaid, found.false_pages, found.caught, found.of) == (1, 0, 1, 1)


def test_a_true_incident_is_cut_to_the_judged_period_and_left_out_beyond_it() -> None:
    found = judged([], [truth(-5, 1), truth(239, None), truth(-5, -1), truth(250, None)])
    assert (found.of, found.outside, found.missed_s) == (2, 2, 2 * 3600)


def test_a_part_of_the_period_is_judged_by_what_begins_in_it() -> None:
    stretches = [page(10.5, 12), page(50), page(150, 151), page(200.2)]
    true = [truth(10, 13), truth(200, 210)]
    first, second = judged(stretches, true, within=(0, 144)), judged(stretches, true, within=(144, 240))
    assert (first.pages, first.false_pages, first.caught, first.of, first.days) == (2, 1, 1, 1, 6.0)
    assert (second.pages, second.false_pages, second.caught, second.of, second.days) == (2, 1, 1, 1, 4.0)


def test_false_pages_a_month_come_with_an_interval_that_small_counts_deserve() -> None:
    found = judged([page(50), page(100)], [])
    assert found.days == 10 and found.false_a_month == 6.0
    low, high = found.false_a_month_interval
    assert low == pytest.approx(3 * 0.2422, abs=0.001) and high == pytest.approx(3 * 7.2247, abs=0.001)
    assert count_interval(0)[0] == 0.0 and count_interval(0)[1] == pytest.approx(3.6889, abs=1e-4)
    # Published: 5 of 6 by Clopper and Pearson.
    assert list(share_interval(5, 6)) == pytest.approx([0.3588, 0.9958], abs=1e-4)
    assert share_interval(0, 0) == (0.0, 1.0) and share_interval(3, 3)[1] == 1.0


moments = st.integers(0, 239)


@given(
    st.lists(st.tuples(moments, st.integers(1, 40)), max_size=12),
    st.lists(st.tuples(moments, st.integers(1, 40), st.booleans()), max_size=8),
)
def test_every_page_is_counted_once_whatever_overlaps(
    opened: list[tuple[int, int]], happened: list[tuple[int, int, bool]]
) -> None:
    found = judged(
        [page(start, start + length) for start, length in opened],
        [truth(start, start + length, known=known) for start, length, known in happened],
    )
    catching = found.pages - found.repeated - found.unsaid - found.false_pages
    assert found.pages == len(opened) and 0 <= catching <= found.caught <= found.of
    assert 0 <= found.missed_s <= found.missed_alone_s <= found.truth_s + 1e-6
    later = judged([page(start, start + length) for start, length in opened[1:]], [])
    assert later.false_pages == max(len(opened) - 1, 0)


# --- from rows --------------------------------------------------------------------------------------------------------


def test_stretches_are_what_people_were_told_and_an_incident_they_never_heard_of_has_none() -> None:
    told = row(detail={"told": [[at(1), at(2), "warn"], [at(2), None, "page"]]})
    assert [(one.start_ms, one.end_ms, one.severity) for one in stretches_of(told)] == [
        (at(1), at(2), "warn"),
        (at(2), None, "page"),
    ]
    assert stretches_of(row(detail={"quiet": True})) == []


def test_what_people_called_real_is_true_from_its_onset_and_what_nobody_judged_is_unknown() -> None:
    found = truth_of(
        [
            row(1, detail={"verdict": "real", "last_active_ms": at(1.8)}),
            row(2, detail={"verdict": "false"}, onset_ms=at(20), opened_ms=at(21), resolved_ms=at(22)),
            row(3, onset_ms=at(30), opened_ms=at(31), resolved_ms=at(32)),
            row(4, onset_ms=at(40), opened_ms=at(41), resolved_ms=None, status="open", detail={"verdict": "real"}),
            row(5, kind="lag", onset_ms=at(50)),
            row(6, segment="country=de", detail={"quiet": True}, onset_ms=at(60)),
        ]
    )
    assert [(one.start_ms, one.end_ms, one.known) for one in found] == [
        (at(0.9), at(1.8), True),
        (at(30), at(32), False),
        (at(40), None, True),
    ]
    assert {(one.space, one.segment) for one in found} == {("input", "")}


def test_a_page_in_what_was_called_false_is_false_although_another_incident_beside_it_was_not_judged() -> None:
    rows = [
        row(1, detail={"verdict": "false"}, onset_ms=at(20), opened_ms=at(21), resolved_ms=at(22)),
        row(2, segment="country=de", onset_ms=at(20), opened_ms=at(21.5), resolved_ms=at(23)),
    ]
    assert judged([page(21)], truth_of(rows)).false_pages == 1


# --- tables -----------------------------------------------------------------------------------------------------------

MODEL = ModelSettings.model_validate(
    {
        "source": {"kind": "files", "path": "records.jsonl"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
        "record": {"segments": {"country": "/country"}},
    }
)


def written(path: Path, text: str | bytes) -> Path:
    file = path / "incidents.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_table_is_read_with_zones_milliseconds_open_ends_and_names(tmp_path: Path) -> None:
    table = written(
        tmp_path,
        "start,end,name,space,segment\n"
        "2026-01-02T12:00:00Z,2026-01-02T14:30:00+02:00,new scanner,input,country=de\n"
        f"{START},,,,\n\n",
    )
    assert read_truth(table, model=MODEL) == [
        TrueIncident(START, None, "incident of 2026-01-01 00:00:00Z"),
        TrueIncident(at(36), at(36.5), "new scanner", "input", "country=de"),
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, separator: str) -> None:
    lines = [["Start", "END ", "name", "", ""], ["2026-01-02T12:00:00Z", "", '"überall; an, aus"', "", ""]]
    text = "\r\n".join(separator.join(cells) for cells in lines) + "\r\n" + separator * 4 + "\r\n"
    table = written(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert read_truth(table) == [TrueIncident(at(36), None, "überall; an, aus")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2026-01-02T12:00:00,,x", r"line 2, column start: .* has no time zone; write 2026-01-02T12:00:00Z"),
        ("2026-01-02,,x", r"column start: '2026-01-02' has no time zone; write 2026-01-02T00:00:00Z"),
        ("02.01.2026 12:00,,x", r"column start: '02.01.2026 12:00' is no time; write 2026-01-31T12:00:00Z"),
        ("1767355200,,x", r"column start: 1767355200 is no time in milliseconds .* write 1767355200000"),
        ("9" * 5000 + ",,x", r"column start: '9{40}' is no time"),
        ("-5,,x", r"column start: '-5' is no time"),
        ("46024,,x", r"column start: 46024 is no time in milliseconds since 1970\b(?!; if)"),
        (",2026-01-02T12:00:00Z,x", r"column start: is empty"),
        ("2026-01-02T12:00:00Z,2026-01-02T11:00:00Z,x", r"column end: it ends .* before it starts"),
        ("2026-01-02T12:00:00Z,2026-01-02T12:00:00Z,x", r"column end: it ends"),
        ("2026-01-02T12:00:00Z,soon,x", r"column end: 'soon' is no time"),
        ("0001-01-01T00:00:00+14:00,,x", r"column start: .* before 1973"),
        ("2026-01-02T12:00:00Z,,x,inptu", r"column space: there is no space 'inptu'; did you mean input\?"),
        ("2026-01-02T12:00:00Z,,x,zzz", r"column space: there is no space 'zzz'; there is: input"),
        ("2026-01-02T12:00:00Z,,x,input,contry=de", r"column segment: .*'contry=de'; write it as country=VALUE"),
        ("2026-01-02T12:00:00Z,,x,input,country", r"column segment: .*'country'; write it as country=VALUE"),
        ("2026-01-02T12:00:00Z,,x,input,,y", r"column 6: more cells than the header names"),
    ],
)
def test_each_line_that_is_wrong_is_named_with_its_column_and_a_cure(tmp_path: Path, line: str, said: str) -> None:
    table = written(tmp_path, f"start,end,name,space,segment\n{line}\n")
    with pytest.raises(InvalidInput) as raised:
        read_truth(table, model=MODEL)
    assert re.search(said, str(raised.value), re.MULTILINE)
    assert "2026-01-31T12:00:00Z,2026-01-31T14:30:00Z,new scanner" in (raised.value.hint or "")


def test_all_wrong_lines_are_named_at_once_and_a_repeated_one_is_wrong(tmp_path: Path) -> None:
    good = "2026-01-02T12:00:00Z,,x"
    table = written(tmp_path, "start,end,name\n" + "\n".join([good, good, "a,,", "b,,"]) + "\n" + "c,,\n" * 20)
    with pytest.raises(InvalidInput) as raised:
        read_truth(table)
    said = str(raised.value)
    assert "line 3: says the same as line 2" in said and "line 4, column start" in said and "and 13 more" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"start,end,name\n", "names no incident"),
        (b"2026-01-02T12:00:00Z,2026-01-02T13:00:00Z,x\n", "it must name the columns"),
        (b"begin,end\n", "it must name the columns, and start is not among them"),
        (b"start,end,nmae\n", "there is no column 'nmae'; did you mean name?"),
        (b"start,end,end\n", "column end is there twice"),
        (b"PK\x03\x04rest", "is an Excel workbook"),
        ("start,end".encode("utf-16"), "is text in UTF-16"),
        ("start,end,name\n2026-01-02T12:00:00Z,,überall\n".encode("cp1252"), "line 2: not UTF-8"),
        (b"start,end\n" + b'"' + b"x" * 200_000, "line 2"),
        (b"start,end\n\x00,\n", "line 2"),
    ],
)
def test_what_is_no_table_ends_with_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_truth(written(tmp_path, content))
    assert said in str(raised.value) and raised.value.hint


def test_a_table_that_is_not_there_or_is_a_directory_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_truth(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    table = written(tmp_path_factory.getbasetemp(), b"start,end,name\n" + content)
    try:
        assert read_truth(table)
    except InvalidInput as error:
        assert error.hint
