"""Single windows of 500 records in which 5 % are of a new topic: how often they are told from unchanged ones.

Each window is one block to a rule that has seen nothing before it, and its statistic is the least p-value of the three
channels, divided by their shares (level 0.4, shape 0.4, mix 0.2). It is called changed where that lies below a
threshold, which comes in two ways: from the closed form, 0.01, and as the 1 % quantile over unchanged windows. False
alarms are counted on unchanged windows of other seeds, power on windows with each of the ten new topics.

    python tests/benchmarks/drift_power.py --full --processes 16
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from streams_text import NEW_TOPICS, Shift
from streams_watch import Built, Spec, arguments, build_all, parallel, say, size_of, source

from detectors.fold import CHANNELS, OMEGA, FoldSettings, FoldState, Rule, fold
from detectors.summary import summarise

WINDOW, SHARE, LEVEL = 500, 0.05, 0.01
GOAL = 0.95
# First seeds of the windows that set the threshold, that count false alarms, and that have a new topic.
THRESHOLD_SEED, NULL_SEED, SHIFT_SEED = 600_000, 700_000, 800_000
BUILT: dict[Spec, Built] = {}
PER_TASK = 20


def window_p_values(task: tuple[Spec, int, int | None]) -> npt.NDArray[np.float64]:
    """p-values (20, 3) of the channels of windows with consecutive seeds; with a new topic if one is named."""
    spec, seed, topic = task
    built = BUILT[spec]
    rule = Rule(built.constants, FoldSettings(1e12, 1e12, max_blocks=1))
    shift = Shift() if topic is None else Shift(new=SHARE, topic=topic)
    result = np.ones((PER_TASK, len(CHANNELS)))
    for place in range(PER_TASK):
        scored = built.reference.score(source(spec.stream).open(seed + place, shift=shift).take(WINDOW))
        summary = summarise(np.zeros(WINDOW, dtype=np.int64), scored)[0]
        _, readings = fold(FoldState.start(rule), summary, rule)
        for reading in readings:
            result[place, CHANNELS.index(reading.channel)] = reading.p_value
    return result


def main() -> None:
    """Print a line for each statistic and way to a threshold."""
    parser = arguments(__doc__, quick_runs=20, full_runs=200)
    parser.add_argument("--streams", nargs="*", choices=("independent", "real"), help="both if full")
    options = parser.parse_args()
    size = size_of(options)
    streams = options.streams or (("independent", "real") if size.full else ("independent",))
    nulls = 5000 if size.full else 300
    specs = [Spec(stream, 64, size.baseline) for stream in streams]
    BUILT.update(build_all(specs, size.processes))
    for spec in specs:
        _report(spec, nulls=nulls, runs=size.runs, processes=size.processes)


def _report(spec: Spec, *, nulls: int, runs: int, processes: int) -> None:
    pieces = range(0, nulls, PER_TASK)
    tasks: list[tuple[Spec, int, int | None]] = [(spec, THRESHOLD_SEED + at, None) for at in pieces]
    tasks += [(spec, NULL_SEED + at, None) for at in pieces]
    tasks += [
        (spec, SHIFT_SEED + 1000 * topic + at, topic) for topic in range(NEW_TOPICS) for at in range(0, runs, PER_TASK)
    ]
    found = list(parallel(window_p_values, tasks, processes))
    setting, null = (np.concatenate(found[first : first + len(pieces)]) for first in (0, len(pieces)))
    shifted = np.stack(found[2 * len(pieces) :]).reshape(NEW_TOPICS, -1, len(CHANNELS))
    shares = np.array([OMEGA[name] for name in CHANNELS])
    for name in (*CHANNELS, "all three"):
        statistics = [
            (p / shares).min(axis=-1) if name == "all three" else p[..., CHANNELS.index(name)]
            for p in (setting, null, shifted)
        ]
        # A new unchanged window lies below the k-th smallest of m with probability k / (m + 1) at most, ties or not;
        # many p-values tie at 1.
        rank = int(LEVEL * (len(setting) + 1))
        calibrated = float(np.sort(statistics[0])[rank - 1])
        for way, threshold in (("closed form", LEVEL), ("unchanged windows", calibrated)):
            power = (statistics[2] < threshold).mean(axis=1)
            say(
                benchmark="drift_power",
                stream=spec.stream,
                statistic=name,
                threshold_from=way,
                value=round(float(power.mean()), 4),
                median_topic=round(float(np.median(power)), 4),
                unit=f"of windows of {WINDOW} with {SHARE:.0%} of a new topic",
                ratio=round(float(power.mean()) / GOAL, 3),
                against=f"goal of {GOAL} at {LEVEL} false alarms",
                false_alarms=round(float((statistics[1] < threshold).mean()), 4),
                null_windows=len(null),
                windows_a_topic=shifted.shape[1],
                by_topic=[round(float(one), 2) for one in power],
            )


if __name__ == "__main__":
    main()
