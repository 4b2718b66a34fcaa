"""`driftd verdict`: is the model still good? One word, since when, why, and what nobody can see."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import VerdictRow
    from connectors.database.store import Store
    from monitor.settings import Settings
    from monitor.standing import Standing

MOST_CHANGES = 1000  # of --history
MOST_INCIDENTS = 8  # that are shown as evidence
_WIDE = 110


def verdict(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="only this model")] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="as it was then, event time, such as 2026-01-31T12:00:00Z")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="each time that the word changed, up to --at")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="draw it over time: a file .png or .html", metavar="FILE")
    ] = None,
    retrain_hint: Annotated[
        Path | None,
        typer.Option(
            "--retrain-hint",
            help="name the records that a training set lacks most: a file .jsonl, .csv or .parquet",
            metavar="FILE",
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="with --retrain-hint: records from then on; default: the open drift")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="with --retrain-hint: so many records")] = 200,
    fail_on_alert: Annotated[
        bool, typer.Option("--fail-on-alert", help="exit with 3 if a model is blind, degraded or drifted")
    ] = False,
    json: AsJson = False,
) -> None:
    """Say of each model whether it is still good, why, and what nobody can see.

    Examples: driftd verdict; driftd verdict --model support --history; driftd verdict --retrain-hint lacking.jsonl
    """
    from monitor.app import open_store
    from monitor.settings import load_settings
    from monitor.standing import standing_of, worst_first
    from monitor.times import parse_time

    loaded = load_settings(settings)
    if model is not None:
        loaded.model_named(model)
    names = list(loaded.models) if model is None else [model]
    if since is not None and retrain_hint is None:
        raise InvalidInput("--since belongs to --retrain-hint.", hint="Add: --retrain-hint lacking.jsonl")
    if retrain_hint is not None and (at is not None or history or picture is not None):
        raise InvalidInput("--retrain-hint is of now: leave --at, --history and --picture out.")
    at_ms = None if at is None else parse_time(at)
    with open_store(loaded) as store:
        standings = worst_first([standing_of(loaded, store, name, at_ms=at_ms) for name in names])
        if picture is not None:
            name = loaded.model_named(model)
            _draw(store, name, picture, next(one for one in standings if one.model == name), at_ms=at_ms)
        if retrain_hint is not None:
            _hint(loaded, store, loaded.model_named(model), retrain_hint, since=since, most=most, json=json)
        elif history:
            _history(store, names, at_ms=at_ms, json=json)
        elif json:
            put_json([one.data() for one in standings])
        elif len(standings) == 1:
            put(in_full(standings[0], now_ms=int(time.time() * 1000) if at_ms is None else at_ms))
        else:
            put_table(*table_of(standings))
            say("More of one: driftd verdict --model NAME")
    if fail_on_alert and any(one.alarming for one in standings):
        raise typer.Exit(3)


def in_full(standing: Standing, *, now_ms: int) -> str:
    """Everything about one model, as lines for a terminal: the word and the numbers first.

    Args:
        now_ms: the moment of asking; "since" is told beside it.
    """
    from monitor.amounts import duration
    from monitor.times import text_of
    from monitor.verdict_wording import numbers

    lines = [f"{standing.model}: {standing.word.upper()}"]
    row = standing.row
    if standing.since_ms is not None:
        # What the fold says is over event time, which may be long ago; what stands above it is of now.
        until_ms = row.end_ms if row is not None and standing.word == row.word else now_ms
        lasting = f", for {duration((until_ms - standing.since_ms) / 1000)}" if until_ms > standing.since_ms else ""
        lines[0] += f" since {text_of(standing.since_ms)}{lasting}"
    if row is not None:
        old = ": the numbers are of before" if standing.word != row.word else ""
        ago = f" ({duration((now_ms - row.end_ms) / 1000)} ago{old})" if now_ms > row.end_ms else ""
        lines += [f"  {name:<12} {text}" for name, text in numbers(row)]
        lines += [f"  {'judged up to':<12} {text_of(row.end_ms)}{ago}"]
    if standing.reasons:
        lines += ["", "Because", *(line for reason in standing.reasons for line in _item(reason))]
    if standing.incidents:
        lines += ["", "Evidence"]
        for incident in standing.incidents[:MOST_INCIDENTS]:
            what = incident.title.removeprefix(f"{standing.model}: ")
            lines += _item(f"{incident.id}  {incident.severity}  {what}, since {text_of(incident.onset_ms)}")
        more = len(standing.incidents) - MOST_INCIDENTS
        lines += _item(f"and {more:,} more: driftd incidents --open --model {standing.model}") if more > 0 else []
        first = next((one.id for one in standing.incidents if one.space), standing.incidents[0].id)
        lines += [f"  See what is behind one: driftd explain {first}"]
    if standing.unseen:
        lines += ["", *textwrap.wrap(f"Not seen: {standing.unseen}", _WIDE)]
    if standing.next_step != "nothing":
        lines += ["", f"Next: {_plain(standing.next_step, standing.model)}"]
    return "\n".join(lines)


def table_of(standings: list[Standing]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the list of several models."""
    from monitor.times import text_of
    from monitor.verdict_wording import between, share

    def known(row: VerdictRow | None, name: str) -> bool:
        return row is not None and getattr(row, name) == getattr(row, name)  # NaN is not itself

    lines = []
    for one in standings:
        row = one.row
        lines.append(
            [
                one.word,
                one.model,
                "-" if one.since_ms is None else text_of(one.since_ms),
                between(row.low, row.high) if row is not None and known(row, "low") else "-",
                f"{share(row.realised)} of {row.labels:,}"
                if row is not None and row.labels and known(row, "realised")
                else "-",
                share(row.floor) if row is not None and known(row, "floor") else "-",
                _cut(next(iter(one.reasons), "")),
            ]
        )
    return ["verdict", "model", "since", "right, estimated", "right, measured", "floor", "why"], lines


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDE, initial_indent="  - ", subsequent_indent="    ")


