"""`driftd deadletters`: look at the records that could not be used, and send them again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import DeadLetterRow
    from connectors.database.store import Store
    from monitor.retry import RetryResult
    from monitor.settings import Settings

deadletters_app = typer.Typer(
    help="Records that could not be used: look at them, mend the settings, send them again.", no_args_is_help=True
)

OfModel = Annotated[str | None, typer.Option("--model", help="only this model")]
WithReason = Annotated[str | None, typer.Option("--reason", help="only with this reason, such as bad_json")]
_EXCERPT = 60  # characters of a payload in a list


@deadletters_app.command("list")
def list_letters(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: OfModel = None,
    reason: WithReason = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="how many of the newest")] = 20,
    json: AsJson = False,
) -> None:
    """Count dead letters by reason, and list the newest, the last one at the end. Example: driftd deadletters list"""
    from monitor.app import open_store
    from monitor.settings import load_settings
    from monitor.times import text_of

    with open_store(load_settings(settings)) as store:
        stored = store.stored_dead_letters(model, reason=reason)
        rows = store.dead_letter_rows(model, reason=reason, limit=limit, newest=True)
        models = [model] if model is not None else sorted({found.model for found in stored})
        counts = {name: store.dead_letter_counts(name) for name in models}
    if json:
        put_json(
            {
                "reasons": [
                    {"model": f.model, "reason": f.reason, "stored": f.stored, "counted": counts[f.model].get(f.reason)}
                    for f in stored
                ],
                "letters": [letter_data(row) for row in rows],
            }
        )
        return
    if not stored:
        say("No dead letters" + (" like that." if model or reason else "."))
        return
    put_table(
        ["model", "reason", "counted", "stored"],
        [[f.model, f.reason, f"{counts[f.model].get(f.reason, 0):,}", f"{f.stored:,}"] for f in stored],
    )
    put("")
    put_table(
        ["id", "time", "model", "position", "reason", "detail", "bytes", "begins with"],
        [
            [
                str(row.id),
                text_of(row.letter.time_ms if row.letter.time_ms >= 0 else row.stored_ms),
                row.model,
                position_of(row),
                row.letter.reason,
                row.letter.detail,
                f"{row.letter.size:,}",
                beginning_of(row.letter.payload, _EXCERPT),
            ]
            for row in rows
        ],
    )
    if len(rows) < sum(found.stored for found in stored):
        say(f"The newest {len(rows):,} of {sum(found.stored for found in stored):,}; more: --limit N")


@deadletters_app.command("show")
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="number of the letter, as in the list")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    json: AsJson = False,
) -> None:
    """Everything that is stored of one dead letter. Example: driftd deadletters show 17"""
    from monitor.app import open_store
    from monitor.settings import load_settings
    from monitor.times import text_of

    with open_store(load_settings(settings)) as store:
        rows = store.dead_letter_rows(number=number)
    if not rows:
        raise _unknown(number)
    [row] = rows
    if json:
        put_json(letter_data(row))
        return
    letter = row.letter
    facts = {
        "id": str(row.id),
        "model": row.model,
        "position": position_of(row),
        "reason": letter.reason,
        "detail": letter.detail,
        "time": text_of(letter.time_ms) if letter.time_ms >= 0 else "the source gave none",
        "stored": text_of(row.stored_ms),
        "in its topic": "yes" if row.published else "no",
        "bytes": f"{letter.size:,}" + (f", of which {len(letter.payload):,} are stored" if letter.payload else ""),
    }
    for name, value in facts.items():
        put(f"{name:<12}  {value}")
    if letter.payload:
        put(f"\n{beginning_of(letter.payload, len(letter.payload))}")


@deadletters_app.command("retry")
def retry(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: OfModel = None,
    reason: WithReason = None,
    number: Annotated[int | None, typer.Option("--id", help="only this one")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would come of it, write nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    json: AsJson = False,
) -> None:
    """Read their records again, with the settings of today; works beside driftd run.

    Example: driftd deadletters retry --reason bad_time --dry-run
    """
    from monitor.app import open_store
    from monitor.settings import load_settings

    loaded = load_settings(settings)
    if model is not None:
        loaded.model_named(model)
    with open_store(loaded) as store:
        if number is not None:
            rows = store.dead_letter_rows(model, reason=reason, number=number)
            if not rows:
                raise _unknown(number)
            counts = {row.model: 1 for row in rows}
        else:
            counts = {}
            for found in store.stored_dead_letters(model, reason=reason):
                counts[found.model] = counts.get(found.model, 0) + found.stored
        for name in [name for name in counts if name not in loaded.models]:
            say(f"{counts.pop(name):,} dead letters of {name} stay: the settings have no such model.")
        if counts and not dry_run and not yes:
            _ask(sum(counts.values()))
        results = [_retry_one(loaded, store, name, reason=reason, number=number, dry_run=dry_run) for name in counts]
    if json:
        put_json([{**msgspec.to_builtins(result), "dry_run": dry_run} for result in results])
        return
    if not results:
        say("No dead letters to send again.")
    for result in results:
        put(in_words(result, dry_run=dry_run))


def _retry_one(
    loaded: Settings, store: Store, name: str, *, reason: str | None, number: int | None, dry_run: bool
) -> RetryResult:
    from monitor.app import build_source
    from monitor.progress import bar
    from monitor.retry import Retry

    source = build_source(name, loaded.models[name])
    try:
        again = Retry(name, loaded, store=store, source=source)
        with bar(f"{name}: reading again") as progress:
            return again.run(int(time.time() * 1000), reason=reason, number=number, dry_run=dry_run, progress=progress)
    finally:
        source.close()


def _ask(letters: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"{letters:,} dead letters would be sent again, and nobody can be asked.",
            hint="Add --yes, or look first: --dry-run",
        )
    if not typer.confirm(f"Send {letters:,} dead letters again?", err=True):
        raise typer.Exit(1)


def _unknown(number: int) -> InvalidInput:
    return InvalidInput(f"There is no dead letter {number} like that.", hint="List them: driftd deadletters list")


def in_words(result: RetryResult, *, dry_run: bool) -> str:
    """One line on what came of a retry."""
    good = f"{result.mended:,} of {result.letters:,} {'would be' if dry_run else 'are'} good now"
    parts = [good + (f" (too late for their block: {result.late:,})" if result.late else "")]
    if result.still:
        reasons = sorted(result.still.items(), key=lambda item: (-item[1], item[0]))
        parts.append(f"still bad: {', '.join(f'{n:,} {reason}' for reason, n in reasons)}")
    if result.gone:
        parts.append(f"not in the source any more: {result.gone:,}")
    return f"{result.model}: {'; '.join(parts)}."


def position_of(row: DeadLetterRow) -> str:
    """Where its record lies, and which row of it, where it has many."""
    letter = row.letter
    place = f"{letter.partition.topic}/{letter.partition.number}/{letter.offset}"
    return place if letter.row < 0 else f"{place}#{letter.row}"


def letter_data(row: DeadLetterRow) -> dict[str, Any]:
    """A letter for a program; the payload as text where it is UTF-8, and else in hex."""
    letter = row.letter
    try:
        payload = {"payload": letter.payload.decode()}
    except UnicodeDecodeError:
        payload = {"payload_hex": letter.payload.hex()}
    return {
        "id": row.id,
        "model": row.model,
        "topic": letter.partition.topic,
        "partition": letter.partition.number,
        "offset": letter.offset,
        "row": letter.row if letter.row >= 0 else None,
        "reason": letter.reason,
        "detail": letter.detail,
        "time_ms": letter.time_ms if letter.time_ms >= 0 else None,
        "stored_ms": row.stored_ms,
        "published": row.published,
        "bytes": letter.size,
        **payload,
    }


def beginning_of(payload: bytes, characters: int) -> str:
    """The beginning as text that is safe on a terminal, or in hex where it is no text."""
    some = payload[: 4 * characters]
    text = some.decode("utf-8", "replace")
    # A cut may go through a character: only other broken ones make it no text.
    if "\ufffd" in text[:-1] or any(ord(c) < 32 and c not in "\t\r\n" for c in text):
        text = some.hex()
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    text = " ".join(text.split()) if characters <= _EXCERPT else text
    return text if len(text) <= characters else text[: characters - 1] + "…"
