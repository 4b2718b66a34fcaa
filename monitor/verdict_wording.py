"""What is said of a model's answers, in words: of a stored verdict, and of the incident that a bad one opens.

Shares of right answers are said to a tenth of a percent: floors lie that close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from connectors.database.rows import IncidentRow, VerdictRow
from monitor.amounts import duration, percent

STALE = "stale"  # the kind of these incidents


def share(value: float) -> str:
    """ "95.3 %"; "unknown" for NaN."""
    return "unknown" if math.isnan(value) else f"{100.0 * value:.1f} %"


def between(low: float, high: float) -> str:
    """ "76.0 % to 90.3 %"."""
    return f"{share(low)} to {share(high)}"


# --- the incident -----------------------------------------------------------------------------------------------------


def title(row: IncidentRow) -> str:
    """What is wrong, without the model's name."""
    values = _values(row)
    word, floor = str(values.get("word") or "degraded"), _number(values, "floor")
    if _is_measured(values):
        right = f"{share(_number(values, 'realised'))} of {_labels(values):,} labelled answers are right"
    elif not math.isnan(_number(values, "low")):
        right = f"by estimate {between(_number(values, 'low'), _number(values, 'high'))} of the answers are right"
    else:
        return word
    return f"{word}, {right}{'' if math.isnan(floor) else f', the floor is {share(floor)}'}"


def sentences(row: IncidentRow) -> list[str]:
    """What happened; the first follows "Since about ..."."""
    values = _values(row)
    floor, realised, novel = (_number(values, name) for name in ("floor", "realised", "novel"))
    low, high = _number(values, "low"), _number(values, "high")
    under = "" if math.isnan(floor) else f" (floor {share(floor)})"
    said: list[str] = []
    if _is_measured(values):
        said.append(f"fewer answers are right: {share(realised)} of {_labels(values):,} labelled ones{under}.")
        if not math.isnan(low):
            said.append(f"Without labels, {between(low, high)} would be expected.")
    elif not math.isnan(low):
        said.append(f"fewer answers are right by estimate: {between(low, high)}{under}. No label says so yet.")
        if not math.isnan(realised):
            said.append(f"Of {_labels(values):,} labelled ones, {share(realised)} are right.")
    else:
        said.append(f"the model is said to be {values.get('word') or 'degraded'}.")
    if not math.isnan(novel) and novel > 0:
        said.append(f"{percent(novel)} of the records are like nothing in the baseline.")
    return said


def _is_measured(values: Mapping[str, object]) -> bool:
    """Labels speak for it: what they say lies below the floor."""
    realised, floor = _number(values, "realised"), _number(values, "floor")
    return _labels(values) > 0 and not math.isnan(realised) and not realised >= floor


def _labels(values: Mapping[str, object]) -> int:
    count = _number(values, "labels")
    return 0 if math.isnan(count) else round(count)


def _values(row: IncidentRow) -> Mapping[str, object]:
    values = row.detail.get("values")
    return values if isinstance(values, Mapping) else {}


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


# --- the verdict ------------------------------------------------------------------------------------------------------


def numbers(row: VerdictRow) -> list[tuple[str, str]]:
    """What is known, as names and texts for a terminal; what is not known is left out."""
    found: list[tuple[str, str]] = []
    if row.labels and not math.isnan(row.realised):
        interval = "" if math.isnan(row.realised_low) else f" ({between(row.realised_low, row.realised_high)})"
        found.append(("measured", f"{share(row.realised)} right{interval}, {row.labels:,} labelled records"))
    if row.metric_name and not math.isnan(row.metric):
        found.append((row.metric_name.replace("_", " "), f"{row.metric:.3g}, over the same records"))
    if not math.isnan(row.low):
        found.append(("estimated", f"{between(row.low, row.high)} right, {row.records:,} records without labels"))
    if not math.isnan(row.floor):
        found.append(("floor", f"{share(row.floor)} right{_against_floor(row)}"))
    if not math.isnan(row.novel):
        beyond = "" if math.isnan(row.unsupported) else f", {percent(row.unsupported)} far outside of it"
        found.append(("new content", f"{percent(row.novel)} of the records are like nothing in the baseline{beyond}"))
    if not math.isnan(row.confidence):
        found.append(("confidence", f"{share(row.confidence)} on average, as the model says it"))
    if row.labels and not math.isnan(row.evidence):
        found.append(("labels say", _evidence(row.evidence)))
    if not math.isnan(row.age_s):
        found.append(("model age", duration(row.age_s)))
    return found


def _evidence(evidence: float) -> str:
    """What a log10 e-value of labels against the floor means: how rare it would be by chance."""
    if evidence < 1.0:
        return "nothing against it"
    often = f"{10.0**evidence:,.0f}" if evidence < 9.0 else f"10^{evidence:.0f}"
    return f"as much against it as chance makes once in {often} labels"


def _against_floor(row: VerdictRow) -> str:
    """Where the two intervals lie beside the floor: ": measured above it, estimated below it"."""
    sides = [("estimated", row.low, row.high)]
    if row.labels:
        sides.insert(0, ("measured", row.realised_low, row.realised_high))
    said = [
        f"{name} {'above it' if low >= row.floor else 'below it' if high < row.floor else 'on either side'}"
        for name, low, high in sides
        if not math.isnan(low)
    ]
    return f": {', '.join(said)}" if said else ""


def unseen(row: VerdictRow, *, delay_s: float | None = None) -> str:
    """What nobody can see with what is known now: the last reason of a verdict, and what would help.

    Args:
        delay_s: how long true answers take, as far as that is known.
    """
    said = [*row.reasons[-1:]]
    if not row.labels:
        said.append("Bring true answers: driftd truth --file FILE")
    elif delay_s is not None:
        said.append(f"They come about {duration(delay_s)} after their records.")
    return " ".join(said)
