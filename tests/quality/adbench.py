"""The ADBench sets (Han et al. 2022) under the semi-supervised protocol, and the peer that driftd is measured against.

Train on half of the normal records, test on the other half and the anomalies. The peer is kNN as most papers run it:
standard-scaled columns, distance to the 5th neighbour, all training records. Test records are capped per class, which
leaves the expectation of the AUROC as it is; training records are not capped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detectors.index import NearestIndex

DATA = Path(os.environ.get("DRIFTD_DATA", Path(__file__).parents[3] / "shared" / "data"))
NO_DATA = f"no data at {DATA}; set DRIFTD_DATA to the folder that holds adbench/, embeddings_minilm/ and fraud/"
MAX_TESTED = 5_000  # of each class


@dataclass(frozen=True, slots=True)
class Split:
    """train: float32 (n, d), normal records. test: float32 (m, d). anomalous: bool (m,)."""

    train: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32]
    anomalous: npt.NDArray[np.bool_]


def names(group: str) -> list[str]:
    """Sets of a group, "classical" (tables) or "mvtec_resnet18" (image vectors)."""
    return sorted(path.stem for path in (DATA / "adbench" / group).glob("*.npz"))


def split(group: str, name: str, seed: int) -> Split:
    with np.load(DATA / "adbench" / group / f"{name}.npz") as stored:
        vectors, anomalous = stored["X"].astype(np.float32), stored["y"] == 1
    random = np.random.default_rng(seed)
    normal = random.permutation(np.flatnonzero(~anomalous))
    strange = random.permutation(np.flatnonzero(anomalous))[:MAX_TESTED]
    half = len(normal) // 2
    held_out = normal[half:][:MAX_TESTED]
    marks = np.repeat([False, True], [len(held_out), len(strange)])
    return Split(vectors[normal[:half]], vectors[np.concatenate([held_out, strange])], marks)


def splits(group: str, name: str) -> Iterator[Split]:
    yield from (split(group, name, seed) for seed in (0, 1))


def peer_scores(data: Split) -> npt.NDArray[np.float32]:
    centre, scale = data.train.mean(axis=0, dtype=np.float64), data.train.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    train, test = (((part - centre) / scale).astype(np.float32) for part in (data.train, data.test))
    return NearestIndex(train).search(test, 5)[0][:, 4]


def auroc(anomalous: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve, times 100; ties count one half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    positive = int(anomalous.sum())
    negative = len(anomalous) - positive
    return 100.0 * (float(ranks[anomalous].sum()) - positive * (positive + 1) / 2.0) / (positive * negative)
