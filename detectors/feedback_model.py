"""A second opinion that learns from answers one by one, by river, and notices when fraud itself has changed.

A logistic regression on standardised scalar features is asked what an answer will be before it learns from it (river's
StandardScaler and LogisticRegression; stochastic gradient descent). How wrong it was, compared with how wrong it said
it would be, goes into ADWIN (Bifet and Gavaldà 2007): with p said and y found, (y - p)^2 - p (1 - p) is zero on average
as long as the features mean what they meant, whatever the mix of fraud and cleared records among the alerts. The plain
error is not: where alerts become more suspicious and nothing else changes, it took 28 of 30 streams for changed (5 % of
the answers fraud).

ADWIN says that something changed, not in which direction; an alarm is raised only if the latest answers, 16 to 512 of
them, are worse foretold than the model said, by 4 standard deviations. Constants were chosen on 120 simulated streams
of 10,000 answers. On 240 others, 5 % or 30 % of the answers fraud, half of the streams with alerts that become more
suspicious on the way: 1 false alarm in 2.4 million answers. Where 30 % are fraud, weights that turn round are noticed
after 30 answers (median of 25 streams), half of them after 74, weights that vanish after 91, in 64 to 100 % of the
streams within 500. Where 5 % are, it is slow: within 500 answers 48 %, 32 % and 4 % of the streams.

Nothing is stored: the model is a function of the answers in order, of which the last 4,000 to 5,000 count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Doubles = npt.NDArray[np.float64]

MOST_ANSWERS = 5_000  # the model is made of these at most, and of a step fewer at least, if there were as many
STEP = 1_000
WARM_UP = 200  # answers from which the model only learns
STEP_SIZE = 0.02  # of the gradient descent
ADWIN_DELTA = 0.02
WORSE_BY = 4.0  # standard deviations
RECENT = (16, 32, 64, 128, 256, 512)  # answers, over which "the latest" are judged
FARTHEST = 6.0  # standard deviations at which a feature is cut: one wild value must not throw the weights away


@dataclass(frozen=True, slots=True)
class Change:
    """Fraud itself has changed: the answers no longer follow the features as they did.

    Attributes:
        answer: number of the answer at which it was noticed, from 0.
        answers: over how many of the latest the evidence is strongest.
        worse_by: standard deviations by which those were worse foretold than the model said.
        foretold: mean probability of fraud that it gave them.
        found: share of them that were fraud.
    """

    answer: int
    answers: int
    worse_by: float
    foretold: float
    found: float


def counted_after(version: int) -> int:
    """The version of the labels after which answers count for the model of ``version``: a pure function of it.

    It moves in steps of 1,000, so that the model of the next answer is mostly this one after one more answer.
    """
    return max(0, -(-(version - MOST_ANSWERS) // STEP) * STEP)


class FeedbackModel:
    """Learns from answers in their order.

    Args:
        features: how many numbers each answered record has.

    >>> model = FeedbackModel(2)
    >>> model.push(np.array([[3.0, 0.1], [0.2, float("nan")]]), np.array([True, False]))
    []
    >>> model.n
    2
    """

    def __init__(self, features: int) -> None:
        from river import drift, linear_model, optim, preprocessing

        self._names = [f"x{number}" for number in range(features)]
        # river's types are incomplete.
        adwin: Any = drift.ADWIN
        self._scaler: Any = preprocessing.StandardScaler()
        self._model: Any = linear_model.LogisticRegression(optimizer=optim.SGD(STEP_SIZE))
        self._adwin: Any = adwin(delta=ADWIN_DELTA, clock=1)
        self._recent: list[tuple[float, float]] = []  # probability said, and what was found
        self.n = 0
        self.cases = 0

    @property
    def has_an_opinion(self) -> bool:
        """Whether it has learned from enough answers, of both kinds, to be asked."""
        return self.n >= WARM_UP and 0 < self.cases < self.n

    def push(self, features: npt.NDArray[np.floating], fraud: npt.NDArray[np.bool_]) -> list[Change]:
        """Learn from the next answers; say at which of them fraud was found to have changed.

        Args:
            features: (n, f), in the order of the answers; NaN where a record has none. Large numbers, such as amounts,
                are best given as logarithms.
            fraud: bool (n,).

        Raises:
            InvalidInput: another number of features or of answers.
        """
        self._check(features)
        if len(fraud) != len(features):
            raise InvalidInput(f"{len(features)} records have {len(fraud)} answers.")
        changes = []
        for row, answer in zip(features.tolist(), fraud.tolist(), strict=True):
            known = self._known(row)
            self._scaler.learn_one(known)
            scaled = self._scaled(known)
            said = float(self._model.predict_proba_one(scaled)[True])
            self._model.learn_one(scaled, bool(answer))
            self._recent = [*self._recent[-max(RECENT) + 1 :], (said, float(answer))]
            self.n += 1
            self.cases += bool(answer)
            if self.n <= WARM_UP:
                continue
            # From [-1/8, 1] to [0, 1], which ADWIN's bound is for.
            self._adwin.update(((answer - said) ** 2 - said * (1.0 - said) + 0.125) / 1.125)
            if self._adwin.drift_detected and (change := self._worse()) is not None:
                changes.append(change)
        return changes

    def probability(self, features: npt.NDArray[np.floating]) -> Doubles:
        """Probability that the answer will be fraud, float64 (n,). See `push`.

        It is that among records as they are put before people, not in all the traffic.
        """
        self._check(features)
        return np.array(
            [self._model.predict_proba_one(self._scaled(self._known(row)))[True] for row in features.tolist()],
            np.float64,
        )

    def _worse(self) -> Change | None:
        said, found = np.array(self._recent).T
        excess = (found - said) ** 2 - said * (1.0 - said)
        variance = said * (1.0 - said) * (1.0 - 2.0 * said) ** 2  # of the excess, if the model is right
        lengths = np.array([length for length in RECENT if length <= len(said)])
        sums, spreads = np.cumsum(excess[::-1])[lengths - 1], np.sqrt(np.cumsum(variance[::-1])[lengths - 1])
        worse = sums / np.maximum(spreads, 1e-9)
        best = int(np.argmax(worse))
        if worse[best] <= WORSE_BY:
            return None
        length = int(lengths[best])
        return Change(
            self.n - 1, length, float(worse[best]), float(said[-length:].mean()), float(found[-length:].mean())
        )

    def _known(self, row: list[float]) -> dict[str, float]:
        return {name: value for name, value in zip(self._names, row, strict=True) if np.isfinite(value)}

    def _scaled(self, known: dict[str, float]) -> dict[str, float]:
        scaled: dict[str, float] = self._scaler.transform_one(known)
        return {name: min(max(value, -FARTHEST), FARTHEST) for name, value in scaled.items()}

    def _check(self, features: npt.NDArray[np.floating]) -> None:
        if features.ndim != 2 or features.shape[1] != len(self._names):
            raise InvalidInput(f"features: expected shape (n, {len(self._names)}), got {features.shape}.")
