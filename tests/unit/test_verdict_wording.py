"""What is said of a model's answers: the incident of a bad verdict, and the numbers of a stored one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from connectors.database.rows import IncidentRow
from dashboards.verdict_words import ALARMING, VERDICTS, rank_of, verdict_of
from monitor.verdict_wording import between, numbers, share, unseen
from monitor.wording import describe, numbers_of, text_of_incident, title_of
from tests.contract.verdict_rows import verdict

NAN = float("nan")
ONSET = 1_700_000_000_000


def stale(**values: Any) -> IncidentRow:
    found = {
        "word": "degraded",
        "estimated": 0.9,
        "low": 0.76,
        "high": 0.903,
        "floor": 0.942,
        "realised": NAN,
        "labels": 0,
        "novel": 0.1,
    }
    row = IncidentRow(
        id="abc",
        model="triage",
        kind="stale",
        space="",
        segment="",
        severity="page",
        status="open",
        opened_ms=ONSET,
        onset_ms=ONSET,
        updated_ms=ONSET,
        resolved_ms=None,
        revision=1,
        reference=0,
        title="",
        text="",
        detail={"values": found | values, "block_ms": 10_000},
    )
    return dataclasses.replace(row, title=title_of(row), text=text_of_incident(row))


def test_an_estimated_loss_says_that_no_label_says_so_yet() -> None:
    row = stale()
    assert row.title == ("triage: degraded, by estimate 76.0 % to 90.3 % of the answers are right, the floor is 94.2 %")
    assert row.text.startswith("Since about 2023-11-14 22:13:20Z fewer answers are right by estimate: 76.0 % to 90.3 %")
    assert "No label says so yet. 10 % of the records are like nothing in the baseline." in row.text
    assert row.text.endswith("Next: driftd verdict --model triage")


def test_a_measured_loss_says_over_how_many_labels_and_what_was_expected() -> None:
    row = stale(realised=0.869, labels=312, novel=0.0, low=0.948, high=0.955)
    assert row.title == "triage: degraded, 86.9 % of 312 labelled answers are right, the floor is 94.2 %"
    assert "86.9 % of 312 labelled ones (floor 94.2 %). Without labels, 94.8 % to 95.5 % would be expected." in row.text
    assert "like nothing" not in row.text


def test_labels_that_do_not_speak_for_it_are_told_after_the_estimate() -> None:
    row = stale(realised=0.96, labels=20)
    assert "by estimate" in row.title and "Of 20 labelled ones, 96.0 % are right." in row.text


@pytest.mark.parametrize("missing", [NAN, None])
def test_numbers_that_are_not_known_are_not_told(missing: float | None) -> None:
    row = stale(**dict.fromkeys(("estimated", "low", "high", "floor", "novel"), missing))
    assert row.title == "triage: degraded"
    shown = f"{row.text} {describe(row)} {numbers_of(row)}"
    assert "nan" not in shown and "None" not in shown and "By chance" not in shown


def test_the_numbers_of_a_verdict_are_told_against_the_floor() -> None:
    row = verdict(0, low=0.76, high=0.903, floor=0.942, novel=0.096, unsupported=0.041, age_s=41 * 86_400.0)
    assert dict(numbers(row)) == {
        "estimated": "76.0 % to 90.3 % right, 1,000 records without labels",
        "floor": "94.2 % right: estimated below it",
        "new content": "9.6 % of the records are like nothing in the baseline, 4.1 % far outside of it",
        "confidence": "81.2 % on average, as the model says it",
        "model age": "41 days",
    }
    measured = verdict(0, low=0.9, realised=0.961, realised_low=0.95, realised_high=0.97, labels=400, evidence=-2.0)
    assert dict(numbers(measured))["measured"] == "96.1 % right (95.0 % to 97.0 %), 400 labelled records"
    assert dict(numbers(measured))["floor"].endswith(": measured above it, estimated on either side")


def test_what_is_not_known_is_left_out_of_the_numbers() -> None:
    names = ("confidence", "estimated", "low", "high", "atc", "novel", "unsupported", "floor", "evidence", "age_s")
    assert numbers(verdict(0, **dict.fromkeys(names, math.nan))) == []
    assert share(NAN) == "unknown" and between(0.5, 0.625) == "50.0 % to 62.5 %"


def test_what_cannot_be_seen_is_the_last_reason_and_what_would_help() -> None:
    row = verdict(0, reasons=("All is well.", "Wrong answers cannot be seen."))
    assert unseen(row) == "Wrong answers cannot be seen. Bring true answers: driftd truth --file FILE"
    known = verdict(0, labels=1_312, reasons=("All is well.", "Only labels show it."))
    assert unseen(known, delay_s=2 * 86_400.0) == "Only labels show it. They come about 2 days after their records."
    assert unseen(known) == "Only labels show it."


def test_words_are_ranked_with_the_worst_first() -> None:
    from typing import get_args

    from connectors.database.rows import VerdictWord

    words = {one.word for one in VERDICTS}
    assert words == {*get_args(VerdictWord), "learning"}
    assert rank_of("blind") == 1 and rank_of("fresh") == len(VERDICTS) < rank_of("no word")
    assert {"blind", "encoder changed", "degraded", "drifted"} == ALARMING
    assert verdict_of("fresh").next_step == "nothing"


@pytest.mark.parametrize(
    ("evidence", "said"),
    [(-1.0, "nothing against it"), (0.9, "nothing against it"), (4.0, "once in 10,000 labels"), (12.2, "in 10^12 ")],
)
def test_evidence_of_labels_is_told_as_what_chance_would_do(evidence: float, said: str) -> None:
    row = verdict(0, labels=300, realised=0.8, realised_low=0.75, realised_high=0.85, evidence=evidence)
    assert said in dict(numbers(row))["labels say"]
