"""What the drift benchmarks share: a reference of a stream, block summaries, the fold over them, and the processes.

The path is the product's own: `detectors.Reference.build` measures the baseline, `Reference.score` scores records, and
`detectors.fold.fold` folds the sums of their blocks. One pass serves all run lengths: until its first alarm the
strengths of the rule do not depend on the run length, so they are compared with each threshold afterwards.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
from streams_text import PERIOD, Floats, Kind, RealPools, Source, Stream, TextModel

from detectors import Reference
from detectors.baseline import Constants
from detectors.conformal import N_BINS
from detectors.fold import CHANNELS, Channel, FoldSettings, FoldState, Rule, fold
from detectors.reference import TEXT, Scored
from detectors.summary import BlockSummary

BLOCK = 64  # the smallest block that any benchmark folds; larger ones are sums of these
STREAMS = ("independent", "sessions", "sessions, one vote each", "seasonal", "seasonal, not told", "real")
BASELINE_SEED = 1_000_000  # streams have seeds below
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Size:
    """How long a benchmark runs."""

    full: bool
    runs: int
    processes: int
    baseline: int


def arguments(description: str | None, *, quick_runs: int, full_runs: int) -> argparse.ArgumentParser:
    """The options that all drift benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the reported sizes: baseline 200,000; minutes on 16 cores")
    parser.add_argument("--quick", action="store_true", help="baseline 40,000, a minute on one core (the default)")
    parser.add_argument("--runs", type=int, help=f"runs a cell: {quick_runs} if quick, {full_runs} if full")
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    parser.set_defaults(quick_runs=quick_runs, full_runs=full_runs)
    return parser


def size_of(options: argparse.Namespace) -> Size:
    """The sizes asked for."""
    full = bool(options.full and not options.quick)
    runs = options.runs or (options.full_runs if full else options.quick_runs)
    return Size(full, runs, options.processes, 200_000 if full else 40_000)


def say(**cell: object) -> None:
    """Print one cell of a table as a line of JSON."""
    print(json.dumps(cell), flush=True)


