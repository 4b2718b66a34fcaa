"""The fraud scorer of each version of the labels, fitted in a thread of its own.

A scorer is a pure function of the fraud baseline, the settings and the labels up to a version: every worker that fits a
version fits the same one, and so does whoever scores history. The thread looks for a newer version every 0.2 s. After a
fit it rests for as long as the fit took, so that fitting takes half a core at most: with few labels a fit takes
milliseconds and a label counts at once, with very many it takes seconds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from connectors.database.rows import LabelRow, LabelSource
from detectors.feedback_model import WARM_UP, counted_after
from detectors.fraud import FraudScorer
from monitor.fraud_build import FraudParts
from monitor.fraud_feedback import FraudChange, is_answer, learned
from monitor.fraud_signals import made_anew, made_with, same_columns, same_embedder
from monitor.log import RepeatingFailure, describe

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks for labels
RETRY_S = 5.0  # after a failure
JUDGE_S = 60.0  # between two looks whether fraud itself has changed, which take up to a second
MOST_SINCE_CHANGE = 500  # labels after which the models have learned what changed
JOIN_S = 5.0  # that `close` waits for a fit to end
MOST_LABELS = 100_000  # the last ones that count: about 150 MB of vectors with 384 dimensions
# A label that was asked for by chance stands for 1 / chance records, one of an alert for itself. Uncapped, the answers
# of a review sample of 0.05 % would weigh 2,000 times as much as the others, and the fit rest on a handful of them.
MOST_WEIGHT = 10.0
_REMEMBERED_VERSIONS = 4  # fitted for history

_STRENGTH: dict[LabelSource, int] = {"rule": 0, "analyst": 1, "chargeback": 2}


class StoredLabels(Protocol):
    """Where labels are: `connectors.database.store.Store`."""

    def label_version(self, model: str) -> int:
        """How many labels count."""

    def labels(self, model: str, *, after: int = 0, upto: int | None = None) -> list[LabelRow]:
        """Those with after < version <= upto, by version."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A scorer that knows the labels up to a version.

    Attributes:
        version: of the labels.
        scorer: fitted on those that are in force.
        labels: their numbers in the database, and
        records: the ids of their records, in the order in which the scorer was given them: evidence names rows of it.
        dropped: labels that are left out because their vectors are not of this embedder.
        seconds: that the fit took, with reading the labels.
    """

    version: int
    scorer: FraudScorer
    labels: tuple[int, ...]
    records: tuple[str, ...]
    dropped: int
    seconds: float


def in_force(rows: Iterable[LabelRow]) -> list[LabelRow]:
    """Of each record the one label that counts, by version: the stronger source (chargeback, analyst, rule) wins, then
    the later time, then the later label."""
    found: dict[str, LabelRow] = {}
    for row in rows:
        other = found.get(row.said.record_id)
        if other is None or _precedence(row) > _precedence(other):
            found[row.said.record_id] = row
    return sorted(found.values(), key=lambda row: row.version)


def _precedence(row: LabelRow) -> tuple[int, int, int]:
    return _STRENGTH[row.said.source], row.said.time_ms, row.id


def _named(row: LabelRow) -> tuple[int, int, str]:
    return row.version, row.id, row.said.origin


def weight_of(row: LabelRow) -> float:
    """How much a label counts in the fit: its confidence, and as many times as the records that it stands for."""
    known = row.said.known
    chance = 1.0 if known is None or not known.chance > 0.0 else known.chance  # NaN where it is not known
    return row.said.confidence * min(1.0 / chance, MOST_WEIGHT)


def fit_scorer(parts: FraudParts, rows: Sequence[LabelRow], *, prevalence: float) -> tuple[FraudScorer, list[LabelRow]]:
    """A scorer that has learned from labels, and those of them that it could learn from.

    Vectors of another embedder are left out. Signals that were made with other columns, for an older baseline, are made
    anew as far as the vector tells them; the others count as unknown.

    Args:
        rows: labels with what is known of their records.

    Raises:
        InvalidInput: the labels do not fit the baseline.
    """
    d, s = parts.baseline.vectors.shape[1], len(parts.baseline.columns)
    known = [(row, row.said.known) for row in rows if row.said.known is not None]
    ours = made_with(parts)
    known = [
        (row, record) for row, record in known if len(record.vector) == 4 * d and same_embedder(record.made_with, ours)
    ]
    vectors = np.frombuffer(b"".join(record.vector for _, record in known), "<f4").reshape(len(known), d)
    vectors = vectors.astype(np.float32, copy=False)
    usable = np.isfinite(vectors).all(axis=1) & (vectors.any(axis=1) | (not parts.reference.geometry.unit))
    known, vectors = [each for each, use in zip(known, usable.tolist(), strict=True) if use], vectors[usable]
    signals = np.full((len(known), s), np.nan, np.float32)
    columns = parts.baseline.columns
    fits = np.array(
        [len(record.signals) == 4 * s and same_columns(record.made_with, columns) for _, record in known], bool
    )
    if fits.any():
        stored = b"".join(record.signals for (_, record), use in zip(known, fits.tolist(), strict=True) if use)
        signals[fits] = np.frombuffer(stored, "<f4").reshape(-1, s)
    if not fits.all():
        signals[~fits] = made_anew(parts, vectors[~fits])
    scorer = FraudScorer(parts.reference, prevalence=prevalence, baseline=parts.baseline)
    scorer.fit(
        vectors,
        np.array([row.said.label == "fraud" for row, _ in known], np.int64),
        signals=signals,
        weights=np.array([weight_of(row) for row, _ in known], np.float64),
    )
    return scorer, [row for row, _ in known]


class Learner:
    """Fits the scorer of each version of a model's labels.

    Args:
        model: the model's name.
        store: where the labels are; used from this object's thread as well.
        parts: what was fitted on the baseline.
        prevalence: share of fraud in the traffic, as far as known.

    Attributes:
        failures: fits and looks that failed since the start; the scorer from before stays in force.
        judged: it is known whether fraud itself has changed, as `change` says.
        change: what the latest answers showed of that; None if nothing, or if many others came since.
    """

    def __init__(self, model: str, *, store: StoredLabels, parts: FraudParts, prevalence: float) -> None:
        self.parts = parts
        self.failures = 0
        self.judged = False
        self.change: FraudChange | None = None
        self._judged_version = -1
        self._judged_s = -math.inf
        self._model = model
        self._store = store
        self._prevalence = prevalence
        self._log = RepeatingFailure(log, "fraud scorer not fitted anew")
        self._rows: list[LabelRow] = []  # the last ones up to the version that was fitted last
        self._seconds: list[float] = []
        self._of_history: OrderedDict[int, Fitted] = OrderedDict()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._latest: Fitted | None = None

    def start(self) -> None:
        """Fit the labels that there are, and look for others from now on.

        Raises:
            StoreError: the labels cannot be read.
            InvalidInput: they do not fit the baseline.
        """
        self._latest = self._fit_newest(self._store.label_version(self._model))
        self._thread = threading.Thread(target=self._run, name=f"fraud-{self._model}", daemon=True)
        self._thread.start()

    def latest(self) -> Fitted:
        """The newest that is ready; never waits, once started."""
        if self._latest is None:
            self._latest = self._fit_newest(self._store.label_version(self._model))
        return self._latest

    def at(self, version: int) -> Fitted:
        """That of a version, fitted now unless it was among the last few asked for.

        Raises:
            StoreError: the labels cannot be read.
        """
        latest = self._latest
        if latest is not None and latest.version == version:
            return latest
        if version not in self._of_history:
            began = time.perf_counter()
            rows = self._store.labels(self._model, after=max(version - MOST_LABELS, 0), upto=version)
            self._of_history[version] = self._fit(version, rows, began)
            while len(self._of_history) > _REMEMBERED_VERSIONS:
                self._of_history.popitem(last=False)
        self._of_history.move_to_end(version)
        return self._of_history[version]

    def fit_seconds(self) -> list[float]:
        """What the fits since the last call took."""
        taken, self._seconds = self._seconds, []
        return taken

    def close(self) -> None:
        """End the thread; waits up to 5 seconds for a fit."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        pause_s = LOOK_S
        while not self._stop.wait(pause_s):
            pause_s = self._look()

    def _look(self) -> float:
        """Fit if there are newer labels. Returns how long to rest."""
        try:
            version = self._store.label_version(self._model)
            if version == self.latest().version:
                self._judge(version)
                return LOOK_S
            fitted = self._fit_newest(version)
        except Exception as error:  # whatever it is: records go on being scored with the labels from before
            self.failures += 1
            self._log.happened(describe(error), model=self._model)
            return RETRY_S
        self._latest = fitted
        self._log.over(model=self._model)
        return max(LOOK_S, fitted.seconds)

    def _judge(self, version: int) -> None:
        """See now and then whether fraud itself has changed: another model of the same answers notices."""
        if version == self._judged_version or time.monotonic() - self._judged_s < JUDGE_S:
            return
        rows = [row for row in self._rows if row.version > counted_after(version)]
        if sum(is_answer(row) for row in rows) > WARM_UP:  # before, it has no opinion, and river takes 2 s to import
            changes = learned(rows, version=version, columns=self.parts.baseline.columns).changes
            recent = [change for change in changes if version - change.version < MOST_SINCE_CHANGE]
            self.change = recent[-1] if recent else None
        self.judged, self._judged_version, self._judged_s = True, version, time.monotonic()

    def _fit_newest(self, version: int) -> Fitted:
        began = time.perf_counter()
        known = self._rows
        since = known[-1].version - 1 if known else 0
        new = self._store.labels(self._model, after=max(since, version - MOST_LABELS), upto=version)
        if known and (not new or _named(new[0]) != _named(known[-1])):
            # The database was restored from a copy, and counts again; or everything known is too old.
            known, new = [], self._store.labels(self._model, after=version - MOST_LABELS, upto=version)
        rows = [*known[:-1], *new][-MOST_LABELS:]
        fitted = self._fit(version, rows, began)
        self._rows = rows
        self._seconds.append(fitted.seconds)
        return fitted

    def _fit(self, version: int, rows: Sequence[LabelRow], began: float) -> Fitted:
        chosen = in_force(rows)
        scorer, used = fit_scorer(self.parts, chosen, prevalence=self._prevalence)
        return Fitted(
            version,
            scorer,
            tuple(row.id for row in used),
            tuple(row.said.record_id for row in used),
            len(chosen) - len(used),
            time.perf_counter() - began,
        )
