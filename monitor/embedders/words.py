"""Texts by static word vectors: the mean of the vectors of their words.

Weights and the removal of a common component are those of Arora, Liang and Ma (2017).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

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
from monitor.embedders.vector_table import VectorTable, check_path, read_table
from monitor.pointers import FieldName

# A word is a run of letters and digits; apostrophes and hyphens inside belong to it.
_WORD: Final = re.compile(r"[^\W_]++(?:['’-][^\W_]++)*+")
_INSIDE: Final = re.compile(r"['’-]")
_A: Final = 1e-3  # Arora, Liang and Ma (2017)
_ZIPF_SHIFT: Final = 2.7  # Mandelbrot (1953): the r-th commonest word has a share of about 1 / (r + 2.7)


class WordsSettings(BaseModel, frozen=True, extra="forbid"):
    """Text, as the mean of static word vectors from a local file: word2vec, GloVe or fastText .vec."""

    kind: Literal["words"] = "words"
    field: FieldName = Field(description="where the text stands")
    path: Path = Field(description="file of word vectors, commonest words first; told by its content")
    weighting: Literal["mean", "sif"] = Field(
        "mean", description="sif: common words count less, and what all texts share is removed (learned)"
    )
    lowercase: bool = Field(True, description="small and capital letters are the same")
    most_words: int = Field(400_000, ge=1, description="words that are read of the file; 4 x dimension bytes each")
    max_chars: int = Field(2000, ge=1, description="characters of a text that are read")

    def build(self) -> WordsEmbedder:
        """Make the embedder. The file is read with the first text.

        Raises:
            InvalidInput: there is no such file.
        """
        return WordsEmbedder(self)


class _Learned(msgspec.Struct, frozen=True):
    words: str  # digest of the table
    common: bytes  # float32 (d,), of length 1


class WordsEmbedder:
    """Averages word vectors.

    One more column holds the share of the words that the file does not know, times the usual length of a word's vector:
    a text of unknown words is strange, and not lost. A text without a single word is a problem.
    """

    kind = "words"
    geometry = TEXT

    def __init__(self, settings: WordsSettings) -> None:
        check_path(settings.path, what="word vectors")
        self._settings = settings
        self._common: Floats | None = None
        self._table: VectorTable | None = None
        self._rows: dict[str, int] = {}
        self._weights: Floats | None = None
        self._unknown = np.float32(0.0)
        self.fields = (settings.field,)
        self.learns = settings.weighting == "sif"

    def fit(self, columns: Columns) -> None:
        """For ``sif``: the first principal direction of the baseline's vectors, not centred."""
        if not self.learns:
            return
        means, problems = self._means(columns[0])
        good = np.delete(means, list(problems), axis=0)[:, :-1]
        if len(good) == 0 or not good.any():
            raise InvalidInput(
                f"None of {len(means)} records holds a text with a known word in {self._settings.field}.",
                hint="Check the field of the embedder, and that the file of word vectors is of the texts' language.",
            )
        _, directions = np.linalg.eigh(good.T.astype(np.float64) @ good.astype(np.float64))
        common = directions[:, -1]
        common = common * (-1.0 if common[np.abs(common).argmax()] < 0.0 else 1.0)  # it has no sign of its own
        self._common = np.ascontiguousarray(common, dtype=np.float32)

    def state(self) -> bytes:
        if self._common is None:
            return b""
        return encode_state(self.kind, _Learned(self._loaded().digest, self._common.astype("<f4").tobytes()))

    def restore(self, state: bytes) -> None:
        if not state:
            self._common = None
            return
        learned = decode_state(self.kind, state, _Learned)
        if learned.words != self._loaded().digest:
            raise InvalidReference(
                f"The reference was made with other word vectors than {self._settings.path} holds now.",
                hint="Restore the file, or build a new reference: driftd reference build",
            )
        self._common = np.frombuffer(learned.common, dtype="<f4").astype(np.float32)

    def fingerprint(self) -> str:
        settings = self._settings.model_dump(mode="json", exclude={"path", "most_words"})
        return fingerprint(self.kind, {**settings, "words": self._loaded().digest}, self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self.learns and self._common is None:
            raise not_fitted(self.kind)
        vectors, problems = self._means(columns[0])
        if self._common is not None:
            known = vectors[:, :-1]
            known -= np.einsum("ij,j->i", known, self._common)[:, None] * self._common
        # Words whose vectors cancel each other out, to the last bit, mean nothing together.
        for row in np.flatnonzero(~vectors.any(axis=1)).tolist():
            problems.setdefault(row, ("zero_vector", f"The word vectors of {self._settings.field} add up to nothing."))
        return Embedded(vectors, listed(problems))

    def _means(self, column: Sequence[Any]) -> tuple[Floats, Problems]:
        """The weighted means with the share of unknown words, float32 (n, d + 1), zero where there is a problem."""
        table = self._loaded()
        vectors = np.zeros((len(column), table.dimension + 1), dtype=np.float32)
        problems: Problems = {}
        words = [self._words(row, value, problems) for row, value in enumerate(column)]
        rows = [list(map(self._rows.get, each)) for each in words]
        for row, found in enumerate(rows):
            if None in found:
                rows[row] = self._with_pieces(words[row], found)
        total = np.array([len(each) for each in rows], dtype=np.int64)
        known = [[place for place in each if place is not None] if None in each else each for each in rows]
        counts = np.array([len(each) for each in known], dtype=np.int64)
        places = np.fromiter(chain.from_iterable(known), dtype=np.int32, count=int(counts.sum()))
        weights = np.ones(len(places), np.float32) if self._weights is None else self._weights[places]
        vectors[:, :-1] = _sums(table.vectors, places, weights, counts) / np.maximum(counts, 1)[:, None].astype(
            np.float32
        )
        vectors[:, -1] = self._unknown * ((total - counts) / np.maximum(total, 1)).astype(np.float32)
        return vectors, problems

    def _words(self, row: int, value: Any, problems: Problems) -> list[str]:
        field = self._settings.field
        if type(value) is not str:
            missing = value is None
            problems[row] = (
                "missing_field" if missing else "bad_value",
                f"{field} is {'missing' if missing else 'not text'}.",
            )
            return []
        value = value[: self._settings.max_chars]
        words = _WORD.findall(value.lower() if self._settings.lowercase else value)
        if not words:
            problems[row] = ("bad_value", f"{field} holds no word.")
        return words

    def _with_pieces(self, words: Sequence[str], found: Sequence[int | None]) -> list[int | None]:
        """Words that are not known, but made of several with hyphens or apostrophes, as their pieces."""
        places: list[int | None] = []
        for word, place in zip(words, found, strict=True):
            pieces = [place] if place is not None else [self._rows.get(piece) for piece in _INSIDE.split(word)]
            places += pieces
        return places

    def _loaded(self) -> VectorTable:
        if self._table is None:
            settings = self._settings
            table = read_table(settings.path, most=settings.most_words)
            self._rows = table.lowercased if settings.lowercase else table.row_of
            lengths = np.sqrt(np.einsum("ij,ij->i", table.vectors, table.vectors, dtype=np.float64))
            self._unknown = np.float32(lengths.mean())
            if settings.weighting == "sif":
                self._weights = zipf_weights(len(table.names))
            self._table = table
        return self._table


def _sums(vectors: Floats, places: npt.NDArray[np.int32], weights: Floats, counts: npt.NDArray[np.int64]) -> Floats:
    """Weighted sums of some of the vectors, float32 (len(counts), d).

    A sum's terms are added up one after the other, so that it does not depend on the sums around it. (By SciPy's
    sparse product: twenty times as fast as `numpy.add.reduceat`, which copies all terms first.)

    Args:
        vectors: float32 (n, d).
        places, weights: row and weight of each term.
        counts: terms of each sum.
    """
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], np.cumsum(counts)])
    chosen = csr_matrix((weights, places, starts), shape=(len(counts), len(vectors)))
    return np.asarray(chosen @ vectors, dtype=np.float32)


def zipf_weights(words: int) -> Floats:
    """The weight a / (a + p) of each word, p being its share by its rank in the file, float32 (words,)."""
    shares = 1.0 / (np.arange(1, words + 1) + _ZIPF_SHIFT)
    return np.asarray(_A / (_A + shares / shares.sum()), dtype=np.float32)
