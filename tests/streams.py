"""Seeded streams of vectors, and the constants and block summaries that the drift rule needs of them, in plain NumPy.

The tests of the drift rule use these in place of a whole reference, so that they say something of the rule alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors import baseline
from detectors.conformal import N_BINS, p_bins, score_thresholds

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """What the fold reads of a block."""

    n: int
    s: npt.NDArray[np.int64]
    h: npt.NDArray[np.int64]
    c: npt.NDArray[np.int64]


class Topics:
    """Texts of many topics, some common and most rare, as unit vectors: a mixture with one covariance within topics."""

    def __init__(self, dimension: int = 32, topics: int = 40, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.dimension = dimension
        self.centres = _unit(random.standard_normal((topics, dimension)))
        self.prior = 1.0 / np.arange(1, topics + 1)
        self.prior /= self.prior.sum()
        mixing = random.standard_normal((dimension, dimension)) / np.sqrt(dimension) * 0.5
        self.factor = (mixing + np.diag(np.linspace(1.2, 0.4, dimension))) * 0.5 / np.sqrt(dimension)
        self.elsewhere = _unit(random.standard_normal(dimension))

    def draw(
        self,
        n: int,
        random: np.random.Generator,
        *,
        new_topic: float = 0.0,
        spread: float = 1.0,
        bias: float = 0.0,
        prior: float = 1.0,
        copies: int = 1,
    ) -> Vectors:
        """``n`` vectors, changed as asked.

        A share of a new topic, a factor on the spread, a constant added, five topics made ``prior`` times as common, or
        sessions of ``copies`` near-duplicates, sixteen of them interleaved.
        """
        shares = self.prior.copy()
        shares[5:10] *= prior
        sources = -(-n // copies)
        topic = random.choice(len(shares), size=sources, p=shares / shares.sum())
        centres = np.where((random.random(sources) < new_topic)[:, None], self.elsewhere, self.centres[topic])
        x = centres + spread * (random.standard_normal((sources, self.dimension)) @ self.factor)
        if copies > 1:
            lanes = -(-sources // 16) * 16
            order = np.repeat(np.arange(lanes).reshape(-1, 16), copies, axis=0).reshape(-1)
            order = order[order < sources][:n]
            x = x[order] + 0.02 * random.standard_normal((len(order), self.dimension))
        return (_unit(x) + bias * self.elsewhere).astype(np.float32)


class Baseline:
    """A reference made of a few rounds of k-means, measured for the drift rule."""

    def __init__(
        self,
        vectors: Vectors,
        random: np.random.Generator,
        *,
        prototypes: int = 200,
        block: int = 64,
        calibration_share: float = 0.5,
    ) -> None:
        # Stretches of neighbours, as in a reference: copies of one session must not lie in both halves.
        stretch = np.arange(len(vectors)) // max(1, min(1024, len(vectors) // 64))
        stretches = int(stretch[-1]) + 1
        held_out = np.isin(stretch, random.permutation(stretches)[: int(stretches * calibration_share)])
        base, calibration = vectors[~held_out], vectors[held_out]
        self.prototypes = base[random.permutation(len(base))[:prototypes]]
        for _ in range(5):
            nearest, _ = self._search(base)
            sums = np.zeros(self.prototypes.shape)
            np.add.at(sums, nearest, base)
            self.prototypes = np.where((sums != 0).any(axis=1, keepdims=True), sums, self.prototypes)
            self.prototypes = _unit(self.prototypes).astype(np.float32)
        scores = np.sort(self._search(calibration)[1])
        self.thresholds = score_thresholds(scores)
        wide = base.astype(np.float64)
        self.blocks = self.summaries(vectors, block)
        self.measured = {
            "n0": len(base),
            "mean": wide.mean(axis=0),
            "covariance": np.cov(wide.T, bias=True),
            "sample": calibration[:20_000],
            "sample_held_out": True,
            "centroids": self.prototypes,
            "counts": np.bincount(self._search(base)[0], minlength=len(self.prototypes)),
            "calibration_scores": scores,
            "block_n": np.array([one.n for one in self.blocks]),
            "block_s": np.stack([one.s for one in self.blocks]),
            "block_h": np.stack([one.h for one in self.blocks]),
            "block_c": np.stack([one.c for one in self.blocks]),
        }
        self.constants = baseline.measure(**self.measured)

    def _search(self, vectors: Vectors) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        similarity = vectors @ self.prototypes.T
        nearest = similarity.argmax(axis=1)
        return nearest, (2.0 - 2.0 * similarity[np.arange(len(vectors)), nearest]).astype(np.float32)

    def summaries(self, vectors: Vectors, block: int) -> list[Block]:
        """One summary for every ``block`` vectors; what is left over at the end is dropped."""
        nearest, distance = self._search(vectors)
        bins = p_bins(distance, self.thresholds)
        fixed = np.rint(vectors * np.float32(2**20)).astype(np.int64)
        cuts = [slice(start, start + block) for start in range(0, len(vectors) - block + 1, block)]
        return [
            Block(
                block,
                fixed[cut].sum(axis=0),
                np.bincount(bins[cut], minlength=N_BINS),
                np.bincount(nearest[cut], minlength=len(self.prototypes)),
            )
            for cut in cuts
        ]


def _unit(x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
