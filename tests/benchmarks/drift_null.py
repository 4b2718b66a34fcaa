"""How often the drift rule pages on streams that do not change, against the run length it was asked for.

Two parts. First, streams of `streams_text` at run lengths of 20,000, 1e5 and 1e6 records: independent records, sessions
of about eight near-duplicates (sixteen interleaved), a seasonal mix whose baseline holds whole cycles, and resampled
real vectors. After a page the rule goes on; the measured run length is the records divided by the pages. The records
are spread over several streams and several draws of the baseline.

Second, a soak: 1e8 records at run length 1e10, where no page is expected. Its blocks are not added up from records but
drawn whole: the sum of vectors from the Gaussian law of such sums, the histogram and the counts from multinomial laws,
all measured on a million scored records of other seeds. That leaves out what a block's sum, histogram and counts have
to do with each other, and the lopsided tail that sums of few real records have, and dependence between blocks; the
first part has all three.

    python tests/benchmarks/drift_null.py --full --processes 16
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from streams_text import chance
from streams_watch import (
    BLOCK,
    STREAMS,
    Built,
    Spec,
    Watch,
    arguments,
    build_all,
    kind,
    parallel,
    say,
    scored_pieces,
    size_of,
    source,
    summaries,
)

from detectors.conformal import N_BINS
from detectors.fold import CHANNELS
from detectors.summary import BlockSummary

RUN_LENGTHS = (2e4, 1e5, 1e6)
SOAK_RUN_LENGTH = 1e10
FIRST_SEED = 200_000  # of null streams; other benchmarks have smaller ones
LAW_SEED, SOAK_SEED = 300_000, 400_000
BUILT: dict[Spec, Built] = {}


def null_run(task: tuple[Spec, int, int]) -> list[list[str]]:
    """The channels that paged on one stream without a change, page by page, for each run length."""
    spec, seed, records = task
    built = BUILT[spec]
    stream = source(spec.stream).open(seed, kind=kind(spec.stream))
    watches = [
        Watch(built.constants, block=spec.block, run_length=length, start=stream.start) for length in RUN_LENGTHS
    ]
    for scored in scored_pieces(built.reference, stream, records):
        found = summaries(scored)
        for watch in watches:
            watch.take(found)
    return [[CHANNELS[int(np.argmax(watch.strengths[at]))] for at in watch.alarms] for watch in watches]


def measured_run_length(specs: list[Spec], *, records: int, piece: int, processes: int) -> None:
    """Print a line for every kind of stream, block and nominal run length."""
    cells = list(dict.fromkeys((spec.stream, spec.block) for spec in specs))
    tasks = []
    for stream, block in cells:
        draws = [spec for spec in specs if (spec.stream, spec.block) == (stream, block)]
        tasks += [(draws[at % len(draws)], FIRST_SEED + at, piece) for at in range(-(-records // piece))]
    pages: dict[tuple[str, int], list[list[list[str]]]] = {}
    for task, found in zip(tasks, parallel(null_run, tasks, processes), strict=True):
        pages.setdefault((task[0].stream, task[0].block), []).append(found)
    for (stream, block), runs in pages.items():
        for place, nominal in enumerate(RUN_LENGTHS):
            channels = [name for run in runs for name in run[place]]
            total = piece * len(runs)
            say(
                benchmark="drift_null",
                stream=stream,
                block=block,
                run_length=nominal,
                value=round(total / max(len(channels), 1)),
                unit="records between false pages" if channels else "records without a false page",
                ratio=round(total / len(channels) / nominal, 2) if channels else None,
                against="the run length asked for",
                records=total,
                pages=len(channels),
                expected_at_most=round(total / nominal, 1),
                by_channel={name: channels.count(name) for name in CHANNELS},
                baseline_draws=len([spec for spec in specs if (spec.stream, spec.block) == (stream, block)]),
            )


@dataclass(frozen=True)
class BlockLaw:
    """Law of a block of records that do not depend on each other.

    Attributes:
        mean, factor: (d,) and (d, d): a record has this mean, and the covariance factor' factor.
        bins, nearest: (49,) and (K,), the probabilities of the bins of p and of the nearest prototypes.
    """

    mean: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]
    bins: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.float64]

    def draw(self, blocks: int, seed: int, *, block: int) -> Iterator[BlockSummary]:
        """``blocks`` summaries of ``block`` records each."""
        random = chance(seed, 4)
        for start in range(0, blocks, 1024):
            some = min(1024, blocks - start)
            noise = random.standard_normal((some, len(self.mean))) @ self.factor
            s = np.rint((block * self.mean + np.sqrt(block) * noise) * 2.0**20).astype(np.int64)
            h = random.multinomial(block, self.bins, size=some)
            c = random.multinomial(block, self.nearest, size=some)
            for at in range(some):
                yield BlockSummary(block, s[at], h[at], c[at])


LAWS: list[BlockLaw] = []


def law_part(task: tuple[Spec, int, int]) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64], list[int]]:
    """Records, sum and sum of squares (d, d) of one stream, then the counts of bins and of prototypes in one list."""
    spec, seed, records = task
    reference = BUILT[spec].reference
    d = reference.dimension
    total, squares = np.zeros(d), np.zeros((d, d))
    counts = np.zeros(N_BINS + len(reference.prototypes), dtype=np.int64)
    for scored in scored_pieces(reference, source(spec.stream).open(seed), records):
        wide = scored.x.astype(np.float64)
        total += wide.sum(axis=0)
        squares += wide.T @ wide
        counts[:N_BINS] += np.bincount(scored.bin, minlength=N_BINS)
        counts[N_BINS:] += np.bincount(scored.nearest, minlength=scored.prototypes)
    return records, total, squares, counts.tolist()


def block_law(spec: Spec, *, records: int, processes: int) -> BlockLaw:
    """The law of blocks, from ``records`` scored records of other seeds than any baseline or null stream."""
    pieces = max(processes, 1)
    tasks = [(spec, LAW_SEED + at, records // pieces // 2048 * 2048) for at in range(pieces)]
    parts = list(parallel(law_part, tasks, processes))
    n = sum(part[0] for part in parts)
    mean = sum((part[1] for part in parts), np.zeros(1)) / n
    squares = sum((part[2] for part in parts), np.zeros(1)) / n
    counts = np.array([part[3] for part in parts]).sum(axis=0)
    values, vectors = np.linalg.eigh(squares - np.outer(mean, mean))
    factor = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return BlockLaw(mean, factor, counts[:N_BINS] / n, counts[N_BINS:] / n)


def soak_run(task: tuple[Spec, int, int]) -> tuple[int, float]:
    """Pages over one stretch of blocks, and the greatest strength."""
    spec, seed, blocks = task
    watch = Watch(BUILT[spec].constants, block=spec.block, run_length=SOAK_RUN_LENGTH)
    watch.take(LAWS[0].draw(blocks, seed, block=spec.block))
    return len(watch.alarms), float(np.max(watch.strengths))


def soak(spec: Spec, *, records: int, law_records: int, processes: int) -> None:
    """Print one line."""
    LAWS[:] = [block_law(spec, records=law_records, processes=processes)]
    stretches = max(16, processes) if records >= 10**7 else 1
    blocks = -(-records // spec.block // stretches)
    tasks = [(spec, SOAK_SEED + at, blocks) for at in range(stretches)]
    found = list(parallel(soak_run, tasks, processes))
    threshold = float(np.log10(SOAK_RUN_LENGTH / spec.block))
    greatest = max(strength for _, strength in found)
    say(
        benchmark="drift_null_soak",
        stream=spec.stream,
        block=spec.block,
        run_length=SOAK_RUN_LENGTH,
        value=sum(pages for pages, _ in found),
        unit="false pages",
        ratio=round(greatest / threshold, 3),
        against="greatest strength over the threshold",
        records=blocks * stretches * spec.block,
        expected_at_most=blocks * stretches * spec.block / SOAK_RUN_LENGTH,
    )


def main() -> None:
    """Print a line of JSON for every cell."""
    parser = arguments(__doc__, quick_runs=1, full_runs=16)
    parser.add_argument("--streams", nargs="*", choices=STREAMS, help="all if full, else the independent one")
    parser.add_argument("--draws", type=int, help="draws of the baseline: 1 if quick, 4 if full")
    parser.add_argument("--no-soak", action="store_true", help="leave out the second part")
    options = parser.parse_args()
    size = size_of(options)
    streams = options.streams or (STREAMS if size.full else STREAMS[:1])
    draws = options.draws or (4 if size.full else 1)
    specs = [
        Spec(stream, block, size.baseline, draw)
        for stream in streams
        for block in ((64, 256) if stream.startswith("sessions") else (64,))
        for draw in range(draws)
    ]
    soaked = Spec("independent", BLOCK, size.baseline)
    BUILT.update(build_all([*specs, *([] if options.no_soak else [soaked])], size.processes))
    piece = 2048 * (126 if size.full else 48)  # 258,048 records, 13 seasons
    measured_run_length(specs, records=piece * size.runs, piece=piece, processes=size.processes)
    if not options.no_soak:
        records, law_records = (10**8, 10**6) if size.full else (10**6, 10**5)
        soak(soaked, records=records, law_records=law_records, processes=size.processes)


if __name__ == "__main__":
    main()
