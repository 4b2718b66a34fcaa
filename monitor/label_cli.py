"""`driftd label`: say of records that they were fraud, or that they were not; a file of labels, or one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInput
from monitor.document_cli import data_of, take_file
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import LabelRow
    from monitor.settings import Settings


def label(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|-|list]", help="file of labels, .jsonl, .csv or .parquet; - for stdin; or the word list"
        ),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if several score fraud")] = None,
    record: Annotated[str | None, typer.Option("--id", metavar="ID", help="the record, as record.id names it")] = None,
    said: Annotated[str | None, typer.Option("--as", metavar="fraud|cleared", help="what it was, with --id")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="analyst (the default), chargeback or rule, with --id")
    ] = None,
    confidence: Annotated[float | None, typer.Option("--confidence", help="above 0, at most 1; with --id")] = None,
    by: Annotated[str | None, typer.Option("--by", help="who says so, with --id; your login name by default")] = None,
    moment: Annotated[
        str | None, typer.Option("--time", help="when it was decided, such as 2026-01-31T12:00:00Z; now by default")
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="list only those whose record is not known yet")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="list so many of the newest")] = 20,
    json: AsJson = False,
) -> None:
    """Say what became of records: fraud, or cleared. It counts at once, also in a daemon that runs.

    Examples: driftd label cases.csv; driftd label --id txn-4711 --as fraud; driftd label list --waiting
    """
    from monitor.settings import load_settings

    loaded = load_settings(settings)
    name = model_of(loaded, model)
    one = (said, source, confidence, by, moment)
    if what == "list":
        if any(value is not None for value in one):
            raise InvalidInput("driftd label list takes --id, --waiting, --limit and --json.")
        _list(loaded, name, record=record, waiting=waiting, limit=limit, json=json)
    elif what is not None:
        if record is not None or any(value is not None for value in one):
            raise InvalidInput("A file says of each record what it was.", hint="Leave out --id and what belongs to it.")
        _take_file(loaded, name, what, json=json)
    elif record is not None and said is not None:
        values = {"source": source, "confidence": confidence, "time": moment}
        document = {"id": record, "label": said, "by": by, **values}
        _take_one(loaded, name, document, json=json)
    else:
        raise InvalidInput(
            "Which label?", hint="Name one: driftd label --id ID --as fraud; or a file of them: driftd label FILE"
        )


def model_of(settings: Settings, model: str | None) -> str:
    """The model whose labels are meant.

    Raises:
        InvalidInput: there is none, or several.
    """
    names = [name for name, entry in settings.models.items() if entry.fraud is not None]
    if model is None and len(names) == 1:
        return names[0]
    if model in names:
        return str(model)
    if not names:
        raise InvalidInput(
            "No model scores fraud, so that labels are of no use.", hint="Set models.NAME.fraud: {}; see docs/labels.md"
        )
    problem = "Several models score fraud." if model is None else f"There is no model {model} that scores fraud."
    raise InvalidInput(problem, hint=f"Choose: --model {'|'.join(names)}")


# --- taking -----------------------------------------------------------------------------------------------------------


def _take_one(settings: Settings, model: str, document: dict[str, Any], *, json: bool) -> None:
    import secrets

    from monitor.app import build_label_desk, open_store
    from monitor.incident_list import login_name
    from monitor.labels import read_label

    if document["by"] is None:
        document["by"] = login_name()
    found = read_label(document, int(time.time() * 1000), origin=f"typed:{secrets.token_hex(16)}")
    with open_store(settings) as store:
        took = build_label_desk(model, settings, store).take([found])
    if json:
        put_json(data_of(took))
        return
    what = f"{found.label.record_id} is {found.label.label}, says {found.label.by} ({found.label.source})"
    if took.known:
        say(f"{what}: that was known already.")
    elif took.matched:
        say(f"{what}: it counts from now on.")
    else:
        say(f"{what}: it waits for its record, and counts when that is known.")


def _take_file(settings: Settings, model: str, name: str, *, json: bool) -> None:
    from monitor.app import build_label_desk, open_store
    from monitor.labels import read_label

    with open_store(settings) as store:
        take_file("label", name, desk=build_label_desk(model, settings, store), read=read_label, json=json)


# --- looking ----------------------------------------------------------------------------------------------------------


def _list(settings: Settings, model: str, *, record: str | None, waiting: bool, limit: int, json: bool) -> None:
    from monitor.app import open_store
    from monitor.times import text_of

    since_ms = int((time.time() - settings.retention.remembered_days * 86_400) * 1000)
    with open_store(settings) as store:
        rows = store.all_labels(model, record_id=record, waiting=waiting, limit=limit)
        counts = store.label_counts(model, remembered_since_ms=since_ms)
    if json:
        put_json([_row_data(row) for row in rows])
        return
    if not rows:
        say("No labels" + (" like that." if record is not None or waiting else "."))
    else:
        put_table(
            ["record", "label", "source", "confidence", "decided", "by", "counts"],
            [
                [
                    row.said.record_id,
                    row.said.label,
                    row.said.source,
                    f"{row.said.confidence:g}",
                    text_of(row.said.time_ms),
                    row.said.by,
                    f"since version {row.version}" if row.version else "waits for its record",
                ]
                for row in rows
            ],
        )
    total = sum(counts.by.values())
    say(
        f"{total:,} labels in all: {counts.version:,} count, {counts.waiting:,} wait for their records "
        f"({counts.unmatched:,} of them longer than records are remembered); of {counts.contradicting:,} records both "
        f"was said."
    )


def _row_data(row: LabelRow) -> dict[str, Any]:
    said, known = row.said, row.said.known
    place = None
    if known is not None:
        place = {"topic": known.partition.topic, "partition": known.partition.number, "offset": known.offset}
    return {
        "record": said.record_id,
        "label": said.label,
        "source": said.source,
        "confidence": said.confidence,
        "time_ms": said.time_ms,
        "received_ms": row.received_ms,
        "by": said.by,
        "origin": said.origin,
        "version": row.version,
        "position": place,
        "selected": "" if known is None else known.selected,
    }
