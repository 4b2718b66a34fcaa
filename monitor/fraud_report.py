"""What became of fraud scores: labels, what the score rests on, how good the alerts are, hits, waves, and what
false-alarm marks moved. For `driftd fraud` and the report.

How good the alerts are is estimated from answers of analysts alone (`detectors.review`): a chargeback comes for fraud
only, so counting records that have no other answer would make every sample look worse than it is. Where an analyst has
answered and a stronger label says otherwise, the stronger one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from connectors.database.rows import AskedRecord, IncidentRow, LabelCounts, LabelRow
from connectors.database.store import Store
from detectors.review import EntityPrecision, Estimate, ReviewEstimates, Stratum, entity_precision, estimates
from monitor.fraud_build import fraud_row_in_use
from monitor.fraud_feedback import Feedback, feedback_of
from monitor.fraud_learner import in_force
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.fraud_signals import same_embedder
from monitor.pipeline import EVERYTHING
from monitor.record_counts import RecordCounts
from monitor.settings import Settings
from monitor.times import text_of

DAYS = 30.0  # of event time that are looked back on
MOST_PERIODS = 60  # longer times are cut into longer periods
MOST_ASKED = 50_000  # alerts and reviews, the newest
MOST_LABELS = 100_000
MOST_MOVED = 10_000  # kept records that marks moved
HITS = 12  # shown with their nearest cases, the most surprising
MARKS = 20  # false-alarm marks shown, those that moved most records
INCIDENT_KINDS = ("fraud_wave", "fraud_changed", "flood")
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class LabelLine:
    """How many labels there are of one source."""

    source: str
    fraud: int
    cleared: int


@dataclass(frozen=True, slots=True)
class LabelState:
    """The labels of a model; see `connectors.database.rows.LabelCounts`.

    Attributes:
        version: how many labels count.
        in_force: the version that every partition is scored with at least; None before the first record.
        unusable: labels in force that are left out: another embedder made the vectors of their records.
    """

    sources: tuple[LabelLine, ...]
    version: int
    in_force: int | None
    waiting: int
    unmatched: int
    contradicting: int
    superseded: int
    unusable: int


@dataclass(frozen=True, slots=True)
class ReviewPeriod:
    """A stretch of event time, and what the answers about its records say."""

    start_ms: int
    end_ms: int
    alerted: Stratum
    rest: Stratum
    found: ReviewEstimates


@dataclass(frozen=True, slots=True)
class EntityDay:
    """Of the alerted entities of a period: how many were fraud."""

    start_ms: int
    found: EntityPrecision


@dataclass(frozen=True, slots=True)
class NearCase:
    """A confirmed case and its distance to a hit, in the reference's search space."""

    record_id: str
    distance: float


@dataclass(frozen=True, slots=True)
class Hit:
    """An alert with its evidence.

    Attributes:
        answer: "fraud", "cleared", or "" where nobody has answered.
        opinion: probability by the second opinion; None where it has none.
        rules: rules in use, and whether they would have spoken.
    """

    record_id: str
    time_ms: int
    probability: float
    low: float | None
    high: float | None
    p_value: float
    scored_with: int
    answer: str
    cases: tuple[NearCase, ...]
    distance_to_normal: float | None
    opinion: float | None
    rules: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Wave:
    """An incident about fraud."""

    id: str
    kind: str
    severity: Literal["page", "warn"]
    status: str
    title: str
    onset_ms: int
    resolved_ms: int | None


@dataclass(frozen=True, slots=True)
class MarkEffect:
    """A false-alarm mark, and the kept records that it moved down.

    Attributes:
        records: how many of the time looked at; ``hits``: of them, those that were alerts all the same.
        most: log odds that it took from one of them, at most.
        withdrawn: it is not in force any more.
    """

    label: int
    record_id: str
    by: str
    source: str
    time_ms: int
    records: int
    hits: int
    most: float
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class FraudFacts:
    """Everything about the fraud scores of one model.

    Attributes:
        unbuilt: the reference was built before there were fraud settings, so that nothing is scored.
        basis, cases: what the newest kept record's score rests on; "" before the first.
        confirmed, confirmed_alerted: records of the time that are known to be fraud; of them, those that were alerts.
        whole: the whole time; None before the first block is closed.
        entities: of each period, where records belong to entities.
    """

    model: str
    space: str
    unbuilt: bool
    basis: str
    cases: int
    labels: LabelState
    confirmed: int
    confirmed_alerted: int
    whole: ReviewPeriod | None
    periods: tuple[ReviewPeriod, ...]
    entities: tuple[EntityDay, ...]
    hits: tuple[Hit, ...]
    incidents: tuple[Wave, ...]
    marks: tuple[MarkEffect, ...]


