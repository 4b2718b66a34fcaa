"""What a wave of fraud or a flood is made of, as JSON that a person can be shown: its hits in groups of similar ones.

A function of the records kept up to then and of the labels that they name: the same records give the same bytes,
however the fold was cut into steps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from connectors.database.folding import Fold
from connectors.database.rows import IncidentRow, KeptRecord
from detectors.hit_groups import group_hits
from detectors.reference import Reference
from monitor.causes import MAX_EXCERPT, last_seen
from monitor.fraud_settings import FRAUD_SPACE
from monitor.fraud_wording import FLOOD

MOST_HITS = 1_000  # records that are looked at, the most surprising
MOST_SHOWN = 5  # groups
_DIGITS = 6


def hits_of(
    row: IncidentRow, fold: Fold, reference: Reference, *, version: int, block_ms: int, flood_least: int
) -> dict[str, object] | None:
    """The hits behind an incident, from its onset up to the block in which it was last seen, in groups.

    Args:
        row: of kind "fraud_wave" or "flood".
        reference: of the space whose vectors are scored.
        version: of the fraud baseline.
        flood_least: fewest near-identical records that are a flood.

    Returns:
        ``from_ms``, ``to_ms``; ``hits``: how many records were looked at, ``more``: whether there may be more;
        ``groups``: the largest ones of at least two, `MOST_SHOWN` of them; ``alone``: hits in none of those, or in no
        group that is shown. None where no record of it is kept.
    """
    first, end = row.onset_ms // block_ms, last_seen(row) // block_ms
    kept = fold.kept(FRAUD_SPACE, version, from_block=first, to_block=end, most=MOST_HITS, order="score")
    records = [record for record in kept if record.reason == "fraud"]
    if row.kind == FLOOD:
        records = [record for record in kept if flood_size(record) >= flood_least]
        records.sort(key=lambda record: -flood_size(record))
    if not records:
        return None
    vectors = _vectors(records, reference.dimension)
    groups = []
    if vectors is None:  # not kept: the strangest one stands for itself
        groups = [([records[0]], records[0])]
    else:
        y = reference.search_space(reference.prepare(vectors))
        for group in group_hits(y, reference.score_scale):
            groups.append(([records[member] for member in group.members], records[group.medoid]))
    shown = [(members, medoid) for members, medoid in groups if len(members) > 1][:MOST_SHOWN] or groups[:1]
    marks = fold.label_facts([mark for _, medoid in shown if (mark := _case(medoid).get("label")) is not None])
    return {
        "from_ms": first * block_ms,
        "to_ms": end * block_ms,
        "hits": len(records),
        "more": len(kept) == MOST_HITS,
        "groups": [_as_json(members, medoid, marks) for members, medoid in shown],
        "alone": len(records) - sum(len(members) for members, _ in shown),
    }


def flood_size(record: KeptRecord) -> int:
    """Near-identical records of its block and partition so far, this one included."""
    found = record.detail.get("flood", 1)
    return found if isinstance(found, int) else 1


def excerpt(record: KeptRecord) -> str:
    """What was kept of the record's fields, in one short line."""
    return json.dumps(record.kept, ensure_ascii=False)[:MAX_EXCERPT] if record.kept else ""


def _vectors(records: Sequence[KeptRecord], dimension: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if any(record.vector is None or len(record.vector) != 4 * dimension for record in records):
        return None
    return np.frombuffer(b"".join(record.vector or b"" for record in records), "<f4").reshape(-1, dimension)


def _case(record: KeptRecord) -> Mapping[str, Any]:
    """The confirmed case nearest to a record; empty where none was known."""
    cases = record.detail.get("nearest_cases")
    return cases[0] if isinstance(cases, list) and cases else {}


def _as_json(
    members: Sequence[KeptRecord], medoid: KeptRecord, marks: Mapping[int, tuple[str, int]]
) -> dict[str, object]:
    case = dict(_case(medoid))
    if (fact := marks.get(case.pop("label", -1))) is not None:
        case["source"], case["time_ms"] = fact
    entities = {name for record in members if isinstance(name := record.detail.get("entity"), str)}
    missed: Counter[str] = Counter()
    for record in members:
        rules = record.detail.get("rules")
        if isinstance(rules, Mapping):
            missed.update(str(name) for name, speaks in rules.items() if not speaks)
    return {
        "size": max(len(members), *(flood_size(record) for record in members)),
        "record": medoid.id,
        "time_ms": medoid.time_ms,
        "surprise": round(medoid.score, _DIGITS),
        "probability": medoid.detail.get("probability"),
        "excerpt": excerpt(medoid),
        "case": case,
        "normal": medoid.detail.get("nearest_normal", {}),
        "segments": _common(members),
        "entities": len(entities),
        "missed_by": dict(sorted(missed.items())),
    }


def _common(members: Sequence[KeptRecord]) -> list[dict[str, object]]:
    """The most common value of each segment field, and the share that has it."""
    found: list[dict[str, object]] = []
    for name in sorted({name for record in members for name in record.segments}):
        counts = Counter(record.segments.get(name, "") for record in members)
        value, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        found.append({"segment": f"{name}={value}", "share": round(count / len(members), _DIGITS)})
    return found
