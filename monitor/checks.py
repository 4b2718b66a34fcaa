"""`driftd check` and `driftd doctor`: what can be seen to be wrong before the daemon runs, and while it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from connectors.schema_registry import SchemaSettings
from detectors.errors import DriftdError, InvalidReference
from detectors.fold import Rule
from detectors.reference import Reference
from detectors.segments import constants_of
from monitor.amounts import duration
from monitor.app import (
    build_label_source,
    build_scores,
    build_sinks,
    build_source,
    build_truth_source,
    check_references_folder,
    open_store,
    takes_truths,
)
from monitor.budget import (
    budget_so_far,
    fold_settings,
    observed_by_model,
    shares,
    smallest_shift,
    threshold,
    together,
    why_only_warns,
)
from monitor.calibration import read_calibration
from monitor.canaries import in_words
from monitor.collect import check_block_length
from monitor.decode import Decoder
from monitor.embedders.http import HttpEmbedder
from monitor.embedders.parts import innermost
from monitor.entities import scattered_text
from monitor.folding import alarmed_segments
from monitor.fraud_build import fraud_row_in_use
from monitor.references import seasons_in_days
from monitor.settings import ModelSettings, Settings
from monitor.spaces import fit_together
from monitor.times import text_of

GAPS_NAMED, DAY_MS = 5, 86_400_000
FEW_LABELS = 10  # so few may just wait for their records
MOST_WAITING, LONGEST_WAIT_S = 100, 600.0  # notifications: more of them, or for longer, and a sink does not take them
FOUND_IN = (1_000, 10_000)  # lengths of windows, in records, for which the doctor says what shift they find


@dataclass(frozen=True, slots=True)
class AlarmShare:
    """One alarm's part of the budget, and what follows from it.

    Attributes:
        segment: "" for the whole traffic of the space.
        channel: level, shape, mix, outlier_rate or fraud_wave.
        share: part of the deployment's budget.
        muted: it may not alarm, and nobody else gets its share.
        pages_at, warns_at: strengths, log10 of blocks.
        may_page: False where the baseline is too small; None where there is no reference yet.
        finds: for some lengths of windows, in records, the shift of the mean, in whitened standard deviations, that
            pages on average; None where windows are not that long. Of the level channel only.
    """

    model: str
    space: str
    segment: str
    channel: str
    share: float
    muted: bool
    pages_at: float
    warns_at: float
    may_page: bool | None
    finds: dict[int, float | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    alarms: tuple[AlarmShare, ...] = ()


def _look(name: str, action: Callable[[], str | Finding]) -> Finding:
    try:
        found = action()
        return found if isinstance(found, Finding) else Finding(name, True, found)
    except DriftdError as error:
        return Finding(name, False, str(error))


def check_everything(settings: Settings) -> list[Finding]:
    """Build every part and connect once to everything outside."""

    def references() -> str:
        check_references_folder(settings.references)
        return f"{settings.references} can be written"

    def database() -> str:
        store = open_store(settings)
        try:
            return store.check()
        finally:
            store.close()

    findings = [_look("references", references), _look("database", database)]
    for name, model in settings.models.items():
        findings += [
            _look(f"model {name}, space {space}", partial(_embedder, settings, name, space)) for space in model.spaces
        ]
        findings.append(_look(f"model {name}, source", partial(_source, name, model)))
        if model.record.schemas is not None:
            findings.append(_look(f"model {name}, schemas", partial(_schemas, model.record.schemas)))
        if model.scores is not None:
            findings.append(_look(f"model {name}, scores", partial(_scores, name, model)))
        if model.fraud is not None and model.fraud.labels is not None:
            findings.append(_look(f"model {name}, topic of labels", partial(_label_topic, name, model)))
        if model.performance.calibration is not None:
            findings.append(_look(f"model {name}, calibration", partial(_calibration, model)))
        if model.performance.labels is not None:
            findings.append(_look(f"model {name}, topic of true answers", partial(_truth_topic, name, model)))
    if findings[1].ok:  # the database can be asked
        findings += _canary_findings(settings)
    for name in settings.sinks:
        findings.append(_look(f"sink {name}", partial(_sink, settings, name)))
    return findings


def _embedder(settings: Settings, name: str, space: str) -> str:
    embedder = settings.models[name].spaces[space].embedder.build()
    Decoder(settings.models[name].watched_record, fields=list(embedder.fields))
    answers = "".join(f"; {each.check()}" for each in innermost(embedder) if isinstance(each, HttpEmbedder))
    return f"embedder {embedder.kind} of {', '.join(embedder.fields)}{answers}"


def _canary_findings(settings: Settings) -> list[Finding]:
    """Whether each encoder still is the one that made its reference; nothing where there is none yet."""
    store = open_store(settings)
    try:
        rows = {place: store.active_reference(*place) for place in _spaces(settings)}
    finally:
        store.close()
    return [
        _look(f"model {name}, canaries of {space}", partial(_canaries, settings.models[name], row))
        for (name, space), row in rows.items()
        if row is not None
    ]


def _canaries(model: ModelSettings, row: ReferenceRow) -> str:
    reference = Reference.load(Path(row.path))
    embedder = model.spaces[row.space].embedder.build()
    check = fit_together(embedder, reference, f"{row.model}/{row.space} version {row.version}")
    return in_words(None, embedder.kind) if check is None else check.text


def _source(name: str, model: ModelSettings) -> str:
    return build_source(name, model).check()


def _schemas(settings: SchemaSettings) -> str:
    return settings.build().check()


def _label_topic(name: str, model: ModelSettings) -> str:
    source = build_label_source(name, model)
    assert source is not None
    return source.check()


def _calibration(model: ModelSettings) -> str:
    settings, confidence = model.performance, model.record.confidence is not None
    assert settings.calibration is not None
    found = read_calibration(settings.calibration, scale=settings.scale, confidence=confidence)
    return f"{found.n:,} records, of which {found.accuracy:.1%} were answered rightly"


def _truth_topic(name: str, model: ModelSettings) -> str:
    source = build_truth_source(name, model)
    assert source is not None
    return source.check()


def _scores(name: str, model: ModelSettings) -> str:
    scores = build_scores(name, model)
    assert scores is not None
    return scores.check()


def _sink(settings: Settings, name: str) -> str:
    sink = build_sinks(settings)[name]
    try:
        return sink.check()
    finally:
        sink.close()


def diagnose(settings: Settings) -> list[Finding]:
    """Everything that `check_everything` sees, and what the database knows: references, dead letters, the budget."""
    findings = check_everything(settings)
    try:
        store = open_store(settings)
    except DriftdError:
        return findings  # the finding on the database says why
    try:
        for name, model in settings.models.items():
            findings += [
                _look(f"model {name}, reference {space}", _reference(store, name, space, model))
                for space in model.spaces
            ]
            findings.append(_dead_letters(store, name, model))
            if model.fraud is not None and (model.fraud.entity or model.fraud.relation):
                findings.append(Finding(f"model {name}, entities", *scattered_text(store, name)))
            if model.fraud is not None:
                findings.append(_look(f"model {name}, fraud scores", partial(_fraud_baseline, store, name, model)))
                patience_ms = round(settings.retention.remembered_days * DAY_MS)
                findings.append(labels_finding(store, name, wall_clock_ms() - patience_ms))
            if takes_truths(model):
                patience_ms = round(settings.retention.answers_days * DAY_MS)
                findings.append(truths_finding(store, name, wall_clock_ms() - patience_ms))
            findings += gap_findings(store, name, wall_clock_ms())
        findings.append(_look("alarm budget", partial(_budget, settings, store)))
        findings.append(_look("alarms so far", partial(_so_far, settings, store)))
        findings.append(outbox_finding(store, wall_clock_ms()))
    finally:
        store.close()
    return findings


def outbox_finding(store: Store, now_ms: int) -> Finding:
    """Whether notifications are sent: not many wait, and none for long."""
    depth, oldest_ms = store.outbox_waiting()
    if oldest_ms is None:
        return Finding("outbox", True, "no notification waits to be sent")
    age_s = max(now_ms - oldest_ms, 0) / 1000
    waiting = f"{depth} notification{'s wait' if depth != 1 else ' waits'} to be sent"
    return Finding(
        "outbox", depth < MOST_WAITING and age_s < LONGEST_WAIT_S, f"{waiting}, the oldest for {duration(age_s)}"
    )


def _reference(store: Store, name: str, space: str, model: ModelSettings) -> Callable[[], str]:
    def look() -> str:
        row = store.active_reference(name, space)
        if row is None:
            return "none yet: driftd run collects one, or build it: driftd reference build"
        reference = Reference.load(Path(row.path))
        check_block_length(reference, round(model.drift.block * 1000))
        seasons = seasons_in_days(reference, model.drift)
        seasons = f"; {seasons}" if seasons else ""
        small = why_only_warns(constants_of(reference.drift, ""))
        if small:
            return (
                f"version {row.version}; pages turn into warnings: {small}. Build a larger one: reference.collect in "
                f"the settings, then driftd reference build{seasons}"
            )
        return f"version {row.version}, {reference.n_records:,} records, checksum right{seasons}"

    return look


def _fraud_baseline(store: Store, name: str, model: ModelSettings) -> str:
    """What fraud scores rest on.

    Raises:
        InvalidReference: the reference was built before the model had fraud settings.
    """
    row = fraud_row_in_use(store, name, model.fraud_space)
    if row is not None:
        return f"version {row.version}"
    if store.active_reference(name, model.fraud_space) is None:
        return "none yet: their baseline is made with the reference"
    raise InvalidReference(
        "No record is scored as fraud: the reference has no fraud baseline.",
        hint="Type: driftd reference build; then start driftd again",
    )


def _dead_letters(store: Store, name: str, model: ModelSettings) -> Finding:
    totals, counts = store.totals(name), store.dead_letter_counts(name)
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items(), key=lambda item: -item[1])[:3])
    detail = f"{totals.dead:,} of {totals.records:,} records{f': {reasons}' if reasons else ''}"
    latest = store.dead_letters(name, limit=1)
    if latest:
        letter = latest[0]
        place = f"{letter.partition.topic}/{letter.partition.number}/{letter.offset}"
        detail += f". Last: {place}: {letter.detail} Look at them: driftd deadletters list"
    too_many = totals.records >= 100 and totals.dead > model.dead_letters.alert_ratio * totals.records
    return Finding(f"model {name}, dead letters", not too_many, detail)


def labels_finding(store: Store, model: str, remembered_since_ms: int) -> Finding:
    """Whether labels find their records. If most do not, their ids are not those that ``record.id`` names."""
    counts = store.label_counts(model, remembered_since_ms=remembered_since_ms)
    total = counts.version + counts.waiting
    detail = f"{total:,} labels, of which {counts.version:,} count and {counts.waiting:,} wait for their records"
    if counts.unmatched:
        detail += f", {counts.unmatched:,} of them longer than records are remembered"
    if counts.contradicting:
        detail += f"; of {counts.contradicting:,} records both was said"
    lost = total >= FEW_LABELS and counts.waiting > total / 2
    if lost:
        detail += ". Do their ids say what record.id maps? Look: driftd label list --waiting"
    return Finding(f"model {model}, labels", not lost, detail)


def truths_finding(store: Store, model: str, remembered_since_ms: int) -> Finding:
    """Whether true answers find what the model answered. If most do not, their ids are not those of ``record.id``."""
    counts = store.truth_counts(model, remembered_since_ms=remembered_since_ms)
    total = counts.version + counts.waiting
    detail = f"{total:,} true answers, of which {counts.version:,} count and {counts.waiting:,} wait"
    if counts.unmatched:
        detail += f", {counts.unmatched:,} of them longer than answers are remembered"
    lost = total >= FEW_LABELS and counts.waiting > total / 2
    if lost:
        detail += ". Are their ids those of record.id, and is performance.remember set? driftd truth --list --waiting"
    return Finding(f"model {model}, true answers", not lost, detail)


def gap_findings(store: Store, model: str, now_ms: int) -> list[Finding]:
    """What was lost before it could be read; nothing where nothing was. Not in order for a day."""
    gaps = store.gaps(model)
    if not gaps:
        return []
    lost = sum(max(row.gap.to_offset - row.gap.from_offset, 0) for row in gaps)
    last = [
        f"{gap.partition.topic}/{gap.partition.number} from {gap.from_offset} to {gap.to_offset} ({gap.reason})"
        for gap in (row.gap for row in gaps[-GAPS_NAMED:])
    ]
    many = f"{len(gaps):,} gap{'s' * (len(gaps) != 1)}, {lost:,} offsets passed over"
    calm = abs(now_ms - gaps[-1].noticed_ms) >= DAY_MS
    return [
        Finding(f"model {model}, gaps", calm, f"{many}. Last: {'; '.join(last)}, at {text_of(gaps[-1].noticed_ms)}")
    ]


def _budget(settings: Settings, store: Store) -> Finding:
    """How the one budget of false alarms is divided over everything that may alarm."""
    rows = {(model, space): store.active_reference(model, space) for model, space in _spaces(settings)}
    references = {key: Reference.load(Path(row.path)) for key, row in rows.items() if row is not None}
    segments = {key: alarmed_segments(found, settings.models[key[0]]) for key, found in references.items()}
    alarms: list[AlarmShare] = []
    rules: dict[tuple[str, str, str], Rule] = {}
    for entry in shares(settings, segments):
        place = (entry.model, entry.space, entry.segment)
        reference = references.get(place[:2])
        if reference is not None and entry.channel == "level":
            rules[place] = Rule(
                constants_of(reference.drift, entry.segment), fold_settings(settings, entry.model, entry.alarm_share)
            )
        rule = rules.get(place)
        may_page = None if reference is None else not why_only_warns(constants_of(reference.drift, entry.segment))
        block = settings.models[entry.model].drift.block
        alarms.append(
            AlarmShare(
                *place,
                channel=entry.channel,
                share=entry.share,
                muted=entry.muted,
                pages_at=threshold(settings.page_every_days, block, entry.alarm_share),
                warns_at=threshold(settings.warn_every_days, block, entry.alarm_share),
                may_page=may_page,
                finds={n: smallest_shift(rule, n) for n in FOUND_IN} if rule and entry.channel == "level" else {},
            )
        )
    detail = budget_in_words(settings, alarms)
    for name, model in settings.models.items():
        known = {segment for key, names in segments.items() if key[0] == name for segment in names}
        known |= {segment.partition("=")[0] for segment in known}
        idle = [segment for segment in model.drift.segment_weights if known and segment not in known]
        if idle:
            detail += f"; {name}: no alarm of its own, so a weight in vain: {', '.join(idle)}"
    return Finding("alarm budget", True, detail, tuple(alarms))


def _so_far(settings: Settings, store: Store) -> str:
    """What the budget promised, and what came."""
    seen = observed_by_model(settings, store)
    lines = [budget_so_far(settings, together(seen.values()))]
    if len(seen) > 1:
        lines += [f"{name}: {found.pages}, {found.called_false} called false" for name, found in seen.items()]
    return "; ".join(lines) + ". Was one false? driftd incidents --false ID"


def _spaces(settings: Settings) -> list[tuple[str, str]]:
    return [(name, space) for name, model in settings.models.items() for space in model.spaces]


def budget_in_words(settings: Settings, alarms: Sequence[AlarmShare]) -> str:
    """What the settings promise, and how much of it is nobody's."""
    unused = math.fsum(alarm.share for alarm in alarms if alarm.muted)
    return (
        f"at most one false page in {settings.page_every_days:g} days and one false warning in "
        f"{settings.warn_every_days:g} days of event time, all alarms together"
        + (f"; {unused:.0%} of that is left unused by muted channels" if unused else "")
    )