def parallel(work: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """Results in the order of the tasks; child processes see the globals as they are now."""
    if processes <= 1:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(work, tasks, chunksize=1)


@functools.cache
def source(name: str) -> Source:
    """Where the streams of a name of `STREAMS` come from: the generator, or the real vectors."""
    return RealPools() if name == "real" else TextModel()


def kind(name: str) -> Kind:
    """How the records of such a stream follow each other."""
    kinds: dict[str, Kind] = {
        "sessions": "sessions",
        "sessions, one vote each": "votes",
        "seasonal": "seasonal",
        "seasonal, not told": "seasonal",
    }
    return kinds.get(name, "independent")


@dataclass(frozen=True)
class Spec:
    """One baseline: its stream, the records of its blocks, how many it holds, and which draw it is."""

    stream: str
    block: int
    size: int
    draw: int = 0


@dataclass(frozen=True, eq=False)
class Built:
    """The reference that driftd makes of a baseline, and its constants of the drift rule."""

    reference: Reference
    constants: Constants


def build(spec: Spec) -> Built:
    """Draw a baseline in the order of time and measure it."""
    origin = source(spec.stream)
    vectors = origin.baseline(spec.size, kind=kind(spec.stream), seed=BASELINE_SEED + spec.draw)
    reference = Reference.build(
        vectors,
        geometry=TEXT,
        block=spec.block,
        exemplars=0,
        seed=spec.draw,
        seasons=(PERIOD / spec.block,) if spec.stream == "seasonal" else (),
    )
    constants = reference.drift
    if isinstance(origin, RealPools):
        constants = pooled(constants, pool=origin.pool, baseline=reference.n_records)
    return Built(reference, constants)


def build_all(specs: Iterable[Spec], processes: int) -> dict[Spec, Built]:
    """All baselines, each in one process."""
    wanted = list(dict.fromkeys(specs))
    for spec in wanted:
        source(spec.stream)  # read once, before the processes part
    return dict(zip(wanted, parallel(build, wanted, processes), strict=True))


def pooled(constants: Constants, *, pool: int, baseline: int) -> Constants:
    """Constants for streams that are themselves resampled from ``pool`` records.

    Such a stream has a mean with an error of its own, so the rule is told the effective number of records that two
    samples have together, 1 / (1 / baseline + 1 / pool).
    """
    factor = pool / (pool + baseline)
    changed = {name: np.array(value) for name, value in constants.items()}
    changed["level_moments"][-1] *= factor
    changed["mix_moments"][-1] *= factor
    changed["calibration"][1] *= factor
    return changed


def summaries(scored: Scored) -> list[BlockSummary]:
    """One summary for every 64 records; as `detectors.summary.summarise`, without the histograms of scores."""
    blocks = len(scored) // BLOCK
    fixed = np.rint(scored.x * np.float32(2**20)).astype(np.int64)
    s = fixed.reshape(blocks, BLOCK, -1).sum(axis=1)
    number = np.repeat(np.arange(blocks), BLOCK)
    h = _counts(number, scored.bin, blocks, N_BINS)
    c = _counts(number, scored.nearest, blocks, scored.prototypes)
    return [BlockSummary(BLOCK, s[at], h[at], c[at]) for at in range(blocks)]


def _counts(
    number: npt.NDArray[np.int64], value: npt.NDArray[np.integer], blocks: int, width: int
) -> npt.NDArray[np.int64]:
    flat = np.bincount(number * width + value, minlength=blocks * width)
    return np.asarray(flat.reshape(blocks, width), dtype=np.int64)


def scored_pieces(reference: Reference, stream: Stream, records: int, *, piece: int = 2048) -> Iterator[Scored]:
    """A stream of ``records`` vectors, scored in pieces."""
    for start in range(0, records, piece):
        yield reference.score(stream.take(min(piece, records - start)))


class Watch:
    """The fold over one stream in blocks of one length.

    Attributes:
        strengths: for every block folded, the strength of each channel of `CHANNELS`; -inf for one that is off.
        alarms: blocks at which it paged.
    """

    def __init__(
        self,
        constants: Constants,
        *,
        block: int,
        run_length: float,
        start: int = 0,
        channels: tuple[Channel, ...] = CHANNELS,
    ) -> None:
        # Windows are pruned by their records at a quarter of the baseline; more blocks than that are never needed.
        longest = max(1, int(np.ceil(float(constants["level_moments"][-1]) / 4 / block)))
        settings = FoldSettings(run_length / block, run_length / block, max_blocks=longest, channels=channels)
        self._rule = Rule(constants, settings)
        self._state = FoldState.start(self._rule, block=start // block)
        self._block = block
        self._partial: BlockSummary | None = None
        self.strengths: list[tuple[float, ...]] = []
        self.alarms: list[int] = []

    def take(self, found: Iterable[BlockSummary], *, stop: bool = False) -> None:
        """Fold the next summaries, if ``stop`` only until the first page."""
        for summary in found:
            if stop and self.alarms:
                return
            merged = summary if self._partial is None else self._partial.merge(summary)
            self._partial = merged
            if merged.n >= self._block:
                self._fold(merged)
                self._partial = None

    def _fold(self, summary: BlockSummary) -> None:
        self._state, readings = fold(self._state, summary, self._rule)
        strength = {reading.channel: reading.strength for reading in readings}
        if any(reading.page for reading in readings):
            self.alarms.append(len(self.strengths))
        self.strengths.append(tuple(strength.get(name, -np.inf) for name in CHANNELS))

    def first(self, run_length: float, onset: int) -> tuple[int | None, bool]:
        """Records from the onset to the end of the first block that alarms at ``run_length``; whether one did before.

        Only the blocks before the first page count, so ``run_length`` must be at most that of the watch.
        """
        over = np.array(self.strengths).reshape(-1, len(CHANNELS)).max(axis=1) >= np.log10(run_length / self._block)
        if not over.any():
            return None, False
        end = (int(over.argmax()) + 1) * self._block
        return (None, True) if end <= onset else (end - onset, False)


def delay_cell(delays: list[int | None], *, cut: int) -> dict[str, Any]:
    """Mean delay with its standard error, a run without detection counting as ``cut``, and the share detected."""
    if not delays:
        return {"value": None, "unit": "records", "standard_error": None, "detected": None, "runs": 0}
    values = np.array([cut if delay is None else delay for delay in delays], dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {
        "value": round(float(values.mean())),
        "unit": "records",
        "standard_error": round(float(error), 1) if np.isfinite(error) else None,
        "detected": round(float(np.mean([delay is not None for delay in delays])), 3),
        "runs": len(delays),
    }


def as_rows(stream: Stream, records: int) -> Floats:
    """The next ``records`` vectors of a stream at once."""
    return np.concatenate([stream.take(min(4096, records - start)) for start in range(0, records, 4096)])
