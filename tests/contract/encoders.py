"""Functions and classes that the tests of the embedder `python` name by their import path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def letters(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    """How often each of eight letters stands in a text; NaN where it is no text."""
    return np.array(
        [[text.count(letter) for letter in "aehlnort"] if isinstance(text, str) else [np.nan] * 8 for text in texts]
    )


class Scaled:
    """Numbers of two fields, each times a factor."""

    def __init__(self, factor: float, power: int = 1) -> None:
        self._factor = factor
        self._power = power

    def __call__(self, first: Sequence[Any], second: Sequence[Any]) -> list[list[float]]:
        rows = zip(first, second, strict=True)
        return [[self._factor * float(a) ** self._power, self._factor * float(b), 1.0] for a, b in rows]


def beside_others(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    """What an encoder with batch statistics does: a row's vector depends on the rows around it."""
    found = letters(texts)
    return found - found.mean(axis=0) + 1.0


def flat(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    return letters(texts)[:, 0]


def too_few(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    return letters(texts)[:-1]


def words(texts: Sequence[Any]) -> list[list[str]]:
    return [["a", "b"] for _ in texts]


def longer(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    """One dimension more than `letters`."""
    return np.hstack([letters(texts), np.ones((len(texts), 1))])


def fails(texts: Sequence[Any]) -> npt.NDArray[np.float64]:
    if any(text == "boom" for text in texts):
        raise RuntimeError("the text was boom")
    return letters(texts)


NOTHING = 3
