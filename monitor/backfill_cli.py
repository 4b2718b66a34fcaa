"""`driftd backfill`: score history that does not count yet."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import BackfillRow
    from connectors.database.store import Store
    from connectors.records import Source
    from monitor.backfill import Job, Runner
    from monitor.backfill_plan import Plan
    from monitor.history import Found
    from monitor.settings import Settings

NICE = 10  # beside a daemon, a backfill takes the processor time that is left over
SAID_S = 30.0  # between two lines of progress where there is no terminal


def backfill(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="begin, such as 2026-01-31T00:00:00Z; default: the first record")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="end; default: the last record that is there now")] = None,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="URL", help="a trial: score into a database of its own, and tell nobody"),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", metavar="SPACE=VERSION", help="of a trial: compare with this one"),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=1, help="most records a second")] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS|N", help="score on a Dask cluster, or on N processes of this machine"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how many records, and how long")] = False,
    listed: Annotated[bool, typer.Option("--list", help="what was scored of history so far")] = False,
    given_up: Annotated[
        bool, typer.Option("--give-up", help="end what was begun where it stands: what was scored stays, and counts")
    ] = False,
    json: AsJson = False,
) -> None:
    """Score history as live records are scored. Each record counts once; a rerun goes on, or has nothing to do.

    Examples: driftd backfill --from 2026-01-01 --to 2026-02-01 --dry-run; driftd backfill --into sqlite:///trial.db
    """
    from monitor.app import build_history, open_store
    from monitor.cli import one_thread_per_process
    from monitor.settings import load_settings
    from monitor.times import parse_time

    loaded = load_settings(settings)
    name = loaded.model_named(model)
    versions = dict(map(_space_and_version, reference or ()))
    if versions and into is None:
        raise InvalidInput(
            "History counts against the references in use: --reference is for trials.",
            hint="Add: --into sqlite:///trial.db",
        )
    one_thread_per_process()
    from monitor import backfill as jobs
    from monitor.backfill_plan import begin, plan_backfill

    with ExitStack() as stack:
        store, acting, live = stack.enter_context(open_store(loaded)), loaded, None
        if into is not None:
            if dry_run:  # it writes nothing, so its trial is thrown away
                into = f"sqlite:///{stack.enter_context(TemporaryDirectory(prefix='driftd-'))}/trial.db"
            acting, live = jobs.trial_settings(loaded, into), store
            store = stack.enter_context(open_store(acting))
            jobs.prepare_trial(acting, name, live, store, versions)
        if listed:
            _list(store, name, json=json)
            return
        source = build_history(name, acting.models[name])
        stack.callback(source.close)
        if given_up:
            _give_up(name, acting, store, source)
            return
        plan = plan_backfill(
            acting,
            name,
            store,
            source,
            from_ms=None if start is None else parse_time(start),
            to_ms=None if end is None else parse_time(end),
            now_ms=int(time.time() * 1000),
        )
        for note in plan.notes:
            say(f"Note: {note}")
        if dry_run:
            _rehearse(plan, acting, store, source, json=json)
            return
        if not plan.rows:
            say(f"Nothing to do: all {plan.counted:,} offsets in that range count already.")
            if json:
                put_json({"model": name, "records": 0, "counted": plan.counted, "incidents": []})
            return
        begin(plan, store)
        os.nice(NICE)
        _run(plan, acting, store, source, live=live, rate=rate, dask=dask, json=json)


def _run(
    plan: Plan,
    settings: Settings,
    store: Store,
    source: Source,
    *,
    live: Store | None,
    rate: float | None,
    dask: str | None,
    json: bool,
) -> None:
    from monitor import backfill as jobs

    founds: list[Found] = []
    taken_over = False
    began = time.monotonic()
    with _stopping() as stopping:
        for row in plan.rows:
            if row.id in plan.known:
                say(f"Backfill {row.id} was begun before: it goes on.")
            job = jobs.job_of(row, settings, store, live=live)
            if not job.range.joins:
                say(
                    "Note: blocks of live records that follow were added up since (retention.merge_summaries), so "
                    "alarms do not go on from this history into them, and records that belong into them count as late."
                )
            with _runner(job, settings, store, source, dask) as runner:
                founds.append(runner.found)
                try:
                    with _progress(job) as progress:
                        finished = jobs.run_job(job, runner, store, stopping=stopping, progress=progress, rate=rate)
                except jobs.TakenOver as error:
                    say(f"{error.message} {error.hint}")
                    finished = taken_over = True
            if not finished:
                say("Stopped. What was scored stays, and counts. The same command goes on from here.")
                raise typer.Exit(130)
        left = jobs.tell(settings, store, stopping)
    _say_found(plan, founds, time.monotonic() - began, taken_over=taken_over, json=json)
    if left:
        say(f"{left} incidents wait to be shown in Grafana: driftd run sends them.")


def _give_up(name: str, settings: Settings, store: Store, source: Source) -> None:
    from monitor import backfill as jobs

    begun = [row for row in store.backfills(name) if row.status == "scoring"]
    for row in begun:
        job = jobs.job_of(row, settings, store)
        jobs.give_up(job, jobs.local_runner(job, settings, store, source), store)
        say(f"Backfill {row.id} is given up. What was scored counts; the rest of its offsets is free again.")
    if not begun:
        say("There is no backfill to give up: none was begun and left unfinished.")


@contextmanager
def _runner(job: Job, settings: Settings, store: Store, source: Source, dask: str | None) -> Iterator[Runner]:
    from monitor.backfill import local_runner

    if dask is None:
        yield local_runner(job, settings, store, source)
        return
    from monitor.distributed import distributed_runner

    with distributed_runner(job, settings, store, source, cluster=dask) as runner:
        yield runner


def _rehearse(plan: Plan, settings: Settings, store: Store, source: Source, *, json: bool) -> None:
    from monitor.backfill import rehearse

    expected = rehearse(plan, settings, store, source)
    seconds = expected.records / expected.rate if expected.rate else 0.0
    if json:
        facts = {"records": expected.records, "rate": round(expected.rate), "seconds": round(seconds)}
        put_json({**facts, "counted": plan.counted, "backfills": len(plan.rows)})
        return
    if not plan.rows:
        put(f"Nothing to do: all {plan.counted:,} offsets in that range count already.")
        return
    put(f"About {expected.records:,} records to score; {plan.counted:,} offsets count already.")
    put(
        f"Scoring takes {_length(seconds)} at {expected.rate:,.0f} records/s, as measured on a sample here. Storing "
        "and folding blocks comes on top: little where they hold hundreds of records, several times as much where they "
        "hold few, or there are many segments."
    )
    say("Nothing was written. Without --dry-run it begins.")


def _say_found(plan: Plan, founds: list[Found], seconds: float, *, taken_over: bool, json: bool) -> None:
    from monitor.times import text_of

    incidents = sorted(
        {number: row for found in founds for number, row in found.incidents.items()}.values(),
        key=lambda row: (row.opened_ms, row.id),
    )
    records, late = sum(found.records for found in founds), sum(found.late for found in founds)
    dead = sum(found.dead.total() for found in founds)
    if json:
        put_json(
            {
                "model": plan.rows[0].model,
                "records": records,
                "counted": plan.counted,
                "dead": dead,
                "late": late,
                "taken_over": taken_over,
                "seconds": round(seconds, 3),
                "incidents": [
                    {"id": row.id, "kind": row.kind, "severity": row.severity, "onset_ms": row.onset_ms}
                    for row in incidents
                ],
            }
        )
        return
    say(
        f"Scored {records:,} records in {_length(seconds)} ({records / max(seconds, 1e-9):,.0f} records/s): "
        f"{dead:,} dead letters, {late:,} late, {sum(found.flagged for found in founds):,} flagged, "
        f"{len(incidents)} incident{'' if len(incidents) == 1 else 's'}."
    )
    if incidents:
        put_table(
            ["incident", "severity", "since", "until", "what"],
            [
                [
                    row.id,
                    row.severity,
                    text_of(row.onset_ms),
                    "" if row.resolved_ms is None else text_of(row.resolved_ms),
                    row.title,
                ]
                for row in incidents
            ],
        )


def _list(store: Store, name: str, *, json: bool) -> None:
    from monitor.times import text_of

    rows = store.backfills(name)
    if json:
        put_json([_facts(row) for row in rows])
        return
    if not rows:
        say("No history was scored yet. Example: driftd backfill --from 2026-01-01 --dry-run")
        return
    put_table(
        ["backfill", "status", "from", "to", "offsets", "begun", "finished"],
        [
            [
                row.id,
                row.status,
                "" if row.from_ms is None else text_of(row.from_ms),
                "" if row.to_ms is None else text_of(row.to_ms),
                f"{sum(after - first for first, after, _ in row.spans.values()):,}",
                text_of(row.created_ms),
                "" if row.finished_ms is None else text_of(row.finished_ms),
            ]
            for row in rows
        ],
    )


def _facts(row: BackfillRow) -> dict[str, object]:
    spans = [
        {"topic": topic, "number": number, "first": first, "after": after}
        for (topic, number), (first, after, _) in sorted(row.spans.items())
    ]
    times = {"from_ms": row.from_ms, "to_ms": row.to_ms, "created_ms": row.created_ms, "finished_ms": row.finished_ms}
    return {"id": row.id, "model": row.model, "status": row.status, **times, "spans": spans}


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second ends the process at once, which costs nothing but time."""
    event = threading.Event()

    def stop(number: int, frame: object) -> None:
        if event.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        event.set()
        say("Stopping after the next checkpoint; once more to stop at once.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[Runner], None]]:
    """How far it is, how fast, how long it will take, and what was found: a bar on terminals, lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    began, total = time.monotonic(), job.offsets
    if not sys.stderr.isatty():
        said = began

        def line(runner: Runner) -> None:
            nonlocal said
            if time.monotonic() - said >= SAID_S:
                said = time.monotonic()
                say(f"{job.row.id}: {1 - runner.left() / max(total, 1):.0%} read, {_so_far(runner, said - began)}")

        yield line
        return
    columns = (
        TextColumn(job.row.id),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def update(runner: Runner) -> None:
            done = total - runner.left()
            bar.update(task, completed=done, description=_so_far(runner, time.monotonic() - began))

        yield update


def _so_far(runner: Runner, seconds: float) -> str:
    if runner.failure:
        return f"waits: {runner.failure}"
    found = runner.found
    pages = sum(row.severity == "page" for row in found.incidents.values())
    said = [f"{found.records / max(seconds, 1e-9):,.0f} records/s", f"{found.flagged:,} flagged"]
    if found.incidents:
        said.append(f"{len(found.incidents)} incidents ({pages} pages)")
    return ", ".join(said)


def _space_and_version(text: str) -> tuple[str, int]:
    space, _, version = text.partition("=")
    if not space or not version.isdecimal():
        raise InvalidInput(f"--reference {text} names no version of a space.", hint="For example: --reference input=2")
    return space, int(version)


def _length(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
