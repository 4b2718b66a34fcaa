"""How many records the drift rule needs to see a change, at run lengths of 20,000, 1e7 and 1e11 records.

Streams of `streams_text`, changed after 2,048 records and cut 16,384 records later: independent records, sessions of
about eight near-duplicates (sixteen interleaved), a seasonal mix of topics, and resampled real vectors. A run that
alarmed before the change is left out of its cell and counted as "before".

    python tests/benchmarks/drift_delay.py --full --processes 16
"""

from __future__ import annotations

from streams_text import SHIFTS
from streams_watch import (
    STREAMS,
    Built,
    Spec,
    Watch,
    arguments,
    build_all,
    delay_cell,
    kind,
    parallel,
    say,
    size_of,
    source,
    summaries,
)

ONSET, CUT = 2048, 16_384
RUN_LENGTHS = (2e4, 1e7, 1e11)
# Mean delay in records at run length 1e11, independent records, blocks of 64: what the rule was made to reach.
GOALS = {
    "new topic 10 %": 320,
    "new topic 2 %": 2500,
    "prior": 800,
    "bias": 230,
    "spread": 260,
    "out of domain 2 %": 400,
    "flood 5 %": 330,
}
BUILT: dict[Spec, Built] = {}
Delay = tuple[int | None, bool]


def run(task: tuple[Spec, str, int]) -> list[Delay]:
    """One run of one shift: for each run length, the records from the change to the alarm."""
    spec, shift, number = task
    built = BUILT[spec]
    stream = source(spec.stream).open(number, kind=kind(spec.stream), shift=SHIFTS[shift], onset=ONSET)
    watch = Watch(built.constants, block=spec.block, run_length=max(RUN_LENGTHS), start=stream.start)
    for _ in range(0, ONSET + CUT, 1024):
        watch.take(summaries(built.reference.score(stream.take(1024))), stop=True)
        if watch.alarms:
            break
    return [watch.first(length, ONSET) for length in RUN_LENGTHS]


def main() -> None:
    """Print a line of JSON for every stream, shift, block and run length."""
    parser = arguments(__doc__, quick_runs=2, full_runs=20)
    parser.add_argument("--streams", nargs="*", choices=STREAMS, help="all if full, else the independent one")
    options = parser.parse_args()
    size = size_of(options)
    streams = options.streams or (STREAMS if size.full else STREAMS[:1])
    specs = [Spec(stream, block, size.baseline) for stream in streams for block in ((64, 256) if size.full else (64,))]
    BUILT.update(build_all(specs, size.processes))
    tasks = [(spec, shift, number) for spec in specs for shift in SHIFTS for number in range(size.runs)]
    found: dict[tuple[Spec, str], list[list[Delay]]] = {}
    for (spec, shift, _), delays in zip(tasks, parallel(run, tasks, size.processes), strict=True):
        found.setdefault((spec, shift), []).append(delays)
    for (spec, shift), runs in found.items():
        for place, length in enumerate(RUN_LENGTHS):
            kept = [delays[place][0] for delays in runs if not delays[place][1]]
            cell = delay_cell(kept, cut=CUT)
            judged = size.full and (spec.stream, spec.block, length) == ("independent", 64, RUN_LENGTHS[-1])
            say(
                benchmark="drift_delay",
                stream=spec.stream,
                shift=shift,
                block=spec.block,
                run_length=length,
                **cell,
                before=len(runs) - len(kept),
                ratio=round(cell["value"] / GOALS[shift], 2) if judged and cell["value"] is not None else None,
                against=f"goal of {GOALS[shift]} records" if judged else None,
                baseline=built_records(spec),
            )


def built_records(spec: Spec) -> int:
    """Records of a baseline; the real vectors have as many as they have."""
    return BUILT[spec].reference.n_records


if __name__ == "__main__":
    main()
