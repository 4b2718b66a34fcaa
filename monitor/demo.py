"""`driftd demo`: the whole job on real handwritten digits, with no server.

The parts are the same that `driftd run` uses: the file source, the decoder, the embedders, the references, the
pipeline, the transactions, the fold, the incidents and the report. Only the waiting is left out.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import KeptRecord, LabelSource, NewLabel, NewTruth
from connectors.database.store import Store
from dashboards.picture import write_picture
from dashboards.report import write_report
from dashboards.report_data import Comparison, Period
from detectors.errors import InvalidInput
from monitor.app import build_label_desk, build_sinks, build_truth_desk, build_workers, open_store
from monitor.demo_stream import DemoTruth, make_demo
from monitor.fraud_settings import FRAUD_SPACE
from monitor.labels import SaidLabel
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.references import from_source
from monitor.reporting import report_of
from monitor.settings import Settings, load_settings
from monitor.times import text_of

MODEL = "digit_reader"
BASELINE_RECORDS = 100_000
SETTINGS_FILE = "driftd.yaml"
TRUTH_FILE = "truth.csv"
DISPUTED = 5  # of the altered scans, so many are known to be fraud before the ring begins
LOOKED_AT = 3  # alerts that the analyst has answered by then


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo ends with: the same facts as text and as data."""

    text: str
    data: dict[str, Any]