def _plain(next_step: str, model: str) -> str:
    """Without backquotes, and with the model named where `driftd verdict` or an incident is meant."""
    return next_step.replace("`", "").replace("driftd verdict", f"driftd verdict --model {model}")


def _cut(text: str) -> str:
    return textwrap.shorten(text, 100, placeholder=" ...")


def _history(store: Store, names: list[str], *, at_ms: int | None, json: bool) -> None:
    from monitor.amounts import duration
    from monitor.times import text_of
    from monitor.verdict_wording import between, share

    changes = {name: store.verdict_changes(name, to_ms=at_ms, limit=MOST_CHANGES) for name in names}
    if json:
        put_json([{"model": name, **dataclasses.asdict(row)} for name, rows in changes.items() for row in rows])
        return
    lines = []
    for name, rows in changes.items():
        newest = store.verdict(name, at_ms=at_ms)
        for row, after in itertools.zip_longest(rows, rows[1:]):
            until_ms = after.start_ms if after is not None else max(row.end_ms, newest.end_ms if newest else 0)
            lines.append(
                [
                    text_of(row.start_ms),
                    name,
                    row.word,
                    duration((until_ms - row.start_ms) / 1000),
                    between(row.low, row.high) if row.low == row.low else "-",
                    share(row.realised) if row.labels and row.realised == row.realised else "-",
                    _cut(next(iter(row.reasons), "")),
                ]
            )
    if not lines:
        say("No block has been judged yet.")
        return
    put_table(["from", "model", "verdict", "for", "right, estimated", "right, measured", "why"], sorted(lines))


def _draw(store: Store, model: str, path: Path, standing: Standing, *, at_ms: int | None) -> None:
    from dashboards.verdict_picture import write_verdict
    from monitor.verdict_drawing import verdict_section

    section = verdict_section(store, standing, to_ms=at_ms)
    if section is None:
        raise InvalidInput(f"No block of {model} has been judged, so there is nothing to draw.", hint="driftd run")
    write_verdict(path, model, section)
    say(f"Wrote {path}.")


def _hint(
    settings: Settings, store: Store, model: str, path: Path, *, since: str | None, most: int, json: bool
) -> None:
    from monitor.retrain_hint import hint_of, write_hint
    from monitor.times import parse_time

    found = hint_of(settings, store, model, since_ms=None if since is None else parse_time(since), most=most)
    write_hint(path, found)
    if json:
        put_json(found.data())
        return
    for line in found.said:
        say(line)
    say(f"Wrote {len(found.records):,} records to {path}." if found.records else f"Wrote no records to {path}.")
