"""`driftd check` and `driftd doctor`: what can be seen to be wrong before the daemon runs, and while it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from connectors.database.store import Store
from detectors.errors import DriftdError
from detectors.reference import Reference
from monitor.app import build_sinks, build_source, check_references_folder, open_store
from monitor.budget import RATE_SHARE, share_of_segment, threshold
from monitor.decode import Decoder
from monitor.folding import MIN_RECORDS_TO_PAGE, segment_names
from monitor.settings import ModelSettings, Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def _look(name: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, action())
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
    for name in settings.sinks:
        findings.append(_look(f"sink {name}", partial(_sink, settings, name)))
    return findings


def _embedder(settings: Settings, name: str, space: str) -> str:
    embedder = settings.models[name].spaces[space].embedder.build()
    Decoder(settings.models[name].record, fields=list(embedder.fields))
    return f"embedder {embedder.kind} of {', '.join(embedder.fields)}"


def _source(name: str, model: ModelSettings) -> str:
    return build_source(name, model).check()


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
                _look(f"model {name}, reference {space}", _reference(store, name, space)) for space in model.spaces
            ]
            findings.append(_dead_letters(store, name, model))
            findings += _budget(settings, store, name, model)
        depth = store.outbox_depth()
        findings.append(Finding("outbox", depth < 100, f"{depth} notifications wait to be sent"))
    finally:
        store.close()
    return findings


def _reference(store: Store, model: str, space: str) -> Callable[[], str]:
    def look() -> str:
        row = store.active_reference(model, space)
        if row is None:
            return "none yet: driftd run collects one, or build it: driftd reference build"
        reference = Reference.load(Path(row.path))
        records = reference.n_fit + reference.n_calibration
        if records < MIN_RECORDS_TO_PAGE:
            return (
                f"version {row.version} holds {records:,} records; below {MIN_RECORDS_TO_PAGE:,} pages turn into "
                "warnings. Build a larger one: driftd reference build"
            )
        return f"version {row.version}, {records:,} records, checksum right"

    return look


def _dead_letters(store: Store, name: str, model: ModelSettings) -> Finding:
    totals, counts = store.totals(name), store.dead_letter_counts(name)
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items(), key=lambda item: -item[1])[:3])
    detail = f"{totals.dead:,} of {totals.records:,} records{f': {reasons}' if reasons else ''}"
    latest = store.dead_letters(name, limit=1)
    if latest:
        letter = latest[0]
        detail += f". Last: {letter.partition.topic}/{letter.partition.number}/{letter.offset}: {letter.detail}"
    too_many = totals.records >= 100 and totals.dead > model.dead_letters.alert_ratio * totals.records
    return Finding(f"model {name}, dead letters", not too_many, detail)


def _budget(settings: Settings, store: Store, name: str, model: ModelSettings) -> list[Finding]:
    """How the one budget of false pages is divided."""
    drift = model.drift
    findings = []
    for space in model.spaces:
        row = store.active_reference(name, space)
        names = segment_names(Reference.load(Path(row.path)).segments) if row is not None else []
        parts = []
        for segment in ["", *names[:1]]:
            share = share_of_segment(settings, name, segment, segments=len(names)) * (1.0 - RATE_SHARE)
            pages = threshold(drift.page_every_days, drift.block, share)
            warns = threshold(drift.warn_every_days, drift.block, share)
            whose = "all records" if segment == "" else f"each of {len(names)} segments"
            parts.append(f"{whose}: share {share:.4f}, pages at strength {pages:.2f}, warns at {warns:.2f}")
        detail = f"one false page in {drift.page_every_days:g} days for all together. {'; '.join(parts)}"
        findings.append(Finding(f"model {name}, alarm budget {space}", True, detail))
    return findings
