"""`driftd bootstrap`: settings, a reference and a test of the alarms from a topic or files, in one command."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInput, InvalidSettings
from monitor.terminal import DEFAULT_SETTINGS, AsJson, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import ReferenceRow
    from monitor.bootstrap import Bootstrapped, Test
    from monitor.bootstrap_look import Looked
    from monitor.settings import Settings
    from monitor.sniff import Sniffed

_DAY_MS = 86_400_000
_SNIFFED = 500  # records that the mapping is found in
_SHOWN = 10  # incidents, and bursts

Progress = Callable[[str, float], None]


def bootstrap(
    place: Annotated[
        str | None, typer.Option("--from", metavar="TOPIC|FILES", help="a topic, or files such as 'data/*.parquet'")
    ] = None,
    brokers: Annotated[str, typer.Option("--brokers", help="of the topic")] = "localhost:9092",
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="URL", help="of schemas, where records are framed with them")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", "-s", help="settings that there are already, instead of --from")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="which model, if there are several; with --from, what to call it")
    ] = None,
    days: Annotated[float, typer.Option("--days", min=0.01, help="how far to look back")] = 14.0,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="T/T", help="leave a stretch out of the baseline; may be repeated"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="settings file to write")] = DEFAULT_SETTINGS,
    force: Annotated[
        bool, typer.Option("--force", help="write over the file, or replace the reference that is there")
    ] = False,
    json: AsJson = False,
) -> None:
    """Settings, a reference and a test of the alarms, all from history. Nobody is told of anything.

    Examples: driftd bootstrap --from requests --days 14; driftd bootstrap --from 'data/*.parquet';
    driftd bootstrap --settings driftd.yaml --days 30
    """
    if (place is None) == (settings is None):
        raise InvalidInput(
            "Where are the records?",
            hint="Name a topic or files: driftd bootstrap --from requests; or settings: --settings driftd.yaml",
        )
    from monitor.cli import one_thread_per_process

    one_thread_per_process()
    left_out = [_interval(text) for text in without or ()]
    if place is not None:
        if output.exists() and not force:
            raise InvalidInput(
                f"{output} exists already.",
                hint=f"Name another file: --output {output.stem}-2.yaml; write over it: --force; "
                f"or use what it says: driftd bootstrap --settings {output}",
            )
        if output.is_dir() or not os.access(output.parent, os.W_OK):  # before minutes of work
            raise InvalidSettings(f"{output} cannot be written.", hint="Name another: --output")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the temporary folder goes then, too
    try:
        if place is not None:
            _from_records(
                place, brokers, registry, model, days=days, without=left_out, output=output, force=force, json=json
            )
        elif settings is not None:
            _from_settings(settings, model, days=days, without=left_out, force=force, json=json)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interval(text: str) -> tuple[int, int]:
    from monitor.times import parse_time

    begin, mark, end = text.partition("/")
    if not mark:
        raise InvalidInput(f"--without {text}: expected two times.", hint="Such as 2026-01-31T12:00/2026-01-31T13:00")
    found = parse_time(begin), parse_time(end)
    if found[0] >= found[1]:
        raise InvalidInput(f"--without {text}: it ends before it begins.", hint="FROM/TO, the older time first.")
    return found


# --- the two ways -----------------------------------------------------------------------------------------------------


def _from_records(
    place: str,
    brokers: str,
    registry: str | None,
    model: str | None,
    *,
    days: float,
    without: list[tuple[int, int]],
    output: Path,
    force: bool,
    json: bool,
) -> None:
    from pydantic import ValidationError

    from connectors.schema_registry import SchemaSettings
    from monitor.bootstrap_look import decode
    from monitor.bootstrap_settings import (
        block_of,
        content_of,
        lateness_of,
        model_name_of,
        source_of,
        text_of_settings,
    )
    from monitor.progress import steps
    from monitor.settings import load_settings
    from monitor.sniff import sniff

    name = model or model_name_of(place)
    source = source_of(place, brokers)
    try:
        schemas = None if registry is None else SchemaSettings.model_validate({"url": registry})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"--registry: {problem}.", hint="Such as http://registry:8081") from error
    with tempfile.TemporaryDirectory(prefix="driftd-bootstrap-") as made, steps() as progress:
        folder = Path(made)

        def loaded(content: dict[str, Any], found: Sniffed, comments: dict[tuple[str, ...], str]) -> Settings:
            head = [
                f"Made by: driftd bootstrap --from {place} --days {days:g}",
                "Check it: driftd check. Then: driftd run",
            ]
            file = folder / "driftd.yaml"
            file.write_text(text_of_settings(content, name, found, head=head, comments=comments), encoding="utf-8")
            return load_settings(file)

        nothing = {"time": "/none"} if source["kind"] == "files" else {}
        spaces = {"any": {"embedder": {"kind": "vector", "field": "/none"}}}
        bare = _sniffed({"record": nothing, "spaces": spaces})
        looked = _looked(loaded(content_of(name, source, bare), bare, {}), name, days, progress)
        found = sniff(looked.some(_SNIFFED), schemas=schemas)
        if "pair" in found.record:  # halves that follow one another are needed together
            looked = _looked(loaded(content_of(name, source, found), found, {}), name, days, progress, paired=True)
        if source["kind"] == "files":
            source = source | {"follow": True}
        draft = loaded(content_of(name, source, found), found, {})
        sample = decode(looked, draft.models[name], progress=progress)
        seconds = (int(sample.time_ms[-1]) - int(sample.time_ms[0])) / 1000
        block_s, lateness_s = block_of(looked.records, seconds), lateness_of(sample.disorder_ms)
        each = looked.records * block_s / max(seconds, 1.0)
        comments = {
            ("database",): "or postgresql+psycopg://user@host/name (pip install 'driftd[postgres]')",
            ("references",): "what normal looks like, one numbered folder for each version",
            ("models", name, "drift", "block"): f"some {each:,.0f} records on average",
            ("models", name, "drift", "lateness"): f"999 of 1,000 come within {sample.disorder_ms / 1000:,.0f} s",
            ("alarms", "page_every_days"): "one false page in so many days, all models together",
        }
        if source.get("follow"):
            comments["models", name, "source", "follow"] = "goes on with what is appended, and with new files"
        content = content_of(name, source, found, block_s=block_s, lateness_s=lateness_s)
        chosen = loaded(content, found, comments)
        result = _run(chosen, name, looked, folder, days=days, without=without, force=force, progress=progress)
        text = (folder / "driftd.yaml").read_text(encoding="utf-8")
        part = _written_beside(output, text)
        try:
            rows = _taken_over(result, chosen)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
    _tell(result, rows, found=found, settings_file=output, days=days, json=json)


def _from_settings(
    path: Path, model: str | None, *, days: float, without: list[tuple[int, int]], force: bool, json: bool
) -> None:
    from monitor.progress import steps
    from monitor.settings import load_settings

    settings = load_settings(path)
    name = settings.model_named(model)
    with tempfile.TemporaryDirectory(prefix="driftd-bootstrap-") as made, steps() as progress:
        paired = settings.models[name].record.pair is not None
        looked = _looked(settings, name, days, progress, paired=paired)
        result = _run(settings, name, looked, Path(made), days=days, without=without, force=force, progress=progress)
        rows = _taken_over(result, settings)
    _tell(result, rows, found=None, settings_file=path, days=days, json=json)


def _sniffed(parts: dict[str, Any]) -> Sniffed:
    from monitor.sniff import Sniffed

    return Sniffed(record=parts["record"], spaces=parts["spaces"])


def _looked(settings: Settings, name: str, days: float, progress: Progress, *, paired: bool = False) -> Looked:
    from connectors.kafka import KafkaSettings
    from monitor.app import build_history
    from monitor.bootstrap_look import look

    model = settings.models[name]
    # By the broker's time: a topic goes back from now. Files go back from their newest record, which is in them.
    now_ms = int(time.time() * 1000)
    where = model.history or model.source
    start_ms = now_ms - round(days * _DAY_MS) if isinstance(where, KafkaSettings) else None
    source = build_history(name, model)
    try:
        return look(source, where, start_ms=start_ms, progress=progress, paired=paired)
    finally:
        source.close()


def _run(
    settings: Settings,
    name: str,
    looked: Looked,
    folder: Path,
    *,
    days: float,
    without: list[tuple[int, int]],
    force: bool,
    progress: Progress,
) -> Bootstrapped:
    from monitor.app import check_references_folder, open_store
    from monitor.bootstrap import bootstrap as from_history
    from monitor.bootstrap import next_versions

    check_references_folder(settings.references)
    versions = dict.fromkeys(settings.models[name].reference_spaces, 1)
    sqlite = settings.database.removeprefix("sqlite:///")
    if sqlite == settings.database or Path(sqlite).exists():  # else there is no database yet, and maybe never will be
        with open_store(settings) as store:
            active = store.active_reference(name, next(iter(settings.models[name].spaces)))
            if active is not None and not force:
                raise InvalidInput(
                    f"Model {name} has a reference already, version {active.version}.",
                    hint="Replace it: --force. Call the model something else: --model NAME. Look at it: "
                    "driftd reference list",
                )
            versions = next_versions(name, settings, store)
    return from_history(
        name, settings, looked, folder=folder, versions=versions, days=days, without=without, progress=progress
    )


def _taken_over(result: Bootstrapped, settings: Settings) -> list[ReferenceRow]:
    from monitor.bootstrap import take_over

    return take_over(result, settings)


def _written_beside(path: Path, text: str) -> Path:
    """What becomes a file in one step once the references are there, so that it is never there in part."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be written: {error.strerror}.", hint="Name another: --output") from error
    return part


