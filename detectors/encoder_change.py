"""Whether an encoder still makes the vectors that it made, and if not, what about it changed.

The same inputs are embedded twice: when a reference is built, and now. There is no statistics in it: an encoder that is
the same gives the same vectors but for the noise of the arithmetic, whatever the world does. How a vector changed is
half of a squared distance, for its direction and for its length:

    direction   1 - cos(before, after) = |before/|before| - after/|after||^2 / 2
    length      (|after|/|before| - 1)^2 / 2

How the canaries changed among themselves tells why. If all their directions are as before, only lengths changed. If all
angles between them are as before, the space was turned: an orthogonal map leaves the Gram matrix as it is, and nothing
else does (Schönemann 1966). If some are exactly as before, what comes before the network treats some inputs otherwise.
Of two different networks, the correlation of the Gram matrices says how alike they see the world (Kriegeskorte, Mur,
Bandettini 2008).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Cause = Literal["dimension", "refused", "normalisation", "rotation", "preprocessing", "numeric", "model"]

SAME = 1e-4  # largest change on the same processor with the same libraries; docs/canaries.md has what was measured
ALIKE = 1e-2  # and elsewhere: another processor, another version of a library
NUMERIC = 0.05  # rounded weights change all vectors, by no more than this
_AS_BEFORE = 0.01  # of the tolerance: the input was not touched by the change at all
_TURNED = 0.01  # of the change of the vectors is the largest change of the angles between them that is none
_FAINT = 1e-3  # shorter than this part of the usual length, a vector has no direction worth the name
# Correlation of the angles. Of MiniLM with its weights rounded to 8 bits it is .97; without its [CLS] .84, by another
# pooling .34 to .50, and of another encoder altogether .52: below, these cannot be told apart.
_RELATED = 0.9
_TELLING = 0.5  # a trait is named where the share that changed differs by so much between inputs with it and without


@dataclass(frozen=True, slots=True)
class EncoderChange:
    """What about an encoder changed.

    Attributes:
        cause: dimension; refused (it makes no vector of some); normalisation (lengths only); rotation (order or sign of
            the columns, or any turn of the space); preprocessing (some inputs are exactly as before: tokenizer, letter
            case, longest input); numeric (all changed a little: rounded weights, other arithmetic); model (pooling,
            prefix, another network).
        text: what was seen and what it points to, in sentences.
        largest: the largest change of a vector; 0.5 or more where nothing can be compared.
        changed, canaries: how many changed, of how many.
    """

    cause: Cause
    text: str
    largest: float
    changed: int
    canaries: int


def changes(before: Floats, after: Floats) -> Doubles:
    """How far each vector changed: float64 (m,), the larger of the changes of its direction and of its length.

    Args:
        before, after: float32 (m, d), of the same inputs.

    Raises:
        InvalidInput: the shapes differ.
    """
    return np.maximum(*_changes(_checked(before), _checked(after)))


def diagnose(
    before: Floats,
    after: Floats,
    *,
    tolerance: float = SAME,
    traits: Mapping[str, Bools] | None = None,
) -> EncoderChange | None:
    """What about the encoder changed; None where all changes are within the noise of the arithmetic.

    Args:
        before: float32 (m, d), when the reference was built.
        after: float32 (m, d'), of the same inputs now; zero where the encoder refuses an input.
        tolerance: the largest change that is none: `SAME`, `ALIKE`, or more for a noisy encoder.
        traits: what inputs have, bool (m,) each, by a text that follows "with" or "of", such as "with capitals".

    Raises:
        InvalidInput: no canaries, or another number of them.
    """
    a, b = _checked(before), _checked(after)
    if len(a) != len(b) or len(a) == 0:
        raise InvalidInput(f"expected as many vectors now as before, got {len(b)} and {len(a)}.")
    m = len(a)
    if a.shape[1] != b.shape[1]:
        text = f"Its vectors have {b.shape[1]:,} dimensions; they had {a.shape[1]:,}: another model, or another output."
        return EncoderChange("dimension", text, 1.0, m, m)
    direction, length = _changes(a, b)
    change = np.maximum(direction, length)
    different = change > tolerance
    changed, largest = int(different.sum()), float(change.max())
    if changed == 0:
        return None

    def found(cause: Cause, text: str) -> EncoderChange:
        return EncoderChange(cause, text, largest, changed, m)

    refused: Bools = np.any(a != 0.0, axis=1) & np.all(b == 0.0, axis=1)
    if refused.any():
        who = _in_common(refused, traits or {})
        return found("refused", f"It makes no vector of {_of(refused)} canaries of which it made one before{who}.")
    if (direction <= tolerance).all():
        return found("normalisation", _lengths(a, b))
    units = _Pair.of(a, b)
    if units.turned():
        return found("rotation", units.turn())
    as_before = (change <= _AS_BEFORE * tolerance) & np.any(a != 0.0, axis=1)
    if as_before.any():
        who = _in_common(different, traits or {})
        return found(
            "preprocessing",
            f"{_of(different)} canaries have another vector{who}; {int(as_before.sum())} are exactly as before. So the "
            "network is the same, and what comes before it treats some inputs otherwise: the tokenizer, letter case, "
            "accents, the longest input that is read.",
        )
    if largest <= NUMERIC:
        return found(
            "numeric",
            f"All vectors changed a little, by {np.median(change):.1g} in the middle and {largest:.1g} at most: "
            "rounded weights (quantisation), another arithmetic, or training that went on for a moment.",
        )
    alike = units.correlation()
    told = (
        "much as they did (correlation {:.2f}): this network with coarser weights, another prefix, or trained further."
        if alike >= _RELATED
        else "otherwise (correlation {:.2f}): another pooling or output of it, another prefix, or another network."
    )
    return found("model", f"All vectors changed, and the canaries resemble each other {told.format(alike)}")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Unit vectors before and after, float64 (m, d), and the cosines between them."""

    before: Doubles
    after: Doubles
    angles_before: Doubles = field(repr=False)
    angles_after: Doubles = field(repr=False)

    @classmethod
    def of(cls, a: Doubles, b: Doubles) -> _Pair:
        a, b = a / _norms(a)[:, None], b / _norms(b)[:, None]
        pairs = np.triu_indices(len(a), k=1)
        return cls(a, b, (a @ a.T)[pairs], (b @ b.T)[pairs])

    def turned(self) -> bool:
        """Whether all angles are as before. From one or two inputs it cannot be told."""
        if len(self.before) < 3:
            return False
        of_vectors = float(np.sqrt(np.mean(np.sum((self.after - self.before) ** 2, axis=1))))
        of_angles = float(np.sqrt(np.mean((self.angles_after - self.angles_before) ** 2)))
        return of_angles <= _TURNED * of_vectors

    def turn(self) -> str:
        """In words: which turn of the space it is."""
        alike = _unit_columns(self.before).T @ _unit_columns(self.after)
        source = np.abs(alike).argmax(axis=0)
        signs = np.sign(alike[source, np.arange(len(source))])
        dimensions = len(source)
        rest = float(np.linalg.norm(self.after - self.before[:, source] * signs) / np.linalg.norm(self.after))
        if rest > _TURNED or len(np.unique(source)) < dimensions:
            return (
                "All angles between canaries are as before, but the space was turned: another rotation, such as a "
                "whitening or a principal-component analysis that was fitted anew."
            )
        moved, flipped = int((source != np.arange(dimensions)).sum()), int((signs < 0).sum())
        what = [f"{moved:,} of {dimensions:,} columns stand in another place"] * (moved > 0)
        what += [f"{flipped:,} of {dimensions:,} columns have the other sign"] * (flipped > 0)
        return f"All angles between canaries are as before, but {' and '.join(what)}."

    def correlation(self) -> float:
        """Of the cosines before and after; 0 where they do not vary."""
        if len(self.angles_before) < 2 or not (np.ptp(self.angles_before) and np.ptp(self.angles_after)):
            return 0.0
        return float(np.corrcoef(self.angles_before, self.angles_after)[0, 1])


def _checked(vectors: Floats) -> Doubles:
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise InvalidInput(f"expected vectors of shape (m, d), got an array of shape {rows.shape}.")
    return rows


def _norms(rows: Doubles) -> Doubles:
    """Lengths of the vectors, those that are faint next to the others taken as longer, and never 0."""
    norms = np.linalg.norm(rows, axis=1)
    longer: Doubles = np.maximum(norms, max(_FAINT * float(np.median(norms)), np.finfo(np.float64).tiny))
    return longer


def _changes(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """Of the directions and of the lengths, float64 (m,) each."""
    if a.shape != b.shape:
        raise InvalidInput(f"expected vectors of one shape, got {a.shape} and {b.shape}.")
    long_a, long_b = _norms(a), _norms(b)
    apart = a / long_a[:, None] - b / long_b[:, None]
    return 0.5 * np.sum(apart * apart, axis=1), 0.5 * (long_b / long_a - 1.0) ** 2


def _unit_columns(rows: Doubles) -> Doubles:
    norms = np.linalg.norm(rows, axis=0)
    return rows / np.where(norms > 0.0, norms, 1.0)


def _lengths(a: Doubles, b: Doubles) -> str:
    before, after = _norms(a), _norms(b)
    ratio = after / before
    seen = "The vectors point where they did, but their lengths changed: "
    if _all_about(after, 1.0):
        return f"{seen}now each has length 1, and they had {_range(before)}. Somebody switched normalisation on."
    if _all_about(before, 1.0):
        return f"{seen}each had length 1, and now they have {_range(after)}. Somebody switched normalisation off."
    if _all_about(ratio, float(np.median(ratio))):
        return f"{seen}each is {np.median(ratio):.4g} times as long."
    return f"{seen}they had {_range(before)}, and have {_range(after)}. The scaling of the output changed."


def _all_about(values: Doubles, expected: float) -> bool:
    return bool(np.allclose(values, expected, rtol=1e-3))


def _range(lengths: Doubles) -> str:
    return f"{lengths.min():.4g} to {lengths.max():.4g}"


def _of(which: Bools) -> str:
    return f"{int(which.sum())} of {len(which)}"


def _in_common(different: Bools, traits: Mapping[str, Bools]) -> str:
    """What tells inputs that changed from the others, in words; "" where nothing does."""
    apart: dict[str, float] = {}
    for name, has in traits.items():
        if has.any() and not has.all():
            apart[name] = float(different[has].mean() - different[~has].mean())
    name = max(apart, key=lambda name: apart[name], default="")
    if not name or apart[name] < _TELLING:
        return ""
    has = traits[name]
    inside, outside = int(different[has].sum()), int(different[~has].sum())
    return f", {inside} of the {int(has.sum())} {name} and {outside} of the others"