def demo_settings(folder: Path, stream: Path) -> Settings:
    """The settings of the demo, written into a file as a user would, so that every command works on it afterwards."""
    content: dict[str, Any] = {
        "database": f"sqlite:///{folder / 'driftd.db'}",
        "references": str(folder / "references"),
        "models": {
            MODEL: {
                "source": {"kind": "files", "path": str(stream)},
                "record": {
                    "id": "/id",
                    "time": {"path": "/ts", "unit": "ms"},
                    "prediction": "/prediction",
                    "confidence": "/confidence",
                    "label": "/typed",
                    "segments": {"scanner": "/scanner"},
                    "keep": ["/pixels", "/scanner"],
                },
                "spaces": {
                    "input": {
                        "embedder": {"kind": "pixels", "field": "/pixels", "shape": [8, 8], "encoding": "base64"}
                    },
                    "output": {"embedder": {"kind": "vector", "field": "/probabilities", "encoding": "list"}},
                },
                "reference": {"collect": BASELINE_RECORDS},
                "outliers": {"sample": 0.02},  # so short a stream would leave too few to ask questions of
                "performance": {"window": "5m", "remember": 1.0},
                "fraud": {
                    "space": "input",
                    "fields": {"confidence": "/confidence"},
                    "alerts": {"most": 200, "every": "1h"},
                },
            }
        },
        "sinks": {"log": {"kind": "jsonl", "path": str(folder / "notifications.jsonl")}},
    }
    file = folder / SETTINGS_FILE
    file.write_text("# What `driftd demo` ran with.\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_settings(file)


def run_demo(folder: Path, *, seed: int, say: Callable[[str], None]) -> DemoResult:
    """Make the data, build the references, score the stream, and compare what happened with what was reported.

    Args:
        folder: made, or emptied if an earlier demo made it.
        seed: the same seed gives the same result.
        say: told what is going on.

    Raises:
        InvalidInput: the folder exists and no demo made it.
    """
    began = time.perf_counter()
    folder = folder.resolve()
    _prepare(folder)
    say("1/4  A model that reads handwritten digits, and its traffic (real images of scikit-learn, distorted anew) ...")
    truth = make_demo(folder / "data", seed=seed, baseline_records=BASELINE_RECORDS)
    say(f"2/4  The references: what {truth.baseline_records:,} records of normal operation look like ...")
    from_source(
        demo_settings(folder, truth.baseline), MODEL, start_ms=None, end_ms=None, progress=lambda step, share: None
    )
    say(f"3/4  The stream: {truth.stream_records:,} records through the pipeline into SQLite ...")
    settings = demo_settings(folder, truth.stream)
    store = open_store(settings)
    scoring_s = _score(settings, store, truth)
    _write_truth(folder / TRUTH_FILE, truth)
    say("4/4  The report ...")
    facts = _compare(store, truth)
    unknown = truth.unknown_digit
    report = report_of(
        settings,
        store,
        MODEL,
        truth=[Period(unknown.start_ms, unknown.end_ms, "unknown digit")],
        comparisons=[Comparison(fact["happened"], fact["reported"], fact["right"]) for fact in facts],
        notes={
            **{scan.id: scan.damage for scan in truth.damaged},
            **dict.fromkeys([*truth.forged, *truth.ring.forged], "a 1 made a 4"),
        },
    )
    write_report(folder / "report.html", report)
    write_picture(folder / "report.png", report)
    took = time.perf_counter() - began
    data = {"seed": seed, "records": truth.stream_records, "facts": facts}
    pages = [row for row in store.incidents(model=MODEL) if row.kind == "drift" and row.severity == "page"]
    incident = min(pages, key=lambda row: row.opened_ms).id if pages else ""
    return DemoResult(_as_text(facts, folder, truth.stream_records / scoring_s, took, incident), data)


def _write_truth(path: Path, truth: DemoTruth) -> None:
    """What really happened, as `driftd replay` reads it."""
    happened = [
        (truth.unknown_digit.start_ms, truth.unknown_digit.end_ms, "an unknown digit", ""),
        (truth.ring.start_ms, truth.ring.end_ms, "a ring alters digits", FRAUD_SPACE),
    ]
    lines = [f"{start_ms},{end_ms},{name},{space}" for start_ms, end_ms, name, space in happened]
    path.write_text("\n".join(["start,end,name,space", *lines, ""]), encoding="utf-8")


def _prepare(folder: Path) -> None:
    marker = folder / ".driftd-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise InvalidInput(
                f"The folder {folder} holds something else.", hint="Name an empty one: driftd demo --output DIR"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _score(settings: Settings, store: Store, truth: DemoTruth) -> float:
    """Run the stream through the same worker that `driftd run` uses, and send what came of it. Returns the seconds.

    The stream comes in four parts. After each, people answer, and the labels are in force from the next record on.
    """
    lines = truth.stream.read_bytes().splitlines(keepends=True)
    ends = [(time_ms - truth.start_ms) * truth.block_records // truth.block_ms for time_ms in truth.answers_ms]
    truth.stream.write_bytes(b"")
    took = 0.0
    for part, (start, end) in enumerate(zip([0, *ends], [*ends, len(lines)], strict=True)):
        with truth.stream.open("ab") as file:
            file.writelines(lines[start:end])
        (worker,) = build_workers(settings, store)
        worker.start()
        began = time.perf_counter()
        while not worker.step(int(time.time() * 1000), time.monotonic()).finished:
            pass
        if end == len(lines):
            worker.close_blocks_at_end(int(time.time() * 1000))
        took += time.perf_counter() - began
        worker.source.close()
        worker.close()
        _answer(settings, store, truth, part)
    for name, sink in build_sinks(settings).items():
        SinkQueue(name, sink, store, policy=RetryPolicy()).pump(wall_clock_ms, threading.Event())
        sink.close()
    return took


def _answer(settings: Settings, store: Store, truth: DemoTruth, part: int) -> None:
    """What people say after a part of the stream: first customers dispute altered cheques, and an analyst has looked at
    a few alerts; later the analyst has answered every alert.

    The random review sample is answered at the end, where no score depends on it any more: which records are in it
    depends on the path of the stream, and the demo says the same in any folder. What people typed is there at once.
    """
    last = part == len(truth.answers_ms)
    time_ms = truth.end_ms if last else truth.answers_ms[part]
    forged = {*truth.forged, *truth.ring.forged}
    disputed = truth.forged[:DISPUTED] if part == 0 else ()
    known = {row.said.record_id for row in store.labels(MODEL)}
    asked = [row.id for row in _fraud_rows(store) if row.flagged or (last and row.reason == "review")]
    asked = asked[:LOOKED_AT] if part == 0 else asked
    said: list[tuple[str, LabelSource]] = [(record, "chargeback") for record in disputed]
    said += [(record, "analyst") for record in asked if record not in known and record not in disputed]
    labels = [
        NewLabel(
            record,
            "fraud" if record in forged else "cleared",
            time_ms,
            source,
            confidence=1.0,
            by="demo",
            origin=f"demo:{record}",
        )
        for record, source in said
    ]
    build_label_desk(MODEL, settings, store).take([SaidLabel(label) for label in labels])
    since_ms = truth.answers_ms[part - 1] if part else truth.start_ms
    typed = [
        NewTruth(record, digit, time_ms, weight=1.0, origin=f"demo:{record}")
        for record, at_ms, digit in truth.typed
        if since_ms <= at_ms < time_ms
    ]
    build_truth_desk(MODEL, settings, store).take(typed)


def _fraud_rows(store: Store) -> list[KeptRecord]:
    """What was kept because it looks like fraud, or to be looked at whatever its score; the most suspicious first."""
    return store.kept(MODEL, space=FRAUD_SPACE, limit=1_000_000)


def _compare(store: Store, truth: DemoTruth) -> list[dict[str, Any]]:
    """What happened against what driftd reported, row by row; every number is counted here, none is assumed."""
    unknown = truth.unknown_digit
    totals = store.totals(MODEL)
    incidents = store.incidents(model=MODEL)
    pages = [row for row in incidents if row.kind == "drift" and row.severity == "page"]
    before = [row for row in pages if row.opened_ms <= unknown.start_ms]
    during = [row for row in pages if unknown.start_ms < row.opened_ms <= unknown.end_ms + 60_000]
    after = [row for row in pages if row.opened_ms > unknown.end_ms + 60_000]
    flagged = {row.id: row.time_ms for row in store.kept(MODEL, space="input", flagged=True, limit=1_000_000)}
    damaged = {scan.id for scan in truth.damaged}
    forged = {*truth.forged, *truth.ring.forged}
    caught = damaged & flagged.keys()
    clean_flags = [
        time_ms
        for record, time_ms in flagged.items()
        if record not in damaged | forged and not unknown.start_ms <= time_ms < unknown.end_ms
    ]
    first = min(during, key=lambda row: row.opened_ms) if during else None
    per_ms = truth.block_records / truth.block_ms
    delay = round((first.opened_ms - unknown.start_ms) * per_ms) if first else None
    open_at_end = [row for row in pages if row.status == "open"]
    resolved = max((row.resolved_ms for row in during if row.resolved_ms is not None), default=None)
    # Segments with a baseline of less than 50,000 records may only warn.
    segments = {
        row.segment
        for row in incidents
        if (row.kind, row.space) == ("drift", "input") and unknown.start_ms < row.opened_ms <= unknown.end_ms + 60_000
    }
    return [
        {
            "happened": f"{truth.stream_records:,} records, {sum(truth.broken.values())} of them broken",
            "reported": f"{totals.records:,} records, {totals.dead} dead letters",
            "right": totals.records == truth.stream_records and totals.dead == sum(truth.broken.values()),
        },
        {
            "happened": f"no drift until {text_of(unknown.start_ms)}",
            "reported": f"{len(before)} false pages",
            "right": not before,
        },
        {
            "happened": f"{len(damaged)} damaged scans, here and there",
            "reported": f"{len(caught)} of them flagged, and {len(clean_flags)} clean records",
            "right": len(caught) >= 0.5 * len(damaged),
        },
        *_compare_fraud(store, truth, flagged),
        {
            "happened": f"from {text_of(unknown.start_ms)}: an unknown digit, up to {unknown.share:.0%} of the traffic",
            "reported": (
                f"paged after {delay:,} records, onset put at {text_of(first.onset_ms)}" if first else "not reported"
            ),
            "right": first is not None,
        },
        {
            "happened": f"it came from the scanner {unknown.scanner}",
            "reported": "drift in " + (", ".join(sorted(name or "all" for name in segments)) or "no segment"),
            "right": f"scanner={unknown.scanner}" in segments,
        },
        {
            "happened": f"over at {text_of(unknown.end_ms)}",
            "reported": (
                f"{len(open_at_end)} still open"
                if open_at_end
                else f"last incident resolved at {text_of(resolved)}, {len(after)} pages afterwards"
                if resolved is not None
                else "nothing to resolve"
            ),
            "right": not open_at_end and not after and resolved is not None,
        },
        *_compare_verdicts(store, truth),
    ]


def _compare_verdicts(store: Store, truth: DemoTruth) -> list[dict[str, Any]]:
    """The rows about the question that people really have: does the reader still read rightly?"""
    unknown, (clean, at_height) = truth.unknown_digit, truth.accuracy
    times = (unknown.start_ms, unknown.end_ms, None)
    before, during, last = (store.verdict(MODEL, at_ms=at_ms) for at_ms in times)
    if before is None or during is None or last is None:
        return [{"happened": "a verdict on the reader", "reported": "none", "right": False}]
    stale = [row for row in store.incidents(model=MODEL) if row.kind == "stale"]
    again = [row for row in stale if not unknown.start_ms < row.opened_ms <= unknown.end_ms]
    return [
        {
            "happened": f"of the first half hour {clean:.1%} of the digits are read rightly",
            "reported": f"{before.word}; without labels estimated {before.low:.1%} to {before.high:.1%}",
            "right": before.word == "fresh" and before.low <= clean <= before.high,
        },
        {
            "happened": f"of the time with many unknown digits {at_height:.1%}",
            "reported": f"{during.word}; without labels estimated {during.low:.1%} to {during.high:.1%}",
            "right": during.word == "degraded" and during.low <= at_height <= during.high,
        },
        {
            "happened": "in the end the reader reads as well as before",
            "reported": f"the verdict on {MODEL}: {last.word}",
            "right": last.word == "fresh" and len(stale) == 1 and not again,
        },
    ]


def _compare_fraud(store: Store, truth: DemoTruth, outliers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows about fraud.

    Args:
        outliers: flagged ones, with their times.
    """
    ring, unknown = truth.ring, truth.unknown_digit
    disputed_ms = truth.answers_ms[0]
    per_ms = truth.block_records / truth.block_ms
    hits = [row for row in _fraud_rows(store) if row.reason == "fraud"]
    alerts = {row.id: row.time_ms for row in hits if row.flagged}
    before = [record for record, time_ms in alerts.items() if time_ms < disputed_ms]
    found_before = len({*before} & {*truth.forged})
    given = sum(row.said.time_ms == disputed_ms for row in store.labels(MODEL))
    offsets = [span.from_offset for span in store.label_spans(MODEL) if span.version == given]
    in_force = truth.stream.read_bytes().count(b"\n", 0, offsets[0]) if offsets else None
    in_ring = [
        {record for record, time_ms in found.items() if ring.start_ms <= time_ms < ring.end_ms}
        for found in (alerts, outliers)
    ]
    found, found_without = (len(chosen & {*ring.forged}) for chosen in in_ring)
    waves = [row for row in store.incidents(model=MODEL) if row.kind == "fraud_wave"]
    opened = [row.opened_ms for row in waves if ring.start_ms < row.opened_ms <= ring.end_ms + 60_000]
    told = f"a wave of fraud after {round((opened[0] - ring.start_ms) * per_ms):,} records" if opened else "no wave"
    honest = sum(unknown.start_ms <= row.time_ms < unknown.end_ms for row in hits)
    return [
        {
            "happened": (
                f"{len(truth.forged)} altered digits (a 1 made a 4); {DISPUTED} disputed by {text_of(disputed_ms)}"
            ),
            "reported": (
                f"{found_before} of them among {len(before)} alerts; "
                + (f"{given} labels in force from record {in_force + 1:,} on" if in_force is not None else "no labels")
            ),
            "right": in_force == round((disputed_ms - truth.start_ms) * per_ms),
        },
        {
            "happened": (
                f"from {text_of(ring.start_ms)}: a ring alters {len(ring.forged)} of "
                f"{round((ring.end_ms - ring.start_ms) * per_ms):,}"
            ),
            "reported": f"{told}, {found} of them among {len(in_ring[0])} alerts",
            "right": len(opened) == 1 and found >= 0.5 * len(ring.forged),
        },
        {
            "happened": "the same ring without labels",
            "reported": f"{found_without} of them among {len(in_ring[1])} outliers",
            "right": found_without < 0.5 * found,
        },
        {
            "happened": f"{unknown.records:,} unknown digits, see below, are no fraud",
            "reported": f"{honest} records of that time look like it",
            "right": honest < 0.1 * unknown.records,
        },
    ]


def _as_text(facts: list[dict[str, Any]], folder: Path, rate: float, took: float, incident: str) -> str:
    widths = [max(len(fact[key]) for fact in facts) for key in ("happened", "reported")]
    lines = [f"{'what happened':<{widths[0]}}   {'what driftd reported':<{widths[1]}}"]
    lines += [
        f"{fact['happened']:<{widths[0]}}   {fact['reported']:<{widths[1]}}   {'✓' if fact['right'] else '✗'}"
        for fact in facts
    ]
    shown = folder / "report.html"
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    lines += ["", f"{rate:,.0f} records/s through the whole path, {took:.0f} s in all. Look at it: {shown}"]
    named = f"--settings {shown.parent / SETTINGS_FILE}"
    lines += [f"Ask on: driftd explain {incident} {named}"] if incident else []
    lines += [
        f"        driftd verdict {named}",
        f"        driftd fraud {named}",
        f"        driftd replay {named} --truth {shown.parent / TRUTH_FILE} --try incidents.min_duration=2m",
    ]
    return "\n".join(lines)