# --- what is said -----------------------------------------------------------------------------------------------------


def _tell(
    result: Bootstrapped,
    rows: list[ReferenceRow],
    *,
    found: Sniffed | None,
    settings_file: Path,
    days: float,
    json: bool,
) -> None:
    if json:
        put_json(_data(result, rows, found, settings_file))
        return
    from monitor.times import text_of

    baseline = result.baseline
    begin, end = baseline.whole
    looked = f"{result.looked.records:,} records from {text_of(begin)} to {text_of(end)}"
    if (end - begin) / _DAY_MS < 0.9 * days:
        looked += f" ({(end - begin) / _DAY_MS:.1f} days; {days:g} were asked for)"
    facts = [["history", looked]]
    if found is not None:
        facts.append(["watched", ", ".join(f"{space} ({_embedder(entry)})" for space, entry in found.spaces.items())])
    facts += [
        ["baseline", f"{text_of(baseline.chosen[0])} to {text_of(baseline.chosen[1])}, {result.collected:,} records"],
        ["changes", ", ".join(map(text_of, baseline.change_times)) or "none seen"],
        ["contamination", _contamination_in_words(result)],
        *([f"reference {row.space}", f"version {row.version}, active"] for row in rows),
    ]
    put_table(["what", "found"], facts)
    for sentence in [*baseline.reasons, *result.notes, *(found.unsure if found is not None else [])]:
        say(f"Note: {sentence}")
    _tell_bursts(result)
    for test in result.tests:
        _tell_test(test, result.settings.page_every_days)
    dead = sum(test.dead for test in result.tests)
    if dead:
        say(f"{dead:,} records of the test would be dead letters: driftd deadletters list says why, once driftd runs.")
    if found is not None:
        say(f"Wrote {settings_file}; what speaks for each key stands beside it.")
    begins = "" if result.settings.models[result.model].history else "   (it begins where this look ended)"
    say(f"next: driftd run --settings {settings_file}{begins}")


