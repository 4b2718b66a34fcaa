"""`driftd demo`: the whole job on real handwritten digits, with no server.

The parts are the same that `driftd run` uses: the file source, the decoder, the embedders, the references, the
pipeline, the transactions, the fold, the incidents and the report. Only the waiting is left out.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from connectors.database.connection import wall_clock_ms
from connectors.database.store import Store
from dashboards.picture import write_picture
from dashboards.report import write_report
from dashboards.report_data import Comparison, Period
from detectors.errors import InvalidInput
from monitor.app import build_sinks, build_workers, open_store
from monitor.demo_stream import DemoTruth, make_demo
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.references import from_source
from monitor.reporting import report_of
from monitor.settings import Settings, load_settings
from monitor.times import text_of

MODEL = "digit_reader"
BASELINE_RECORDS = 100_000
SETTINGS_FILE = "driftd.yaml"


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
    scoring_s = _score(settings, store)
    say("4/4  The report ...")
    facts = _compare(store, truth)
    unknown = truth.unknown_digit
    report = report_of(
        settings,
        store,
        MODEL,
        truth=[Period(unknown.start_ms, unknown.end_ms, "unknown digit")],
        comparisons=[Comparison(fact["happened"], fact["reported"], fact["right"]) for fact in facts],
        notes={scan.id: scan.damage for scan in truth.damaged},
    )
    write_report(folder / "report.html", report)
    write_picture(folder / "report.png", report)
    took = time.perf_counter() - began
    data = {"seed": seed, "records": truth.stream_records, "facts": facts}
    pages = [row for row in store.incidents(model=MODEL) if row.kind == "drift" and row.severity == "page"]
    incident = min(pages, key=lambda row: row.opened_ms).id if pages else ""
    return DemoResult(_as_text(facts, folder, truth.stream_records / scoring_s, took, incident), data)


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


def _score(settings: Settings, store: Store) -> float:
    """Run the stream through the same worker that `driftd run` uses, and send what came of it. Returns the seconds."""
    (worker,) = build_workers(settings, store)
    worker.start()
    began = time.perf_counter()
    while not worker.step(int(time.time() * 1000), time.monotonic()).finished:
        pass
    worker.close_blocks_at_end(int(time.time() * 1000))
    worker.source.close()
    took = time.perf_counter() - began
    for name, sink in build_sinks(settings).items():
        SinkQueue(name, sink, store, policy=RetryPolicy()).pump(wall_clock_ms, threading.Event())
        sink.close()
    return took


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
    caught = damaged & flagged.keys()
    clean_flags = [
        time_ms
        for record, time_ms in flagged.items()
        if record not in damaged and not unknown.start_ms <= time_ms < unknown.end_ms
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
            "happened": f"clean until {text_of(unknown.start_ms)}",
            "reported": f"{len(before)} false pages",
            "right": not before,
        },
        {
            "happened": f"{len(damaged)} damaged scans, here and there",
            "reported": f"{len(caught)} of them flagged, and {len(clean_flags)} clean records",
            "right": len(caught) >= 0.5 * len(damaged),
        },
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
    lines += [f"Ask on: driftd explain {incident} --settings {shown.parent / SETTINGS_FILE}"] if incident else []
    return "\n".join(lines)
