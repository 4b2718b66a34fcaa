"""`driftd replay`: what other settings would have done with the same traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInput, InvalidSettings
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import IncidentRow
    from connectors.database.store import Store
    from monitor.replay import Replayed
    from monitor.replay_choice import Suggestion
    from monitor.replay_processes import Variant
    from monitor.replay_truth import Judgement, TrueIncident
    from monitor.settings import Settings

MOST_SHOWN = 30  # incidents of the list
ENOUGH_DAYS = 7.0  # from which on a number of pages is said by the month
DAY_MS = 86_400_000


def replay(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    start: Annotated[str | None, typer.Option("--from", help="judge from then on, such as 2026-01-31")] = None,
    end: Annotated[str | None, typer.Option("--to", help="judge up to then")] = None,
    tried: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="KEY=VALUE,...", help="settings to try; again for one more column"),
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--with", metavar="FILE", help="a whole settings file to try; again for more")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="CSV", help="what really happened: start,end[,name,space,segment]")
    ] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="look for better settings, with what happened")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="draw it, into a .png or .html file")
    ] = None,
    database: Annotated[str | None, typer.Option("--database", metavar="URL", help="of another history")] = None,
    json: AsJson = False,
) -> None:
    """What other settings would have done: the stored history again, in memory, without reading records.

    Examples: driftd replay --try alarms.page_every_days=30 --try "drift.tolerance=.1, incidents.min_duration=2m";
    driftd replay --truth incidents.csv --suggest --picture replay.html
    """
    from monitor.cli import one_thread_per_process

    one_thread_per_process()
    from monitor.app import open_store
    from monitor.progress import bar
    from monitor.replay import replay as replay_history
    from monitor.replay_settings import variants_of
    from monitor.replay_truth import judge, read_truth, truth_of
    from monitor.settings import load_settings
    from monitor.times import parse_time

    loaded = load_settings(settings)
    name = loaded.model_named(model)
    if picture is not None:
        from dashboards.whole_file import is_png

        is_png(picture, example="replay")  # refused before the work, not after it
    period = [None if text is None else parse_time(text) for text in (start, end)]
    if period[0] is not None and period[1] is not None and period[0] >= period[1]:
        raise InvalidInput(f"--from {start} --to {end}: it ends before it begins.", hint="The older time is --from.")
    variants = variants_of(loaded, name, tried or [], files or [])
    for variant in variants[1:]:
        _refuse(loaded, variant, name, start, end)
    where = loaded if database is None else loaded.model_copy(update={"database": database})
    _check_there(where.database)
    with open_store(where) as store:
        happened = (
            truth_of(store.incidents(model=name)) if truth is None else read_truth(truth, model=loaded.models[name])
        )
        if suggest and not any(one.known for one in happened):
            raise InvalidInput(
                "Nothing says what really happened, so that no settings are better than others.",
                hint="Give a table, --truth incidents.csv, or say of incidents: driftd incidents --real ID, --false ID",
            )
        with bar("replay") as progress:
            done = replay_history(store, name, variants, from_ms=period[0], to_ms=period[1], progress=progress)
        better = None
        if suggest:
            from monitor.replay_choice import suggest as look_for

            with bar("suggest") as progress:
                better = look_for(store, name, loaded, happened, from_ms=period[0], to_ms=period[1], progress=progress)
        labelled = truth is not None or any(one.known for one in happened)
        span = loaded.incidents.resolve_after  # the same for all, also where they try another one
        columns = [_Column(one, name, judge(one, happened if labelled else [], tolerance=span)) for one in done]
        if picture is not None:
            _draw(picture, store, name, loaded, columns, happened if labelled else [], better)
    if json:
        put_json(_data(name, columns, happened, better, labelled=labelled))
    else:
        _show(columns, labelled=labelled)
        if better is not None:
            _show_suggestion(better)


def _check_there(database: str) -> None:
    """Refuse a file that does not exist: nothing is written, not even an empty database."""
    file = database.removeprefix("sqlite:///")
    if file != database and not Path(file).exists():
        raise InvalidInput(
            f"There is no database {file}.",
            hint="It comes of driftd run, and of history by driftd backfill; another one: --database URL",
        )


def _refuse(settings: Settings, variant: Variant, model: str, start: str | None, end: str | None) -> None:
    """Say what takes the records themselves, and what has no effect at all."""
    from monitor.replay_settings import needs_vectors, without_effect

    needs = needs_vectors(settings, variant.settings, model, period=(start or "T", end or "T"))
    if needs:
        raise InvalidSettings(
            f'"{variant.name}" cannot be answered from what is stored: it takes the records themselves.', problems=needs
        )
    for key in without_effect(settings, variant.settings, model):
        say(f'"{variant.name}": no alarm of the past depends on {key}.')


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """One variant with how right it was."""

    replayed: Replayed
    model: str
    judgement: Judgement

    @property
    def days(self) -> float:
        start_ms, end_ms = self.replayed.judged_ms
        return (end_ms - start_ms) / DAY_MS

    @property
    def expected_a_month(self) -> float:
        """False pages in 30 days that the budget allows this model at most."""
        from monitor.budget import share_of_space

        settings = self.replayed.settings
        share = sum(share_of_space(settings, self.model, space) for space in settings.models[self.model].spaces)
        return 30.0 / settings.page_every_days * share

    @property
    def open_share(self) -> float:
        """Share of the judged time in which people knew of a page."""
        from monitor.replay_truth import stretches_of

        start_ms, end_ms = self.replayed.judged_ms
        pages = sorted(
            (max(one.start_ms, start_ms), min(one.end_ms or end_ms, end_ms))
            for row in self.replayed.incidents
            for one in stretches_of(row)
            if one.severity == "page"
        )
        total, reached = 0, start_ms
        for begin, end in pages:
            total += max(end - max(begin, reached), 0)
            reached = max(reached, end)
        return total / (end_ms - start_ms)


def _show(columns: Sequence[_Column], *, labelled: bool) -> None:
    from monitor.times import text_of

    first = columns[0].replayed
    say(f"{text_of(first.judged_ms[0])} to {text_of(first.judged_ms[1])}, in {resolution_in_words(first.resolution)}.")
    heads = ["settings", "pages", "warnings"]
    heads += ["caught", "missed", "false pages"] if labelled else []
    fraud = any(one.replayed.alerts or one.replayed.unlisted for one in columns)
    heads += ["false expected at most", "page open", *(["fraud alerts"] if fraud else [])]
    put_table(heads, [_line(one, labelled=labelled, fraud=fraud) for one in columns])
    put("")
    _show_incidents(columns)
    for one in columns[1:]:
        put(in_words(columns[0].judgement, one.judgement, one.replayed.name, labelled=labelled))
    for note in (*first.notes, *_left_out(columns[0].judgement)):
        say(f"Note: {note}")


def _left_out(found: Judgement) -> list[str]:
    """What the numbers are not about."""
    notes = []
    if found.outside:
        lie = "true incident lies" if found.outside == 1 else "true incidents lie"
        notes.append(f"{found.outside} {lie} outside of the replayed time: not counted.")
    if found.unsaid:
        pages = "page is" if found.unsaid == 1 else "pages are"
        notes.append(
            f"{found.unsaid} {pages} neither right nor false as now, because nobody said whether they were real: "
            "driftd incidents --real ID, --false ID."
        )
    return notes


def _line(column: _Column, *, labelled: bool, fraud: bool) -> list[str]:
    from monitor.amounts import duration, percent

    found = column.judgement
    cells = [column.replayed.name, str(found.pages), str(found.warnings)]
    if labelled:
        monthly = f", {found.false_a_month:.2g} a month" if column.days >= ENOUGH_DAYS else ""
        cells += [f"{found.caught} of {found.of}", duration(found.missed_s), f"{found.false_pages}{monthly}"]
    cells += [f"{column.expected_a_month:.2g} a month", percent(column.open_share)]
    return [*cells, *([f"{column.replayed.alerts:,}"] if fraud else [])]


def in_words(now: Judgement, then: Judgement, name: str, *, labelled: bool) -> str:
    """What a change would have done, in a sentence."""
    times = f"{then.pages} time{'s'[: then.pages != 1]}"
    said = f'"{name}" would have paged {times}'
    said += f" instead of {now.pages}" if then.pages != now.pages else ", as now"
    if labelled:
        said += f", and caught {then.caught} of {then.of} of your labelled incidents"
        said += f" instead of {now.caught}" if then.caught != now.caught else ""
    return f"{said}."


def resolution_in_words(resolution: Sequence[tuple[int, int, float]]) -> str:
    """How finely history is stored: "blocks of 10 s since 2026-01-30 00:00:00Z, 80 s before"."""
    from monitor.amounts import duration
    from monitor.times import text_of

    newest = resolution[-1]
    if len({seconds for _, _, seconds in resolution}) == 1:
        return f"blocks of {duration(newest[2])}"
    parts = [f"blocks of {duration(newest[2])} since {text_of(newest[0])}"]
    coarsest = newest[2]
    for _, _, seconds in reversed(resolution[:-1]):
        if seconds > coarsest:
            parts.append(f"{duration(seconds)} before that" if parts[1:] else f"{duration(seconds)} before")
            coarsest = seconds
    return ", ".join(parts)


def _show_suggestion(better: Suggestion) -> None:
    from monitor.replay_choice import in_words as said
    from monitor.replay_choice import table_of, yaml_of

    put("")
    put_table(*table_of(better))
    for sentence in said(better):
        put(sentence)
    if better.chosen is not None and better.holds is not False:
        put(f"To take it over, in the settings file:\n{yaml_of(better.chosen.candidate)}")


def _draw(
    path: Path,
    store: Store,
    model: str,
    settings: Settings,
    columns: Sequence[_Column],
    happened: Sequence[TrueIncident],
    better: Suggestion | None,
) -> None:
    from dashboards.replay_picture import write_replay
    from monitor.replay_choice import in_words as of_suggestion
    from monitor.replay_drawing import picture_of

    labelled = bool(columns[0].judgement.of)
    said = [in_words(columns[0].judgement, one.judgement, one.replayed.name, labelled=labelled) for one in columns[1:]]
    said += [] if better is None else of_suggestion(better)
    replays = [(one.replayed, one.judgement) for one in columns]
    write_replay(path, picture_of(store, model, settings, replays, happened, said=said, suggestion=better))
    say(f"{path} shows it.")


# --- incidents --------------------------------------------------------------------------------------------------------


def _show_incidents(columns: Sequence[_Column]) -> None:
    """The incidents that would have paged under any of the settings, each with what every one of them says."""
    from monitor.times import text_of

    groups = [group for group in groups_of(columns) if any(row is not None and _pages(row) for row in group)]
    if not groups:
        put("No pages.")
        return
    lines = []
    for group in groups[:MOST_SHOWN]:
        row = min((row for row in group if row is not None), key=lambda row: row.opened_ms)
        said = [_said(found, row.opened_ms) for found in group]
        marks = [mark_of(group[0], found) for found in group[1:]]
        cells = [said[0]]
        for text, mark in zip(said[1:], marks, strict=True):
            cells.append("same" if mark == "same" and text == said[0] else f"{text} ({mark})" if mark else text)
        lines.append([text_of(row.opened_ms), row.kind, "/".join(filter(None, (row.space, row.segment))), *cells])
    put_table(["opened", "kind", "where", *(one.replayed.name for one in columns)], lines)
    if len(groups) > MOST_SHOWN:
        say(f"and {len(groups) - MOST_SHOWN:,} more; all of them: --json")
    put("")


def groups_of(columns: Sequence[_Column]) -> list[list[IncidentRow | None]]:
    """Incidents that people would have been told of, in the order of time: those of the same reason that overlap are
    one, however many settings saw it. Of each, the first one of every variant.
    """
    from monitor.replay_truth import stretches_of

    rows = sorted(
        (
            (row, place)
            for place, column in enumerate(columns)
            for row in column.replayed.incidents
            if stretches_of(row)
        ),
        key=lambda found: (found[0].opened_ms, found[1], found[0].id),
    )
    groups: list[list[IncidentRow | None]] = []
    latest: dict[tuple[str, str, str], tuple[int, float]] = {}  # the group of each reason, and when it ends
    for row, place in rows:
        key = row.kind, row.space, row.segment
        end_ms = float("inf") if row.resolved_ms is None else row.resolved_ms
        at, until_ms = latest.get(key, (-1, -1.0))
        if row.opened_ms > until_ms:
            at = len(groups)
            groups.append([None] * len(columns))
            until_ms = end_ms
        latest[key] = at, max(until_ms, end_ms)
        known = groups[at][place]
        if known is None or (_pages(row) and not _pages(known)):
            groups[at][place] = row
    return groups


def mark_of(now: IncidentRow | None, then: IncidentRow | None) -> str:
    """What became of an incident under other settings: "same", "new" or "gone", or how its urgency changed."""
    if now is None or then is None:
        return "" if now is then else "gone" if then is None else "new"
    if _pages(now) == _pages(then):
        return "same"
    return "raised" if _pages(then) else "lowered"


def _pages(row: IncidentRow) -> bool:
    return row.severity == "page"


def _said(row: IncidentRow | None, opened_ms: int) -> str:
    """How urgent an incident was, when it was opened after the first one of its group, and how long it was open."""
    from monitor.amounts import duration

    if row is None:
        return "-"
    later_s = (row.opened_ms - opened_ms) / 1000
    open_s = None if row.resolved_ms is None else (row.resolved_ms - row.opened_ms) / 1000
    after = f" {duration(later_s)} later" if later_s else ""
    return f"{row.severity}{after}, {'still open' if open_s is None else f'for {duration(open_s)}'}"


# --- for programs -----------------------------------------------------------------------------------------------------


def _data(
    model: str,
    columns: Sequence[_Column],
    happened: Sequence[TrueIncident],
    better: Suggestion | None,
    *,
    labelled: bool,
) -> dict[str, Any]:
    from monitor.replay_choice import data_of as suggestion_data

    first = columns[0].replayed
    return {
        "model": model,
        "from_ms": first.judged_ms[0],
        "to_ms": first.judged_ms[1],
        "resolution": [
            {"from_ms": start_ms, "to_ms": end_ms, "block_s": seconds} for start_ms, end_ms, seconds in first.resolution
        ],
        "notes": first.notes,
        "true_incidents": sum(one.known for one in happened),
        "settings": [_column_data(one, labelled=labelled) for one in columns],
        **({} if better is None else {"suggestion": suggestion_data(better)}),
    }


def _column_data(column: _Column, *, labelled: bool) -> dict[str, Any]:
    found, done = column.judgement, column.replayed
    right = {
        "caught": found.caught,
        "of": found.of,
        "missed_s": found.missed_s,
        "delay_s": found.delay_s,
        "false_pages": found.false_pages,
        "false_pages_a_month": found.false_a_month,
        "repeated_pages": found.repeated,
    }
    return {
        "name": done.name,
        "pages": found.pages,
        "warnings": found.warnings,
        **(right if labelled else {}),
        "expected_false_pages_a_month": column.expected_a_month,
        "page_open_share": column.open_share,
        "fraud_alerts": done.alerts,
        "fraud_hits_beyond": done.unlisted,
        "notifications": [notification.id for notification in done.told],
        "incidents": [_incident_data(row) for row in done.incidents],
    }


def _incident_data(row: IncidentRow) -> dict[str, Any]:
    names = (
        "id",
        "kind",
        "space",
        "segment",
        "severity",
        "status",
        "opened_ms",
        "onset_ms",
        "resolved_ms",
        "reference",
    )
    return {**{name: getattr(row, name) for name in names}, "told": row.detail.get("told", [])}
