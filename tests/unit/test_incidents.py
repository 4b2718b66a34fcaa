"""The life of incidents: what opens, raises, repeats, resolves and reopens them, and what a person reads."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import DeploymentRow, FoldResult, IncidentRow, MuteRow
from connectors.database.store import Store
from connectors.notification import Notification
from detectors.fold import Reading
from detectors.rate import RateReading
from monitor.amounts import duration, percent
from monitor.deployments import MOST_DEPLOYMENTS
from monitor.evidence import Evidence, dead_letter_evidence, drift_evidence, rate_evidence
from monitor.incidents import IncidentPolicy, advance, incident_id
from monitor.priority import priority_of
from monitor.times import text_of
from monitor.wording import chance, describe, text_of_incident

BLOCK_MS = 10_000
START = 170_000_000  # first block: 2023-11-14
POLICY = IncidentPolicy(resolve_after_ms=50_000, cooldown_ms=600_000, repeat_interval_ms=300_000)

Mark = Literal["P", "W", "a", "."]  # page alarm, warning alarm, still active, nothing


def evidence(block: int, mark: Mark, *, key: str = "", **changes: Any) -> Evidence | None:
    if mark == ".":
        return None
    severities: dict[str, Any] = {"P": "page", "W": "warn", "a": None}
    found = Evidence(
        model="triage",
        kind="drift",
        space="input",
        segment=key,
        block=block,
        start_ms=block * BLOCK_MS,
        end_ms=(block + 1) * BLOCK_MS,
        severity=severities[mark],
        active=True,
        strength={"P": 6.5, "W": 4.0, "a": 1.0}[mark],
        threshold=5.9,
        channel="level",
        onset_ms=(block - 3) * BLOCK_MS,
        n=2560,
        effect=0.42,
        reference=1,
    )
    return replace(found, **changes)


class Run:
    """Feeds one block after the other, and keeps what came out."""

    def __init__(self, policy: IncidentPolicy = POLICY, deployments: Sequence[DeploymentRow] = ()) -> None:
        self.rows: dict[str, IncidentRow] = {}
        self.told: list[Notification] = []
        self.writes = 0
        self.block = START
        self._policy = policy
        self._deployments = deployments

    def feed(self, marks: str, *, key: str = "") -> Run:
        for mark in marks:
            found = evidence(self.block, mark, key=key)  # type: ignore[arg-type]
            self.push([] if found is None else [found])
        return self

    def push(self, found: Sequence[Evidence]) -> None:
        self.block += 1
        changed, told = advance(
            list(self.rows.values()), found, self._policy, self.block * BLOCK_MS, deployments=self._deployments
        )
        self.writes += len(changed)
        self.rows |= {row.id: row for row in changed}
        self.told += told

    @property
    def events(self) -> list[str]:
        return [note.values["event"] for note in self.told]

    @property
    def only(self) -> IncidentRow:
        (row,) = self.rows.values()
        return row


def test_an_alarm_opens_one_incident_and_says_so_once() -> None:
    run = Run().feed("..Paaa")
    assert run.events == ["opened"]
    row = run.only
    assert (row.status, row.severity, row.revision) == ("open", "page", 1)
    assert row.onset_ms == (START + 2 - 3) * BLOCK_MS and row.opened_ms == (START + 3) * BLOCK_MS
    assert row.id == incident_id(("triage", "drift", "input", ""), START + 2)
    note = run.told[0]
    assert (note.status, note.severity, note.ends_ms) == ("firing", "page", None)
    assert note.starts_ms == row.onset_ms and note.group_key == "triage/drift/input/"


def test_lasting_evidence_without_an_alarm_opens_nothing() -> None:
    assert Run().feed("aaaa").rows == {}


def test_a_warning_that_becomes_a_page_is_told_again_and_a_page_never_goes_down() -> None:
    run = Run().feed("WaaPWWa")
    assert run.events == ["opened", "raised"]
    assert [note.severity for note in run.told] == ["warn", "page"]
    assert run.only.severity == "page"
    assert run.told[1].title.startswith("Now a page: ")
    assert run.told[0].incident == run.told[1].incident and run.told[0].id != run.told[1].id


def test_it_resolves_after_enough_quiet_and_not_before() -> None:
    run = Run().feed("P....")
    assert run.events == ["opened"]
    run.feed(".")
    assert run.events == ["opened", "resolved"]
    row = run.only
    assert row.status == "resolved" and row.resolved_ms == (START + 6) * BLOCK_MS
    note = run.told[1]
    assert note.status == "resolved" and note.ends_ms == row.resolved_ms and note.severity == "page"
    assert run.feed("......").events == ["opened", "resolved"]


def test_evidence_that_is_still_there_keeps_it_open() -> None:
    run = Run().feed("P" + "...a" * 20)
    assert run.only.status == "open" and run.events.count("resolved") == 0


def test_silence_of_the_whole_stream_resolves_nothing() -> None:
    run = Run().feed("P")
    run.block += 1000  # no records, so no blocks
    run.feed("a")
    assert run.only.status == "open" and "resolved" not in run.events


def test_an_incident_of_a_segment_that_vanished_resolves_with_the_others_blocks() -> None:
    run = Run().feed("P", key="country=DE").feed("......", key="country=FR")
    assert run.only.status == "resolved"


def test_it_repeats_after_the_interval_and_not_before() -> None:
    run = Run().feed("P" + "a" * 29)
    assert run.events == ["opened"]
    assert run.feed("a").events == ["opened", "repeated"]
    assert run.feed("a" * 30).events == ["opened", "repeated", "repeated"]
    assert run.told[1].title.startswith("Still so: ") and len({note.id for note in run.told}) == 3


def test_what_comes_back_within_the_cooldown_is_the_same_incident() -> None:
    run = Run().feed("P......W")
    assert run.events == ["opened", "resolved", "reopened"]
    row = run.only
    assert row.status == "open" and row.resolved_ms is None and row.detail["flaps"] == 1
    assert row.severity == "page", "it was a page once"
    assert run.told[2].severity == "warn", "but nobody is woken for a warning"
    run.feed("P")
    assert run.events[-1] == "raised" and run.told[-1].severity == "page"


def test_what_comes_back_after_the_cooldown_is_a_new_incident() -> None:
    run = Run().feed("P......" + "." * 61 + "P")
    assert run.events == ["opened", "resolved", "opened"] and len(run.rows) == 2


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")])
def test_of_several_old_incidents_the_latest_comes_back(ids: tuple[str, str]) -> None:
    row = Run().feed("P......").only
    older = replace(row, id=ids[0], opened_ms=row.opened_ms - 500_000, resolved_ms=(row.resolved_ms or 0) - 500_000)
    newer = replace(row, id=ids[1])
    found = evidence(START + 7, "P")
    assert found
    changed, _ = advance([older, newer], [found], POLICY, found.end_ms)
    assert [(row.id, row.status) for row in changed] == [(ids[1], "open")]
    still_open = replace(older, status="open", resolved_ms=None)
    changed, told = advance([still_open, newer], [found], POLICY, found.end_ms)
    assert [row.id for row in changed] == [ids[0]] and told == []


def test_an_incident_that_flaps_must_be_quiet_for_longer_each_time() -> None:
    run = Run(replace(POLICY, repeat_interval_ms=10**9)).feed(("P" + "." * 5) * 200)
    # Resolved after 5 quiet blocks once; from then on 10 are needed, which never come.
    assert run.events == ["opened", "resolved", "reopened"]
    run.feed("." * 40)
    assert run.events[-1] == "resolved" and run.only.detail["flaps"] == 1


def test_each_key_has_its_own_incident() -> None:
    run = Run()
    found = [evidence(START, "P", key=key) for key in ("b", "a", "")]
    run.push([entry for entry in found if entry is not None])
    assert len(run.rows) == 3
    assert [note.segment for note in run.told] == [""]
    changed, told = advance([], [entry for entry in reversed(found) if entry], POLICY, (START + 1) * BLOCK_MS)
    assert told == run.told and changed == sorted(run.rows.values(), key=lambda row: row.id)


def test_the_strongest_evidence_is_what_is_told() -> None:
    run = Run().feed("P")
    weak, strong = evidence(START + 1, "P", strength=6.0, effect=0.3), evidence(START + 2, "P", strength=9, effect=0.8)
    assert weak and strong
    run.push([weak])
    assert run.only.detail["effect"] == 0.42
    run.push([strong])
    assert run.only.detail["effect"] == 0.8
    run.feed("......")
    assert "0.80 standard deviations" in run.told[-1].text


def test_an_onset_found_to_be_earlier_is_taken_and_a_later_one_is_not() -> None:
    run = Run().feed("W")
    first = run.only.onset_ms
    run.feed("P")
    assert run.only.onset_ms == first
    early = evidence(START + 2, "P", onset_ms=first - 60_000)
    assert early
    run.push([early])
    assert run.only.onset_ms == first - 60_000


def test_quiet_blocks_write_nothing() -> None:
    run = Run().feed("..P......")
    writes = run.writes
    run.feed("." * 50)
    assert run.writes == writes


# --- what must last before it is told ---------------------------------------------------------------------------------

LASTING = replace(POLICY, min_duration_ms=30_000)
GRACE = replace(POLICY, deploy_grace_ms=100_000)


def deployed(version: str, block: int) -> DeploymentRow:
    return DeploymentRow(version, START + block, (START + block) * BLOCK_MS)


def test_what_is_over_before_it_has_lasted_is_listed_and_nobody_is_told() -> None:
    run = Run(LASTING).feed("Paa......")
    assert run.told == []
    row = run.only
    assert (row.status, row.revision) == ("resolved", 2) and "over before it was told" in describe(row)


def test_what_has_lasted_is_told_as_opened_with_its_first_onset() -> None:
    run = Run(LASTING).feed("Paa")
    assert run.told == [] and "not told before 2023-11-14 22:14:00Z" in describe(run.only)
    run.feed("a......")
    assert run.events == ["opened", "resolved"]
    assert run.told[0].title == "triage: input has drifted" and run.told[0].starts_ms == (START - 3) * BLOCK_MS
    assert "held" not in run.only.detail and describe(run.only).count("told") == 0


def test_silence_does_not_count_as_lasting() -> None:
    run = Run(LASTING).feed("P....")
    assert run.only.status == "open" and run.told == []
    assert run.feed("a").events == ["opened"]


def test_a_warning_that_becomes_a_page_while_it_is_held_is_told_once_as_a_page() -> None:
    run = Run(LASTING).feed("WaPaa")
    assert [(note.values["event"], note.severity) for note in run.told] == [("opened", "page")]


def test_what_comes_back_must_last_again_and_is_new_to_those_who_were_told_nothing() -> None:
    run = Run(LASTING).feed("P......Paaa")
    assert run.events == ["opened"] and run.told[0].title == "triage: input has drifted"
    assert run.only.detail["flaps"] == 1 and "came back once" in run.told[0].text
    again = Run(LASTING).feed("Paaa......Pa...........")
    assert again.events == ["opened", "resolved"] and again.only.detail["flaps"] == 1
    again.feed("Paaa")
    assert again.events == ["opened", "resolved", "reopened"]


def test_a_segment_is_not_covered_by_what_nobody_was_told_of() -> None:
    run = Run(LASTING).feed("P")
    run.push(several(run, ("P", "country=de")))
    run.feed("aaa", key="country=de")
    assert [(note.segment, note.values["event"]) for note in run.told] == [("country=de", "opened")]
    both = Run(LASTING)
    for _ in range(4):
        both.push(several(both, ("P", "country=de"), ("P", "")))
    assert [(note.segment, note.values["event"]) for note in both.told] == [("", "opened")]


def test_drift_in_the_grace_period_of_a_deployment_waits_for_its_end() -> None:
    run = Run(GRACE, [deployed("2.1", 1)]).feed("..Paaaaaa")
    assert run.told == [] and run.only.detail["held_until_ms"] == (START + 11) * BLOCK_MS
    run.feed("aa")
    assert run.events == ["opened"]
    assert "That is since about 20 seconds before version 2.1 was deployed" in run.told[0].text
    assert run.told[0].values["deployed"] == "2.1"


def test_drift_that_ends_with_the_grace_period_is_told_to_nobody() -> None:
    run = Run(GRACE, [deployed("2.1", 1)]).feed("..Pa" + "." * 20)
    assert run.told == [] and run.only.status == "resolved"


def test_drift_outside_of_the_grace_period_and_other_kinds_do_not_wait() -> None:
    assert Run(GRACE, [deployed("2.1", 1)]).feed("." * 9 + "W").told == []
    assert Run(GRACE, [deployed("2.1", 1)]).feed("." * 10 + "W").events == ["opened"]
    assert Run(GRACE, [deployed("2.1", 1)]).feed("P").events == ["opened"], "opened before it"
    run = Run(GRACE, [deployed("2.1", 1)]).feed("...")
    dead = evidence(run.block, "P", kind="dead_letters", space="")
    assert dead
    run.push([dead])
    assert run.events == ["opened"]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (-15, "since about 2 minutes after version 2.1 was deployed (2023-11-14 22:10:50Z)"),
        (-3, "about when version 2.1 was deployed (2023-11-14 22:12:50Z)"),
        (-400, ""),
        (1, ""),  # not there yet when it is told
    ],
)
def test_an_incident_names_a_deployment_near_its_onset(block: int, words: str) -> None:
    run = Run(POLICY, [deployed("2.1", block)]).feed("P")
    assert ("deployed" in run.told[0].text) == bool(words) and words in run.told[0].text


def test_a_version_may_hold_any_text_and_only_the_nearest_is_named() -> None:
    run = Run(POLICY, [deployed("old", -20), deployed("<b>{x}\n", -4)]).feed("P")
    assert run.told[0].values["deployed"] == "<b>{x}\n" and "old" not in run.told[0].text


# --- harm, priority, and what people do -------------------------------------------------------------------------------


def test_low_harm_warns_where_it_would_page_and_says_so() -> None:
    run = Run(replace(POLICY, harm="low")).feed("WaPaa......P")
    assert run.events == ["opened", "resolved", "reopened"] and {note.severity for note in run.told} == {"warn"}
    assert "harm is low, so it only warns" not in run.told[0].text
    assert "It would page, but models.triage.harm is low, so it only warns." in run.told[1].text
    assert "paged_ms" not in run.only.detail


@pytest.mark.parametrize(
    ("harm", "mark", "effect", "priority"),
    [
        ("high", "P", 0.1, "P1"),
        ("normal", "P", 0.9, "P1"),
        ("normal", "P", -0.9, "P1"),
        ("normal", "P", 0.1, "P2"),
        ("low", "P", 0.9, "P4"),
        ("high", "W", 0.9, "P3"),
        ("normal", "W", 0.9, "P3"),
        ("normal", "W", 0.1, "P4"),
        ("low", "W", 0.9, "P4"),
    ],
)
def test_priority_follows_severity_first(harm: Any, mark: Mark, effect: float, priority: str) -> None:
    run = Run(replace(POLICY, harm=harm))
    found = evidence(run.block, mark, effect=effect)
    assert found
    run.push([found])
    assert run.told[0].values["priority"] == priority_of(run.only) == priority


def test_an_acknowledgement_ends_with_the_incident_and_an_incident_that_comes_back_has_none() -> None:
    run = Run().feed("P")
    row = run.only
    acknowledged = {"acknowledged": {"by": "kari", "at_ms": 1_700_000_000_000}}
    run.rows[row.id] = replace(row, detail={**row.detail, **acknowledged})
    run.feed("aaPa")
    assert "acknowledged kari, 2023-11-14 22:13:20Z" in describe(run.only)
    run.feed("......")
    assert run.only.detail["acknowledged"] == acknowledged["acknowledged"]
    run.feed("P")
    assert "acknowledged" not in run.only.detail


def test_an_open_incident_says_that_it_is_muted() -> None:
    mute = MuteRow("0a", "triage", "", "", "", 0, 1_700_000_000_000, "the topic moves", "kari", 0)
    run = Run().feed("P")
    assert "muted        2023-11-14 22:13:20Z by kari: the topic moves" in describe(run.only, mute)
    assert "muted" not in describe(run.feed("......").only, mute)


Marks = st.lists(st.sampled_from("PWa..."), min_size=1, max_size=80).map("".join)


Policies = st.sampled_from(
    [
        IncidentPolicy(resolve_after_ms=30_000, cooldown_ms=100_000, repeat_interval_ms=80_000),
        replace(POLICY, resolve_after_ms=30_000, min_duration_ms=20_000),
        replace(POLICY, deploy_grace_ms=70_000),
        replace(POLICY, min_duration_ms=30_000, deploy_grace_ms=70_000, harm="low"),
    ]
)
Deployments = st.lists(st.integers(-5, 120), max_size=25).map(
    lambda blocks: [deployed(f"v{number}", block) for number, block in enumerate(sorted(blocks))]
)


@settings(max_examples=60, deadline=None)
@given(Marks, Marks, Policies, Deployments)
def test_a_life_is_in_order_with_unique_ids_and_is_the_same_again(
    one: str, two: str, policy: IncidentPolicy, deployments: list[DeploymentRow]
) -> None:
    def play() -> Run:
        run = Run(policy, deployments)
        for index in range(max(len(one), len(two))):
            pairs = (("a", one[index : index + 1]), ("b", two[index : index + 1]))
            found = [evidence(run.block, mark or ".", key=key) for key, mark in pairs]  # type: ignore[arg-type]
            # As from the database: through JSON, in another order.
            stored = [replace(row, detail=json.loads(json.dumps(row.detail))) for row in run.rows.values()]
            run.rows = {row.id: row for row in reversed(stored)}
            run.push([entry for entry in found if entry is not None])
            assert sum(row.status == "open" for row in run.rows.values() if row.segment == "a") <= 1
        return run

    run = play()
    assert len({note.id for note in run.told}) == len(run.told)
    for row in run.rows.values():
        told = [note for note in run.told if note.incident == row.id]
        revisions = [int(note.values["revision"]) for note in told]
        assert revisions == sorted(set(revisions)) and all(1 <= number <= row.revision for number in revisions)
        if policy.min_duration_ms == policy.deploy_grace_ms == 0:
            assert revisions == list(range(1, row.revision + 1))
        assert bool(told) == (row.detail.get("quiet") is not True)
        events = [note.values["event"] for note in told]
        assert events[:1] in ([], ["opened"]) and "opened" not in events[1:]
        state = ""
        for name in events:
            allowed = {"": {"opened"}, "open": {"raised", "repeated", "resolved"}, "resolved": {"reopened"}}[state]
            assert name in allowed
            state = "resolved" if name == "resolved" else "open"
        heard = state if "held" not in row.detail else "open"  # it is open, and people hear of it later, if at all
        assert not told or heard == row.status
        assert ("held" in row.detail) <= (row.status == "open") and (row.resolved_ms is None) == (row.status == "open")
    again = play()
    assert again.told == run.told and again.rows == run.rows


@settings(max_examples=60, deadline=None)
@given(Marks, st.sets(st.integers(1, 79)), Policies, Deployments)
def test_any_cut_of_the_blocks_gives_the_same_incidents_and_notifications(
    marks: str, cuts: set[int], policy: IncidentPolicy, deployments: list[DeploymentRow]
) -> None:
    def of_block(index: int) -> list[Evidence]:
        block = START + index + 50 * (index // 20)  # with gaps in which nothing came
        found = evidence(block, marks[index])  # type: ignore[arg-type]
        quiet = dead_letter_evidence(
            "triage", block=block, block_ms=BLOCK_MS, records=9, dead={}, alert_ratio=0.05, page_ratio=0.5
        )
        return [quiet, *([found] if found else [])]

    def play(bounds: list[int]) -> tuple[dict[str, IncidentRow], list[Notification]]:
        rows: dict[str, IncidentRow] = {}
        told: list[Notification] = []
        for first, last in itertools.pairwise(bounds):
            found = [entry for index in range(first, last) for entry in of_block(index)]
            end_ms = max(entry.end_ms for entry in found)
            # As the fold has them: those of these blocks, and the last before.
            known = [row for row in deployments if row.start_ms < end_ms]
            before = [row for row in known if row.start_ms < min(entry.start_ms for entry in found)]
            known = known[max(len(before) - MOST_DEPLOYMENTS, 0) :]
            changed, notes = advance(list(rows.values()), found, policy, end_ms, deployments=known)
            rows |= {row.id: row for row in changed}
            told += notes
        return rows, told

    one_by_one = play(list(range(len(marks) + 1)))
    assert play([0, *sorted(cut for cut in cuts if cut < len(marks)), len(marks)]) == one_by_one
    assert play([0, len(marks)]) == one_by_one


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'driftd.db'}") as store:
        store.migrate()
        yield store


def test_incidents_go_on_from_what_the_database_holds(store: Store) -> None:
    marks = "..WaP......P......" + "." * 70 + "Paa"
    in_memory = Run().feed(marks)
    told: list[Notification] = []
    for index, mark in enumerate(marks):
        found = evidence(START + index, mark)  # type: ignore[arg-type]
        with store.begin_fold("triage") as fold:
            known = fold.incidents(resolved_since_ms=0)
            changed, notes = advance(known, [found] if found else [], POLICY, (START + index + 1) * BLOCK_MS)
            outbox = [("pager", note) for note in notes]
            fold.commit(FoldResult(START + index + 1, [], [], [], changed, outbox))
        told += notes
    assert told == in_memory.told
    assert {row.id: row for row in store.incidents(model="triage")} == in_memory.rows
    sent = []
    while due := store.outbox_due(0, 100):
        for row in due:
            sent.append(row.notification)
            store.outbox_sent(row.sink, [row.notification.id], 1)
    key = lambda note: (note.starts_ms, note.incident, int(note.values["revision"]))  # noqa: E731
    assert sorted(sent, key=key) == sorted(told, key=key)


# --- from readings to evidence ----------------------------------------------------------------------------------------


def reading(channel: Any, **changes: Any) -> Reading:
    calm = Reading(
        channel=channel,
        block=START,
        statistic=1.0,
        strength=0.5,
        warn_strength=0.5,
        threshold=5.9,
        warn_threshold=3.9,
        p_value=0.1,
        n=512,
        effect=0.1,
        window_start=START - 1,
        window_blocks=2,
        onset=START - 1,
        page=False,
        warn=False,
        active=False,
        recent_p=None,
        reference=3,
    )
    return replace(calm, **changes)


def test_calm_channels_are_no_evidence() -> None:
    calm = [reading("level"), reading("shape"), reading("mix")]
    assert drift_evidence("m", "s", "", calm, block_ms=BLOCK_MS) is None


def test_the_most_urgent_channel_speaks_and_of_those_the_clearest() -> None:
    readings = [
        reading("level", warn=True, active=True, warn_strength=30.0, strength=5.0),
        reading("shape", page=True, warn=True, active=True, strength=6.0, effect=1.5),
        reading("mix", page=True, warn=True, active=True, strength=7.0, onset=START - 9),
    ]
    found = drift_evidence("m", "s", "a=b", readings, block_ms=BLOCK_MS)
    assert found is not None
    assert (found.channel, found.severity, found.strength, found.threshold) == ("mix", "page", 7.0, 5.9)
    assert found.onset_ms == (START - 9) * BLOCK_MS and found.end_ms - found.start_ms == BLOCK_MS
    assert found.reference == 3 and found.values == {"channels": "level mix shape"} and found.active


def test_a_channel_whose_window_holds_no_record_any_more_does_not_speak_for_another() -> None:
    empty = reading("shape", warn=True, active=True, warn_strength=12.0, n=0, effect=0.0)
    found = drift_evidence("m", "s", "", [empty, reading("mix", warn=True, warn_strength=7.0)], block_ms=BLOCK_MS)
    assert found is not None and (found.channel, found.n) == ("mix", 512)
    (row,), _ = advance([], [found], POLICY, found.end_ms)
    alone = drift_evidence("m", "s", "", [replace(empty, block=START + 1)], block_ms=BLOCK_MS)
    assert alone is not None and alone.strength > found.strength
    (row,), _ = advance([row], [alone], POLICY, alone.end_ms)
    assert (row.detail["channel"], row.detail["n"], row.detail["strength"]) == ("mix", 512, 7.0)


def test_an_incident_says_between_which_times_it_began() -> None:
    sure = reading("mix", page=True, warn=True, strength=7.0, onset_earliest=START - 3, onset_latest=START - 1)
    found = drift_evidence("m", "s", "", [sure], block_ms=BLOCK_MS)
    assert found is not None
    assert (found.onset_from_ms, found.onset_to_ms) == ((START - 3) * BLOCK_MS, START * BLOCK_MS)
    (row,), _ = advance([], [found], POLICY, found.end_ms)
    assert f"between {text_of((START - 3) * BLOCK_MS)} and {text_of(START * BLOCK_MS)}, the mix" in row.text
    # Later evidence that begins before what the first could see is told without an interval.
    earlier = replace(found, block=START + 1, start_ms=found.end_ms, end_ms=found.end_ms + BLOCK_MS, onset_ms=0)
    (row,), _ = advance([row], [earlier], POLICY, earlier.end_ms)
    assert "between" not in text_of_incident(row)


def test_a_small_baseline_warns_where_it_would_page() -> None:
    readings = [reading("level", page=True, warn=True, active=True, strength=6.0)]
    found = drift_evidence("m", "s", "", readings, block_ms=BLOCK_MS, only_warns="it holds 9")
    assert found is not None and (found.severity, found.strength, found.threshold) == ("warn", 6.0, 3.9)
    (row,), _ = advance([], [found], POLICY, found.end_ms)
    assert row.severity == "warn" and "may only warn, because its baseline is small: it holds 9." in row.text


def test_a_channel_that_is_only_active_keeps_but_does_not_open() -> None:
    found = drift_evidence("m", "s", "", [reading("level", active=True)], block_ms=BLOCK_MS)
    assert found is not None and found.severity is None and found.active


def rate(**changes: Any) -> RateReading:
    calm = RateReading(
        block=START,
        rate=0.02,
        expected=0.001,
        effect=20.0,
        count=40,
        n=2000,
        strength=6.1,
        warn_strength=6.1,
        threshold=5.9,
        warn_threshold=3.9,
        p_value=1e-9,
        window_start=START - 1,
        window_blocks=2,
        onset=START - 1,
        page=True,
        warn=True,
        active=True,
    )
    return replace(calm, **changes)


def test_the_outlier_rate_is_evidence_when_it_alarms_or_lasts() -> None:
    quiet = rate(page=False, warn=False, active=False)
    assert rate_evidence("m", "s", "", quiet, block_ms=BLOCK_MS, reference=1) is None
    found = rate_evidence("m", "s", "", rate(), block_ms=BLOCK_MS, reference=1)
    assert found is not None and found.severity == "page" and found.values == {"rate": 0.02, "expected": 0.001}


@pytest.mark.parametrize(
    ("records", "dead", "severity"),
    [
        (0, {}, None),
        (100, {"bad_json": 5}, None),  # exactly the limit
        (100, {"bad_json": 4, "missing_field": 2}, "warn"),
        (100, {"bad_json": 51}, "page"),
        (2, {"bad_json": 2}, None),  # two records are no wave
    ],
)
def test_dead_letters_are_evidence_above_their_limit(records: int, dead: dict[str, int], severity: str | None) -> None:
    found = dead_letter_evidence(
        "m", block=START, block_ms=BLOCK_MS, records=records, dead=dead, alert_ratio=0.05, page_ratio=0.5
    )
    assert found.severity == severity and found.active == (severity is not None)
    if severity is not None:
        assert found.values["reason"] == "bad_json"


# --- words ------------------------------------------------------------------------------------------------------------


def test_what_a_person_reads_about_drift() -> None:
    run = Run().feed("P", key="country=DE")
    note, row = run.told[0], run.only
    assert note.title == "triage: input has drifted (country=DE)"
    assert note.text == (
        "Since about 2023-11-14 22:12:50Z the average record of space input, segment country=DE lies 0.42 standard "
        "deviations away from reference 1, seen in 2,560 records. By chance, such evidence appears once in 366 days. "
        f"Next: driftd incidents {row.id}"
    )
    assert note.values == {
        "event": "opened",
        "revision": "1",
        "priority": "P2",
        "onset": "2023-11-14 22:12:50Z",
        "reference": "1",
        "channel": "level",
        "strength": "6.5",
        "threshold": "5.9",
        "effect": "0.42",
        "n": "2560",
    }


@pytest.mark.parametrize(
    ("channel", "effect", "words"),
    [
        ("shape", 0.3, "lie further out than those of reference 1 (mean normal score +0.30)"),
        ("shape", -0.3, "lie closer to the centre than those of reference 1"),
        ("mix", 0.3, "the mix of kinds of records of space input differs from reference 1 by 0.30"),
        ("another", 0.3, "the records of space input differ from reference 1"),
    ],
)
def test_each_channel_says_what_it_saw(channel: str, effect: float, words: str) -> None:
    found = evidence(START, "P", channel=channel, effect=effect)
    assert found
    _, (note,) = advance([], [found], POLICY, (START + 1) * BLOCK_MS)
    assert words in note.text


def test_what_a_person_reads_about_outliers_and_dead_letters() -> None:
    outliers = rate_evidence("m", "input", "", rate(), block_ms=BLOCK_MS, reference=1)
    dead = dead_letter_evidence(
        "m", block=START, block_ms=BLOCK_MS, records=1000, dead={"bad_json": 120}, alert_ratio=0.05, page_ratio=0.5
    )
    assert outliers
    _, told = advance([], [outliers, dead], POLICY, (START + 1) * BLOCK_MS)
    assert [note.title for note in told] == [
        "m: 12 % of the records cannot be used",
        "m: far too many outliers in input",
    ]
    assert "12 % of 1,000 records cannot be used (limit 5 %); most of them: bad_json." in told[0].text
    assert "by chance" not in told[0].text.lower()
    assert "2 % of the records of space input are as strange as the strangest 0.1 % of reference 1: 20.0 times" in (
        told[1].text
    )


def test_a_resolved_incident_says_when_it_was_last_seen() -> None:
    run = Run().feed("Pa......")
    assert run.told[-1].title == "Resolved: triage: input has drifted"
    assert "Last seen at 2023-11-14 22:13:40Z; resolved at 2023-11-14 22:14:30Z." in run.told[-1].text


def test_describing_an_incident_shows_all_of_it() -> None:
    row = Run().feed("Pa......P").only
    text = describe(row)
    for words in (
        row.id,
        "status       open",
        "severity     page",
        "triage",
        "input",
        "level",
        "0.42",
        "flaps",
        "driftd report",
        row.title,
    ):
        assert words in text, words
    assert not re.search(r"\{|None", text)


def test_durations_and_chances_are_readable() -> None:
    assert [duration(s) for s in (0.4, 1, 90, 130, 7_200, 172_800, 7.8e6, 1e9)] == [
        "0 seconds",
        "1 second",
        "90 seconds",
        "2 minutes",
        "2 hours",
        "2 days",
        "90 days",
        "32 years",
    ]
    assert chance(5.89, 10_000) == "once in 90 days"
    assert chance(300.0, 10_000) == chance(float("inf"), 10_000) == "less than once in 1,000 years"
    assert [percent(share) for share in (0.00123, 0.05, 0.0996, 0.5, 1.0)] == ["0.12 %", "5 %", "10 %", "50 %", "100 %"]


def several(run: Run, *marks: tuple[Mark, str]) -> list[Evidence]:
    """Evidence of one block for several segments."""
    found = [evidence(run.block, mark, key=segment) for mark, segment in marks]
    return [entry for entry in found if entry is not None]


def test_a_segment_is_quiet_while_the_whole_traffic_says_the_same() -> None:
    run = Run().feed("P")
    run.push(several(run, ("a", ""), ("P", "country=de"), ("W", "x=y")))
    assert [(note.segment, note.values["event"]) for note in run.told] == [("", "opened")]
    assert {row.segment for row in run.rows.values() if row.status == "open"} == {"", "country=de", "x=y"}
    run.feed("." * 12)
    assert {row.status for row in run.rows.values()} == {"resolved"}
    assert [(note.segment, note.values["event"]) for note in run.told] == [("", "opened"), ("", "resolved")]


def test_a_segment_that_is_more_urgent_or_came_first_is_told() -> None:
    run = Run().feed("W")
    run.push(several(run, ("a", ""), ("P", "country=de")))
    assert [(note.segment, note.values["event"]) for note in run.told] == [("", "opened"), ("country=de", "opened")]
    alone = Run().feed("P", key="country=de").feed("P")
    alone.feed("." * 12)
    assert sorted((note.segment, note.values["event"]) for note in alone.told) == [
        ("", "opened"),
        ("", "resolved"),
        ("country=de", "opened"),
        ("country=de", "resolved"),
    ]


def test_a_quiet_segment_that_outlasts_the_whole_is_told_as_going_on() -> None:
    run = Run().feed("P")
    run.push(several(run, ("P", "country=de")))
    run.feed("a" * 40, key="country=de")
    told = [(note.segment, note.values["event"]) for note in run.told]
    assert told[:2] == [("", "opened"), ("", "resolved")] and ("country=de", "repeated") in told
    run.feed("." * 12)
    assert (run.told[-1].segment, run.told[-1].values["event"]) == ("country=de", "resolved")


def test_an_incident_says_from_when_to_when_people_knew_of_it_and_how_urgent_it_was() -> None:
    run = Run().feed("W..P" + "." * 12 + "W")
    first, raised, resolved, again = ((START + at) * BLOCK_MS for at in (1, 4, 9, 17))
    assert run.only.detail["told"] == [
        [first, raised, "warn"],
        [raised, resolved, "page"],
        [again, None, "warn"],
    ]
    assert json.loads(json.dumps(run.only.detail["told"])) == run.only.detail["told"]


def test_what_is_over_before_people_are_told_has_no_stretch_in_which_they_knew() -> None:
    run = Run(replace(POLICY, min_duration_ms=120_000)).feed("P" + "." * 8)
    assert (run.only.status, run.told) == ("resolved", [])
    assert "told" not in run.only.detail


def test_a_segment_that_the_whole_traffic_speaks_for_has_no_stretch_of_its_own() -> None:
    run = Run()
    run.push([found for key in ("", "country=de") if (found := evidence(run.block, "P", key=key)) is not None])
    by_segment = {row.segment: row.detail.get("told") for row in run.rows.values()}
    assert by_segment == {"": [[(START + 1) * BLOCK_MS, None, "page"]], "country=de": None}
