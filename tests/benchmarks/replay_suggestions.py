"""Whether suggested settings are better on the part of history that had no voice in choosing them.

Histories of 10 days in blocks of 10 minutes with 256 records of 16 dimensions, with changes at known times: true ones,
which somebody wants to know of, and harmless ones, which nobody does. Each seed draws its baseline, its changes and
their directions anew. Their summaries are stored as driftd stores them, and `monitor.replay_choice.suggest` looks for
better settings; then the second part says what came of what is suggested, beside the settings as they were. Every
suggestion counts, also one that the second part speaks against.

    python -m tests.benchmarks.replay_suggestions --seeds 20
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from connectors.database.rows import Checkpoint, FoldResult, ReferenceRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.reference import STANDARD, Reference
from detectors.summary import summarise
from monitor.record_counts import RecordCounts
from monitor.replay_choice import Suggestion, suggest
from monitor.replay_truth import TrueIncident
from monitor.settings import Settings

BLOCK_S, RECORDS, DIMENSION, DAYS = 600, 256, 16, 10
BASELINE = 110_000  # records, so that half of them may page
FIRST_BLOCK = 1_767_225_600 // BLOCK_S  # 2026-01-01
NOWHERE = Partition("", -1)


@dataclass(frozen=True)
class Kind:
    """What happens in a history: sizes in standard deviations, drawn evenly between two; of either part of the time.

    Attributes:
        harmless: changes that nobody wants to know of, so many in all.
        truths: true changes.
        tolerance: drift.tolerance as it is set now.
    """

    said: str
    true: tuple[tuple[float, float], tuple[float, float]]
    harmless: int
    harmless_size: tuple[tuple[float, float], tuple[float, float]]
    tolerance: float = 0.05
    truths: int = 12


KINDS = {
    "calm": Kind("no harmless changes", ((0.3, 0.6),) * 2, 0, ((0.0, 0.0),) * 2),
    "harmless": Kind("harmless changes of 0.12 to 0.2", ((0.3, 0.6),) * 2, 30, ((0.12, 0.2),) * 2),
    "blunt": Kind("tolerance set to 0.3, none harmless", ((0.25, 0.6),) * 2, 0, ((0.0, 0.0),) * 2, tolerance=0.3),
    "turned": Kind(
        "harmless changes; true ones weaker in the second part", ((0.3, 0.6), (0.12, 0.25)), 30, ((0.12, 0.2),) * 2
    ),
}


def settings_of(kind: Kind, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "database": f"sqlite:///{folder}/history.db",
            "references": folder / "references",
            "models": {
                "m": {
                    "source": {"kind": "files", "path": f"{folder}/none.jsonl"},
                    "spaces": {"x": {"embedder": {"kind": "vector", "field": "/x", "dimension": DIMENSION}}},
                    "drift": {"block": BLOCK_S, "tolerance": kind.tolerance, "season": "none"},
                    "reference": {"segments": 0},
                }
            },
        }
    )


def changes(kind: Kind, blocks: int, random: np.random.Generator) -> Iterator[tuple[int, int, float, bool]]:
    """First block, length, size and whether it is true; no two overlap, and hours lie between them."""
    places = random.permutation(np.linspace(24, blocks - 40, kind.truths + kind.harmless).astype(int))
    room = (blocks - 64) // (kind.truths + kind.harmless)
    for at, place in enumerate(places.tolist()):
        part = int(place >= 0.6 * blocks)
        true = at < kind.truths
        low, high = (kind.true if true else kind.harmless_size)[part]
        length = min(int(random.integers(12, 30)), room - 10)
        yield place, length, float(random.uniform(low, high)), true


def history(kind: Kind, seed: int, folder: Path, *, days: int = DAYS) -> tuple[Settings, list[TrueIncident]]:
    """Store the summaries of one history; what truly happened in it."""
    random = np.random.default_rng((seed, len(kind.said)))
    settings = settings_of(kind, folder)
    blocks = days * 86_400 // BLOCK_S
    baseline = random.standard_normal((BASELINE, DIMENSION)).astype(np.float32)
    reference = Reference.build(
        baseline,
        geometry=STANDARD,
        block_ids=np.arange(BASELINE) // RECORDS,
        prototypes=200,
        exemplars=100,
        model="m",
        space="x",
        seed=seed,
    )
    path = folder / "references" / "m" / "x" / "1"
    path.parent.mkdir(parents=True)
    checksum = reference.save(path)
    shift = np.zeros((blocks, DIMENSION), dtype=np.float32)
    truth = []
    for first, length, size, true in changes(kind, blocks, random):
        direction = random.standard_normal(DIMENSION)
        shift[first : first + length] += (size * direction / np.linalg.norm(direction)).astype(np.float32)
        if true:
            start = FIRST_BLOCK + first
            truth.append(TrueIncident(start * BLOCK_S * 1000, (start + length) * BLOCK_S * 1000, f"change {first}"))
    with Store.open(settings.database) as store:
        store.migrate()
        row = ReferenceRow("m", "x", 1, str(path), BASELINE, DIMENSION, str(checksum), 0, True)
        store.commit(Checkpoint("m", [], references=[row]))
        with store.begin_fold("m") as step:
            step.commit(FoldResult(FIRST_BLOCK + blocks, list(_summaries(reference, shift, random)), [], [], [], []))
    return settings, truth


def _summaries(
    reference: Reference, shift: npt.NDArray[np.float32], random: np.random.Generator
) -> Iterator[SummaryDelta]:
    for start in range(0, len(shift), 32):
        part = shift[start : start + 32]
        vectors = random.standard_normal((len(part), RECORDS, DIMENSION), dtype=np.float32) + part[:, None, :]
        blocks = FIRST_BLOCK + start + np.repeat(np.arange(len(part)), RECORDS)
        scored = reference.score(vectors.reshape(-1, DIMENSION))
        for block, summary in summarise(blocks, scored).items():
            yield SummaryDelta("x", "", block, 1, NOWHERE, 0, summary.to_bytes())
            yield SummaryDelta("", "", block, 0, NOWHERE, 0, RecordCounts(RECORDS, 0, {}).to_bytes())


def run(task: tuple[str, int]) -> tuple[str, Suggestion, float]:
    name, seed = task
    with tempfile.TemporaryDirectory() as folder:
        settings, truth = history(KINDS[name], seed, Path(folder))
        began = time.perf_counter()
        with Store.open(settings.database) as store:
            found = suggest(store, "m", settings, truth)
        return name, found, time.perf_counter() - began


def report(name: str, found: list[Suggestion]) -> str:
    """One line of the table: of all seeds, and of those with a suggestion what the second part says."""
    taken = [(one.now.second, one.chosen.second, one.holds) for one in found if one.chosen is not None]

    def mean(value: Callable[[int], float]) -> float:
        return float(np.mean([value(at) for at in range(len(taken))])) if taken else float("nan")

    cells = [
        KINDS[name].said,
        f"{len(taken)} of {len(found)}",
        f"{mean(lambda at: taken[at][0].false_pages):.1f} → {mean(lambda at: taken[at][1].false_pages):.1f}",
        f"{sum(now.caught for now, _, _ in taken)} → {sum(one.caught for _, one, _ in taken)} "
        f"of {sum(one.of for _, one, _ in taken)}",
        f"{mean(lambda at: taken[at][0].missed_alone_s / 60):.0f} → "
        f"{mean(lambda at: taken[at][1].missed_alone_s / 60):.0f} min",
        str(sum(holds is True for _, _, holds in taken)),
        str(sum(one.false_pages > now.false_pages for now, one, _ in taken)),
        str(sum(one.caught < now.caught for now, one, _ in taken)),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    chosen = parser.parse_args()
    names = chosen.kind or list(KINDS)
    tasks = [(name, seed) for name in names for seed in range(chosen.seeds)]
    found: dict[str, list[Suggestion]] = {name: [] for name in names}
    with ProcessPoolExecutor(chosen.processes) as pool:
        for name, one, seconds in pool.map(run, tasks):
            found[name].append(one)
            told = one.chosen.candidate.name if one.chosen else one.why
            print(f"# {report(name, [one])} {seconds:.0f} s: {told}", flush=True)
    print("| history | suggested | false pages | caught | missed time | holds | more false pages | caught fewer |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        print(report(name, found[name]))


if __name__ == "__main__":
    main()
