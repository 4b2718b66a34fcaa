"""How often the model was right in the baseline, by its confidence: of records that say so, or out of a file.

Either way these must be records that the model did not learn from: of those it is surer, and oftener right, than of any
that come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput, InvalidSettings
from detectors.performance import ConfidenceCalibration
from detectors.realised import losses
from monitor.event import EventBatch
from monitor.labels import BadLabel
from monitor.performance_settings import PerformanceSettings

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Where the model says no confidence, all records are as sure: their share of right answers is what is known then.
_NO_CONFIDENCE: Final = 1.0
_WORDS: Final = {"true": 1.0, "yes": 1.0, "right": 1.0, "false": 0.0, "no": 0.0, "wrong": 0.0}
_COLUMNS: Final = "confidence and correct, or confidence, prediction and label"


class BaselineTruths:
    """What the records of a baseline say of themselves: what is true, what the model answered, and how sure it was.

    Args:
        settings: a calibration file there is read at once, so that a wrong one is found before hours of collecting;
            then nothing is taken from the records.
        confidence: the settings say where the model's confidence stands.

    Raises:
        InvalidInput: the file is none.
        InvalidSettings: it cannot be read.
    """

    def __init__(self, settings: PerformanceSettings, *, confidence: bool) -> None:
        self._scale = settings.scale
        path = settings.calibration
        self._known = None if path is None else read_calibration(path, scale=self._scale, confidence=confidence)
        self._truths: list[str] = []
        self._answers: list[str] = []
        self._confidence: list[Floats] = []

    def push(self, events: EventBatch, rows: Int64s) -> None:
        """Take some records of a batch in."""
        if self._known is not None or events.labels is None or events.predictions is None:
            return
        labels, answers = events.labels, events.predictions
        said = [row for row in rows.tolist() if labels[row] is not None and answers[row] is not None]
        self._truths += [str(labels[row]) for row in said]
        self._answers += [str(answers[row]) for row in said]
        whole = np.full(len(events), _NO_CONFIDENCE) if events.confidence is None else events.confidence
        self._confidence.append(np.clip(whole[said], 0.0, 1.0))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a reference keeps of it; empty where nobody said what is true."""
        if self._known is not None:
            return self._known.to_arrays()
        if not self._truths:
            return {}
        right = 1.0 - losses(self._truths, self._answers, scale=self._scale)
        counted = ~np.isnan(right)
        found = ConfidenceCalibration.of(np.concatenate(self._confidence)[counted], right[counted])
        return found.to_arrays() if found.n else {}


def read_calibration(path: Path, *, scale: float | None, confidence: bool) -> ConfidenceCalibration:
    """The calibration that a file holds, .csv, .jsonl or .parquet: a record in each line.

    Args:
        scale: for answers that are numbers, see `detectors.realised.losses`.
        confidence: the file must say how sure the model was; otherwise its confidences are passed over.

    Raises:
        InvalidInput: a line lacks something, or holds something else; or no line is there.
        InvalidSettings: the file cannot be read.
    """
    sure: list[float] = []
    right: list[float] = []
    weights: list[float] = []
    for number, document in _rows(path, needs=("confidence",) if confidence else ("prediction", "label")):
        try:
            if not isinstance(document, dict):
                raise InvalidInput("It is no object.")
            sure.append(_number(document, "confidence", low=0.0, high=1.0) if confidence else _NO_CONFIDENCE)
            right.append(_right(document, scale))
            blank = document.get("weight") in (None, "")
            weights.append(1.0 if blank else _number(document, "weight", low=math.ulp(0.0), high=math.inf))
        except InvalidInput as error:
            raise InvalidInput(
                f"Line {number} of the calibration {path}: {error.message}", hint=f"Expected columns: {_COLUMNS}."
            ) from error
    if not sure:
        raise InvalidInput(f"The calibration {path} holds no record.", hint=f"Expected columns: {_COLUMNS}.")
    return ConfidenceCalibration.of(np.array(sure), np.array(right), weight=np.array(weights))


def _rows(path: Path, *, needs: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
    """Number and content of each line of the file."""
    from monitor.document_files import lines_of

    try:
        stream = path.open("rb")
    except OSError as error:
        raise InvalidSettings(
            f"performance.calibration {path} cannot be read: {error.strerror}.", hint="Name a file that is there."
        ) from error
    with stream:
        number = 0
        try:
            for number, _, document in lines_of(stream, str(path), needs=needs):
                yield number, document()
        except BadLabel as error:
            raise InvalidInput(
                f"Line {number} of the calibration {path}: {error.message}", hint=f"Expected columns: {_COLUMNS}."
            ) from error


def _right(document: dict[str, Any], scale: float | None) -> float:
    """How right the model was, 0 to 1."""
    correct = document.get("correct")
    if correct not in (None, ""):
        word = str(correct).strip().lower()
        return _WORDS[word] if word in _WORDS else _number(document, "correct", low=0.0, high=1.0)
    said = [document.get("label"), document.get("prediction")]
    if any(value in (None, "") or isinstance(value, dict | list) for value in said):
        raise InvalidInput("It says neither correct, nor prediction and label.")
    truth, answer = (str(value).lower() if isinstance(value, bool) else str(value) for value in said)
    loss = float(losses([truth], [answer], scale=scale)[0])
    if math.isnan(loss):
        raise InvalidInput(f"performance.scale is set, but its prediction {answer!r} or label {truth!r} is no number.")
    return 1.0 - loss


def _number(document: dict[str, Any], name: str, *, low: float, high: float) -> float:
    value = document.get(name)
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or math.isinf(number):
        least = "above 0" if low > 0 else f"{low:g} to {high:g}"
        raise InvalidInput(f"{name} is {value!r}; expected a number {least}.")
    return number