def fraud_facts(
    settings: Settings, store: Store, model: str, *, now_ms: int, hours: float | None = None, opinions: bool = False
) -> FraudFacts | None:
    """What became of the fraud scores of a model; None where none are configured.

    Args:
        now_ms: the wall clock, for labels that have waited too long.
        hours: of event time, up to the newest closed block; 30 days by default.
        opinions: ask the second opinion about the hits; takes seconds.

    Raises:
        StoreError: the database does not answer.
        InvalidReference: the fraud baseline is damaged (with ``opinions``).
    """
    chosen = settings.models[model]
    if chosen.fraud is None:
        return None
    block_ms = round(chosen.drift.block * 1000)
    span_ms = round((24.0 * DAYS if hours is None else hours) * _HOUR_MS)
    records = _records(store, model, block_ms, span_ms)
    start_ms = min(records, default=0)
    asked = store.asked_records(model, FRAUD_SPACE, from_ms=start_ms, limit=MOST_ASKED)
    answers, judged, said = _answers(store, model)
    counted = store.label_counts(
        model, remembered_since_ms=now_ms - round(settings.retention.remembered_days * 86_400_000)
    )
    step_ms = _step_ms(chosen.fraud, span_ms)
    periods, whole = _periods(records, asked, answers, judged, block_ms=block_ms, step_ms=step_ms)
    newest = store.kept(model, space=FRAUD_SPACE, limit=1, order="time")
    detail = newest[0].detail if newest else {}
    ours = str(detail.get("made_with", ""))
    unusable = sum(row.said.known is not None and not same_embedder(row.said.known.made_with, ours) for row in said)
    labels = _label_state(store, model, counted, unusable=unusable)
    confirmed = [row for row in said if row.said.label == "fraud" and _event_ms(row) >= start_ms]
    alerted = {record.record_id for record in asked if record.alerted}
    return FraudFacts(
        model=model,
        space=chosen.fraud_space,
        unbuilt=fraud_row_in_use(store, model, chosen.fraud_space) is None
        and store.active_reference(model, chosen.fraud_space) is not None,
        basis=str(detail.get("basis", "")),
        cases=int(str(detail.get("cases", 0))),
        labels=labels,
        confirmed=len(confirmed),
        confirmed_alerted=sum(row.said.record_id in alerted for row in confirmed),
        whole=whole,
        periods=tuple(periods),
        entities=_entities(asked, answers, step_ms=step_ms),
        hits=_hits(
            asked,
            answers,
            feedback_of(store, model, space=chosen.fraud_space, version=counted.version) if opinions else None,
        ),
        incidents=tuple(
            _wave(row)
            for row in store.incidents(model=model)
            if row.kind in INCIDENT_KINDS and (row.resolved_ms is None or row.resolved_ms >= start_ms)
        ),
        marks=_marks(store, model, said, from_ms=start_ms),
    )


def _records(store: Store, model: str, block_ms: int, span_ms: int) -> dict[int, int]:
    """Scored records of the closed blocks of the time, by the beginning of the block, or of the first of several."""
    judged = store.judged_ms(model)
    if judged is None:
        return {}
    from_block = (judged[1] - span_ms) // block_ms
    rows = store.summaries(model, "", segment=EVERYTHING, from_block=from_block)
    found: dict[int, int] = {}
    for row in rows:
        counts = RecordCounts.from_bytes(row.blob)
        if counts.fraud is not None:
            start_ms = max(row.block, from_block) * block_ms
            found[start_ms] = found.get(start_ms, 0) + counts.fraud.n
    return found


def _answers(store: Store, model: str) -> tuple[dict[str, bool], set[str], list[LabelRow]]:
    """What is in force of each record (whether it is fraud), the records that an analyst has judged, and the labels."""
    rows = store.label_sayings(model, limit=MOST_LABELS)
    chosen = in_force(rows)
    judged = {row.said.record_id for row in rows if row.said.source == "analyst"}
    return {row.said.record_id: row.said.label == "fraud" for row in chosen}, judged, chosen


