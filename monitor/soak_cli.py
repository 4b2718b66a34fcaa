"""What `driftd doctor --soak` says."""

from __future__ import annotations

from pathlib import Path

import typer

from monitor.progress import steps
from monitor.settings import load_settings
from monitor.soak import SoakResult, run_soak
from monitor.terminal import put, put_json, put_table, say


def soak_command(
    settings: Path, model: str | None, *, records: int, kills: int, workers: int, seed: int, json: bool
) -> None:
    """Run the soak, and print what came of it. Exits with 1 where something is not as the labels say.

    Raises:
        DriftdError: as `monitor.soak.run_soak` does.
    """
    loaded = load_settings(settings)
    say(
        "This makes a topic of labelled records on the model's brokers, lets real workers read it and kills them, and "
        "deletes the topic. It needs the rights to create, write, read and delete topics driftd-soak-*. The workers "
        "use a SQLite file in a temporary folder: the database of the settings is not touched."
    )
    with steps() as progress:
        result = run_soak(loaded, model, records=records, kills=kills, workers=workers, seed=seed, progress=progress)
    if json:
        put_json({**_facts(result), "ok": result.ok, "checks": result.checks})
    else:
        put_table(
            ["", "what the labels say", "expected", "found", ""],
            [
                ["ok" if check.ok else "WRONG", check.name, check.expected, check.found, check.detail]
                for check in result.checks
            ],
        )
        put(
            f"{result.records:,} records, {result.workers} workers, {result.kills} killed: {result.seconds:.1f} s, "
            f"{result.rate:,.0f} records/s with the kills. "
            + ("Every record was counted exactly once." if result.ok else "NOT every record was counted exactly once.")
        )
    if result.kills < kills:
        say(f"The records were over after {result.kills} of {kills} kills; more --records make room for all.")
    if not result.ok:
        raise typer.Exit(1)


def _facts(result: SoakResult) -> dict[str, float]:
    return {
        "records": result.records,
        "workers": result.workers,
        "kills": result.kills,
        "seconds": round(result.seconds, 3),
        "records_per_second": round(result.rate),
    }
