"""Texts, embedded by a server: the Open Inference Protocol V2, or an OpenAI-compatible /embeddings."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from connectors.http_sink import HttpClient, read_secret
from connectors.inference import Inference, InferenceClient, OpenAI, OpenInference, Vector
from detectors.errors import InvalidReference, InvalidSettings, SourceError
from monitor.embedders.embedder import Columns, Embedded, Floats, Problem, decode_state, encode_state, fingerprint
from monitor.embedders.vector import GEOMETRIES, GeometryName
from monitor.pointers import FieldName

_SECTION = "models.NAME.spaces.SPACE.embedder"


class HttpSettings(BaseModel, frozen=True, extra="forbid"):
    """Text, embedded by a server: Open Inference Protocol V2 (KServe, Triton, MLServer), or OpenAI's /embeddings."""

    kind: Literal["http"] = "http"
    field: FieldName = Field(description="where the text stands")
    protocol: Literal["v2", "openai"] = Field(description="v2: Open Inference Protocol; openai: POST /embeddings")
    url: str = Field(description="address, up to /v2 or /embeddings: http://localhost:8000, https://api.openai.com/v1")
    model: str = Field(min_length=1, description="name of the model at the server")
    version: str = Field("", description="of the model: asked for by v2; change it when the server has another one")
    input: str = Field("text", description="v2: name of the tensor of texts")
    output: str = Field("", description="v2: name of the tensor of vectors; may be left out where there is one")
    rank: Literal[1, 2] = Field(1, description="v2: 2 where the tensor of texts is [n, 1], as with batches in Triton")
    encoding: Literal["float", "base64"] = Field("float", description="openai: how vectors are sent")
    dimension: int | None = Field(
        None, ge=1, description="length of the vectors, asked for by openai; without it, learned from the baseline"
    )
    geometry: GeometryName = Field(
        "text", description="text: encoders of text; angular: others; standard: length carries meaning"
    )
    max_chars: int = Field(2000, ge=1, description="characters that are sent")
    batch: int = Field(32, ge=1, le=2048, description="most texts in one request")
    cache: int = Field(10_000, ge=0, description="texts whose vectors are remembered; one takes 4 bytes a dimension")
    timeout_s: float = Field(30.0, gt=0, le=120, description="seconds to wait for a connection, and for an answer")
    patience_s: float = Field(
        20.0, ge=0, le=300, description="seconds for which a request that fails is tried again before records wait"
    )
    token: SecretStr | None = Field(None, description="sent as Authorization: Bearer")
    token_file: Path | None = Field(None, description="file that holds the token, instead of token")
    verify_tls: bool = Field(True, description="check the server's certificate")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("expected an address such as http://localhost:8000")
        if "@" in parts.netloc:
            raise ValueError("a name and a password do not belong into the address: set token_file")
        for end in ("/embeddings", "/v2"):
            if parts.path.rstrip("/").endswith(end):
                raise ValueError(f"leave out {end} at the end: it is added")
        return value

    @model_validator(mode="after")
    def _is_one_token(self) -> HttpSettings:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file are both set; keep one")
        return self

    def build(self) -> HttpEmbedder:
        """Make the embedder. Reads ``token_file``; the server is asked with the first text.

        Raises:
            InvalidSettings: a file that is named cannot be read, or the token is none.
        """
        return HttpEmbedder(self)

    def inference(self) -> Inference:
        """The protocol."""
        if self.protocol == "v2":
            return OpenInference(self.model, self.version, self.input, self.output, self.rank)
        return OpenAI(self.model, self.encoding, self.dimension)

    def client(self) -> HttpClient:
        """The way to the server.

        Raises:
            InvalidSettings: see `build`.
        """
        token = read_secret(self.token, self.token_file, what="embedding server", key="token", section=_SECTION)
        if token is not None and not (token.isascii() and token.decode().isprintable()):
            raise InvalidSettings(
                "The embedding server's token has characters that cannot be sent.", hint=f"Check {_SECTION}.token_file"
            )
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidSettings(
                f"The embedding server's ca_file {self.ca_file} does not exist.",
                hint=f"Name a PEM file: {_SECTION}.ca_file",
            )
        return HttpClient(
            "embedding server",
            self.url,
            headers={} if token is None else {"Authorization": f"Bearer {token.decode()}"},
            timeout_s=self.timeout_s,
            verify=str(self.ca_file) if self.verify_tls and self.ca_file is not None else self.verify_tls,
        )


