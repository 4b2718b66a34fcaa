"""What every command has in common: words, data, and the options that all of them take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

SettingsPath = Annotated[Path, typer.Option("--settings", "-s", help="settings file", envvar="DRIFTD_SETTINGS")]
AsJson = Annotated[bool, typer.Option("--json", help="print data for a program")]
DEFAULT_SETTINGS = Path("driftd.yaml")


def say(text: str) -> None:
    """Words for people."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def put(text: str) -> None:
    """Data."""
    print(text, flush=True)  # noqa: T201


def put_json(value: object) -> None:
    """Data as JSON."""
    put(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def put_table(columns: list[str], rows: list[list[str]]) -> None:
    """Data as a table, as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not as markup: brackets in a payload are brackets
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
