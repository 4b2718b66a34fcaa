"""`driftd reference`: build one from ready vectors or from a model's source, and say what one holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from connectors.database.rows import Checkpoint, ReferenceRow
from detectors.errors import InvalidInput
from detectors.reference import ANGULAR, STANDARD, Reference
from detectors.seasons import MIN_CYCLES, Trial
from detectors.segments import constants_of, measured_segments
from monitor.app import build_history, check_references_folder, open_store
from monitor.budget import why_only_warns
from monitor.canaries import in_words
from monitor.collect import Collector, next_version
from monitor.decode import Decoder
from monitor.scoring import read_vectors
from monitor.settings import DAY_S, MIN_BLOCKS_PER_SEASON, DriftSettings, Settings
from monitor.times import text_of

Progress = Callable[[str, float], None]

# Sessions of eight near-duplicates inflate the variance of block sums about 3.5 times; a sorted file, 20 times.
SORTED_INFLATION = 8.0


BLOCK = 256  # rows in a block of ready vectors, as `DriftMonitor` has them by default


def now_ms() -> int:
    """The wall clock, for the date that a reference bears."""
    return int(time.time() * 1000)


def from_vectors(
    vectors: Path,
    output: Path,
    *,
    field: str,
    standardised: bool,
    shuffle: bool,
    season: float | None = None,
    progress: Progress,
) -> str:
    """Build a reference from a file of vectors into the folder ``output``. Returns what was built, in words.

    Args:
        standardised: the vectors are rows of a table, not an encoder's.
        shuffle: the order of the rows means nothing, and may be sorted by something: mix them.
        season: a period to look for, in rows.

    Raises:
        InvalidInput: the file cannot be used.
        InvalidReference: ``output`` exists already.
    """
    progress("reading", 0.0)
    _, pieces = read_vectors(vectors, field)
    baseline = np.concatenate(list(pieces))
    if season is not None and (shuffle or season < MIN_BLOCKS_PER_SEASON * BLOCK):
        raise InvalidInput(
            "Mixed rows have no season."
            if shuffle
            else f"A season of {season:g} rows is too short for blocks of {BLOCK} rows.",
            hint=f"Leave out --shuffle, or give a --season of at least {MIN_BLOCKS_PER_SEASON * BLOCK} rows.",
        )
    if shuffle:
        baseline = baseline[np.random.default_rng(0).permutation(len(baseline))]
    reference = Reference.build(
        baseline,
        geometry=STANDARD if standardised else ANGULAR,
        block=BLOCK,
        seasons=() if season is None else (season / BLOCK,),
        created_ms=now_ms(),
        progress=progress,
    )
    reference.save(output)
    built = f"{len(baseline):,} records, {reference.dimension} dimensions, {len(reference.prototypes):,} prototypes"
    if season is not None:
        built += f". {seasons_in_words(reference, lambda blocks: f'{blocks * BLOCK:,.0f} rows')}"
    alike = float(np.asarray(reference.drift["level_inflation"])[1, 0])
    if alike > SORTED_INFLATION:
        built += (
            f". Neighbouring rows resemble each other ({alike:.0f} times the variance of independent ones). Is the "
            "file sorted, by class perhaps? Then half of the classes taught, half calibrated: build it with --shuffle"
        )
    return built


def from_source(
    settings: Settings,
    model: str | None,
    *,
    start_ms: int | None,
    end_ms: int | None,
    season: str | None = None,
    progress: Progress,
) -> list[ReferenceRow]:
    """Build the references of one model from a range of its source, and make them the active ones.

    The range is by the broker's time where there is one. At most ``reference.collect`` records are taken.

    Args:
        season: takes the place of ``drift.season`` in the settings.

    Raises:
        InvalidInput: no usable record in the range, or no such season.
        SourceError: the source cannot be read.
    """
    name = settings.model_named(model)
    chosen = settings.models[name]
    check_references_folder(settings.references)
    store = open_store(settings)
    embedders = {space: entry.embedder.build() for space, entry in chosen.spaces.items()}
    fields = [field for embedder in embedders.values() for field in embedder.fields]
    decoder = Decoder(
        chosen.watched_record,
        fields=[*fields, *chosen.extra_fields],
        payload_bytes=chosen.dead_letters.payload_bytes,
    )
    collector = Collector(
        name,
        decoder=decoder,
        embedders=embedders,
        settings=chosen.reference,
        block_ms=round(chosen.drift.block * 1000),
        seasons=(chosen.drift if season is None else _with_season(chosen.drift, season)).season_blocks,
        thin_by_key=chosen.thins_by_key,
        fraud=chosen.fraud,
        fraud_space=chosen.fraud_space,
        performance=chosen.performance,
    )
    source = build_history(name, chosen)
    for batch in source.read_range(start_ms, end_ms):
        collector.take(batch, now_ms())
        progress("reading", min(collector.collected / collector.wanted, 1.0))
        if collector.collected >= collector.wanted:
            break
    source.close()
    versions = {
        space: next_version([row.version for row in store.references(name, space)], settings.references / name / space)
        for space in chosen.reference_spaces
    }
    rows = collector.build(settings.references, versions=versions, now_ms=now_ms(), progress=progress)
    store.commit(Checkpoint(name, [], references=rows))
    store.close()
    return rows


def _with_season(drift: DriftSettings, season: str) -> DriftSettings:
    try:
        return DriftSettings.model_validate({**drift.model_dump(), "season": season})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"--season {season}: {problem}.", hint="For example: --season 1d") from error


def seasons_in_days(reference: Reference, drift: DriftSettings) -> str:
    """Which season a reference follows, and why no other; "" where none was looked for."""

    def days(blocks: float) -> str:
        number = blocks * drift.block / DAY_S
        return f"{number:g} day{'' if number == 1 else 's'}"

    return seasons_in_words(reference, days)


def small_in_words(reference: Reference) -> str:
    """Why the alarms of a reference's whole traffic may only warn: "pages turn into warnings: ..."; "" if they page."""
    why = why_only_warns(constants_of(reference.drift, ""))
    return f"pages turn into warnings: {why}" if why else ""