def budget_table(alarms: Sequence[AlarmShare]) -> tuple[list[str], list[list[str]]]:
    """The shares as columns and rows for people: one row for each segment."""
    channels = list(dict.fromkeys(alarm.channel for alarm in alarms))
    columns = ["model", "space", "segment", "share", *(channel.replace("_", " ") for channel in channels)]
    columns += ["pages at", "warns at", *(f"finds in {n:,}" for n in FOUND_IN), ""]
    grouped: dict[tuple[str, str, str], dict[str, AlarmShare]] = {}
    for alarm in alarms:
        grouped.setdefault((alarm.model, alarm.space, alarm.segment), {})[alarm.channel] = alarm
    rows = []
    for (model, space, segment), by_channel in grouped.items():
        first = next(iter(by_channel.values()))  # all channels of drift have the same strengths
        rows.append(
            [
                model,
                space,
                segment or "all records",
                _small(math.fsum(alarm.share for alarm in by_channel.values())),
                *(_share(by_channel.get(channel)) for channel in channels),
                f"{first.pages_at:.2f}",
                f"{first.warns_at:.2f}",
                *("-" if not (shift := first.finds.get(n)) else f"{shift:.2f} sigma" for n in FOUND_IN),
                "only warns" if first.may_page is False else "",
            ]
        )
    return columns, rows


def _share(alarm: AlarmShare | None) -> str:
    if alarm is None:
        return "-"
    return "muted" if alarm.muted else _small(alarm.share)


def _small(share: float) -> str:
    return f"{share:.4f}" if share >= 0.001 else f"{share:.1e}"
