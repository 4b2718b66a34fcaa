"""`driftd mute`: from when until when nobody is told, and of what."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import MuteRow
    from monitor.settings import Settings

mute_app = typer.Typer()

MOST_SHOWN = 10  # incidents that a new mute names


@mute_app.callback(invoke_without_command=True)
def mute(
    context: typer.Context,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="of this model")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="of this kind, such as drift")] = None,
    space: Annotated[str | None, typer.Option("--space", help="in this space")] = None,
    segment: Annotated[str | None, typer.Option("--segment", help="in this segment, such as country=de")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all there is")] = False,
    lasting: Annotated[str | None, typer.Option("--for", help="how long, such as 2h")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="begin, such as 2026-01-31T22:00:00Z; now by default")
    ] = None,
    end: Annotated[str | None, typer.Option("--until", help="end, instead of --for")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="why, for the others")] = None,
    by: Annotated[str | None, typer.Option("--by", help="who says so; your login name by default")] = None,
    json: AsJson = False,
) -> None:
    """Tell nobody of some incidents for a while. They are listed as ever, and told if they outlast the mute.

    Examples: driftd mute --model support_triage --for 2h --reason "the topic moves"; driftd mute list;
    driftd mute end 4f1c9a20
    """
    if context.invoked_subcommand is not None:
        sources = map(context.get_parameter_source, context.params)
        if any(source is not None and source.name == "COMMANDLINE" for source in sources):
            command = context.invoked_subcommand
            raise InvalidInput(
                f"driftd mute {command} takes its options after its name.", hint=f"See: driftd mute {command} --help"
            )
        return
    from monitor.app import open_store
    from monitor.incident_list import login_name
    from monitor.settings import load_settings

    now_ms = _now_ms()
    loaded = load_settings(settings)
    check_names(loaded, model=model, kind=kind, space=space, segment=segment)
    if everything == any((model, kind, space, segment)):
        raise InvalidInput(
            "Mute what?", hint="Name it by --model, --kind, --space or --segment; or mute everything: --all"
        )
    if not reason:
        raise InvalidInput("Why? The others will ask.", hint='Say it: --reason "the topic moves"')
    from_ms, until_ms = interval(now_ms, lasting=lasting, start=start, end=end)
    from connectors.database.rows import MuteRow

    row = MuteRow(
        id=secrets.token_hex(4),
        model=model or "",
        kind=kind or "",
        space=space or "",
        segment=segment or "",
        from_ms=from_ms,
        until_ms=until_ms,
        reason=reason,
        by=by or login_name(),
        created_ms=now_ms,
    )
    with open_store(loaded) as store:
        store.add_mute(row)
        covered = [
            incident.title
            for incident in store.incidents(status="open")
            if row.covers(incident) and incident.detail.get("quiet") is not True
        ]
    if json:
        put_json(row)
        return
    from monitor.times import text_of

    say(f"Mute {row.id}: {about(row)}, from {text_of(from_ms)} until {text_of(until_ms)}.")
    for title in covered[:MOST_SHOWN]:
        say(f"  Open now, and told to nobody meanwhile: {title}")
    if len(covered) > MOST_SHOWN:
        say(f"  And {len(covered) - MOST_SHOWN} more: driftd incidents --open")
    if not covered:
        say("  Nothing of it is open now.")
    say(f"End it: driftd mute end {row.id}")


@mute_app.command("list")
def list_mutes(
    settings: SettingsPath = DEFAULT_SETTINGS,
    everything: Annotated[bool, typer.Option("--all", help="those that are over, too")] = False,
    json: AsJson = False,
) -> None:
    """List the mutes in force and to come. Example: driftd mute list --all"""
    from monitor.app import open_store
    from monitor.settings import load_settings
    from monitor.times import text_of

    now_ms = _now_ms()
    with open_store(load_settings(settings)) as store:
        rows = [row for row in store.mutes(None) if everything or row.until_ms > now_ms]
    if json:
        put_json(rows)
    elif not rows:
        say("No mutes.")
    else:
        put_table(
            ["id", "now", "from", "until", "of", "by", "reason"],
            [
                [row.id, _now(row, now_ms), text_of(row.from_ms), text_of(row.until_ms), about(row), row.by, row.reason]
                for row in rows
            ],
        )


@mute_app.command("end")
def end_mute(
    mute: Annotated[str, typer.Argument(metavar="ID", help="of the mute, as in the list")],
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """End a mute now: what it held back and still goes on is told. Example: driftd mute end 4f1c9a20"""
    from monitor.app import open_store
    from monitor.settings import load_settings

    with open_store(load_settings(settings)) as store:
        row = store.end_mute(mute, _now_ms())
    put(f"Mute {row.id} is over: {about(row)}.")


def check_names(
    settings: Settings, *, model: str | None, kind: str | None, space: str | None, segment: str | None
) -> None:
    """Raise InvalidInput for a name that the settings do not have: a mute of nothing would let everything through."""
    from monitor.incidents import KINDS
    from monitor.operations import DEPLOYMENT

    # Incidents that are about no model bear the deployment's name, and their segments are no fields.
    _check("model", model, (*settings.models, DEPLOYMENT))
    _check("kind", kind, KINDS)
    models = [entry for name, entry in settings.models.items() if model in (None, name)]
    _check("space", space, sorted({name for entry in models for name in entry.spaces}))
    if segment is not None and model != DEPLOYMENT:
        field, equals, _ = segment.partition("=")
        if not equals:
            raise InvalidInput(f"{segment} is no segment.", hint="Expected field=value, such as --segment country=de")
        _check("segment field", field, sorted({name for entry in models for name in entry.segment_fields}))


def _check(what: str, name: str | None, known: Iterable[str]) -> None:
    names = list(known)
    if name is None or name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = f"There is: {', '.join(names)}." if names else "There is none at all."
    raise InvalidInput(f"There is no {what} {name}.", hint=f"Did you mean {near[0]}? {listed}" if near else listed)


def interval(now_ms: int, *, lasting: str | None, start: str | None, end: str | None) -> tuple[int, int]:
    """From when until when, in milliseconds since 1970.

    Raises:
        InvalidInput: no end, two ends, or an end that is over or not after the begin.
    """
    from monitor.times import parse_time, seconds_of, text_of

    from_ms = now_ms if start is None else parse_time(start)
    if (lasting is None) == (end is None):
        raise InvalidInput("Until when?", hint="Say how long, or until when: --for 2h, or --until 2026-01-31T22:00:00Z")
    if end is not None:
        until_ms = parse_time(end)
    else:
        try:
            seconds = seconds_of(lasting)
        except ValueError as error:
            raise InvalidInput(f"--for {lasting}: {error}.") from error
        assert isinstance(seconds, float)
        until_ms = from_ms + round(seconds * 1000)
    if until_ms <= max(from_ms, now_ms):
        later = "now" if from_ms <= now_ms else f"its begin, {text_of(from_ms)}"
        raise InvalidInput(f"The end, {text_of(until_ms)}, is not after {later}.", hint="For example: --for 2h")
    return from_ms, until_ms


def about(row: MuteRow) -> str:
    """What a mute is about: "drift of support_triage, segment country=de"; "everything"."""
    if not any((row.model, row.kind, row.space, row.segment)):
        return "everything"
    parts = [f"{row.kind or 'everything'}{f' of {row.model}' if row.model else ''}"]
    parts += [f"{name} {value}" for name, value in (("space", row.space), ("segment", row.segment)) if value]
    return ", ".join(parts)


def _now(row: MuteRow, now_ms: int) -> str:
    if row.until_ms <= now_ms:
        return "over"
    return "in force" if row.from_ms <= now_ms else "to come"


def _now_ms() -> int:
    return int(time.time() * 1000)