def seasons_in_words(reference: Reference, length: Callable[[float], str]) -> str:
    """Which season the reference follows, and why no other; "" where none was looked for.

    Args:
        length: names a number of blocks.
    """
    said = []
    for trial in Trial.read(reference.drift):
        period = length(trial.period)
        if trial.used:
            said.append(f"follows a season of {period}, which {trial.cycles} cycles show")
        elif trial.cycles < MIN_CYCLES:
            said.append(
                f"no season of {period}: it takes {MIN_CYCLES} whole cycles, and the baseline holds {trial.cycles}"
            )
        elif trial.gain > 0:
            said.append(f"no season of {period}: another forecasts better")
        else:
            said.append(f"no season of {period}: none in {trial.cycles} cycles (p = {trial.p_value:.2g})")
    return "; ".join(said)


def describe(path: Path) -> dict[str, Any]:
    """What the reference in a folder holds, after it was loaded and checked whole."""
    reference = Reference.load(path)
    return {
        "path": str(path),
        "dimension": reference.dimension,
        "records in moments and prototypes": reference.n_fit,
        "calibration scores": reference.n_calibration,
        "prototypes": len(reference.prototypes),
        "unit length": reference.geometry.unit,
        "soft whitening": reference.geometry.whitening,
        "built": text_of(reference.created_ms),
        "embedder": reference.embedder.kind if reference.embedder else "ready vectors",
        "canaries": in_words(reference.canaries, reference.embedder.kind),
        "segments": {name: list(values) for name, values in reference.segments.items()},
        "segments with a baseline of their own": measured_segments(reference.drift),
        "may page": small_in_words(reference) or "yes",
        "checksum": reference.checksum,
    }