class HttpEmbedder:
    """Asks a server for vectors; a text that comes again is asked for once, while it is remembered.

    The vectors of one request come from one batch at the server. Where its last bits depend on the batch, ours do:
    with ``batch: 1`` they do not. A server that fails raises a SourceError, and is no fault of the records.
    """

    kind = "http"
    learns = False
    remote = True  # other things than the encoder may be between: a failure to embed says nothing of the encoder

    def __init__(self, settings: HttpSettings, *, client: InferenceClient | None = None) -> None:
        self._settings = settings
        self._dimension = settings.dimension
        self._known = _Remembered(settings.cache)
        self._client = client or InferenceClient(
            settings.client(),
            settings.inference(),
            batch=settings.batch,
            patience_s=settings.patience_s,
            section=_SECTION,
        )
        self.fields = (settings.field,)
        self.geometry = GEOMETRIES[settings.geometry]

    def fit(self, columns: Columns) -> None:
        """The encoder is trained already."""

    def state(self) -> bytes:
        return b"" if self._dimension is None else encode_state(self.kind, self._dimension)

    def restore(self, state: bytes) -> None:
        if not state:
            self._dimension = self._settings.dimension
            return
        dimension = decode_state(self.kind, state, int)
        if self._settings.dimension not in (None, dimension):
            raise InvalidReference(
                f"The reference holds {dimension}-dimensional vectors; the settings say {self._settings.dimension}.",
                hint=f"Set dimension: {dimension}, or build a new reference: driftd reference build",
            )
        self._dimension = dimension

    def fingerprint(self) -> str:
        # Not of the address, which may move; and the geometry is how vectors are compared.
        content = {"protocol", "model", "version", "input", "output", "max_chars"}
        return fingerprint(self.kind, self._settings.model_dump(include=content), self.state())

    def embed(self, columns: Columns) -> Embedded:
        """See `Embedder.embed`.

        Raises:
            SourceError: the server cannot be asked now, or answers with vectors of another dimension than before.
        """
        embedded = self._embed(columns, self._known, self._dimension)
        self._dimension = embedded.vectors.shape[1] or None
        return embedded

    def check(self) -> str:
        """Ask the server once. Returns what it answers, in words.

        Raises:
            SourceError: it does not answer, or not with a vector.
        """
        return f"{self._client.place} answers with {self._client.check()}-dimensional vectors"

    def embed_anew(self, columns: Columns) -> Embedded:
        """As `embed`, of what the server says now: nothing is remembered, and the dimension may be another one.

        Raises:
            SourceError: the server cannot be asked now.
        """
        return self._embed(columns, _Remembered(0), None)

    def forget(self) -> None:
        """Forget every vector that is remembered."""
        self._known.clear()

    def _embed(self, columns: Columns, known: _Remembered, dimension: int | None) -> Embedded:
        (column,) = columns
        problems: dict[int, tuple[str, str]] = {}
        rows_of: dict[str, list[int]] = {}
        for row, text in enumerate(column):
            if type(text) is not str or not text.strip():
                problems[row] = self._what_is_wrong(text)
            else:
                rows_of.setdefault(text[: self._settings.max_chars], []).append(row)
        answers = self._answers(list(rows_of), known, dimension)
        lengths = [len(answer) for answer in answers if isinstance(answer, np.ndarray)]
        vectors = np.zeros((len(column), dimension or (lengths[0] if lengths else 0)), dtype=np.float32)
        for rows, answer in zip(rows_of.values(), answers, strict=True):
            problem = answer if isinstance(answer, tuple) else _unusable(answer)
            for row in rows:
                if problem is None:
                    vectors[row] = answer
                else:
                    problems[row] = problem
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    def _answers(
        self, texts: Sequence[str], known: _Remembered, dimension: int | None
    ) -> list[Vector | tuple[str, str]]:
        """The vector of each text, or what is wrong with it."""
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        answers: dict[int, Vector | tuple[str, str]] = {}
        asked: list[int] = []
        for place, key in enumerate(keys):
            remembered = known.find(key)
            if remembered is None:
                asked.append(place)
            else:
                answers[place] = remembered
        expected = dimension

        def took(number: int, answer: Vector | str) -> None:
            nonlocal expected
            place = asked[number]
            if isinstance(answer, str):
                answers[place] = ("embedder_failed", f"The embedding server gives no vector of it: {answer}.")
                return
            if expected not in (None, len(answer)):
                raise SourceError(
                    f"The embedding server at {self._client.place} answers with {len(answer)}-dimensional vectors; "
                    f"before, they had {expected} dimensions.",
                    hint="Has its model changed? Put the old one back, or build a reference: driftd reference build",
                )
            expected = len(answer)
            answers[place] = answer
            known.add(keys[place], answer)

        self._client.embed([texts[place] for place in asked], took=took)
        return [answers[place] for place in range(len(texts))]

    def _what_is_wrong(self, text: object) -> tuple[str, str]:
        field = self._settings.field
        if text is None:
            return "missing_field", f"{field} is missing."
        return "bad_value", f"{field} is empty." if isinstance(text, str) else f"{field} is not text."


class _Remembered:
    """Vectors by the hash of their text, at most so many; the one that was not asked for the longest time goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()

    def find(self, key: bytes) -> Vector | None:
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def add(self, key: bytes, vector: Vector) -> None:
        if self._most == 0:
            return
        if len(self._vectors) >= self._most:
            self._vectors.popitem(last=False)
        self._vectors[key] = np.array(vector)  # a copy: a row would keep the whole answer alive

    def clear(self) -> None:
        self._vectors.clear()


def _unusable(vector: Floats) -> tuple[str, str] | None:
    if not np.isfinite(vector).all():
        return "not_finite", "The embedding server answers with NaN or infinity."
    if not vector.any():
        return "zero_vector", "The embedding server answers with zeros only."
    return None
