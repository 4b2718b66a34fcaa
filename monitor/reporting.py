"""`driftd report`: gathers from the database and the references what the HTML report shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.database.rows import IncidentRow, KeptRecord, MuteRow, ReadingRow, ReferenceRow
from connectors.database.store import Store
from dashboards.report_data import (
    AlarmBudget,
    AlarmShare,
    Cause,
    Channel,
    Comparison,
    EntityRow,
    Excerpt,
    FlatMap,
    FraudHit,
    FraudIncident,
    FraudSection,
    Growth,
    Header,
    Incident,
    Mark,
    MarkRow,
    Part,
    Period,
    ReferenceIdentity,
    Report,
    ScoreHistogram,
    SharePoint,
    ShareSeries,
    StrangeRecord,
    Timeline,
    Traffic,
    flat_map,
)
from detectors.errors import InvalidInput
from detectors.reference import Reference
from detectors.review import Estimate
from detectors.segments import constants_of
from detectors.summary import BlockSummary, score_bins, score_edges
from monitor.budget import (
    RATE_SHARE,
    budget_so_far,
    observed_by_model,
    run_length,
    segment_shares,
    threshold,
    why_only_warns,
)
from monitor.embedders import Embedder
from monitor.embedders.image import ImageEmbedder
from monitor.embedders.pixels import PixelsEmbedder
from monitor.folding import alarmed_segments
from monitor.fraud_report import FraudFacts, Hit, ReviewPeriod, fraud_facts, in_words
from monitor.fraud_settings import FRAUD_SPACE
from monitor.incident_list import mute_of
from monitor.opinions import is_opinion
from monitor.pipeline import EVERYTHING
from monitor.settings import ModelSettings, Settings
from monitor.standing import standing_of
from monitor.times import text_of
from monitor.verdict_drawing import verdict_section
from monitor.wording import acknowledged_by, muted_until, notes_of

STRANGEST = 12  # records shown with their nearest normal ones
MAP_POINTS = 2_000
DRIFT_CHANNELS = ("level", "shape", "mix")
_BINS_SHOWN = 16  # neighbouring bins of the stored histogram that make one bar


def report_of(
    settings: Settings,
    store: Store,
    model: str,
    *,
    hours: float | None = None,
    truth: Sequence[Period] = (),
    comparisons: Sequence[Comparison] = (),
    notes: Mapping[str, str] | None = None,
    mutes: Sequence[MuteRow] = (),
    now_ms: int = 0,
) -> Report:
    """Everything that the report of one model shows.

    Args:
        hours: only the last hours of event time; None for all that is stored.
        truth: periods in which something is known to have happened, to be shaded.
        comparisons: what happened against what was reported.
        notes: a word of truth on records, by their ids.
        mutes: in force now.
        now_ms: the wall clock, for labels that have waited too long; 0 counts none as such.

    Raises:
        InvalidInput: nothing is stored for the model yet.
    """
    readings = store.readings(model)
    if not readings:
        raise InvalidInput(
            f"No block of {model} is closed yet, so there is nothing to report.", hint="Run it: driftd run"
        )
    end_ms = max(reading.end_ms for reading in readings)
    start_ms = min(reading.start_ms for reading in readings) if hours is None else end_ms - round(hours * 3_600_000)
    readings = [reading for reading in readings if reading.start_ms >= start_ms]
    found = [row for row in store.incidents(model=model) if row.resolved_ms is None or row.resolved_ms >= start_ms]
    incidents, under = _grouped(found)
    chosen = settings.models[model]
    spaces = {
        space: _Space(store, chosen, model, space) for space in chosen.spaces if store.active_reference(model, space)
    }
    totals = store.totals(model)
    return Report(
        header=_header(model, incidents, start_ms, end_ms),
        traffic=Traffic(
            records=totals.records,
            flagged=totals.flagged,
            late=totals.late,
            dead=store.dead_letter_counts(model),
            flag_budget=chosen.outliers.budget,
        ),
        references=tuple(space.identity() for space in spaces.values()),
        incidents=tuple(_incident(row, spaces.get(row.space), under.get(row.id, ()), mutes) for row in incidents),
        timelines=tuple(_timelines(settings, model, readings, found, spaces, truth)),
        histograms=tuple(space.histogram() for space in spaces.values()),
        maps=tuple(flat for space in spaces.values() if (flat := space.map()) is not None),
        strangest=tuple(found for space in spaces.values() for found in space.strangest(notes or {})),
        comparisons=tuple(comparisons),
        settings=_settings(settings, chosen),
        budget=_budget(settings, store, model, {name: space.reference for name, space in spaces.items()}),
        fraud=_fraud(
            fraud_facts(settings, store, model, now_ms=now_ms, hours=hours, opinions=True), spaces, notes or {}
        ),
        verdict=verdict_section(store, standing_of(settings, store, model), from_ms=start_ms, to_ms=end_ms),
    )


def _fraud(facts: FraudFacts | None, spaces: Mapping[str, _Space], notes: Mapping[str, str]) -> FraudSection | None:
    if facts is None:
        return None
    labels = facts.labels
    looks = spaces[facts.space].looks_of(facts.hits) if facts.space in spaces else [_Looks() for _ in facts.hits]
    states = (
        ("count: their record is known", labels.version),
        ("count for nothing, because more was said of the same record", labels.superseded),
        ("wait: their record is not known yet", labels.waiting),
        ("wait for so long that nothing will come of them", labels.unmatched),
        ("records of which both was said", labels.contradicting),
    )
    return FraudSection(
        said=tuple(in_words(facts)),
        labels=tuple((line.source, line.fraud, line.cleared) for line in labels.sources),
        states=states,
        series=() if facts.whole is None else _share_series(facts.whole, facts.periods),
        entities=tuple(
            EntityRow(day.start_ms, day.found.entities, day.found.fraud, day.found.cleared) for day in facts.entities
        ),
        hits=tuple(
            FraudHit(
                id=hit.record_id,
                time_ms=hit.time_ms,
                probability=hit.probability,
                low=hit.low,
                high=hit.high,
                p_value=hit.p_value,
                answer=hit.answer,
                cases=tuple((case.record_id, case.distance) for case in hit.cases),
                distance_to_normal=hit.distance_to_normal,
                opinion=hit.opinion,
                missed_by=tuple(name for name, spoke in hit.rules.items() if not spoke),
                record=look.record,
                case=look.case,
                normal=look.normal,
                note=notes.get(hit.record_id, ""),
            )
            for hit, look in zip(facts.hits, looks, strict=True)
        ),
        incidents=tuple(
            FraudIncident(wave.title, wave.severity, wave.onset_ms, wave.resolved_ms) for wave in facts.incidents
        ),
        marks=tuple(
            MarkRow(mark.record_id, mark.by, mark.time_ms, mark.records, mark.hits, mark.most, mark.withdrawn)
            for mark in facts.marks
        ),
    )


def _share_series(whole: ReviewPeriod, periods: Sequence[ReviewPeriod]) -> tuple[ShareSeries, ...]:
    def point(period: ReviewPeriod, found: Estimate) -> SharePoint:
        return SharePoint(period.start_ms, period.end_ms, found.value, found.low, found.high)

    def series(name: str, estimate: Callable[[ReviewPeriod], Estimate]) -> ShareSeries:
        points = tuple(point(period, estimate(period)) for period in periods)
        return ShareSeries(name, point(whole, estimate(whole)), points)

    return (
        series("Precision of the alerts", lambda period: period.found.precision),
        series("Recall", lambda period: period.found.recall),
        series("Share of fraud in the traffic", lambda period: period.found.prevalence),
    )


def _budget(settings: Settings, store: Store, model: str, references: Mapping[str, Reference]) -> AlarmBudget:
    alarms = []
    for space, reference in references.items():
        names = alarmed_segments(reference, settings.models[model])
        for segment, share in segment_shares(settings, model, space, names).items():
            drift_share = share * (1.0 - RATE_SHARE)
            pages_at = threshold(settings.page_every_days, settings.models[model].drift.block, drift_share)
            only_warns = why_only_warns(constants_of(reference.drift, segment))
            alarms.append(AlarmShare(space, segment, drift_share, pages_at, only_warns))
    seen = observed_by_model(settings, store)[model]
    return AlarmBudget(budget_so_far(settings, seen), tuple(alarms))


def _header(model: str, incidents: Sequence[IncidentRow], start_ms: int, end_ms: int) -> Header:
    still = [row for row in incidents if row.status == "open"]
    if any(row.severity == "page" for row in still):
        status: Any = "page"
    else:
        status = "warn" if still else "calm"
    if still:
        verdict = "; ".join(f"{row.title}, since {text_of(row.onset_ms)}" for row in still[:3])
    elif incidents:
        pages = sum(row.severity == "page" for row in incidents)
        warnings = len(incidents) - pages
        worst = max(incidents, key=lambda row: (row.severity == "page", row.kind == "drift", _strength(row)))
        verdict = f"{worst.title}, from {text_of(worst.onset_ms)} until {text_of(worst.resolved_ms or end_ms)}. "
        verdict += (
            f"Nothing is open now; {pages} page{'s'[: pages != 1]}, {warnings} warning{'s'[: warnings != 1]} in all."
        )
    else:
        verdict = "Nothing to report: no drift, no rise of outliers."
    return Header(
        title=model.replace("_", " ").capitalize(),
        start_ms=start_ms,
        end_ms=end_ms,
        status=status,
        verdict=verdict,
        version=installed("driftd"),
    )


def _grouped(incidents: Sequence[IncidentRow]) -> tuple[list[IncidentRow], dict[str, list[str]]]:
    """Incidents that were told for themselves; and, by their ids, the segments that quietly saw the same change."""
    alone: list[IncidentRow] = []
    under: dict[str, list[str]] = {}
    whole = [row for row in incidents if not row.segment]
    for row in incidents:
        over = [
            other
            for other in whole
            if (other.kind, other.space) == (row.kind, row.space)
            and other.opened_ms <= row.updated_ms
            and (other.status == "open" or (row.status == "resolved" and row.opened_ms <= (other.resolved_ms or 0)))
        ]
        if row.segment and row.detail.get("quiet") is True and over:
            under.setdefault(over[0].id, []).append(row.segment)
        else:
            alone.append(row)
    return alone, under


def _incident(row: IncidentRow, space: _Space | None, segments: Sequence[str], mutes: Sequence[MuteRow]) -> Incident:
    text = row.text.split(" Next: ")[0]
    if segments:
        text += f" Seen in {', '.join(sorted(segments))} too."
    if notes := notes_of(row):
        text += f" It is {' and '.join(notes)}."
    if acknowledged := acknowledged_by(row):
        text += f" Acknowledged by {acknowledged}."
    if (mute := mute_of(row, mutes)) is not None:
        text += f" Muted until {muted_until(mute)}."
    stored = row.detail.get("cause")
    same = space is not None and space.row.version == row.reference
    return Incident(
        severity=row.severity,
        title=row.title,
        text=text,
        space=row.space,
        segment=row.segment,
        opened_ms=row.opened_ms,
        onset_ms=row.onset_ms,
        resolved_ms=row.resolved_ms,
        strength=_strength(row) or None,
        cause=space.cause(stored) if space is not None and same and isinstance(stored, Mapping) else None,
    )


def _strength(row: IncidentRow) -> float:
    strength = row.detail.get("strength")
    return float(strength) if isinstance(strength, int | float) else 0.0


def _timelines(
    settings: Settings,
    model: str,
    readings: Sequence[ReadingRow],
    incidents: Sequence[IncidentRow],
    spaces: Mapping[str, _Space],
    truth: Sequence[Period],
) -> list[Timeline]:
    drift = settings.models[model].drift
    block_ms = round(drift.block * 1000)
    by_alarm: dict[tuple[str, str], list[ReadingRow]] = {}
    for reading in readings:
        if reading.channel in DRIFT_CHANNELS and reading.space in spaces:
            by_alarm.setdefault((reading.space, reading.segment), []).append(reading)
    opinions: dict[tuple[str, str], list[Mark]] = {}
    for reading in readings:
        if reading.warn and is_opinion(reading.channel):
            opinions.setdefault((reading.space, reading.segment), []).append(Mark(reading.start_ms, "opinion"))
    timelines = []
    for (space, segment), rows in sorted(by_alarm.items()):
        starts = np.unique([row.start_ms for row in rows]).astype(np.int64)
        at = {start: index for index, start in enumerate(starts.tolist())}
        shares = segment_shares(
            settings, model, space, alarmed_segments(spaces[space].reference, settings.models[model])
        )
        if segment not in shares:
            continue  # a segment of an earlier reference, which has no alarm now
        share = shares[segment] * (1.0 - RATE_SHARE)
        channels = []
        for name in DRIFT_CHANNELS:
            strength = np.full(len(starts), np.nan)
            for row in rows:
                if row.channel == name:
                    strength[at[row.start_ms]] = row.strength
            if not np.isnan(strength).all():
                channels.append(Channel(name, strength, share))
        timelines.append(
            Timeline(
                space=space,
                segment=segment,
                starts_ms=starts,
                block_ms=block_ms,
                channels=tuple(channels),
                n=spaces[space].records_of(segment, starts // block_ms),
                page=float(np.log10(run_length(settings.page_every_days, drift.block))),
                warn=float(np.log10(run_length(settings.warn_every_days, drift.block))),
                marks=(*_marks(incidents, space, segment), *opinions.get((space, segment), ())),
                truth=tuple(truth),
            )
        )
    return timelines


def _marks(incidents: Sequence[IncidentRow], space: str, segment: str) -> list[Mark]:
    marks = []
    for row in incidents:
        if (row.kind, row.space, row.segment) == ("drift", space, segment):
            marks += [Mark(row.onset_ms, "onset"), Mark(row.opened_ms, row.severity)]
            if row.resolved_ms is not None:
                marks.append(Mark(row.resolved_ms, "resolved"))
    return marks


@dataclass(frozen=True, slots=True)
class _Looks:
    """What can be shown of a fraud hit; see `FraudHit`."""

    record: Excerpt | None = None
    case: Excerpt | None = None
    normal: Excerpt | None = None


class _Space:
    """What is stored of one space."""

    def __init__(self, store: Store, settings: ModelSettings, model: str, space: str) -> None:
        row = store.active_reference(model, space)
        assert row is not None
        self.row: ReferenceRow = row
        self.space = space
        self.reference = Reference.load(Path(row.path))
        self.embedder: Embedder = settings.spaces[space].embedder.build()
        self.embedder.restore(self.reference.embedder.state)
        self._names = {field: name for name, field in settings.record.keep.items()}
        embedders = [entry.embedder.build() for entry in settings.spaces.values()]
        self._pictures = [
            (self._names[embedder.fields[0]], embedder)
            for embedder in embedders
            if isinstance(embedder, PixelsEmbedder | ImageEmbedder) and embedder.fields[0] in self._names
        ]
        self._store = store
        self._model = model
        self._flagged = store.kept(model, space=space, flagged=True, limit=MAP_POINTS)
        self._sample = store.kept(model, space=space, flagged=False, limit=MAP_POINTS)

    def identity(self) -> ReferenceIdentity:
        return ReferenceIdentity(
            space=self.space,
            version=self.row.version,
            records=self.row.records,
            dimension=self.row.dimension,
            checksum=self.row.checksum,
            created_ms=self.row.created_ms,
            embedder=self.reference.embedder.kind,
        )

    def records_of(self, segment: str, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Records of each block of a segment, ascending. Those of blocks in one row are spread evenly over them."""
        rows = self._store.summaries(
            self._model, self.space, segment=segment, from_block=int(blocks[0]), to_block=int(blocks[-1]) + 1
        )
        counts = np.zeros(len(blocks), dtype=np.int64)
        for row in rows:
            first, after = np.searchsorted(blocks, [row.block, row.block + row.blocks]).tolist()
            if first < after:
                each, rest = divmod(BlockSummary.from_bytes(row.blob).n, after - first)
                counts[first:after] += each
                counts[first : first + rest] += 1
        return counts

    def histogram(self) -> ScoreHistogram:
        """Scores of the calibration records beside those of the stream, in bars of equal ratio."""
        scale = self.reference.score_scale
        stream = np.zeros(0, dtype=np.int64)
        for row in self._store.summaries(self._model, self.space, segment=EVERYTHING):
            scores = BlockSummary.from_bytes(row.blob).scores
            if scores is not None:
                stream = scores + (stream if len(stream) else 0)
        edges = score_edges(scale)
        known = np.bincount(score_bins(self.reference.calibration_scores, scale), minlength=len(edges))
        stream = stream if len(stream) else np.zeros(len(edges), dtype=np.int64)
        used = np.flatnonzero(known + stream)
        low = int(used[0]) // _BINS_SHOWN * _BINS_SHOWN
        high = min((int(used[-1]) // _BINS_SHOWN + 1) * _BINS_SHOWN, len(edges))
        bars = [slice(at, at + _BINS_SHOWN) for at in range(low, high, _BINS_SHOWN)]
        last = edges[high] if high < len(edges) else edges[-1] * 1.01
        flagged = [record.score for record in self._flagged]
        return ScoreHistogram(
            space=self.space,
            edges=np.array([*(edges[bar.start] for bar in bars), last]),
            reference=np.array([known[bar].sum() for bar in bars]),
            stream=np.array([stream[bar].sum() for bar in bars]),
            flag_at=min(flagged) if flagged else None,
        )

    def map(self) -> FlatMap | None:
        """Exemplars, a sample of the stream and the flagged records on two axes.

        Vectors are not stored with records: they are made again where the embedder's fields were kept. None where they
        were not, or the reference has no exemplars.
        """
        if len(self.reference.exemplars) < 2:
            return None
        recent, _ = self._vectors(self._sample)
        flagged, records = self._vectors(self._flagged)
        if len(recent) + len(flagged) == 0:
            return None
        return flat_map(
            self.space,
            self.reference.exemplars[:MAP_POINTS],
            recent=recent,
            flagged=flagged,
            labels=tuple(f"{record.id}, score {record.score:.3f}" for record in records),
        )

    def _vectors(self, records: Sequence[KeptRecord]) -> tuple[npt.NDArray[np.float32], list[KeptRecord]]:
        """Prepared vectors of the records whose fields were kept."""
        names = [self._names.get(field) for field in self.embedder.fields]
        usable = [record for record in records if all(name in record.kept for name in names)]
        if None in names or not usable:
            return np.zeros((0, self.reference.dimension), dtype=np.float32), []
        embedded = self.embedder.embed([[record.kept[str(name)] for record in usable] for name in names])
        bad = {problem.row for problem in embedded.problems}
        good = [row for row in range(len(usable)) if row not in bad]
        if not good:
            return np.zeros((0, self.reference.dimension), dtype=np.float32), []
        return self.reference.prepare(embedded.vectors[good]), [usable[row] for row in good]

    def strangest(self, notes: Mapping[str, str]) -> list[StrangeRecord]:
        """The flagged records with the highest scores."""
        chosen = sorted(self._flagged, key=lambda record: (-record.score, record.partition, record.offset))[:STRANGEST]
        return [
            StrangeRecord(
                id=record.id,
                time_ms=record.time_ms,
                space=self.space,
                segment=", ".join(f"{name}={value}" for name, value in record.segments.items()),
                score=record.score,
                p_value=record.p_value,
                record=self._excerpt(record.kept),
                nearest=self._nearest(record.exemplar),
                prediction=record.prediction,
                confidence=record.confidence,
                note=notes.get(record.id, ""),
            )
            for record in chosen
        ]

    def cause(self, cause: Mapping[str, Any]) -> Cause:
        """The stored cause of an incident with what can be shown of its prototypes."""
        kept = {record.id: record for record in (*self._sample, *self._flagged)}
        growths = []
        for row in cause["prototypes"]:
            exemplar = row["exemplar"]
            now = next((kept[name] for name in row["records"] if name in kept), None)
            growths.append(
                Growth(
                    name=f"prototype {row['prototype']}",
                    expected=row["expected"],
                    share=row["share"],
                    usual=None if exemplar is None else self._nearest(exemplar["index"]),
                    now=None if now is None else self._excerpt(now.kept),
                )
            )
        return Cause(
            records=cause["records"],
            parts=tuple(Part(row["segment"], row["part"], row["share"]) for row in cause["segments"]),
            growths=tuple(growths),
        )

    def looks_of(self, hits: Sequence[Hit]) -> list[_Looks]:
        """What can be shown of fraud hits."""
        kept = self._store.find_kept(self._model, [hit.record_id for hit in hits], space=FRAUD_SPACE)
        nearest = {hit.cases[0].record_id for hit in hits if hit.cases}
        cases = {record: self._case(record) for record in sorted(nearest)}
        return [
            _Looks(
                None if (row := kept.get(hit.record_id)) is None else self._excerpt(row.kept),
                cases[hit.cases[0].record_id] if hit.cases else None,
                None if row is None else self._nearest(row.exemplar),
            )
            for hit in hits
        ]

    def _case(self, record: str) -> Excerpt | None:
        """A confirmed case: its record may be long gone, but its vector is known, and may be all of the picture."""
        if not isinstance(self.embedder, PixelsEmbedder):
            return None
        for row in reversed(self._store.all_labels(self._model, record_id=record)):
            if row.said.known is not None:
                pixels = self.embedder.picture_of(np.frombuffer(row.said.known.vector, "<f4"))
                return None if pixels is None else Excerpt(pixels=pixels)
        return None

    def _nearest(self, exemplar: int) -> Excerpt | None:
        texts = self.reference.exemplar_excerpts
        if not 0 <= exemplar < len(texts) or not texts[exemplar]:
            return None
        try:
            return self._excerpt(json.loads(texts[exemplar]))
        except ValueError:
            return Excerpt(text=texts[exemplar])  # longer than what is stored of an excerpt

    def _excerpt(self, kept: Mapping[str, Any]) -> Excerpt:
        """A picture where any of the model's embedders sees one, the kept fields as text otherwise."""
        for name, embedder in self._pictures:
            if name in kept and (pixels := embedder.picture(kept[name])) is not None:
                return Excerpt(pixels=pixels)
        return Excerpt(text=json.dumps(kept, ensure_ascii=False, sort_keys=True) if kept else "")


def _settings(settings: Settings, model: ModelSettings) -> tuple[tuple[str, str], ...]:
    shown = {
        "source": model.source.kind,
        "block": f"{model.drift.block:g} s",
        "one false page in": f"{settings.page_every_days:g} days, all models together",
        "one false warning in": f"{settings.warn_every_days:g} days, all models together",
        "tolerance": f"{model.drift.tolerance:g} sigmas",
        "outlier budget": f"{model.outliers.budget:g}",
        "candidates": f"p <= {model.outliers.alpha:g}",
        "lateness": f"{model.lateness_ms / 1000:g} s",
    }
    return tuple(shown.items())
