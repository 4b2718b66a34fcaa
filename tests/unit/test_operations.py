"""Incidents of the watching itself: what they say, that they are told once, and who ends them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.alert import ALERT_NAMES
from connectors.database.rows import Advance, Checkpoint, FoldResult, IncidentRow
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Gap, Partition
from monitor.checks import gap_findings
from monitor.evidence import Evidence, dead_letter_evidence
from monitor.incidents import OPERATIONAL, IncidentPolicy, advance
from monitor.operations import (
    BLIND,
    clock_incident,
    embedder_incident,
    encoder_changed_incident,
    gap_incidents,
    lag_incident,
    resolved,
    silent_incident,
    source_incident,
    stalled_incident,
    vectors_incident,
    wave_incident,
)
from monitor.wording import describe

NOW = 1_700_000_000_000  # 2023-11-14 22:13:20Z
P0, P3 = Partition("orders", 0), Partition("orders", 3)
GAP = Gap(P0, 1_000, 1_490, "retention", "the broker deleted offsets 1000 to 1489 of partition 0")
Made = tuple[IncidentRow, Notification]

EVERY: dict[str, Made] = {
    "source": source_incident(
        "triage", problem="No broker answers. Is it up?", lasting=False, since_ms=NOW - 60_000, now_ms=NOW
    ),
    "refused": source_incident("triage", problem="The password is wrong", lasting=True, since_ms=NOW, now_ms=NOW),
    "wave": wave_incident("triage", problem="1,000 records in a row cannot be used", now_ms=NOW),
    "stalled": stalled_incident("triage", {P3: 12, P0: 7}, since_ms=NOW - 60_000, now_ms=NOW),
    "silent": silent_incident(
        "triage", since_ms=NOW - 60_000, now_ms=NOW, limit_s=700, longest_s=240, span_s=864_000, every_s=7_776_000
    ),
    "lag": lag_incident("triage", lag_s=900, records=12_000, limit_s=600, since_ms=NOW - 60_000, now_ms=NOW),
    "embedder": embedder_incident(
        "triage", reasons={"wrong_dimension": 30, "embedder_failed": 70}, records=1_000, since_ms=NOW, now_ms=NOW
    ),
    "encoder": encoder_changed_incident(
        "triage",
        space="input",
        cause="rotation",
        problem="All angles are as before",
        changed=64,
        canaries=64,
        now_ms=NOW,
    ),
    "zero": vectors_incident("triage", space="input", what="zero", count=300, records=400, since_ms=NOW, now_ms=NOW),
    "constant": vectors_incident(
        "triage", space="input", what="constant", count=400, records=400, since_ms=NOW, now_ms=NOW
    ),
    "ahead": clock_incident("triage", ahead_s=300, since_ms=NOW, now_ms=NOW),
    "times": clock_incident("triage", reasons={"time_past": 80}, records=400, since_ms=NOW, now_ms=NOW),
    **{
        reason: gap_incidents("triage", [(Gap(P0, 1_000, to, reason, "offsets 1000 to 1489 are gone"), NOW)])[0]
        for reason, to in (("retention", 1_490), ("recreated", 0), ("truncated", 900), ("damaged", 1_001))
    },
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as opened:
        opened.migrate()
        yield opened


@pytest.mark.parametrize("name", EVERY)
def test_a_person_on_call_reads_what_it_is_since_when_and_what_to_do(name: str) -> None:
    row, told = EVERY[name]
    assert row.title.startswith("triage: ") and told.title == row.title and told.text == row.text
    assert "2023-11-14 22:1" in row.text and "Next: " in row.text
    assert ".." not in row.text and "  " not in row.text and "None" not in row.text
    assert (row.severity, row.status, told.status, told.severity) == ("page", "open", "firing", "page")
    assert row.text in describe(row) and ALERT_NAMES[row.kind] != row.kind
    assert told.starts_ms == row.onset_ms <= row.opened_ms == NOW and told.ends_ms is None


@pytest.mark.parametrize(
    ("name", "title", "text"),
    [
        ("source", "its source cannot be read", "No broker answers. Is it up? driftd tries again by itself."),
        ("refused", "its source cannot be read", "The password is wrong. This does not mend by itself."),
        ("wave", "reading stopped", "1,000 records in a row cannot be used."),
        ("stalled", "2 partitions stand still", "nothing was read of partitions 0, 3 of orders, which hold records"),
        (
            "silent",
            "no records come any more",
            "In 10 days before, the longest silence was 4 minutes; one of more than",
        ),
        (
            "lag",
            "it falls behind",
            "12,000 waited when this was opened, and the last one that was read was 15 minutes old",
        ),
        (
            "embedder",
            "10 % of the records cannot",
            "100 of 1,000 records have no vector that can be used: 70 on which the",
        ),
        (
            "encoder",
            "the encoder of input was changed: its space",
            "of 64 of 64 canaries. All angles are as before. The",
        ),
        ("zero", "75 % of the vectors of input are zero", "300 of 400 vectors are zero or not finite"),
        ("constant", "all vectors of input are the same", "400 records in a row have the very same vector"),
        ("ahead", "come from 5 minutes ahead of our clock", "message.timestamp.type"),
        (
            "times",
            "20 % of the records have a wrong time",
            "80 of 400 records have a time that cannot be: 80 too far back.",
        ),
        ("retention", "up to 490 records of orders deleted", "Offsets 1000 to 1489 are gone. They are in no count"),
        ("recreated", "topic orders was made anew", "is not known how much"),
        ("truncated", "topic orders has lost its newest records", "other ones come under their offsets"),
        ("damaged", "a record of orders cannot be read", "they still lie on the broker"),
    ],
)
def test_what_each_says(name: str, title: str, text: str) -> None:
    row, _ = EVERY[name]
    assert title in row.title
    assert text in row.text


def test_the_fields_of_a_gap_are_numbers_of_its_notification() -> None:
    _, told = EVERY["retention"]
    fields = {name: told.values[name] for name in ("topic", "partitions", "lost", "reason")}
    assert fields == {"topic": "orders", "partitions": "0", "lost": "490", "reason": "retention"}


def test_one_partition_and_many_are_named_shortly() -> None:
    one, _ = stalled_incident("triage", {P0: 7}, since_ms=NOW, now_ms=NOW)
    assert "1 partition stands still" in one.title and "partition 0 of orders, which holds records" in one.text
    many, _ = stalled_incident(
        "triage", {Partition("orders", number): 7 for number in range(40)}, since_ms=NOW, now_ms=NOW
    )
    assert "partitions 0, 1, 2, 3, 4 and 35 more of orders" in many.text


def test_gaps_of_one_kind_within_an_hour_are_one_incident() -> None:
    other = Gap(P3, 7, 17, "retention", "gone too")
    ((both, told),) = gap_incidents("triage", [(GAP, NOW), (other, NOW + 1)])
    assert "up to 500 records" in both.title and "So it was in 1 more place." in both.text
    assert (told.values["partitions"], told.values["lost"]) == ("0, 3", "500")
    assert both.onset_ms == both.opened_ms == NOW
    ((alone, note),) = gap_incidents("triage", [(other, NOW + 5)])
    assert (alone.id, note.id) == (both.id, told.id), "a later checkpoint finds it told"
    apart = [
        *gap_incidents("triage", [(GAP, NOW + 3_600_000), (replace(GAP, reason="damaged"), NOW)]),
        *gap_incidents("other", [(GAP, NOW)]),
        *gap_incidents("triage", [(replace(GAP, partition=Partition("labels", 0)), NOW)]),
    ]
    assert len({both.id, *(row.id for row, _ in apart)}) == 5 == len({told.id, *(note.id for _, note in apart)})


def test_what_is_over_says_so_and_never_ended_before_it_began() -> None:
    row, told = EVERY["source"]
    over, end = resolved(row, NOW + 5_000)
    assert (over.status, over.resolved_ms, over.revision) == ("resolved", NOW + 5_000, 2)
    assert "Over since 2023-11-14 22:13:25Z." in over.text and "Next:" not in over.text
    assert (end.status, end.ends_ms, end.incident) == ("resolved", NOW + 5_000, row.id) and end.id != told.id
    assert end.title == f"Resolved: {row.title}"
    assert resolved(row, 0)[0].resolved_ms == row.onset_ms, "the clock was set back"
    assert source_incident("m", problem="", lasting=False, since_ms=NOW + 9, now_ms=NOW)[0].onset_ms == NOW


def calm(block: int) -> Evidence:
    return dead_letter_evidence(
        "triage", block=block, block_ms=10_000, records=100, dead={}, alert_ratio=0.01, page_ratio=0.1
    )


def test_the_fold_ends_gaps_each_for_itself_and_leaves_what_the_worker_opened() -> None:
    policy = IncidentPolicy(resolve_after_ms=50_000)
    hour_ms = 3_600_000
    ((first, _),) = gap_incidents("triage", [(GAP, NOW)])
    ((second, _),) = gap_incidents("triage", [(Gap(P3, 5, 9, "retention", "gone"), NOW + hour_ms)])
    rows = [first, second, *(row for row, _ in EVERY.values() if row.kind != "gap")]
    assert {row.kind for row in rows} == {"gap", "encoder_changed", *BLIND} and BLIND <= OPERATIONAL
    block = (NOW // hour_ms + 1) * hour_ms // 10_000 + 4
    assert advance(rows, [calm(block - 1)], policy, block * 10_000) == ([], []), "it stands for the whole hour"
    changed, told = advance(rows, [calm(block)], policy, (block + 1) * 10_000)
    assert [(row.id, row.status) for row in changed] == [(first.id, "resolved")]
    assert [(note.incident, note.status) for note in told] == [(first.id, "resolved")]
    assert "Over since" in changed[0].text and changed[0].title == first.title
    again, told = advance([*changed, *rows[1:]], [], policy, NOW + 10**9)
    assert [row.id for row in again] == [second.id] and len(told) == 1


def test_a_gap_goes_from_the_checkpoint_to_the_fold(store: Store) -> None:
    ((row, told),) = gap_incidents("triage", [(GAP, NOW)])
    jump = Checkpoint("triage", [Advance(P0, None, 1_490, NOW, 0, 0, 0)], gaps=[GAP])
    store.commit(jump)
    store.commit(
        Checkpoint("triage", [Advance(P0, 1_490, 1_500, NOW, 9, 0, 0)], incidents=[row], outbox=[("pager", told)])
    )
    with store.begin_fold("triage") as fold:
        changed, notes = advance(fold.incidents(), [], IncidentPolicy(), NOW + 10**7)
        fold.commit(FoldResult(1, [], [], [], changed, [("pager", note) for note in notes]))
    (found,) = store.incidents("triage")
    assert found.status == "resolved"
    first = store.outbox_claim("pager", NOW, 1_000, 9)
    assert [one.notification.status for one in first] == ["firing"], "resolved waits for it"


def test_the_doctor_lists_gaps_and_is_uneasy_for_a_day(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db", now_ms=lambda: NOW) as store:
        store.migrate()
        assert gap_findings(store, "triage", NOW) == []
        store.commit(Checkpoint("triage", [Advance(P0, None, 1_490, NOW, 0, 0, 0)], gaps=[GAP]))
        (found,) = gap_findings(store, "triage", NOW + 1)
        assert not found.ok and gap_findings(store, "triage", NOW + 86_400_000)[0].ok
        assert found.detail == (
            "1 gap, 490 offsets passed over. Last: orders/0 from 1000 to 1490 (retention), at 2023-11-14 22:13:20Z"
        )


def test_an_outage_is_told_at_its_begin_and_at_its_end(store: Store) -> None:
    row, told = EVERY["source"]
    assert store.open_incident(row, [("pager", told)])
    other, note = source_incident("triage", problem="The same.", lasting=False, since_ms=NOW, now_ms=NOW + 1)
    assert not store.open_incident(other, [("pager", note)]), "another worker sees it too"
    (stored,) = store.incidents("triage", "open")
    over, end = resolved(stored, NOW + 5_000)
    assert store.resolve_incident(over, [("pager", end)]) and not store.resolve_incident(over, [("pager", end)])
    assert store.incidents("triage", "open") == []
    assert store.outbox_waiting()[0] == 2
