"""How right a model's answers were, by labels: accuracy and other metrics, of sums that add up.

Labels come late, for some records only, and these may have been chosen unevenly. So each has a weight, how many records
it stands for, and every sum is a sum of weights. Sums are whole numbers (multiples of 2**-20), so that parts may be
added in any order and give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput
from detectors.summary import MAX_LABELS

Floats = npt.NDArray[np.float64]
Metric = Literal["accuracy", "balanced_accuracy", "precision", "recall", "f1", "mae", "rmse"]
_OF_CLASSES = ("balanced_accuracy", "precision", "recall", "f1")

UNIT = 2**20  # sums count in parts of this
LARGEST_ERROR = 1e9  # in scales; what is wrong by more counts as this
Z = 1.959963984540054  # of a 95 % interval


def losses(truths: Sequence[str], answers: Sequence[str], *, scale: float | None = None) -> Floats:
    """How wrong each answer was, float64 (n,), 0 to 1.

    Args:
        truths, answers: n texts each.
        scale: for answers that are numbers: an error of so much is a wholly wrong one, smaller ones are in proportion.
            None for answers that are right or wrong.

    Returns:
        NaN where a scale is given and the truth or the answer is no finite number.

    Raises:
        InvalidInput: a scale that is not above 0.
    """
    if scale is None:
        return np.array([float(truth != answer) for truth, answer in zip(truths, answers, strict=True)])
    return np.minimum(np.array(list(_errors(truths, answers, scale)), np.float64), 1.0)


@dataclass(frozen=True, slots=True)
class Realised:
    """Sums over labelled records. `Realised()` or `Realised(scale=...)` is of none; `add` and `merge` give new ones.

    Attributes:
        scale: as in `losses`; None for answers that are right or wrong.
        n: labelled records.
        unreadable: more of them whose truth or answer is no number though a scale is given; they count nowhere else.
        weight, squares: sum of the weights and of their squares, in parts of `UNIT`, like the next three.
        right: sum of weight * (1 - loss).
        absolute, squared: sums of weight * error / scale and of weight * (error / scale)**2; 0 without a scale.
        classes: for every class the weights of the records that are of it, that were answered so, and of both. At most
            256 classes: of more, those with the smallest hashes, the one choice that no order of adding changes.
        other: weight of the records that are of a class that is not kept.
    """

    scale: float | None = None
    n: int = 0
    unreadable: int = 0
    weight: int = 0
    squares: int = 0
    right: int = 0
    absolute: int = 0
    squared: int = 0
    classes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    other: int = 0

    def add(self, truths: Sequence[str], answers: Sequence[str], weights: Floats | None = None) -> Realised:
        """These and n more labelled records.

        Args:
            truths, answers: n texts each.
            weights: float64 (n,), > 0; all 1 if not given.

        Raises:
            InvalidInput: a weight outside its range, not as many of each, or a scale that is not above 0.
        """
        given = np.ones(len(truths)) if weights is None else np.asarray(weights, np.float64)
        if not (len(truths) == len(answers) == len(given)):
            raise InvalidInput(
                f"{len(truths)} truths, {len(answers)} answers and {len(given)} weights: expected one of each for "
                "every label."
            )
        if not ((given > 0.0) & np.isfinite(given)).all():
            raise InvalidInput("the weight of a label is not a number above 0.")
        if self.scale is None:
            return self.merge(_of_classes(truths, answers, given.tolist()))
        return self.merge(_of_numbers(truths, answers, given.tolist(), self.scale))

    def merge(self, other: Realised) -> Realised:
        """The sums over both. Commutative and associative, to the last bit.

        Raises:
            InvalidInput: of different scales.
        """
        if self.scale != other.scale:
            raise InvalidInput(f"errors in parts of {self.scale} cannot be added to errors in parts of {other.scale}.")
        classes = {
            name: _plus(self.classes.get(name), other.classes.get(name))
            for name in sorted(self.classes.keys() | other.classes.keys())
        }
        dropped = [] if len(classes) <= MAX_LABELS else sorted(classes, key=_hash)[MAX_LABELS:]
        return Realised(
            scale=self.scale,
            n=self.n + other.n,
            unreadable=self.unreadable + other.unreadable,
            weight=self.weight + other.weight,
            squares=self.squares + other.squares,
            right=self.right + other.right,
            absolute=self.absolute + other.absolute,
            squared=self.squared + other.squared,
            other=self.other + other.other + sum(classes.pop(name)[0] for name in dropped),
            classes=classes,
        )

    @property
    def effective(self) -> float:
        """How many evenly chosen records these are worth: (sum of weights)**2 / sum of their squares (Kish 1965)."""
        return self.weight**2 / (self.squares * UNIT) if self.squares else 0.0

    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; for numbers 1 - the mean loss. NaN of none."""
        return self.right / self.weight if self.weight else math.nan

    def interval(self) -> tuple[float, float]:
        """95 % interval of `accuracy`, of evenly chosen records worth as much (Wilson 1927); (NaN, NaN) of none.

        Losses between 0 and 1 spread less than those that are 0 or 1, so for numbers it is too wide, never too narrow.
        """
        n, share = self.effective, self.accuracy()
        if not n:
            return math.nan, math.nan
        middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def metric(self, name: Metric, positive: str | None = None) -> float:
        """One number over all labelled records; NaN of none.

        Args:
            name: balanced_accuracy is the mean recall of the classes that occur. precision, recall and f1 are means
                over all classes that occur or were answered (macro), or of one.
            positive: that one; NaN if it neither occurs nor was answered.

        Raises:
            InvalidInput: mae or rmse of answers that are no numbers, or a metric of classes of such that are.
        """
        if name not in get_args(Metric):
            raise InvalidInput(f"metric {name!r} is unknown.", hint=f"Known are: {', '.join(get_args(Metric))}.")
        if name == "accuracy":
            return self.accuracy()
        if (name in _OF_CLASSES) == (self.scale is not None):
            kind = "numbers" if self.scale is not None else "classes"
            raise InvalidInput(
                f"{name} is no metric of answers that are {kind}.",
                hint="performance.scale is for answers that are numbers, and for them only.",
            )
        if not self.weight:
            return math.nan
        if self.scale is not None:
            if name == "mae":
                return self.scale * self.absolute / self.weight
            return self.scale * math.sqrt(self.squared / self.weight)
        if name == "balanced_accuracy":
            return _mean([both / true for true, _, both in self.classes.values() if true])
        if positive is not None:
            found = self.classes.get(positive)
            return math.nan if found is None else _of_class(name, *found)
        return _mean([_of_class(name, *each) for each in self.classes.values()])

    def to_bytes(self) -> bytes:
        """All of it; equal sums have equal bytes."""
        return json.dumps(astuple(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, blob: bytes) -> Realised:
        """Go on from what `to_bytes` gave.

        Raises:
            InvalidInput: cut off, or of another release.
        """
        try:
            made = cls(*json.loads(blob))
            return replace(made, classes={name: (t, a, b) for name, (t, a, b) in made.classes.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"{len(blob)} bytes are no sums over labels.",
                hint="Fold again from the first stored block: labels are stored with what they said.",
            ) from error


def _of_classes(truths: Sequence[str], answers: Sequence[str], weights: Sequence[float]) -> Realised:
    classes: dict[str, list[int]] = {}
    total = squares = right = 0
    for truth, answer, weight in zip(truths, answers, weights, strict=True):
        units = _units(weight)
        total += units
        squares += _units(weight * weight)
        classes.setdefault(truth, [0, 0, 0])[0] += units
        classes.setdefault(answer, [0, 0, 0])[1] += units
        if truth == answer:
            right += units
            classes[truth][2] += units
    made = {name: (each[0], each[1], each[2]) for name, each in classes.items()}
    return Realised(n=len(weights), weight=total, squares=squares, right=right, classes=made)


def _of_numbers(truths: Sequence[str], answers: Sequence[str], weights: Sequence[float], scale: float) -> Realised:
    n = unreadable = total = squares = right = absolute = squared = 0
    for error, weight in zip(_errors(truths, answers, scale), weights, strict=True):
        if math.isnan(error):
            unreadable += 1
            continue
        n += 1
        total += _units(weight)
        squares += _units(weight * weight)
        right += round(weight * (1.0 - min(error, 1.0)) * UNIT)
        absolute += round(weight * error * UNIT)
        squared += round(weight * error * error * UNIT)
    return Realised(scale, n, unreadable, total, squares, right, absolute, squared)


def _errors(truths: Sequence[str], answers: Sequence[str], scale: float) -> Iterator[float]:
    """|answer - truth| / scale; NaN where one is no finite number."""
    if not scale > 0.0:
        raise InvalidInput(f"a scale of {scale:g} cannot be used: expected more than 0.", hint="Set performance.scale.")
    for truth, answer in zip(truths, answers, strict=True):
        yield min(abs(_number(answer) - _number(truth)) / scale, LARGEST_ERROR)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _units(value: float) -> int:
    """A weight in parts of `UNIT`, never nothing."""
    return max(1, round(value * UNIT))


def _plus(a: tuple[int, int, int] | None, b: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if a is None or b is None:
        return a or b or (0, 0, 0)
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _of_class(name: Metric, true: int, answered: int, both: int) -> float:
    if name == "precision":
        return both / answered if answered else 0.0
    if name == "recall":
        return both / true if true else 0.0
    return 2 * both / (true + answered)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
