"""A model whose answers are known to be right or wrong: intents of short texts, and traffic that changes in many ways.

The model is a logistic regression on MiniLM vectors. It learns from one part of a set of intents; the second part is
the baseline: reference, calibration of its confidence; windows are drawn from the third. Every tenth intent is kept
from all three: content that the model cannot answer. So are the 200 questions of CLINC150 that are out of every scope.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from detectors.fold import FoldSettings, FoldState, Rule, fold
from detectors.performance import ConfidenceCalibration, Estimate, estimate
from detectors.realised import Realised
from detectors.reference import TEXT, Reference
from detectors.risk import RiskRule, RiskState, run_length
from detectors.summary import BlockSummary, summarise
from detectors.verdict import Decision, Facts, decide

DATA = Path(os.environ.get("DRIFTD_DATA", Path(__file__).parents[3] / "shared" / "data")) / "embeddings_minilm"
NO_DATA = f"no data at {DATA}; set DRIFTD_DATA to the folder that holds embeddings_minilm/"
FILES = {"clinc150": "clinc150_without_oos_test.npz", "banking77": "banking77.npz"}
WINDOW = 1_000
SCENARIOS = (
    "none",
    "prior shift",
    "harder mix",
    "out of scope, 10 %",
    "out of scope, 30 %",
    "unknown intents, 10 %",
    "unknown intents, 30 %",
    "other domain, 30 %",
    "noise 0.5",
    "noise 1.0",
    "concept swap, 10 %",
    "concept swap, 30 %",
)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Records:
    """vectors: float32 (n, 384), unit length. right: bool (n,). confidence: float64 (n,)."""

    vectors: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]
    confidence: Floats

    def __len__(self) -> int:
        return len(self.right)


class Watched:
    """A trained model with its baseline and the records that its traffic is drawn from.

    Args:
        name: clinc150 or banking77; vectors of the other one are the other domain.
        seed: of the parts, and so of the model.
        train, baseline: records of the first two parts, as shares of what is left without the intents kept out.
        most: intents in all, where the whole set takes too long.
    """

    def __init__(self, name: str, *, seed: int, train: float = 0.22, baseline: float = 0.38, most: int = 1_000) -> None:
        rng = np.random.default_rng(seed)
        vectors, labels = read(name)
        other = next(each for each in FILES if each != name)
        intents = rng.permutation(np.unique(labels[labels != "oos"]))[:most]
        used = np.isin(labels, intents)
        vectors, labels = vectors[used], labels[used]
        out = np.isin(labels, intents[: len(intents) // 10])
        clinc, of_clinc = read("clinc150")
        beyond, of_beyond = read(other)
        self.foreign = {
            "out of scope": clinc[of_clinc == "oos"],
            "unknown intents": vectors[out],
            "other domain": beyond[of_beyond != "oos"],
        }
        order = rng.permutation(np.flatnonzero(~out))
        first, second = (np.array([train, train + baseline]) * len(order)).astype(int)
        learned = order[:first]
        self._model = LogisticRegression(C=10, max_iter=200).fit(vectors[learned], labels[learned])
        self._classes = self._model.classes_
        centres = np.stack([vectors[learned][labels[learned] == each].mean(axis=0) for each in self._classes])
        self._centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        held = order[first:second]
        known = self.answer(vectors[held], labels[held])
        self.reference = Reference.build(vectors[held], geometry=TEXT)
        self.calibration = ConfidenceCalibration.of(known.confidence, known.right)
        self.pool_vectors, self.pool_labels = vectors[order[second:]], labels[order[second:]]

    def answer(self, vectors: npt.NDArray[np.float32], truths: npt.NDArray[np.str_] | None) -> Records:
        """What the model says; without truths no answer is right."""
        chances = self._model.predict_proba(vectors)
        answers = self._classes[chances.argmax(axis=1)]
        right = np.zeros(len(vectors), np.bool_) if truths is None else answers == truths
        return Records(vectors, right, chances.max(axis=1))

    def watch(self) -> Watch:
        """The verdict on this model, window by window."""
        return Watch(self)

    def traffic(self, scenario: str, n: int, rng: np.random.Generator) -> Records:
        """n records, drawn with replacement only where there are not enough."""
        vectors, labels = self.pool_vectors, self.pool_labels
        every = np.arange(len(labels))
        share = float(scenario.split(", ")[1].rstrip(" %")) / 100 if "," in scenario else 0.0
        if scenario == "prior shift":  # half of the intents come five times as often
            often = rng.permutation(self._classes)[: len(self._classes) // 2]
            weight = np.where(np.isin(labels, often), 5.0, 1.0)
            taken = rng.choice(every, n, replace=False, p=weight / weight.sum())
        elif scenario == "harder mix":  # half come from the fifth that lies closest between the centres of two intents
            near = np.sort(vectors @ self._centres.T, axis=1)
            hard = every[near[:, -1] - near[:, -2] <= np.quantile(near[:, -1] - near[:, -2], 0.2)]
            taken = np.concatenate([draw(hard, n // 2, rng), draw(every, n - n // 2, rng)])
        else:
            taken = draw(every, n, rng)
        vectors, labels = vectors[taken].copy(), labels[taken].copy()
        if scenario.startswith("noise"):
            vectors += float(scenario.split()[1]) * rng.standard_normal(vectors.shape).astype(np.float32) / 384**0.5
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if scenario.startswith("concept swap"):  # intents with such a share of the records trade names
            swapped = rng.permutation(self._classes)[: max(2, round(share * len(self._classes)))]
            for name, now in zip(swapped, np.roll(swapped, 1), strict=True):
                labels[self.pool_labels[taken] == name] = now
        answered = self.answer(vectors, labels)
        kind = scenario.split(",")[0]
        if kind not in self.foreign:
            return answered
        new = self.answer(self.foreign[kind][draw(np.arange(len(self.foreign[kind])), round(share * n), rng)], None)
        places = rng.permutation(n)[: len(new)]
        for whole, part in ((answered.vectors, new.vectors), (answered.right, new.right)):
            whole[places] = part
        answered.confidence[places] = new.confidence
        return answered

    def summary(self, records: Records) -> BlockSummary:
        """The block summary of a window."""
        scored = self.reference.score(records.vectors)
        return summarise(np.zeros(len(records), np.int64), scored, confidence=records.confidence)[0]

    def estimate(self, summary: BlockSummary) -> Estimate:
        """What is estimated of a window."""
        assert summary.confidence is not None
        return estimate(self.calibration, summary.confidence, summary.h, n_calibration=self.reference.n_calibration)


class Watch:
    """The verdict window by window, as the service folds it: a window of 1,000 records each hour, a page in 90 days."""

    def __init__(self, watched: Watched, *, every_days: float = 90.0) -> None:
        self._watched = watched
        self._every_days = every_days
        constants = watched.reference.drift
        assert constants is not None
        settings = FoldSettings(page_run_length_blocks=24 * every_days, warn_run_length_blocks=24.0)
        self._rule = Rule(constants, settings)
        self._drift = FoldState.start(self._rule)
        self._paged = False
        self.risk = RiskState.start()
        self.floor = watched.calibration.floor(0.01)
        self._realised = Realised()
        self._windows = 0

    def risk_rule(self, labels: int) -> RiskRule:
        """What labels are held against, if so many came until now."""
        length = run_length(labels, max(self._windows, 1) / 24, every_days=self._every_days)
        return RiskRule(1.0 - self.floor, length)

    def push(self, records: Records, labelled: npt.NDArray[np.int64]) -> Decision:
        """Take in the next window, of which some records have a label."""
        self._windows += 1
        summary = self._watched.summary(records)
        self._drift, readings = fold(self._drift, summary, self._rule)
        active = [reading for reading in readings if reading.page or reading.warn or reading.active]
        self._paged = bool(active) and (self._paged or any(reading.page for reading in active))
        right = records.right[labelled]
        rule = self.risk_rule(self.risk.n + len(labelled))
        self.risk = self.risk.push(1.0 - right.astype(np.float64), rule=rule)
        self._realised = self._realised.add(["right"] * len(right), np.where(right, "right", "wrong").tolist())
        low, high = self._realised.interval()
        return decide(
            Facts(
                records=len(records),
                least=500,
                input_drift="page" if self._paged else "warn" if active else "",
                channels=frozenset(reading.channel for reading in active),
                estimate=self._watched.estimate(summary),
                floor=self.floor,
                labels=self._realised.n,
                realised=self._realised.accuracy(),
                realised_low=low,
                realised_high=high,
                labels_cover_drift=False,
                risk="page" if self.risk.degraded(rule) else "",
                evidence=self.risk.evidence,
            )
        )


@functools.cache
def read(name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.str_]]:
    """Vectors and intents of a set; "oos" is out of scope."""
    with np.load(DATA / FILES[name]) as stored:
        return stored["X"].astype(np.float32), stored["label"]


def draw(places: npt.NDArray[np.int64], n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """n of them, each once where there are enough."""
    return rng.choice(places, n, replace=n > len(places))