def _embedder(entry: dict[str, Any]) -> str:
    return str(entry["embedder"]["kind"])


def _contamination_in_words(result: Bootstrapped) -> str:
    said = []
    for space, found in result.baseline.contamination.items():
        text = f"{space}: {found.share:.2%} in bursts, {found.strays / found.records:.2%} strays"
        if found.commonest > 0.01:
            text += f", one vector is {found.commonest:.1%} of all"
        said.append(text)
    return "; ".join(said) or "too few records to look for it"


def _tell_bursts(result: Bootstrapped) -> None:
    from monitor.times import text_of

    kinds = {"cluster": "alike", "copies": "equal to the last bit", "strange": "far from all others"}
    baseline = result.baseline
    inside = result.sample.rows(baseline.holds(result.sample.time_ms))
    for space, found in baseline.contamination.items():
        for burst in found.bursts[:_SHOWN]:
            examples = ", ".join(inside.ids[row] for row in burst.rows[:3].tolist())
            begin, end = text_of(burst.first_ms).replace(" ", "T"), text_of(burst.last_ms + 1000).replace(" ", "T")
            say(
                f"Note: {burst.share:.2%} of the baseline of {space} are records that are {kinds[burst.kind]} and came "
                f"within {(burst.last_ms - burst.first_ms) / 60_000:.0f} minutes, such as {examples}. If they are no "
                f"part of what is normal, leave them out: --without {begin}/{end}"
            )


