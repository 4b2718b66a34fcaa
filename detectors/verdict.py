"""The stale-model verdict: one word for a model, the first that fits, and sentences that say why.

    degraded           labels prove that answers are worse than the floor
    encoder changed    the vectors jumped as only another encoder makes them
    degraded           drift, and by estimate answers are worse than the floor (without labels)
    drifted, holding   drift, and by labels or estimate answers are as right as the floor asks
    drifted            drift, and nothing says how right the answers are, or the estimate lies on either side
    mix changed        known kinds of records in other shares
    watch              warnings, an old model, labels that stopped
    too few records    a window or a reference too small to say anything
    fresh              none of these

A pure function of numbers. What the estimates of the window mean: `detectors.performance`; the evidence of labels:
`detectors.risk`. Which word stands for an incident, and how urgent it is, says `severity`. That driftd sees nothing of
a model ("blind"), or that its canaries failed, shows outside of its blocks: it is laid over the verdict where that is
shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from detectors.performance import UNKNOWN, Estimate

Word = Literal[
    "encoder changed",
    "degraded",
    "drifted, holding",
    "drifted",
    "mix changed",
    "watch",
    "too few records",
    "fresh",
]
Level = Literal["", "warn", "page"]
Harm = Literal["low", "normal", "high"]

# Fewer labels than this do not vouch for a model: if .95 are right, 100 labels say so to .04 (95 %).
ENOUGH_LABELS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a model after a block.

    Shares are 0 to 1, NaN where unknown; texts are whole sentences, "" where there is nothing to say.

    Attributes:
        encoder_suspected: by the geometry of the vectors, why.
        too_small: why the reference (or its absence) allows no judgement.
        records, least: of the window, and how many it needs.
        input_drift, output_drift: the highest level at which a space of that side alarms.
        channels: those that alarm at any side: level, shape, mix.
        outlier_rate: level at which the rate of outliers alarms.
        estimate: of the window; `UNKNOWN` where confidence is not calibrated or the window too small.
        floor: share of right answers below which the model is degraded.
        labels: labelled records that ``realised`` is over, its 95 % interval beside it.
        labels_cover_drift: these records came since the drift began; older ones do not vouch for new content.
        risk: level at which the labels say that answers are worse than the floor; ``evidence`` is the log10 of it:
            10**evidence labels pass until as much appears by chance.
        labels_age: how old the newest labelled record is: no sentence, but words such as "3 hours".
        labels_stopped: labels used to come, and do not any more.
        losses_changed: river's ADWIN sees that the labels' losses rose.
        too_old: how long ago the model was trained, and what was allowed.
    """

    encoder_suspected: str = ""
    too_small: str = ""
    records: int = 0
    least: int = 0
    input_drift: Level = ""
    output_drift: Level = ""
    channels: frozenset[str] = frozenset()
    outlier_rate: Level = ""
    estimate: Estimate = UNKNOWN
    floor: float = math.nan
    labels: int = 0
    realised: float = math.nan
    realised_low: float = math.nan
    realised_high: float = math.nan
    labels_cover_drift: bool = True
    risk: Level = ""
    evidence: float = math.nan
    labels_age: str = ""
    labels_stopped: str = ""
    losses_changed: bool = False
    too_old: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on a model.

    Attributes:
        word: the first of the table that fits.
        reasons: sentences for people, the weightiest first; the last one says what cannot be seen.
    """

    word: Word
    reasons: tuple[str, ...]


def decide(facts: Facts) -> Decision:
    """The verdict: the first line of the table at the top of this file that fits.

    Estimates are compared with the floor in two ways. "Degraded" needs the bound to be under the floor by more than the
    error of window and baseline; "holding" needs the bound itself at or above it. Between the two it is "drifted".
    """
    word, first = _first_match(facts)
    said = [*first, *(reason for reason in _supporting(facts) if reason not in first), unseen(facts)]
    return Decision(word, tuple(said))


def severity(facts: Facts, harm: Harm = "normal") -> Literal["page", "warn"] | None:
    """How urgently people are told that the model is stale; None where that is no incident of its own.

    Proof by labels, or an estimate whose upper end is under the floor, is a page, a warning where the model can do
    little harm. Where only the lower end is, new content may still be answered well: a warning, a page where wrong
    answers do great harm. Drift and a changed encoder have incidents of their own.

    Args:
        harm: `models.NAME.harm`: what wrong answers do.
    """
    word, _ = _first_match(facts)
    if word == "degraded":
        if facts.risk == "page" or _surely_under(facts):
            return "warn" if harm == "low" else "page"
        return "page" if harm == "high" else "warn"
    if word == "watch" and facts.risk == "warn" and harm != "low":
        return "warn"
    return None


def unseen(facts: Facts) -> str:
    """What nobody can see with what is known: always said, so that "fresh" is not read as "right"."""
    if not facts.labels:
        return "That answers to known inputs became wrong cannot be seen without labels."
    age = f", the newest record among them {facts.labels_age} old" if facts.labels_age else ""
    return f"That answers to known inputs became wrong shows in labels alone: {facts.labels:,} were counted{age}."


def _first_match(facts: Facts) -> tuple[Word, list[str]]:
    if facts.risk == "page":
        return "degraded", [_labels_say(facts)]
    if facts.encoder_suspected:  # estimates and drift rest on vectors, labels do not
        return "encoder changed", [facts.encoder_suspected]
    drifted = "page" in (facts.input_drift, facts.output_drift, facts.outlier_rate)
    only_mix = facts.outlier_rate != "page" and facts.channels == {"mix"}
    if drifted:
        under = _surely_under(facts) or (not only_mix and _bound_under(facts))
        if under and not _labels_hold(facts):  # new content that labels find answered well is no degradation
            return "degraded", [_estimate_says(facts)]
        if only_mix:
            return "mix changed", [_drift_says(facts)]
        if _labels_hold(facts) or (facts.risk == "" and _estimate_holds(facts)):
            return "drifted, holding", [_drift_says(facts), _holds_because(facts)]
        return "drifted", [_drift_says(facts), *_not_known(facts)]
    if reasons := _to_watch(facts):
        return "watch", reasons
    if facts.too_small or facts.records < facts.least:
        return "too few records", _too_few(facts)
    return "fresh", [_fresh_because(facts)]


def _surely_under(facts: Facts) -> bool:
    """By confidence alone, without any doubt of new content: the upper end is under the floor."""
    return facts.estimate.high < facts.floor


def _bound_under(facts: Facts) -> bool:
    return facts.estimate.surely_below < facts.floor


def _estimate_holds(facts: Facts) -> bool:
    return facts.estimate.bound >= facts.floor


def _labels_hold(facts: Facts) -> bool:
    return (
        facts.labels_cover_drift
        and facts.labels >= ENOUGH_LABELS
        and facts.risk == ""
        and facts.realised >= facts.floor
    )


def _to_watch(facts: Facts) -> list[str]:
    reasons = []
    if facts.risk == "warn":
        reasons.append(_labels_say(facts))
    if _surely_under(facts):
        reasons.append(_estimate_says(facts) + " No drift was found, so confidence may have shifted by itself.")
    if facts.losses_changed:
        reasons.append("A second opinion (ADWIN) finds that labelled answers have become worse than they were.")
    if "warn" in (facts.input_drift, facts.output_drift, facts.outlier_rate):
        reasons.append(_drift_says(facts))
    return [*reasons, *(text for text in (facts.too_old, facts.labels_stopped) if text)]


def _supporting(facts: Facts) -> list[str]:
    """What else is known, said with every verdict."""
    said = []
    if facts.labels and not math.isnan(facts.realised):
        said.append(_realised(facts))
    if facts.encoder_suspected:
        return said  # and so do estimates on vectors of another encoder
    if any((facts.input_drift, facts.output_drift, facts.outlier_rate)):
        said.append(_drift_says(facts))
    if facts.estimate.n:
        said.append(_estimated(facts.estimate, facts.floor))
    return [*said, *(text for text in (facts.too_old, facts.labels_stopped) if text)]


# --- sentences --------------------------------------------------------------------------------------------------------


def _share(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def _labels_say(facts: Facts) -> str:
    how = "prove" if facts.risk == "page" else "suggest"
    return (
        f"Labels {how} that fewer than {_share(facts.floor)} of the answers are right: as much appears by chance once "
        f"in {_many(facts.evidence)} labels."
    )


def _many(evidence: float) -> str:
    """10**evidence in words: exact numbers of chance say no more than their size."""
    return f"{10**evidence:,.0f}" if evidence < 7 else f"10^{evidence:.0f}"


def _realised(facts: Facts) -> str:
    interval = ""
    if not math.isnan(facts.realised_low):
        interval = f" (95 % interval {_share(facts.realised_low)} to {_share(facts.realised_high)})"
    floor = "" if math.isnan(facts.floor) else f"; the floor is {_share(facts.floor)}"
    return f"Of {facts.labels:,} labelled answers {_share(facts.realised)} are right{interval}{floor}."


def _estimate_says(facts: Facts) -> str:
    found = facts.estimate
    if _surely_under(facts):
        return (
            f"By calibrated confidence at most {_share(found.high)} of the answers are right, under the floor of "
            f"{_share(facts.floor)}. No label confirms it."
        )
    return (
        f"{_share(found.novel)} of the records are like nothing in the baseline; if none of those is answered rightly, "
        f"{_share(found.bound)} of the answers are right, under the floor of {_share(facts.floor)}. No label confirms "
        "it."
    )


def _estimated(found: Estimate, floor: float) -> str:
    at = "" if math.isnan(floor) else f"; the floor is {_share(floor)}"
    return (
        f"Without labels {_share(found.low)} to {_share(found.high)} of {found.n:,} answers are estimated to be right, "
        f"{_share(found.novel)} of the records being new content{at}."
    )


def _drift_says(facts: Facts) -> str:
    parts = []
    for what, level in (("inputs", facts.input_drift), ("outputs", facts.output_drift)):
        if level:
            parts.append(f"{what} drifted ({level} level)")
    if facts.outlier_rate:
        parts.append(f"more outliers than the baseline allows for ({facts.outlier_rate} level)")
    seen = f", seen in {', '.join(sorted(facts.channels))}" if facts.channels else ""
    known = "; known kinds of records in other shares" if facts.channels == {"mix"} and not facts.outlier_rate else ""
    text = " and ".join(parts)
    return f"{text[:1].upper()}{text[1:]}{seen}{known}."


def _holds_because(facts: Facts) -> str:
    if _labels_hold(facts):
        return _realised(facts)
    found = facts.estimate
    return (
        f"Even if no new record is answered rightly, an estimated {_share(found.bound)} of the answers are right; the "
        f"floor is {_share(facts.floor)}."
    )


def _not_known(facts: Facts) -> list[str]:
    if facts.estimate.n and not math.isnan(facts.floor):
        return ["Whether answers are still as right as the floor asks, the estimate leaves open."]
    return ["Nothing says how many answers are right: there is no calibrated confidence for this window."]


def _too_few(facts: Facts) -> list[str]:
    said = [facts.too_small] if facts.too_small else []
    if facts.records < facts.least:
        said.append(f"The window holds {facts.records:,} records; {facts.least:,} are needed.")
    return said


def _fresh_because(facts: Facts) -> str:
    if _labels_hold(facts):
        return "No drift, and labels find answers as right as the floor asks."
    if facts.labels >= ENOUGH_LABELS and facts.realised < facts.floor:
        return "No drift. Labelled answers are less right than the floor asks, but by no more than chance does it."
    if _estimate_holds(facts):
        return "No drift, and answers are estimated to be as right as the floor asks."
    return "No drift. How many answers are right is not known."