def _step_ms(settings: FraudSettings, span_ms: int) -> int:
    every_ms = max(round(settings.alerts.every * 1000), 1)
    return every_ms * max(1, -(-span_ms // (every_ms * MOST_PERIODS)))


def _periods(
    records: Mapping[int, int],
    asked: Sequence[AskedRecord],
    answers: Mapping[str, bool],
    judged: set[str],
    *,
    block_ms: int,
    step_ms: int,
) -> tuple[list[ReviewPeriod], ReviewPeriod | None]:
    if not records:
        return [], None
    end_ms = max(records) + block_ms
    counts: dict[int, int] = {}
    for start_ms, n in records.items():
        counts[start_ms // step_ms] = counts.get(start_ms // step_ms, 0) + n
    strata = {number: [Stratum(0, 0, 0, 0), Stratum(0, 0, 0, 0)] for number in counts}
    for record in asked:
        # By its block, like the counts.
        number = record.time_ms // block_ms * block_ms // step_ms
        if number in strata and record.time_ms < end_ms:
            answered = record.record_id in judged
            fraud = answered and answers[record.record_id]
            side = 0 if record.alerted else 1
            strata[number][side] += Stratum(1, 1, int(answered), int(fraud))
    for number, n in counts.items():
        alerted, rest = strata[number]
        strata[number][1] = Stratum(max(n - alerted.records, rest.asked), rest.asked, rest.answered, rest.fraud)
    periods = [
        _period(max(number * step_ms, min(records)), min((number + 1) * step_ms, end_ms), *strata[number])
        for number in sorted(strata)
    ]
    alerted, rest = (sum((pair[side] for pair in strata.values()), Stratum(0, 0, 0, 0)) for side in (0, 1))
    return periods, _period(min(records), end_ms, alerted, rest)


def _period(start_ms: int, end_ms: int, alerted: Stratum, rest: Stratum) -> ReviewPeriod:
    return ReviewPeriod(start_ms, end_ms, alerted, rest, estimates(alerted, rest))


def _entities(asked: Sequence[AskedRecord], answers: Mapping[str, bool], *, step_ms: int) -> tuple[EntityDay, ...]:
    rows = [record for record in asked if record.alerted and record.detail.get("entity")]
    if not rows:
        return ()
    entities = np.array([int(str(record.detail["entity"]), 16) for record in rows], np.uint64)
    found = entity_precision(
        entities,
        np.array([record.surprise for record in rows]),
        np.array([int(answers.get(record.record_id, -1)) for record in rows], np.int64),
        np.array([record.time_ms // step_ms for record in rows], np.int64),
        k=len(rows),  # the alerts of a period are its most suspicious records already
    )
    return tuple(EntityDay(day.day * step_ms, day) for day in found)


def _hits(asked: Sequence[AskedRecord], answers: Mapping[str, bool], feedback: Feedback | None) -> tuple[Hit, ...]:
    alerts = sorted(
        (record for record in asked if record.alerted),
        key=lambda record: (-record.surprise, record.partition, record.offset),
    )[:HITS]
    opinions: list[float | None] = [None] * len(alerts)
    if alerts and feedback is not None:
        opinions = feedback.of_evidence(
            [record.detail for record in alerts], np.array([record.p_value for record in alerts])
        )
    return tuple(_hit(record, answers, opinion) for record, opinion in zip(alerts, opinions, strict=True))


def _hit(record: AskedRecord, answers: Mapping[str, bool], opinion: float | None) -> Hit:
    detail: Mapping[str, Any] = record.detail
    low, high = detail.get("interval", (None, None))
    answer = answers.get(record.record_id)
    return Hit(
        record_id=record.record_id,
        time_ms=record.time_ms,
        probability=_number(detail.get("probability")),
        low=low,
        high=high,
        p_value=record.p_value,
        scored_with=record.scored_with,
        answer="" if answer is None else "fraud" if answer else "cleared",
        cases=tuple(NearCase(case["record"], case["distance"]) for case in detail.get("nearest_cases", ())),
        distance_to_normal=detail.get("distance_to_normal"),
        opinion=opinion,
        rules=detail.get("rules", {}),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _wave(row: IncidentRow) -> Wave:
    return Wave(row.id, row.kind, row.severity, row.status, row.title, row.onset_ms, row.resolved_ms)


def _marks(store: Store, model: str, said: Sequence[LabelRow], *, from_ms: int) -> tuple[MarkEffect, ...]:
    moved: dict[int, list[tuple[bool, float, str]]] = {}
    for record in store.moved_by_marks(model, FRAUD_SPACE, from_ms=from_ms, limit=MOST_MOVED):
        detail: Mapping[str, Any] = record.detail
        took = -float(detail.get("contributions", {}).get("cleared", 0.0))
        mark = detail["cleared_by"]
        moved.setdefault(mark["label"], []).append((record.flagged, took, mark["record"]))
    rows = {row.id: row for row in said}
    found = []
    for label, effects in moved.items():
        row = rows.get(label)
        found.append(
            MarkEffect(
                label=label,
                record_id=effects[0][2],
                by="" if row is None else row.said.by,
                source="" if row is None else row.said.source,
                time_ms=0 if row is None else row.said.time_ms,
                records=len(effects),
                hits=sum(flagged for flagged, _, _ in effects),
                most=max(took for _, took, _ in effects),
                withdrawn=row is None or row.said.label != "cleared",
            )
        )
    return tuple(sorted(found, key=lambda mark: (-mark.records, mark.label))[:MARKS])


def _label_state(store: Store, model: str, counted: LabelCounts, *, unusable: int) -> LabelState:
    sources = sorted({source for source, _ in counted.by})
    last = {span.partition: span.version for span in store.label_spans(model) if span.from_offset >= 0}
    return LabelState(
        sources=tuple(
            LabelLine(source, counted.by.get((source, "fraud"), 0), counted.by.get((source, "cleared"), 0))
            for source in sources
        ),
        version=counted.version,
        in_force=min(last.values(), default=None),
        waiting=counted.waiting,
        unmatched=counted.unmatched,
        contradicting=counted.contradicting,
        superseded=counted.superseded,
        unusable=unusable,
    )


def _event_ms(row: LabelRow) -> int:
    return 0 if row.said.known is None else row.said.known.event_ms


def share_in_words(value: float | None, low: float, high: float) -> str:
    """A share with its interval, such as "62 % (45 % to 77 %)"; "unknown (...)" where there is none."""
    known = "unknown" if value is None else _percent(value)
    return f"{known} ({_percent(low)} to {_percent(high)})"


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def in_words(facts: FraudFacts) -> list[str]:
    """The state, a sentence a line, the most important first."""
    lines = [wave.title + f", since {text_of(wave.onset_ms)}." for wave in facts.incidents if wave.status == "open"]
    labels = facts.labels
    lines.append(_basis_in_words(facts))
    if labels.in_force is not None and labels.in_force < labels.version:
        newer = labels.version - labels.in_force
        of_them = "1 of them is" if newer == 1 else f"{newer} of them are"
        lines.append(f"{of_them} not in force in every partition yet: each takes them up with its next records.")
    if labels.waiting:
        lost = f", {labels.unmatched} of them for so long that nothing will come of them" if labels.unmatched else ""
        lines.append(f"Labels whose record is not known: {labels.waiting}{lost}. See: driftd label list --waiting")
    if labels.unusable:
        lines.append(
            f"Labels left out because another embedder made the vectors of their records: {labels.unusable}. To use "
            "them, say them again with their records: driftd label FILE"
        )
    if labels.contradicting:
        lines.append(
            f"Of {_counted(labels.contradicting, 'record')} both was said, fraud and cleared: the stronger source "
            "counts, then the later one."
        )
    lines += _review_in_words(facts)
    if facts.marks:
        moved = sum(mark.records for mark in facts.marks)
        marks = _counted(len(facts.marks), "false-alarm mark")
        lines.append(f"{marks} moved {_counted(moved, 'kept record')} down.")
    return lines


def _basis_in_words(facts: FraudFacts) -> str:
    labels = facts.labels
    said = sum(line.fraud + line.cleared for line in labels.sources)
    there = "There is 1 label" if said == 1 else f"There are {said} labels"
    counted = f"{there}, {labels.version} of which count{'s' * (labels.version == 1)}."
    if facts.unbuilt:
        return (
            "No record is scored as fraud: the reference has no fraud baseline. Build it: driftd reference build, then "
            f"start driftd again. "
            f"{counted}"
        )
    if not facts.basis:
        return f"No record is kept yet. {counted}"
    rests = {
        "outlier": "on the outlier score alone: no case is confirmed yet",
        "surprises": "on how surprising the records are, by all scorers: no case is confirmed yet",
    }.get(facts.basis, f"on the {facts.basis}, with {_counted(facts.cases, 'confirmed case')}")
    return f"Scores rest {rests}. {counted}"


def _review_in_words(facts: FraudFacts) -> list[str]:
    whole = facts.whole
    if whole is None:
        return ["No block is closed yet, so nothing can be said of the alerts."]
    found, alerted, rest = whole.found, whole.alerted, whole.rest
    lines = [
        f"Since {text_of(whole.start_ms)}: {_counted(alerted.records, 'alert')} among "
        f"{_counted(alerted.records + rest.records, 'record')}; "
        f"analysts answered {alerted.answered}, {alerted.fraud} of them fraud. Of the random review sample "
        f"({_counted(rest.asked, 'record')} beside the alerts) they answered {rest.answered}, {rest.fraud} of them "
        "fraud.",
        f"Precision of the alerts {_estimate(found.precision)}, recall {_estimate(found.recall)}, share of fraud in "
        f"the traffic {_estimate(found.prevalence)}; 95 % intervals.",
    ]
    if facts.confirmed:
        known = _counted(facts.confirmed, "record")
        lines.append(f"Of {known} known to be fraud, {facts.confirmed_alerted} had been alerts.")
    if found.unanswered_alerts or found.unanswered_reviews:
        lines.append(
            f"No analyst has answered {_counted(found.unanswered_alerts, 'alert')} and "
            f"{_counted(found.unanswered_reviews, 'review')}: they count neither way."
        )
    return lines


def _counted(count: int, one: str) -> str:
    """ "1 alert", "12 alerts"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def _estimate(found: Estimate) -> str:
    return share_in_words(found.value, found.low, found.high)
