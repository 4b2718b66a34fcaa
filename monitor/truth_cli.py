"""`driftd truth`: say what would have been the right answer to records; one, or a file of them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInput
from monitor.document_cli import data_of, take_file
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put_json, put_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.database.rows import NewTruth, TruthRow
    from monitor.settings import Settings

NEVER_RIGHT = 20  # true answers, none of which the model gave: they may be written another way


def truth(
    record: Annotated[str | None, typer.Argument(metavar="RECORD_ID", help="as record.id names it")] = None,
    label: Annotated[str | None, typer.Argument(metavar="LABEL", help="the right answer to it")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="many: .csv, .jsonl or .parquet; - for stdin")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option("--prediction", help="what the model answered; default: what is remembered of it")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option("--confidence", help="how sure the model was, 0 to 1; with --prediction")
    ] = None,
    weight: Annotated[float | None, typer.Option("--weight", help="how many records this one stands for")] = None,
    chance: Annotated[
        float | None, typer.Option("--chance", help="how probable it was that people looked at it: 1 / weight")
    ] = None,
    moment: Annotated[
        str | None, typer.Option("--time", help="when it was known, such as 2026-01-31T12:00:00Z; now by default")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="show the newest, and counts of all")] = False,
    waiting: Annotated[bool, typer.Option("--waiting", help="list only those whose answer is not known yet")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="list so many of the newest")] = 20,
    json: AsJson = False,
) -> None:
    """Say what would have been the right answer to a record, or to many in a file. It counts at once.

    Examples: driftd truth req-4711 billing; driftd truth --file truths.csv; driftd truth --list --waiting
    """
    from monitor.settings import load_settings

    loaded = load_settings(settings)
    name = model_of(loaded, model)
    values = {
        "prediction": prediction,
        "confidence": confidence,
        "weight": weight,
        "chance": chance,
        "time": moment,
    }
    said = any(value is not None for value in values.values())
    if listed or waiting:
        if label is not None or file is not None or said:
            raise InvalidInput("driftd truth --list takes RECORD_ID, --waiting, --limit and --json.")
        _list(loaded, name, record=record, waiting=waiting, limit=limit, json=json)
    elif file is not None:
        if record is not None or said:
            raise InvalidInput("A file says of each record what is right.", hint="Leave out what belongs to one.")
        _take_file(loaded, name, file, json=json)
    elif confidence is not None and prediction is None:
        raise InvalidInput(
            "--confidence belongs to --prediction.", hint="Add what the model answered: --prediction LABEL"
        )
    elif record is not None and label is not None:
        _take_one(loaded, name, {"id": record, "label": label, **values}, json=json)
    else:
        raise InvalidInput(
            "What is right, and of which record?",
            hint="Say both: driftd truth RECORD_ID LABEL; or give a file of them: driftd truth --file FILE",
        )


def model_of(settings: Settings, model: str | None) -> str:
    """The model whose true answers are meant.

    Raises:
        InvalidInput: there is none, or several.
    """
    from monitor.app import takes_truths

    names = [name for name, entry in settings.models.items() if takes_truths(entry)]
    if model is None and len(names) == 1:
        return names[0]
    if model in names:
        return str(model)
    if not names:
        raise InvalidInput(
            "Of no model it is known what it answers, so that true answers have nothing to be compared with.",
            hint="Set models.NAME.record.prediction; see docs/labels.md",
        )
    problem = "There are several models." if model is None else f"There is no model {model} whose answers are mapped."
    raise InvalidInput(problem, hint=f"Choose: --model {'|'.join(names)}")


def _take_one(settings: Settings, model: str, document: dict[str, Any], *, json: bool) -> None:
    import secrets

    from monitor.app import build_truth_desk, open_store
    from monitor.truths import read_truth

    found = read_truth(document, int(time.time() * 1000), origin=f"typed:{secrets.token_hex(16)}")
    with open_store(settings) as store:
        took = build_truth_desk(model, settings, store).take([found])
    if json:
        put_json(data_of(took))
        return
    what = f"The right answer to {found.record_id} is {found.truth}"
    if took.known:
        say(f"{what}: that was known already.")
    elif took.counting:
        say(f"{what}: it counts from now on.")
    else:
        say(f"{what}: it waits until it is known what the model answered.")
        if settings.models[model].performance.remembered_share == 0.0:
            say(f"Answers are not remembered: set models.{model}.performance.remember: 1, or say it with --prediction.")


def _take_file(settings: Settings, model: str, name: str, *, json: bool) -> None:
    from monitor.app import build_truth_desk, open_store
    from monitor.truths import read_truth

    with open_store(settings) as store:
        take_file("true answer", name, desk=build_truth_desk(model, settings, store), read=read_truth, json=json)
        newest = store.truths(model, after=max(store.truth_counts(model).version - NEVER_RIGHT, 0))
        if warning := never_right([row.said for row in newest]):
            say(warning)


def never_right(counting: Sequence[NewTruth]) -> str:
    """What to look at where none of many true answers is what the model said; "" where one is, or there are few."""
    if len(counting) < NEVER_RIGHT or any(said.truth == said.answer for said in counting):
        return ""
    said = counting[-1]
    return (
        f"None of the newest {len(counting)} is what the model answered. Are both written alike? Of {said.record_id}, "
        f'"{said.truth}" is right, and the model said "{said.answer}".'
    )


def _list(settings: Settings, model: str, *, record: str | None, waiting: bool, limit: int, json: bool) -> None:
    from monitor.app import open_store
    from monitor.times import text_of

    since_ms = int((time.time() - settings.retention.answers_days * 86_400) * 1000)
    with open_store(settings) as store:
        rows = store.all_truths(model, record_id=record, waiting=waiting, limit=limit)
        counts = store.truth_counts(model, remembered_since_ms=since_ms)
    if json:
        put_json([_row_data(row) for row in rows])
        return
    if not rows:
        say("No true answers" + (" like that." if record is not None or waiting else "."))
    else:
        put_table(
            ["record", "right", "the model said", "confidence", "weight", "known since", "counts"],
            [
                [
                    row.said.record_id,
                    row.said.truth,
                    row.said.answer or "",
                    "" if math.isnan(row.said.confidence) else f"{row.said.confidence:g}",
                    f"{row.said.weight:g}",
                    text_of(row.said.time_ms),
                    f"since version {row.version}" if row.version else "waits for the model's answer",
                ]
                for row in rows
            ],
        )
    say(
        f"{counts.version + counts.waiting:,} true answers in all: {counts.version:,} count ({counts.corrected:,} of "
        f"them corrected since), {counts.waiting:,} wait for the model's answer ({counts.unmatched:,} of them longer "
        "than answers are remembered)."
    )


def _row_data(row: TruthRow) -> dict[str, Any]:
    said = row.said
    return {
        "record": said.record_id,
        "truth": said.truth,
        "answer": said.answer,
        "confidence": None if math.isnan(said.confidence) else said.confidence,
        "weight": said.weight,
        "time_ms": said.time_ms,
        "event_ms": said.event_ms,
        "received_ms": row.received_ms,
        "origin": said.origin,
        "version": row.version,
    }
