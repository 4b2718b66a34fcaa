"""The stale-model verdict: which line of the table fits, how urgent it is, and what is said."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from connectors.database import rows
from detectors.performance import Estimate
from detectors.verdict import Decision, Facts, Harm, Word, decide, severity

FLOOR = 0.93
GOOD = Estimate(n=1_000, confidence=0.8, estimated=0.95, low=0.935, high=0.96, atc=0.955, novel=0.0, unsupported=0.0)
EITHER = Estimate(n=1_000, confidence=0.8, estimated=0.94, low=0.90, high=0.955, atc=0.93, novel=0.02, unsupported=0.01)
NEW = Estimate(n=1_000, confidence=0.7, estimated=0.94, low=0.78, high=0.95, atc=0.85, novel=0.15, unsupported=0.1)
LOW = Estimate(n=1_000, confidence=0.6, estimated=0.86, low=0.74, high=0.885, atc=0.84, novel=0.1, unsupported=0.05)
LABELS: dict[str, Any] = {"labels": 400, "realised": 0.95, "realised_low": 0.92, "realised_high": 0.97}
WORSE: dict[str, Any] = {"labels": 400, "realised": 0.87, "realised_low": 0.83, "realised_high": 0.9, "evidence": 4.2}
LEVEL = frozenset({"level", "mix"})


def facts(**known: Any) -> Facts:
    return Facts(**{"records": 1_000, "least": 500, "floor": FLOOR, "estimate": GOOD, **known})


def test_the_words_are_those_that_are_stored_but_for_the_one_that_is_laid_over_them() -> None:
    assert {*get_args(Word), "blind"} == {*get_args(rows.VerdictWord)}


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("fresh", {}),
        ("fresh", LABELS),
        ("too few records", {"records": 499}),
        ("too few records", {"too_small": "The reference holds 900 records; 50,000 are needed."}),
        ("watch", {"input_drift": "warn", "channels": LEVEL}),
        ("watch", {"outlier_rate": "warn"}),
        ("watch", {"risk": "warn", **WORSE}),
        ("watch", {"losses_changed": True, **LABELS}),
        ("watch", {"too_old": "It was trained 400 days ago; max_age is 365 days."}),
        ("watch", {"labels_stopped": "No label came in 3 days."}),
        ("watch", {"estimate": LOW}),  # no drift, so nothing says why the model is less sure
        ("mix changed", {"input_drift": "page", "channels": frozenset({"mix"})}),
        ("mix changed", {"input_drift": "page", "channels": frozenset({"mix"}), "estimate": NEW}),
        ("drifted", {"input_drift": "page", "channels": LEVEL, "estimate": EITHER}),
        ("drifted", {"output_drift": "page", "channels": LEVEL, "floor": float("nan")}),
        ("drifted", {"input_drift": "page", "channels": LEVEL, "risk": "warn", **WORSE}),
        ("drifted, holding", {"input_drift": "page", "channels": LEVEL}),
        ("drifted, holding", {"input_drift": "page", "channels": LEVEL, "estimate": NEW, **LABELS}),
        ("drifted, holding", {"outlier_rate": "page", "channels": frozenset({"mix"})}),
        ("degraded", {"input_drift": "page", "channels": LEVEL, "estimate": NEW}),
        ("degraded", {"outlier_rate": "page", "estimate": NEW}),
        ("degraded", {"input_drift": "page", "channels": frozenset({"mix"}), "estimate": LOW}),
        (
            "degraded",
            {"input_drift": "page", "channels": LEVEL, "estimate": NEW, **LABELS, "labels_cover_drift": False},
        ),
        ("degraded", {"input_drift": "page", "channels": LEVEL, "estimate": NEW, **LABELS, "labels": 60}),
        ("degraded", {"risk": "page", **WORSE}),
        ("degraded", {"risk": "page", **WORSE, "encoder_suspected": "Every vector turned at once."}),
        ("encoder changed", {"encoder_suspected": "Every vector turned at once.", "input_drift": "page"}),
    ],
)
def test_the_first_line_of_the_table_that_fits_is_the_verdict(word: str, known: dict[str, Any]) -> None:
    assert decide(facts(**known)).word == word


@pytest.mark.parametrize(
    ("known", "by_harm"),
    [
        ({}, {"low": None, "normal": None, "high": None}),
        ({"input_drift": "page", "channels": LEVEL}, {"low": None, "normal": None, "high": None}),
        ({"encoder_suspected": "It jumped.", "estimate": LOW}, {"low": None, "normal": None, "high": None}),
        ({"risk": "page", **WORSE}, {"low": "warn", "normal": "page", "high": "page"}),
        ({"risk": "warn", **WORSE}, {"low": None, "normal": "warn", "high": "warn"}),
        ({"input_drift": "page", "estimate": LOW}, {"low": "warn", "normal": "page", "high": "page"}),
        ({"input_drift": "page", "estimate": NEW}, {"low": "warn", "normal": "warn", "high": "page"}),
        ({"estimate": LOW}, {"low": None, "normal": None, "high": None}),
    ],
)
def test_how_urgent_it_is_follows_from_proof_and_harm(known: dict[str, Any], by_harm: dict[Harm, str | None]) -> None:
    assert {harm: severity(facts(**known), harm) for harm in by_harm} == by_harm


def said(decision: Decision) -> str:
    return " ".join(decision.reasons)


def test_every_verdict_says_last_what_cannot_be_seen() -> None:
    assert decide(facts()).reasons[-1] == "That answers to known inputs became wrong cannot be seen without labels."
    assert decide(facts(**LABELS, labels_age="3 hours")).reasons[-1] == (
        "That answers to known inputs became wrong shows in labels alone: 400 were counted, the newest record among "
        "them 3 hours old."
    )


def test_proof_by_labels_says_its_numbers() -> None:
    reasons = decide(facts(risk="page", **WORSE)).reasons

    assert reasons[0] == (
        "Labels prove that fewer than 93.0 % of the answers are right: as much appears by chance once in 15,849 labels."
    )
    assert reasons[1] == (
        "Of 400 labelled answers 87.0 % are right (95 % interval 83.0 % to 90.0 %); the floor is 93.0 %."
    )


def test_an_estimate_below_the_floor_says_that_no_label_confirms_it() -> None:
    new = decide(facts(input_drift="page", channels=LEVEL, estimate=NEW))
    low = decide(facts(input_drift="page", channels=LEVEL, estimate=LOW))

    assert new.reasons[0].startswith("15.0 % of the records are like nothing in the baseline; if none of those")
    assert low.reasons[0].startswith("By calibrated confidence at most 88.5 % of the answers are right")
    assert all("No label confirms it." in each.reasons[0] for each in (new, low))
    assert new.reasons[1] == "Inputs drifted (page level), seen in level, mix."


def test_drift_that_holds_says_why_it_holds() -> None:
    by_estimate = decide(facts(input_drift="page", channels=LEVEL))
    by_labels = decide(facts(input_drift="page", channels=LEVEL, estimate=NEW, **LABELS))

    assert "Even if no new record is answered rightly, an estimated 95.0 %" in by_estimate.reasons[1]
    assert by_labels.reasons[1].startswith("Of 400 labelled answers 95.0 % are right")


def test_nothing_is_said_twice_and_every_reason_is_a_sentence() -> None:
    for known in ({}, LABELS, {"input_drift": "page", "channels": LEVEL, **LABELS}, {"risk": "page", **WORSE}):
        reasons = decide(facts(**known)).reasons
        assert len(set(reasons)) == len(reasons)
        assert all(reason.endswith(".") and (reason[0].isupper() or reason[0].isdigit()) for reason in reasons)


def test_estimates_on_vectors_of_another_encoder_are_not_quoted() -> None:
    assert "estimated" not in said(decide(facts(encoder_suspected="Every vector turned at once.")))


def test_without_any_number_a_drift_is_only_a_drift() -> None:
    decision = decide(Facts(records=1_000, least=500, input_drift="page", channels=LEVEL))

    assert decision.word == "drifted"
    assert "Nothing says how many answers are right" in decision.reasons[1]


def test_labels_just_under_the_floor_are_not_called_as_right_as_it_asks() -> None:
    decision = decide(facts(labels=400, realised=0.925, realised_low=0.89, realised_high=0.94))

    assert decision.word == "fresh"
    assert "by no more than chance does it" in decision.reasons[0]
