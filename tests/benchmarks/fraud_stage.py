"""What fraud scores cost beyond the outlier score, through the whole pipeline from bytes to a checkpoint's rows.

"text" has 384 dimensions and 2,000 confirmed cases; "tables" 15 columns, 2,000 cases, entities and pairs. The same
records go through with and without the stage, in turns, and the best of each is taken, in processor time.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/fraud_stage.py [ROUNDS]
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from connectors.database.rows import EntityRow, FloodRow, LabelSpan, ReferenceRow
from connectors.records import Partition, RawBatch
from detectors.fraud import FraudScorer
from detectors.geometry import ANGULAR, STANDARD, Geometry
from detectors.reference import Reference
from monitor.decode import Decoder, RecordSettings
from monitor.embedders.vector import VectorSettings
from monitor.fraud import FraudStage
from monitor.fraud_build import FraudColumns, FraudParts, build_fraud, load_fraud
from monitor.fraud_learner import Fitted
from monitor.fraud_settings import FraudSettings
from monitor.pipeline import Pipeline, Space
from monitor.thinning import key_hashes

RECORDS = 40_000
POLL = 4_096
CASES = 2_000
BASELINE = 20_000
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
START_MS = 1_772_438_400_000
CARDS, MERCHANTS = 5_000, 300


@dataclass(frozen=True)
class Way:
    """What is scored."""

    name: str
    dimension: int
    geometry: Geometry
    settings: FraudSettings


WAYS = (
    Way("text", 384, ANGULAR, FraudSettings()),
    Way(
        "tables",
        15,
        STANDARD,
        FraudSettings.model_validate(
            {
                "fields": {"amount": "header:amount"},
                "entity": "header:card",
                "relation": {"of": "header:card", "to": "header:merchant"},
            }
        ),
    ),
)


class OneVersion:
    """The scorer of one version of the labels."""

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted

    def latest(self) -> Fitted:
        return self._fitted

    def at(self, version: int) -> Fitted:
        return self._fitted


class NothingStored:
    """A database in which nothing is."""

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        return []

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        return []

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        return []


def drawn(way: Way, n: int, *, seed: int) -> np.ndarray:
    """Vectors of 40 kinds."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, way.dimension))
    return (centres[chance.integers(0, 40, n)] + 0.7 * chance.normal(size=(n, way.dimension))).astype("<f4")


def parts_of(way: Way, folder: Path) -> FraudParts:
    chance, vectors = np.random.default_rng(5), drawn(way, BASELINE, seed=0)
    blocks = np.arange(BASELINE) // 256
    reference = Reference.build(vectors, geometry=way.geometry, exemplars=5_000, block_ids=blocks)
    cards = key_hashes([f"c{card}" for card in chance.integers(0, CARDS, BASELINE)])
    columns = FraudColumns(
        way.settings,
        numbers=[chance.exponential(50.0, (BASELINE, len(way.settings.fields))).astype(np.float32)],
        entities=[cards],
        lefts=[cards],
        rights=[key_hashes([f"m{merchant}" for merchant in chance.integers(0, MERCHANTS, BASELINE)])],
    )
    row = build_fraud(
        folder / way.name,
        reference,
        row=ReferenceRow("bench", "input", 1, "", BASELINE, way.dimension, reference.checksum, 0, True),
        version=1,
        vectors=vectors,
        blocks=blocks,
        columns=columns,
        order=np.arange(BASELINE),
        progress=lambda step, share: None,
    )
    return load_fraud(row, reference, way.settings)


def fitted_of(way: Way, parts: FraudParts) -> tuple[Fitted, float]:
    chance = np.random.default_rng(6)
    cases = drawn(way, 2 * CASES, seed=1) + np.where(np.arange(2 * CASES) < CASES, 0.5, 0.0)[:, None].astype("<f4")
    signals = np.full((len(cases), len(parts.baseline.columns)), np.nan, np.float32)
    signals[:, 0] = chance.exponential(1.0, len(cases))
    began = time.perf_counter()
    scorer = FraudScorer(parts.reference, baseline=parts.baseline).fit(
        cases, np.arange(2 * CASES) < CASES, signals=signals
    )
    seconds = time.perf_counter() - began
    numbers = range(2 * CASES)
    return Fitted(2 * CASES, scorer, tuple(numbers), tuple(f"r{number}" for number in numbers), 0, seconds), seconds


def polls_of(way: Way) -> list[RawBatch]:
    chance, vectors = np.random.default_rng(8), drawn(way, RECORDS, seed=2)
    cards, merchants = chance.integers(0, CARDS, RECORDS).tolist(), chance.integers(0, MERCHANTS, RECORDS).tolist()
    return [
        RawBatch(
            partition=Partition("bench", 0),
            offsets=np.arange(first, after, dtype=np.int64),
            timestamps_ms=np.arange(START_MS + first, START_MS + after, dtype=np.int64),
            keys=[None] * (after - first),
            values=[row.tobytes() for row in vectors[first:after]],
            headers=[
                [
                    ("id", b"request-%d" % row),
                    ("ts", b"%d" % (START_MS + row)),
                    ("card", b"c%d" % cards[row]),
                    ("merchant", b"m%d" % merchants[row]),
                    ("amount", b"%d" % (row % 97)),
                ]
                for row in range(first, after)
            ],
            next_offset=after,
        )
        for first in range(0, RECORDS, POLL)
        for after in [min(first + POLL, RECORDS)]
    ]


def run(way: Way, parts: FraudParts, polls: list[RawBatch], fitted: Fitted | None) -> float:
    """Processor seconds for all records."""
    embedder = VectorSettings.model_validate({"field": "body", "encoding": "bytes"}).build()
    record = {"codec": "raw", "id": "header:id", "time": {"path": "header:ts", "unit": "ms"}}
    stage = None
    if fitted is not None:
        stage = FraudStage(
            "bench",
            way.settings,
            space="input",
            parts=parts,
            versions=OneVersion(fitted),
            stored=NothingStored(),
        )
    pipeline = Pipeline(
        "bench",
        decoder=Decoder(RecordSettings.model_validate(record), ["body", *way.settings.record_fields]),
        spaces=[Space("input", embedder, parts.reference, 1, {})],
        block_ms=10_000,
        lateness_ms=10_000,
        alpha=0.001,
        sample=0.0005,
        stored=lambda partitions: {},
        fraud=stage,
    )
    began = time.process_time()
    for number, poll in enumerate(polls):
        pipeline.process(poll, None)
        if number % 2:
            pipeline.checkpoint()
            pipeline.written()
    pipeline.checkpoint()
    return time.process_time() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for way in WAYS:
            parts = parts_of(way, Path(name))
            fitted, fit_s = fitted_of(way, parts)
            polls = polls_of(way)
            took = [(run(way, parts, polls, None), run(way, parts, polls, fitted)) for _ in range(ROUNDS)]
            plain_s, fraud_s = (min(seconds) for seconds in zip(*took, strict=True))
            line = {
                "benchmark": f"fraud_stage_{way.name}",
                "value": round((fraud_s - plain_s) / RECORDS * 1e6, 2),
                "unit": "us of processor time for a record's fraud score",
                "ratio": round(plain_s / fraud_s, 3),
                "against": "the pipeline without fraud scores",
                "records_s": round(RECORDS / fraud_s),
                "plain_records_s": round(RECORDS / plain_s),
                "dimension": way.dimension,
                "signals": list(parts.baseline.names),
                "cases": fitted.scorer.n_cases,
                "fit_s": round(fit_s, 2),
            }
            print(json.dumps(line))


if __name__ == "__main__":
    main()
