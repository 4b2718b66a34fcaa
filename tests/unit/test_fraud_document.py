"""docs/fraud.md: its settings load, its labels are labels, its query runs, its commands exist, its files are there."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.database.store import Store
from monitor.labels import read_label
from monitor.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "fraud.md").read_text(encoding="utf-8")
NOW_MS = 1_800_000_000_000


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("place", range(len(blocks("yaml"))))
def test_the_settings_load(place: int, tmp_path: Path) -> None:
    text = blocks("yaml")[place]
    if "source:" not in text:  # a piece that goes into the first example
        key, value = re.findall(r"^    (\w+): (.*)$", text, re.MULTILINE)[0]
        text = blocks("yaml")[0] + f"    {key}: {value}\n"
    (tmp_path / "driftd.yaml").write_text(text)
    (model,) = load_settings(tmp_path / "driftd.yaml").models.values()
    assert model.fraud is not None


def documents() -> Iterator[object]:
    for text in blocks("json"):
        yield json.loads(text)
    for text in re.findall(r"-d '(\{.*?\})'", DOCUMENT):
        yield json.loads(text)
    for text in blocks("csv"):
        names, *rows = (line.split(",") for line in text.split())
        yield from (dict(zip(names, row, strict=True)) for row in rows)


def test_the_labels_are_understood() -> None:
    said = [read_label(document, NOW_MS, origin="test").label for document in documents()]
    assert [(label.record_id, label.label, label.source) for label in said] == [
        ("txn-4711", "fraud", "chargeback"),
        ("txn-4711", "cleared", "analyst"),
        ("txn-4711", "fraud", "chargeback"),
    ]


def test_the_query_runs(tmp_path: Path) -> None:
    (query,) = blocks("sql")
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
    connection = sqlite3.connect(tmp_path / "driftd.db")
    try:
        found = connection.execute(query)
        assert found.description[0][0] == "record_id"
        assert found.fetchall() == []
    finally:
        connection.close()


def test_the_commands_exist() -> None:
    import click
    import typer

    from monitor.cli import app

    commands = typer.main.get_command(app)
    lines = [line for text in blocks("console") for line in text.splitlines() if line.startswith("$ driftd ")]
    assert len(lines) >= 8
    for line in lines:
        name, *words = shlex.split(line.removeprefix("$ driftd "), comments=True)
        command = commands.commands[name]  # type: ignore[attr-defined]
        with click.Context(command) as context:
            command.parse_args(context, words)  # raises on an option or argument that it does not know


def test_files_and_sections_that_it_names_are_there() -> None:
    for path, section in re.findall(r"\]\(([\w.]+)(?:#([\w-]+))?\)", DOCUMENT):
        text = (ROOT / "docs" / path).read_text(encoding="utf-8")
        titles = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert not section or section in titles, (path, section)
    for path in re.findall(r"`((?:monitor|tests)/[\w/.]+)`", DOCUMENT):
        assert (ROOT / path).exists(), path
