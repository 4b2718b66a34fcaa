"""Suggested settings: candidates, where history is cut, what is chosen on the first part and said of the second."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from connectors.database.store import Store
from detectors.errors import InvalidInput
from monitor.replay import Replayed
from monitor.replay_choice import (
    AS_NOW,
    ENOUGH_TRUTHS,
    Candidate,
    Suggestion,
    candidates,
    chance_of,
    choose,
    data_of,
    front_of,
    in_words,
    split_of,
    suggest,
    table_of,
    yaml_of,
)
from monitor.replay_truth import TrueIncident, share_interval
from monitor.settings import Settings
from tests.benchmarks.replay_suggestions import Kind, history
from tests.unit.test_replay_truth import END, HOUR, START, at, row, truth

Pages = list[tuple[float, float]]


def settings(**changes: object) -> Settings:
    return Settings.model_validate(
        {
            "models": {
                "triage": {
                    "source": {"kind": "files", "path": "records.jsonl"},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
                    **changes,
                }
            }
        }
    )


NOW = settings()


def replayed(name: str, pages: Pages, *, channel: str = "level") -> Replayed:
    rows = [
        row(number, detail={"told": [[at(start), at(end), "page"]], "channel": channel})
        for number, (start, end) in enumerate(pages)
    ]
    return Replayed(name, NOW, rows, [], [], [(START, END, 10.0)], (START, END), [])


def chosen_of(
    now: Pages, other: Pages, true: list[TrueIncident], *, mutes: str = "", channel: str = "level"
) -> Suggestion:
    other_one = Candidate("drift.tolerance 0.1", NOW, {"models.triage.drift.tolerance": 0.1}, mutes)
    return choose(
        [
            (Candidate(AS_NOW, NOW, {}), replayed(AS_NOW, now, channel=channel)),
            (other_one, replayed(other_one.name, other, channel=channel)),
        ],
        true,
        tolerance=300.0,
        model="triage",
    )


FALSE_FIRST: Pages = [(hour, hour + 0.5) for hour in (20, 30, 40, 50, 60, 70)]
FALSE_SECOND: Pages = [(hour, hour + 0.5) for hour in (170, 180, 190)]
TRUE = [truth(10, 13), truth(100, 103), truth(200, 203)]
CAUGHT: Pages = [(10.1, 13), (100.1, 103), (200.1, 203)]


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_are_few_differ_and_begin_with_what_is_set_now() -> None:
    found = candidates(NOW, "triage")
    assert found[0].name == AS_NOW and found[0].settings is NOW and not found[0].changes
    assert len(found) == 13 == len({one.name for one in found})
    by_name = {one.name: one.settings for one in found}
    assert by_name["drift.tolerance 0.1"].models["triage"].drift.tolerance == 0.1
    both = by_name["alarms.page_every_days 900, drift.tolerance 0.2"]
    assert both.page_every_days == 900 and both.models["triage"].drift.tolerance == 0.2
    assert by_name["outliers.tolerance 4"].models["triage"].outliers.tolerance == 4.0
    assert by_name["without mix"].models["triage"].drift.channels == {"mix": False}
    assert NOW.models["triage"].drift.tolerance == 0.05  # what is set now is left alone


def test_every_candidate_can_be_pasted_as_yaml_and_gives_the_settings_that_were_replayed() -> None:
    for entry in (NOW, settings(drift={"page_every_days": 30, "tolerance": 0})):
        for one in candidates(entry, "triage"):
            content = entry.model_dump(exclude_unset=True)
            pasted = yaml.safe_load(yaml_of(one)) if one.changes else {}
            read = Settings.model_validate(_merged(content, pasted))
            assert read.page_every_days == one.settings.page_every_days
            assert read.models["triage"].drift.tolerance == one.settings.models["triage"].drift.tolerance
            assert read.models["triage"].drift.channels == one.settings.models["triage"].drift.channels
            assert read.models["triage"].outliers == one.settings.models["triage"].outliers


def _merged(content: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    merged = dict(content)
    for key, value in other.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def test_no_candidate_allows_more_false_pages_and_the_last_channel_is_not_muted() -> None:
    found = candidates(settings(drift={"page_every_days": 2, "channels": {"mix": False, "shape": False}}), "triage")
    assert {one.settings.page_every_days for one in found} == {2, 20} and not any(one.mutes for one in found)


# --- where it is cut --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("true", "hour"),
    [
        ([], 144),
        ([(10, 13), (200, 203)], 144),
        ([(10, 13), (140, 150), (200, 203)], 140),  # nearest edge of what is in the way
        ([(10, 13), (120, 145), (200, 203)], 145),
        ([(10, 13), (20, 23)], 20),  # both parts hold some
        ([(180, 183), (200, 203)], 183),
        ([(100, 103)], 144),
        ([(100, 150)], 150),
        ([(100, None)], 100),
        ([(10, 100), (50, 160), (150, 170), (230, 235)], 170),  # overlapping ones are one
    ],
)
def test_history_is_cut_near_60_percent_in_no_true_incident_with_some_on_both_sides(
    true: list[tuple[float, float | None]], hour: float
) -> None:
    assert split_of([truth(*one) for one in true], (START, END)) == at(hour)


def test_the_cut_keeps_away_from_a_true_incident_by_the_tolerance_and_passes_over_what_nobody_judged() -> None:
    assert split_of([truth(10, 12), truth(140, 150)], (START, END), tolerance_ms=HOUR) == at(139)
    assert split_of([truth(140, 150, known=False)], (START, END)) == at(144)


# --- the choice -------------------------------------------------------------------------------------------------------


def test_fewer_false_pages_on_the_first_part_are_suggested_and_reported_on_the_second() -> None:
    found = chosen_of(CAUGHT + FALSE_FIRST + FALSE_SECOND, CAUGHT, TRUE)
    assert found.chosen is not None and found.chosen.candidate.name == "drift.tolerance 0.1"
    assert found.holds is True and found.split_ms == at(144)
    assert (found.chosen.first.of, found.chosen.second.of) == (2, 1)
    columns, lines = table_of(found)
    assert columns == ["settings", "pages", "false pages a month", "caught", "missed time"]
    # 3 false pages in the 4 days of the second part; of the first part's 6 nothing is said here.
    assert lines[0][:3] == [AS_NOW, "4", "22.5 (4.6 to 66)"]
    assert lines[1][:4] == ["drift.tolerance 0.1", "1", "0 (0 to 28)", "1 of 1 (3% to 100%)"]
    words = " ".join(in_words(found))
    assert "0 false pages instead of 3, caught 1 of 1 instead of 1" in words and "say little" in words
    assert yaml.safe_load(yaml_of(found.chosen.candidate)) == {"models": {"triage": {"drift": {"tolerance": 0.1}}}}


def test_what_does_not_hold_on_the_second_part_says_so() -> None:
    missing = [page for page in CAUGHT if page[0] < 144]
    found = chosen_of(CAUGHT + FALSE_FIRST + FALSE_SECOND, missing, TRUE)
    assert found.chosen is not None and found.holds is False
    assert "It does not hold in the second part, so leave the settings as they are" in " ".join(in_words(found))


def test_too_few_false_pages_to_differ_beyond_chance_suggest_nothing() -> None:
    found = chosen_of(CAUGHT + FALSE_FIRST[:4] + FALSE_SECOND, CAUGHT, TRUE)
    assert found.chosen is None and found.holds is None
    assert "no candidate is better beyond chance" in found.why and "Fewer than 5" in found.why
    assert chosen_of(CAUGHT + FALSE_FIRST[:5] + FALSE_SECOND, CAUGHT, TRUE).chosen is not None


def test_pages_of_which_nobody_said_anything_are_asked_for() -> None:
    unsaid = [truth(start, end, known=False) for start, end in FALSE_FIRST]
    found = chosen_of(CAUGHT + FALSE_FIRST, CAUGHT, [*TRUE, *unsaid])
    assert found.chosen is None
    assert "Of 6 of its 8 pages nobody said whether they were real: driftd incidents --false ID." in found.why


def test_fewer_false_pages_are_not_worth_a_true_incident() -> None:
    assert chosen_of(CAUGHT + FALSE_FIRST, CAUGHT[1:], TRUE).chosen is None


def test_fewer_false_pages_are_worth_a_twentieth_of_the_time_of_the_true_incidents_and_no_more() -> None:
    # 6 hours of true incidents in the first part: 0.3 hours may be missed in exchange.
    within: Pages = [(10.39, 13), (100.1, 103), (200.1, 203)]
    beyond: Pages = [(10.41, 13), (100.1, 103), (200.1, 203)]
    assert chosen_of(CAUGHT + FALSE_FIRST, within, TRUE).chosen is not None
    assert chosen_of(CAUGHT + FALSE_FIRST, beyond, TRUE).chosen is None


def test_a_page_that_stands_for_ever_catches_nothing_in_the_choice() -> None:
    found = chosen_of(CAUGHT + FALSE_FIRST, [(5, 240)], TRUE)
    assert found.chosen is None and found.scored[1].first.caught == 2


def test_earlier_pages_are_suggested_where_enough_true_incidents_agree() -> None:
    true = [truth(10 * n, 10 * n + 3) for n in range(1, 11)]
    late: Pages = [(10 * n + 2.0, 10 * n + 3.0) for n in range(1, 11)]
    early: Pages = [(10 * n + 0.5, 10 * n + 3.0) for n in range(1, 11)]
    found = chosen_of(late, early, true)
    assert found.chosen is not None and found.chosen.second.missed_s < found.now.second.missed_s
    assert chosen_of(late, [*early, (150.0, 151.0)], true).chosen is not None  # false after the cut: it does not matter
    assert chosen_of(late, [(5.0, 6.0), *early], true).chosen is None  # false before the cut: it does
    assert chosen_of(late[:4], early[:4], true[:4]).chosen is None


def test_a_channel_is_muted_only_where_it_makes_all_false_pages() -> None:
    now = CAUGHT + FALSE_FIRST
    assert chosen_of(now, CAUGHT, TRUE, mutes="level").chosen is not None
    assert chosen_of(now, CAUGHT, TRUE, mutes="mix").chosen is None
    words = " ".join(in_words(chosen_of(now, CAUGHT, TRUE, mutes="level")))
    assert "Without level, a change that only this channel sees is told by nobody." in words


def test_a_first_part_without_true_incidents_suggests_nothing() -> None:
    found = chosen_of([*FALSE_FIRST, (200.1, 203)], [(200.1, 203)], [truth(200, 203)])
    assert found.chosen is None and "no true incident lies in the first part" in found.why


def test_a_second_part_without_true_incidents_cannot_say_what_would_be_missed() -> None:
    found = chosen_of([(10.1, 13), *FALSE_FIRST, *FALSE_SECOND], [(10.1, 13)], TRUE[:1])
    assert found.chosen is not None and found.holds is None
    assert "holds no true incident" in " ".join(in_words(found))
    assert table_of(found)[1][0][-2:] == ["-", "-"]


def test_the_front_holds_what_nothing_beats_and_what_is_set_now_stands_for_its_equals() -> None:
    found = chosen_of(CAUGHT + FALSE_FIRST, [(12.0, 13), (102.0, 103)], TRUE)
    assert [one.candidate.name for one in found.front] == ["drift.tolerance 0.1", AS_NOW]
    assert [one.candidate.name for one in chosen_of(CAUGHT, CAUGHT, TRUE).front] == [AS_NOW]
    assert front_of(()) == ()


def test_data_for_programs_names_the_part_that_each_number_is_of() -> None:
    found = data_of(chosen_of(CAUGHT + FALSE_FIRST + FALSE_SECOND, CAUGHT, TRUE))
    assert found["now"]["chosen_on"]["false_pages"] == 6 and found["now"]["reported_on"]["false_pages"] == 3
    assert found["suggested"]["reported_on"]["false_pages"] == 0 and found["holds"] is True
    assert found["yaml"] == "models:\n  triage:\n    drift:\n      tolerance: 0.1\n"


def test_the_numbers_of_the_rule_are_what_they_are_said_to_be() -> None:
    assert (
        share_interval(ENOUGH_TRUTHS, ENOUGH_TRUTHS)[0] > 0.5 > share_interval(ENOUGH_TRUTHS - 1, ENOUGH_TRUTHS - 1)[0]
    )
    assert chance_of(0, 5) <= 0.05 < chance_of(0, 4) and chance_of(0, 0) == 1.0 and chance_of(5, 5) > 0.5


def test_without_a_known_true_incident_it_is_said_how_to_give_one() -> None:
    for known in ([], [truth(10, 13, known=False)]):
        with pytest.raises(InvalidInput) as raised:
            suggest(None, "triage", NOW, known)  # type: ignore[arg-type]
        assert "driftd incidents --real ID" in (raised.value.hint or "") and "--truth" in (raised.value.hint or "")


def test_settings_are_suggested_from_a_stored_history(tmp_path: Path) -> None:
    # Nobody wants to know of ten changes of 0.2 standard deviations, and everybody of six that are much larger.
    kind = Kind("strong", ((0.6, 0.7),) * 2, 10, ((0.19, 0.2),) * 2, truths=6)
    known, happened = history(kind, 1, tmp_path, days=3)
    with Store.open(known.database) as store:
        found = suggest(store, "m", known, happened)
    assert len(found.scored) == 13 and found.judged_ms[0] < found.split_ms < found.judged_ms[1]
    assert found.now.first.false_pages >= 5 and found.now.first.caught == found.now.first.of >= 1
    assert found.chosen is not None and found.chosen.first.false_pages < found.now.first.false_pages
    assert found.chosen.candidate.settings.models["m"].drift.tolerance > 0.05
