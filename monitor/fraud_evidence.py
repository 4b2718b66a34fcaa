"""Why a record looks like fraud: what a person needs to see, and what a label that comes later needs to know.

Evidence is a JSON object, `KeptRecord.detail`:

    surprise            -log10 of the p-value, continued beyond the finest one
    basis               what the score rests on: "outlier", "surprises", "contrast" or "contrast and model"
    cases               confirmed cases known when it was scored
    probability         of fraud, at the prevalence of the settings; absent without a case
    interval            [lower, upper] end of the probability; absent without a case
    signals             by name, null where unknown
    nearest_cases       up to 3 confirmed cases, nearest first: {"record": id, "label": number, "distance": ...}
    distance_to_normal  mean over up to 5 normal records, in the same unit; absent without a case
    nearest_normal      nearest record of the baseline: {"exemplar": number, "record": id, "distance": ...}
    contributions       log odds by part, "usual" being those of a usual normal record; absent without a case
    cleared_by          the false-alarm mark that took something away: {"record": id, "label": number}
    entity              16 hexadecimal digits that stand for whose record it is; absent where nobody's
    entity_records      how many of its records were known before: what "entity_self" and "entity_peers" among the
                        signals rest on
    usual               of each number: the share of normal records with a smaller one; absent where it is unknown
    rules               by name, whether the rule speaks: one that does not would have missed it
    flood               near-identical records of its block and partition so far, itself included, if there are others
    made_with           what made the vector and the signals: a label that comes later must know
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.fraud_build import FraudParts
from monitor.fraud_learner import Fitted
from monitor.fraud_settings import RuleSettings

Floats = npt.NDArray[np.float32]

CASES = 3
_DIGITS = 4  # what is only looked at; signals are exact, because labels learn from them

Detail = dict[str, object]


def evidence_of(
    parts: FraudParts, fitted: Fitted, vectors: Floats, signals: Floats, *, rules: Mapping[str, RuleSettings]
) -> tuple[list[Detail], npt.NDArray[np.int64]]:
    """Evidence for n records, and the number of each one's nearest exemplar, int64 (n,), -1 where there are none.

    Args:
        fitted: the scorer that scored them.
        vectors: float32 (n, d), as embedded.
        signals: float32 (n, s), in the columns of the baseline.
        rules: that are in use, by name.
    """
    scorer = fitted.scorer
    details: list[Detail] = [
        {"basis": scorer.basis, "cases": scorer.n_cases, "signals": values} for values in _named(parts, signals)
    ]
    if scorer.n_cases:
        _add_cases(details, fitted, vectors, signals)
        _add_contributions(details, fitted, vectors, signals)
    exemplars = _add_normal(details, parts, vectors)
    _add_usual(details, parts, signals)
    for name, rule in rules.items():
        column = signals[:, parts.baseline.names.index(rule.field)]
        for detail, value in zip(details, column.tolist(), strict=True):
            said = detail.setdefault("rules", {})
            assert isinstance(said, dict)
            said[name] = speaks(rule, value)
    return details, exemplars


def speaks(rule: RuleSettings, value: float) -> bool:
    """Whether a rule that is in use would have caught a record with this value, NaN where it has none."""
    return (rule.above is not None and value > rule.above) or (rule.below is not None and value < rule.below)


def _named(parts: FraudParts, signals: Floats) -> list[dict[str, float | None]]:
    names = parts.baseline.names
    return [
        {name: None if math.isnan(value) else value for name, value in zip(names, row, strict=True)}
        for row in signals.tolist()
    ]


def _add_cases(details: list[Detail], fitted: Fitted, vectors: Floats, signals: Floats) -> None:
    scorer = fitted.scorer
    near = scorer.nearest_cases(vectors, CASES)
    columns = zip(
        details,
        scorer.interval(vectors, signals=signals).tolist(),
        near.rows.tolist(),
        near.distances.tolist(),
        near.distance_to_normal.tolist(),
        strict=True,
    )
    for detail, interval, rows, distances, to_normal in columns:
        detail["interval"] = [round(end, 6) for end in interval]
        detail["nearest_cases"] = [
            {**_mark(fitted, row), "distance": round(distance, _DIGITS)}
            for row, distance in zip(rows, distances, strict=True)
        ]
        detail["distance_to_normal"] = round(to_normal, _DIGITS)


def _add_contributions(details: list[Detail], fitted: Fitted, vectors: Floats, signals: Floats) -> None:
    parts = fitted.scorer.contributions(vectors, signals=signals)
    for detail, values, cleared in zip(details, parts.values.tolist(), parts.cleared_rows.tolist(), strict=True):
        found = {name: round(value, _DIGITS) for name, value in zip(parts.names, values, strict=True)}
        detail["contributions"] = {"usual": round(parts.offset, _DIGITS), **found}
        if cleared >= 0:
            detail["cleared_by"] = _mark(fitted, cleared)


def _mark(fitted: Fitted, row: int) -> dict[str, Any]:
    return {"record": fitted.records[row], "label": fitted.labels[row]}


def _add_usual(details: list[Detail], parts: FraudParts, signals: Floats) -> None:
    for place, column in enumerate(parts.baseline.columns):
        if column.kind != "number":
            continue
        normal = parts.baseline.signals[:, place]
        normal = np.sort(normal[np.isfinite(normal)])
        if len(normal) == 0:
            continue
        smaller = np.searchsorted(normal, signals[:, place]) / len(normal)
        for detail, share, value in zip(details, smaller.tolist(), signals[:, place].tolist(), strict=True):
            if not math.isnan(value):
                shares = detail.setdefault("usual", {})
                assert isinstance(shares, dict)
                shares[column.name] = round(share, _DIGITS)


def _add_normal(details: list[Detail], parts: FraudParts, vectors: Floats) -> npt.NDArray[np.int64]:
    reference = parts.reference
    if len(reference.exemplars) == 0:
        return np.full(len(vectors), -1, np.int64)
    index = reference.exemplar_index()
    y = reference.search_space(reference.prepare(vectors))
    exemplars = index.nearest(y)
    distances = index.search(y, 1)[0][:, 0]
    for detail, exemplar, distance in zip(details, exemplars.tolist(), distances.tolist(), strict=True):
        named = {"record": reference.exemplar_ids[exemplar]} if reference.exemplar_ids else {}
        detail["nearest_normal"] = {"exemplar": exemplar, **named, "distance": round(distance, _DIGITS)}
    return exemplars
