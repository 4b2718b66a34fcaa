"""What incidents of fraud say: how many, how many would be usual, what they look like, and what a person can do.

All of it comes out of the incident's ``detail``, as `monitor.evidence` and `monitor.fraud_waves` wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connectors.database.rows import IncidentRow
from monitor.amounts import duration, percent
from monitor.times import text_of

WAVE, FLOOD = "fraud_wave", "flood"
KINDS = frozenset({WAVE, FLOOD})


def title(row: IncidentRow) -> str:
    """What is wrong, without the model's name."""
    values = _mapping(row.detail.get("values"))
    if row.kind == FLOOD:
        return f"{_count(values, 'largest'):,} near-identical records in one block"
    sure = row.severity == "page" or row.detail.get("may_not_page") is True
    what = "a wave of fraud" if sure else "more records than usual look like fraud"
    return f"{what}: {_count(values, 'hits'):,}, where {_few(_number(values, 'usual'))} would be usual"


def what(row: IncidentRow) -> str:
    """What happened; follows "Since about ..."."""
    values, records = _mapping(row.detail.get("values")), round(_number(row.detail, "n"))
    if row.kind == FLOOD:
        groups = _count(values, "groups")
        return (
            f"near-identical records come in bursts: {groups} group{'s' * (groups != 1)} in one block, the largest of "
            f"{_count(values, 'largest'):,} records, {percent(_count(values, 'flooded') / max(records, 1))} of the "
            f"block's {records:,}."
        )
    window_s = _number(values, "window_s")
    unlisted = _count(values, "unlisted")
    more = f" {unlisted:,} more hits are not listed, because there are as many alerts as fraud.alerts.most allows."
    usual, rare = _few(_number(values, "usual")), percent(_number(values, "alpha"))
    return (
        f"{_count(values, 'hits'):,} of {records:,} records look like fraud as only {rare} of normal ones do, within "
        f"{duration(window_s)}; {usual} would be usual.{more if unlisted else ''}"
    )


def groups(found: Mapping[str, Any]) -> str:
    """What the hits look like: a sentence about the largest group; "" where there is none.

    Args:
        found: as `monitor.fraud_waves.hits_of` gives it.
    """
    rows = [row for row in found.get("groups", []) if isinstance(row, Mapping)]
    if not rows:
        return ""
    first, hits = rows[0], _count(found, "hits")
    if _count(first, "size") < 2:
        return f"They do not resemble each other; the strangest is record {first.get('record')}."
    parts = [f"{_count(first, 'size'):,} of them resemble record {first.get('record')}"]
    if case := case_in_words(first.get("case")):
        parts.append(case)
    if _count(first, "entities") > 1:
        parts.append(f"they belong to {_count(first, 'entities'):,} different entities")
    common = [row for row in first.get("segments", []) if _number(row, "share") >= 0.8]
    if common:
        parts.append(f"{percent(_number(common[0], 'share'))} are in {common[0].get('segment')}")
    if missed := _mapping(first.get("missed_by")):
        name = max(sorted(missed), key=lambda rule: _count(missed, rule))
        parts.append(f"rule {name} would have missed {_count(missed, name):,}")
    others = len(rows) - 1
    there = "is 1 other group" if others == 1 else f"are {others} other groups"
    tail = f" There {there} of similar ones." if others else ""
    seen = f" (of the {hits:,} strangest)" if found.get("more") is True else ""
    return f"{'; '.join(parts)}{seen}.{tail}"


def case_in_words(case: object) -> str:
    """ "the nearest confirmed case is record 17 (analyst, 2026-03-03 ...), at a distance of 0.12"; "" without any."""
    found = _mapping(case)
    if not found:
        return ""
    facts = [str(found["source"])] if "source" in found else []
    facts += [text_of(_count(found, "time_ms"))] if "time_ms" in found else []
    said = f" ({', '.join(facts)})" if facts else ""
    distance = _number(found, "distance")
    return f"the nearest confirmed case is record {found.get('record')}{said}, at a distance of {distance:.3g}"


def _few(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _count(values: Mapping[str, Any], name: str) -> int:
    return round(_number(values, name))
