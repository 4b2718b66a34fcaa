"""Markdown tables of docs/drift_benchmarks.md from the lines of JSON that the drift benchmarks print.

python tests/benchmarks/drift_tables.py delay.jsonl null.jsonl power.jsonl peers.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def main(files: list[str]) -> None:
    """Print the tables of what the files hold; nothing without files."""
    lines = [line for file in files for line in Path(file).read_text().splitlines() if line.startswith("{")]
    cells: dict[str, list[Cell]] = {}
    for cell in map(json.loads, lines):
        cells.setdefault(cell["benchmark"], []).append(cell)
    for name, rows in cells.items():
        {
            "drift_delay": _delay,
            "drift_peers": _delay,
            "drift_null": _null,
            "drift_power": _power,
        }.get(name, _plain)(name, rows)


def _table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _delay(name: str, cells: list[Cell]) -> None:
    """One row for a method, or for a block and a run length; one column for a shift."""
    for stream in dict.fromkeys(cell["stream"] for cell in cells):
        here = [cell for cell in cells if cell["stream"] == stream]
        shifts = list(dict.fromkeys(cell["shift"] for cell in here))
        rows: dict[str, dict[str, str]] = {}
        for cell in here:
            row = cell.get("method") or f"B = {cell['block']}, {cell['run_length']:.0e}"
            rows.setdefault(row, {})[cell["shift"]] = _mean(cell)
        _table(
            f"{name}, {stream}",
            ["", *shifts],
            [[row, *(found[shift] for shift in shifts)] for row, found in rows.items()],
        )


def _mean(cell: Cell) -> str:
    if cell["value"] is None:
        return f"({cell['before']} before)"
    text = f"{cell['value']:,}"
    if cell["standard_error"] is not None:
        text += f" ± {cell['standard_error']:.0f}"
    if cell["detected"] < 1:
        text += f" ({cell['detected']:.0%})"
    return text + (f" [{cell['before']}]" if cell["before"] else "")


def _null(name: str, cells: list[Cell]) -> None:
    rows = [
        [
            f"{cell['stream']}, B = {cell['block']}",
            f"{cell['run_length']:,.0f}",
            f"{cell['records']:,}",
            str(cell["pages"]),
            f"{'' if cell['pages'] else '> '}{cell['value']:,}",
            ", ".join(f"{channel} {count}" for channel, count in cell["by_channel"].items() if count),
        ]
        for cell in cells
    ]
    _table(name, ["stream", "asked for", "records", "pages", "measured run length", "by channel"], rows)


def _power(name: str, cells: list[Cell]) -> None:
    rows = [
        [
            cell["stream"],
            cell["statistic"],
            cell["threshold_from"],
            f"{cell['false_alarms']:.2%}",
            f"{cell['value']:.1%}",
            f"{cell['median_topic']:.1%}",
            f"{min(cell['by_topic']):.0%}",
        ]
        for cell in cells
    ]
    _table(name, ["stream", "statistic", "threshold", "false alarms", "power", "median topic", "worst topic"], rows)


def _plain(name: str, cells: list[Cell]) -> None:
    keys = [key for key in cells[0] if key not in ("benchmark", "against", "unit", "ratios")]
    _table(f"{name}: {cells[0]['unit']}", keys, [[str(cell[key]) for key in keys] for cell in cells])


if __name__ == "__main__":
    main(sys.argv[1:])
