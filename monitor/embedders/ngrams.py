"""Texts by their character n-grams, hashed into a fixed number of columns: no model at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import TEXT
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.embedders.parts import Problems, listed
from monitor.pointers import FieldName

Hashes = npt.NDArray[np.uint64]

# Of the polynomial hash: odd, its bits without a pattern (the golden ratio). The mixing is splitmix64's
# (Steele, Lea and Flood 2014).
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_CHARACTERS: Final = 1 << 16  # that are hashed at a time: the working memory stays in a CPU's cache
_CLASSES_LOG2: Final = 16  # of n-grams whose share of texts is learned


class NgramsSettings(BaseModel, frozen=True, extra="forbid"):
    """Text, as hashed character n-grams: typos, ids, codes, any language; no model is needed."""

    kind: Literal["ngrams"] = "ngrams"
    field: FieldName = Field(description="where the text stands")
    n: tuple[int, int] = Field((2, 3), description="shortest and longest n-gram, in characters")
    dimension: int = Field(512, ge=16, le=8192, description="columns that all n-grams share")
    idf: bool = Field(True, description="n-grams that many texts of the baseline have count less (learned)")
    lowercase: bool = Field(True, description="small and capital letters are the same")
    max_chars: int = Field(2000, ge=1, description="characters of a text that are read")

    @model_validator(mode="after")
    def _lengths(self) -> NgramsSettings:
        if not 1 <= self.n[0] <= self.n[1] <= 16:
            raise ValueError("n: the shortest and the longest n-gram, from 1 to 16, such as [2, 3]")
        return self

    def build(self) -> NgramsEmbedder:
        """Make the embedder."""
        return NgramsEmbedder(self)


class _Learned(msgspec.Struct, frozen=True):
    n: tuple[int, int]
    lowercase: bool
    idf: bytes  # float32 (2 ** 16,): the weight of each class of n-grams


class NgramsEmbedder:
    """Counts n-grams of characters, with signs, in columns that a hash chooses (Weinberger et al. 2009).

    A text is one line: white space of any kind and length is one blank, and one stands before and after it, so that the
    beginnings and ends of words are n-grams of their own. Letters are those of Unicode.
    """

    kind = "ngrams"
    geometry = TEXT

    def __init__(self, settings: NgramsSettings) -> None:
        self._settings = settings
        self._idf: Floats | None = None
        self.fields = (settings.field,)
        self.learns = settings.idf

    def fit(self, columns: Columns) -> None:
        """Learn how many texts have an n-gram of each of 65,536 classes."""
        if not self.learns:
            return
        texts, problems = self._texts(columns[0])
        n = len(texts) - len(problems)
        if n == 0:
            raise InvalidInput(
                f"None of {len(texts)} records holds a text in {self._settings.field}.",
                hint="Check the field of the embedder.",
            )
        having = np.zeros(1 << _CLASSES_LOG2, dtype=np.int64)
        for _, _, rows, hashes in self._grams(texts):
            pairs = np.unique((rows.astype(np.uint64) << np.uint64(_CLASSES_LOG2)) | _class_of(hashes))
            having += np.bincount((pairs & np.uint64((1 << _CLASSES_LOG2) - 1)).astype(np.intp), minlength=len(having))
        # Smoothed as if one more text had all of them.
        self._idf = (np.log((1.0 + n) / (1.0 + having)) + 1.0).astype(np.float32)

    def state(self) -> bytes:
        if self._idf is None:
            return b""
        settings = self._settings
        return encode_state(self.kind, _Learned(settings.n, settings.lowercase, self._idf.astype("<f4").tobytes()))

    def restore(self, state: bytes) -> None:
        if not state:
            self._idf = None
            return
        learned = decode_state(self.kind, state, _Learned)
        if (learned.n, learned.lowercase) != (self._settings.n, self._settings.lowercase):
            raise InvalidReference(
                f"The reference was made from n-grams of {list(learned.n)} characters, lowercase: "
                f"{str(learned.lowercase).lower()}; the settings say otherwise.",
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        self._idf = np.frombuffer(learned.idf, dtype="<f4").astype(np.float32)

    def fingerprint(self) -> str:
        return fingerprint(self.kind, self._settings.model_dump(), self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self.learns and self._idf is None:
            raise not_fitted(self.kind)
        texts, problems = self._texts(columns[0])
        d = self._settings.dimension
        vectors = np.zeros((len(texts), d), dtype=np.float32)
        for start, end, rows, hashes in self._grams(texts):
            signs = np.where(hashes >> np.uint64(63), -1.0, 1.0)
            if self._idf is not None:
                signs *= self._idf[_class_of(hashes)]
            # A column's own bits: neither those of the sign nor those of the class.
            column = ((hashes >> np.uint64(20)) & np.uint64(0xFFFFFF)) % np.uint64(d)
            # A row's n-grams come in the same order whatever rows are around it, and are added up in it.
            sums = np.bincount((rows - start) * d + column.astype(np.intp), weights=signs, minlength=(end - start) * d)
            vectors[start:end] = sums.reshape(end - start, d)
        for row in np.flatnonzero(~vectors.any(axis=1)).tolist():
            problems.setdefault(row, ("zero_vector", f"The n-grams of {self._settings.field} cancel each other out."))
        return Embedded(vectors, listed(problems))

    def _texts(self, column: Sequence[Any]) -> tuple[list[str], Problems]:
        """Each text as one line with blanks around it; empty where there is none, with the reason."""
        settings, shortest = self._settings, self._settings.n[0]
        texts: list[str] = []
        problems: Problems = {}
        for row, value in enumerate(column):
            text = " ".join(value[: settings.max_chars].split()) if type(value) is str else ""
            if text:
                text = f" {text.lower() if settings.lowercase else text} ".ljust(shortest)
            elif value is None:
                problems[row] = ("missing_field", f"{settings.field} is missing.")
            else:
                what = "empty" if isinstance(value, str) else "not text"
                problems[row] = ("bad_value", f"{settings.field} is {what}.")
            texts.append(text)
        return texts, problems

    def _grams(self, texts: Sequence[str]) -> Iterator[tuple[int, int, npt.NDArray[np.intp], Hashes]]:
        """For some rows at a time: the first and the one after the last, and of each n-gram its row and its hash."""
        start = 0
        while start < len(texts):
            end, characters = start, 0
            while end < len(texts) and (end == start or characters + len(texts[end]) <= _CHARACTERS):
                characters += len(texts[end])
                end += 1
            yield start, end, *self._hashed(texts[start:end], start)
            start = end

    def _hashed(self, texts: Sequence[str], first: int) -> tuple[npt.NDArray[np.intp], Hashes]:
        encoded = "".join(texts).encode("utf-32-le", "surrogatepass")
        letters = np.frombuffer(encoded, dtype="<u4").astype(np.uint64)
        lengths = np.array([len(text) for text in texts], dtype=np.intp)
        row = np.repeat(np.arange(first, first + len(texts)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(letters))  # characters up to the text's end
        shortest, longest = self._settings.n
        rows: list[npt.NDArray[np.intp]] = []
        hashes: list[Hashes] = []
        rolled = np.zeros(len(letters), dtype=np.uint64)
        for n in range(1, longest + 1):
            whole = len(letters) - n + 1
            if whole <= 0:
                break
            # Of the n characters from here: those before, times the factor, and one more. Overflow is meant.
            rolled = rolled[:whole] * _FACTOR + letters[n - 1 :] + np.uint64(1)
            if n >= shortest:
                inside = left[:whole] >= n
                rows.append(row[:whole][inside])
                hashes.append(mixed(rolled[inside]))
        if not rows:
            return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.uint64)
        return np.concatenate(rows), np.concatenate(hashes)


def mixed(hashes: Hashes) -> Hashes:
    """Numbers whose bits are all as good as drawn by lot; the same on every machine and in every version."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _MIX[0]
    hashes = (hashes ^ (hashes >> np.uint64(27))) * _MIX[1]
    return hashes ^ (hashes >> np.uint64(31))


def _class_of(hashes: Hashes) -> Any:
    """The class of each n-gram, 0 to 65,535: its last bits."""
    return hashes & np.uint64((1 << _CLASSES_LOG2) - 1)
