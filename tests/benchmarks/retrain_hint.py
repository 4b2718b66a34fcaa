"""Which records `driftd verdict --retrain-hint` names first: how many of the new kinds are among 50. One JSON line.

    DRIFTD_DATA=... python tests/benchmarks/retrain_hint.py [--seeds 20] [--tuning]

CLINC150 (150 intents, MiniLM vectors). Fifteen intents are unknown: the baseline is the training records of the
other 135, the stream their other records and, one in ten, records of unknown intents. Records are kept as a pipeline
keeps them, with ``outliers.alpha`` 0.01 and ``outliers.sample`` 0.05, so that a stream of 7,500 records leaves enough.
Then 50 are named, and beside them stand 50 drawn at random from
those that are kept, and the 50 strangest.

"intents" is how many of the 15 unknown ones are among the 50; "new" the share of the 50 that is of any of them.
`--tuning` takes the unknown intents from the half that the group size in `detectors.lacking` was chosen on; the report
takes them from the other half.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.lacking import name_lacking
from detectors.reference import TEXT, Reference

ALPHA, SAMPLE, UNKNOWN, NAMED = 0.01, 0.05, 15, 50
RANDOM_DRAWS = 20
ROOT = Path(__file__).resolve().parents[2]
Rows = npt.NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tuning", action="store_true")
    chosen = parser.parse_args()
    folder = Path(os.environ.get("DRIFTD_DATA", ROOT.parent / "shared" / "data"))
    data = np.load(folder / "embeddings_minilm" / "clinc150_without_oos_test.npz", allow_pickle=True)
    labels, split = data["label"].astype(str), data["split"].astype(str)
    known = ~np.char.startswith(labels, "oos")
    vectors, labels, split = data["X"][known].astype(np.float32), labels[known], split[known]
    intents = np.array(sorted(set(labels)))
    halves = intents[np.random.default_rng(99).permutation(len(intents))].reshape(2, -1)
    pool = halves[0 if chosen.tuning else 1]
    rows = [_one(vectors, labels, split, pool, seed) for seed in range(chosen.seeds)]
    found = {name: np.mean([row[name] for row in rows], axis=0).round(3).tolist() for name in rows[0]}
    intents_named = {name: values[0] for name, values in found.items() if name in ("hint", "random", "strangest")}
    print(
        json.dumps(
            {
                "benchmark": "retrain_hint",
                "value": intents_named["hint"],
                "unit": f"of {UNKNOWN} unknown intents among the first {NAMED} named",
                "ratio": round(intents_named["hint"] / intents_named["random"], 3),
                "against": f"{NAMED} kept records drawn at random",
                "seeds": chosen.seeds,
                **{f"{name}_intents": values[0] for name, values in found.items() if name != "kept"},
                **{f"{name}_new": values[1] for name, values in found.items() if name != "kept"},
                "kept": found["kept"][0],
                "kept_intents": found["kept"][1],
            }
        )
    )


def _one(vectors: Any, labels: Any, split: Any, pool: Any, seed: int) -> dict[str, tuple[float, float]]:
    chance = np.random.default_rng(seed)
    unknown = set(chance.choice(pool, UNKNOWN, replace=False))
    new = np.array([label in unknown for label in labels])
    base = vectors[(split == "train") & ~new]
    reference = Reference.build(base[chance.permutation(len(base))], geometry=TEXT)
    old = np.flatnonzero((split != "train") & ~new)
    stream = np.concatenate([old, chance.choice(np.flatnonzero(new), round(len(old) / 9), replace=False)])
    stream = stream[chance.permutation(len(stream))]
    scored = reference.score(vectors[stream])
    strange = scored.p_value <= ALPHA
    kept = np.flatnonzero(strange | (chance.random(len(stream)) < SAMPLE))
    weights = np.where(strange[kept], 1.0, 1.0 / SAMPLE)
    candidates = np.ascontiguousarray(reference.search_space(scored.x[kept]))
    named = name_lacking(candidates, weights, reference.search_space(reference.exemplars), NAMED, records=len(stream))

    def of(rows: Rows) -> tuple[float, float]:
        told = labels[stream[rows]]
        return float(len(set(told) & unknown)), float(new[stream[rows]].mean())

    drawn = [of(chance.choice(kept, NAMED, replace=False)) for _ in range(RANDOM_DRAWS)]
    return {
        "hint": of(kept[named.rows]),
        "random": (float(np.mean([one for one, _ in drawn])), float(np.mean([share for _, share in drawn]))),
        "strangest": of(kept[np.argsort(-scored.distance[kept], kind="stable")[:NAMED]]),
        "kept": (float(len(kept)), of(kept)[0]),
    }


if __name__ == "__main__":
    main()
