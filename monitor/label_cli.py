"""`driftd label`: say of records that they were fraud, or that they were not; a file of labels, or one."""

from __future__ import annotations

import codecs
import csv
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import LabelRow
    from monitor.joining import Took
    from monitor.labels import BadLabel, SaidLabel
    from monitor.settings import Settings

AT_A_TIME = 20_000  # labels of one transaction
MOST_SHOWN = 10  # lines that are no labels

_Problem = tuple[int, "BadLabel"]


def label(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|-|list]", help="file of labels, .jsonl or .csv; - for stdin; or the word list"),
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
        put_json(_data(took, 0))
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
    from monitor.joining import Took
    from monitor.progress import bar

    problems: list[_Problem] = []
    total = Took(0, 0, 0)
    bad = Counter[str]()
    with open_store(settings) as store, bar("labels") as progress:
        desk = build_label_desk(model, settings, store)
        stream, size = _opened(name)
        with stream:
            labels = _labels(stream, is_csv=Path(name).suffix.lower() == ".csv", problems=problems)
            while portion := list(islice(labels, AT_A_TIME)):
                took = desk.take(portion)
                total = total.plus(took)
                progress(stream.tell() if size else total.new + total.repeated, size or -1)
    bad.update(problem.reason for _, problem in problems)
    if json:
        put_json({**_data(total, len(problems)), "problems": [_said(problem) for problem in problems[:MOST_SHOWN]]})
    else:
        say(in_words(total) if total.new or total.repeated or problems else f"There are no labels in {name}.")
        for problem in problems[:MOST_SHOWN]:
            say(f"  {_said(problem)}")
        if problems:
            lines = "1 line is no label" if len(problems) == 1 else f"{len(problems):,} lines are no labels"
            say(f"{lines} ({', '.join(f'{n} {reason}' for reason, n in bad.items())}).")
            say("Mend them and give the file again: what was taken is known, and nothing comes of it twice.")
    if problems:
        raise typer.Exit(1)


def in_words(took: Took) -> str:
    """What became of labels: "97 count from now on, 2 were known, 1 waits for its record."."""

    def of(count: int, one: str, several: str) -> str:
        return f"{count:,} {one if count == 1 else several}"

    parts = [of(took.counting, "counts from now on", "count from now on")]
    if took.known:
        parts.append(of(took.known, "was known", "were known"))
    if took.waiting:
        parts.append(of(took.waiting, "waits for its record", "wait for their records"))
    return f"{', '.join(parts)}."


def _opened(name: str) -> tuple[BinaryIO, int]:
    """The bytes of a file or of standard input, and how many they are; 0 where that is not known."""
    if name == "-":
        return sys.stdin.buffer, 0
    try:
        stream = Path(name).open("rb")  # noqa: SIM115
        return stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InvalidInput(
            f"{name} cannot be read: {error.strerror}.", hint="Name a file of labels: driftd label FILE.jsonl"
        ) from error


def _labels(stream: BinaryIO, *, is_csv: bool, problems: list[_Problem]) -> Iterator[SaidLabel]:
    """The labels of a file; what is none is noted with its line.

    A label without a time and an origin is known again by what its line says, and by how many such lines came before:
    the same file given twice, or with more lines at its end, says nothing twice.
    """
    from monitor.labels import BadLabel, read_label

    now_ms = int(time.time() * 1000)
    seen = Counter[bytes]()
    for number, line, read in _documents(stream, is_csv=is_csv):
        digest = hashlib.sha256(line).digest()[:16]
        seen[digest] += 1
        try:
            yield read_label(read(), now_ms, origin=f"file:{digest.hex()}:{seen[digest]}")
        except BadLabel as error:
            problems.append((number, error))


def _documents(stream: BinaryIO, *, is_csv: bool) -> Iterator[tuple[int, bytes, Any]]:
    """Number and bytes of each line, and a function that gives its document."""
    from functools import partial

    from monitor.labels import parse

    first = b""
    number = 0
    for number, first in enumerate(stream, start=1):  # noqa: B007
        if first.strip():
            break
    if not first.strip():
        return
    first = first.removeprefix(b"\xef\xbb\xbf")
    begin = first.lstrip()[:1]
    if is_csv or begin not in (b"{", b"["):
        yield from _table(first, stream, number)
        return
    if begin == b"[":
        yield from _of_list(first + stream.read())
        return
    yield number, first.strip(), partial(parse, first)
    for line in stream:
        number += 1
        if line.strip():
            yield number, line.strip(), partial(parse, line)


def _of_list(body: bytes) -> Iterator[tuple[int, bytes, Any]]:
    """The documents of a list, with their places in it instead of line numbers."""
    import json

    from monitor.labels import documents

    for number, document in enumerate(documents(body), start=1):
        yield number, json.dumps(document, sort_keys=True).encode(), lambda document=document: document


def _table(first: bytes, stream: BinaryIO, number: int) -> Iterator[tuple[int, bytes, Any]]:
    """The rows of a table in CSV, whose first line names the columns."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInput("The file is in UTF-16.", hint="Save it as CSV in UTF-8.")
    head = first.decode("utf-8", "replace").strip()
    # A spreadsheet writes semicolons where the comma is the decimal point.
    columns = {mark: [name.strip(' "').lower() for name in head.split(mark)] for mark in ",;\t"}
    mark = next((mark for mark, names in columns.items() if {"id", "label"} <= set(names)), None)
    if mark is None:
        names = max(columns.values(), key=len)
        raise InvalidInput(
            f"The first line names the columns {', '.join(names)[:200]}; expected id and label among them.",
            hint="Such as: id,label,time,source",
        )
    names = columns[mark]
    rows = csv.reader((line.decode("utf-8", "replace") for line in stream), delimiter=mark)
    try:
        for row in rows:
            if any(row):
                line = "\x1f".join(row).encode("utf-8", "replace")
                cells = [cell.strip() for cell in row]
                yield number + rows.line_num, line, lambda cells=cells: dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise InvalidInput(
            f"Line {number + rows.line_num} is no CSV: {error}.",
            hint="Mend it and give the file again: what was taken is known.",
        ) from error


def _said(problem: _Problem) -> str:
    number, error = problem
    return f"Line {number}: {error.message}"


def _data(took: Took, bad: int) -> dict[str, int]:
    return took.counts() | {"bad": bad}


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
