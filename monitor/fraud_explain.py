"""`driftd explain` for fraud: the groups behind a wave or a flood, and why one record looks like fraud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from connectors.database.rows import KeptRecord
from connectors.database.store import Store
from monitor.amounts import percent
from monitor.fraud_feedback import feedback_of
from monitor.fraud_settings import FRAUD_SPACE
from monitor.fraud_waves import excerpt
from monitor.settings import Settings
from monitor.times import text_of

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows
_BASIS = {
    "outlier": "how strange the record is; no case of fraud is known",
    "surprises": "how strange detectors find the record, together; no case of fraud is known",
    "contrast": "how much nearer it lies to confirmed cases than to normal records",
    "contrast and model": "how much nearer it lies to confirmed cases than to normal records, and a model of labels",
}


@dataclass(frozen=True, slots=True)
class HitExplanation:
    """Why one record looks like fraud.

    Attributes:
        record: as it was kept, with the evidence of the moment at which it was scored.
        marks: source and time of the labels that it names, by number.
        opinion: probability that people would call it fraud, by the second opinion of today's answers; None where too
            few have answered.
    """

    model: str
    record: KeptRecord
    marks: Mapping[int, tuple[str, int]]
    opinion: float | None

    def data(self) -> dict[str, Any]:
        """For a program; without the vector."""
        record = self.record
        return {
            "model": self.model,
            "record": record.id,
            "time_ms": record.time_ms,
            "topic": record.partition.topic,
            "partition": record.partition.number,
            "offset": record.offset,
            "reason": record.reason,
            "alert": record.flagged,
            "surprise": record.score,
            "p_value": record.p_value,
            "labels": record.labels,
            "segments": record.segments,
            "kept": record.kept,
            "opinion": self.opinion,
            **record.detail,
        }


def explain_record(settings: Settings, store: Store, record_id: str) -> HitExplanation | None:
    """The newest kept record of this id that was scored as fraud; None if there is none."""
    for model, chosen in settings.models.items():
        if chosen.fraud is None:
            continue
        record = store.find_kept(model, [record_id], space=FRAUD_SPACE).get(record_id)
        if record is None:
            continue
        named = [*_list(record.detail.get("nearest_cases")), record.detail.get("cleared_by")]
        with store.begin_fold(model) as fold:
            marks = fold.label_facts([_mapping(mark)["label"] for mark in named if "label" in _mapping(mark)])
        feedback = feedback_of(store, model, space=chosen.fraud_space, version=store.label_version(model))
        opinion = None if feedback is None else feedback.of_evidence([record.detail], np.array([record.p_value]))[0]
        return HitExplanation(model, record, marks, opinion)
    return None


def lines_of(found: HitExplanation) -> list[str]:
    """What is known of the record, as lines for a terminal."""
    record, detail = found.record, found.record.detail
    why = {"fraud": "it looks like fraud", "review": "the review sample", "flood": "a flood of such records"}
    facts = [
        ("model", found.model),
        ("time", text_of(record.time_ms)),
        ("position", f"{record.partition.topic}/{record.partition.number}/{record.offset}"),
        ("kept because", f"{why.get(record.reason, record.reason)}{', and put before people' * record.flagged}"),
        ("surprise", f"{record.score:.2f} (p {record.p_value:.2g} among normal records)"),
        ("probability", _probability(detail)),
        ("opinion", "" if found.opinion is None else f"{percent(found.opinion)} by a second model, of answers alone"),
        ("rests on", _BASIS.get(str(detail.get("basis")), str(detail.get("basis", "")))),
        ("labels", f"version {record.labels}, {detail.get('cases', 0)} confirmed cases"),
        ("segments", ", ".join(f"{name}={value}" for name, value in record.segments.items())),
        ("entity", _entity(detail)),
        ("flood", f"{detail['flood']} near-identical records so far" if "flood" in detail else ""),
        ("fields", excerpt(record)),
    ]
    return [f"record {record.id}", "", *(f"  {name:<12} {value}" for name, value in facts if value)]


def tables_of_hit(found: HitExplanation) -> list[Table]:
    """Why it looks like fraud: parts of the score, nearest cases and normal record, signals, rules."""
    detail = found.record.detail
    tables: list[Table] = []
    if parts := _mapping(detail.get("contributions")):
        rows = [[name, f"{value:+.2f}"] for name, value in parts.items()]
        tables.append(("What speaks for fraud (log odds; above 0 speaks for it)", ["part", "log odds"], rows))
    rows = []
    for case in _list(detail.get("nearest_cases")):
        source, time_ms = found.marks.get(case.get("label", -1), ("", 0))
        rows.append([f"case {case.get('record')}", _distance(case), source, text_of(time_ms) if time_ms else ""])
    if normal := _mapping(detail.get("nearest_normal")):
        name = normal.get("record", f"exemplar {normal.get('exemplar')}")
        rows.append([f"normal {name}", _distance(normal), "", ""])
    if rows:
        tables.append(("Which records lie near", ["record", "distance", "said by", "at"], rows))
    if mark := _mapping(detail.get("cleared_by")):
        source, time_ms = found.marks.get(mark.get("label", -1), ("", 0))
        rows = [[str(mark.get("record")), source, text_of(time_ms) if time_ms else ""]]
        tables.append(("A false alarm that moved it down", ["record", "said by", "at"], rows))
    if signals := _mapping(detail.get("signals")):
        usual = _mapping(detail.get("usual"))
        rows = [
            [name, "unknown" if value is None else f"{value:.4g}", percent(usual[name]) if name in usual else ""]
            for name, value in signals.items()
        ]
        title = "What detectors and fields say (surprise is -log10 p: 3 is one in a thousand)"
        tables.append((title, ["signal", "value", "normal records with less"], rows))
    if rules := _mapping(detail.get("rules")):
        rows = [[name, "speaks" if speaks else "would have missed it"] for name, speaks in rules.items()]
        tables.append(("Rules that are in use", ["rule", "says"], rows))
    return tables


def tables_of_groups(hits: Mapping[str, Any]) -> list[Table]:
    """The groups of a wave or a flood, the largest first.

    Args:
        hits: as `monitor.fraud_waves.hits_of` gives it.
    """
    groups = _list(hits.get("groups"))
    rows = [
        [
            f"{group['size']:,}",
            str(group["record"]),
            text_of(group["time_ms"]),
            _probability(group),
            _near(_mapping(group.get("case"))),
            _near(_mapping(group.get("normal"))),
            ", ".join(f"{part['segment']} {percent(part['share'])}" for part in _list(group.get("segments"))),
            f"{group.get('entities') or '-'}",
            ", ".join(f"{rule} {count:,}" for rule, count in _mapping(group.get("missed_by")).items()) or "-",
            str(group.get("excerpt", "")),
        ]
        for group in groups
    ]
    columns = ["records", "like", "at", "probability", "nearest case", "nearest normal", "mostly in", "entities"]
    columns += ["rules miss", "fields"]
    more = ", the strangest" if hits.get("more") else ""
    span = f"{text_of(hits['from_ms'])} to {text_of(hits['to_ms'])}"
    return [(f"Similar hits ({span}: {hits['hits']:,} hits{more}; {hits['alone']:,} in no group shown)", columns, rows)]


def _entity(detail: Mapping[str, Any]) -> str:
    """Whose record it is, and how much was known of what is usual of that."""
    if "entity" not in detail:
        return ""
    records = detail.get("entity_records")
    return f"{detail['entity']}" + (f", {records:,} of its records were known" if isinstance(records, int) else "")


def _near(found: Mapping[str, Any]) -> str:
    if not found:
        return "-"
    said = f" ({found['source']}, {text_of(found['time_ms'])})" if "source" in found else ""
    return f"{found.get('record', found.get('exemplar'))}{said} at {_distance(found)}"


def _distance(found: Mapping[str, Any]) -> str:
    return f"{found.get('distance', float('nan')):.3g}"


def _probability(detail: Mapping[str, Any]) -> str:
    value, ends = detail.get("probability"), detail.get("interval")
    if not isinstance(value, int | float):
        return "-"
    between = f", between {percent(ends[0])} and {percent(ends[1])}" if isinstance(ends, Sequence) else ""
    return f"{percent(value)}{between}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