def _tell_test(test: Test, page_every_days: float) -> None:
    from monitor.times import text_of

    span = f"{test.days:.1f} days" if test.days >= 2 else f"{24 * test.days:.1f} hours"
    if test.note:
        say(f"Note: {test.note}")
    if test.pages is None or test.warnings is None:
        return
    count = test.pages[page_every_days]
    which = "last" if test.where == "after" else "first"
    put(
        f"\nThe {which} {span} ({test.records:,} records) would have paged {count} time{'' if count == 1 else 's'} "
        "and warned "
        f"{test.warnings[page_every_days]} time{'' if test.warnings[page_every_days] == 1 else 's'}."
    )
    put_table(
        ["one false page in", "pages", "warnings"],
        [
            [
                f"{length:g} days{' (as written)' if length == page_every_days else ''}",
                str(pages),
                str(test.warnings[length]),
            ]
            for length, pages in sorted(test.pages.items())
        ],
    )
    if test.incidents:
        put_table(
            ["opened", "since about", "how", "what"],
            [
                [text_of(row.opened_ms), text_of(row.onset_ms), row.severity, row.title]
                for row in test.incidents[:_SHOWN]
            ],
        )
        if len(test.incidents) > _SHOWN:
            say(f"and {len(test.incidents) - _SHOWN:,} more; all of them: --json")


def _data(result: Bootstrapped, rows: list[ReferenceRow], found: Sniffed | None, settings_file: Path) -> dict[str, Any]:
    baseline = result.baseline
    return {
        "model": result.model,
        "settings": str(settings_file),
        "records": result.looked.records,
        "from_ms": baseline.whole[0],
        "to_ms": baseline.whole[1],
        "baseline": {
            "from_ms": baseline.chosen[0],
            "to_ms": baseline.chosen[1],
            "records": result.collected,
            "without": [list(interval) for interval in baseline.without],
            "changes_ms": baseline.change_times,
            "reasons": list(baseline.reasons),
            "contamination": {
                space: {
                    "records": one.records,
                    "share": one.share,
                    "strays": one.strays,
                    "copies": one.copies,
                    "bursts": [
                        {
                            "kind": burst.kind,
                            "from_ms": burst.first_ms,
                            "to_ms": burst.last_ms,
                            "share": burst.share,
                        }
                        for burst in one.bursts
                    ],
                }
                for space, one in baseline.contamination.items()
            },
        },
        "references": [{"space": row.space, "version": row.version, "records": row.records} for row in rows],
        "tests": [
            {
                "where": test.where,
                "from_ms": test.interval[0],
                "to_ms": test.interval[1],
                "records": test.records,
                "dead": test.dead,
                "pages": {f"{length:g}": count for length, count in (test.pages or {}).items()},
                "warnings": {f"{length:g}": count for length, count in (test.warnings or {}).items()},
                "incidents": [
                    {
                        "kind": row.kind,
                        "space": row.space,
                        "segment": row.segment,
                        "severity": row.severity,
                        "opened_ms": row.opened_ms,
                        "onset_ms": row.onset_ms,
                        "title": row.title,
                    }
                    for row in test.incidents
                ],
                "note": test.note,
            }
            for test in result.tests
        ],
        "notes": list(result.notes),
        "unsure": [] if found is None else found.unsure,
    }
