"""Embeddings of texts from a server: the Open Inference Protocol V2, or an OpenAI-compatible /embeddings.

A server that is down, busy or broken is no fault of the texts: `InferenceClient.embed` raises a SourceError, so that
whoever reads records waits and reads them again. A text that the server refuses while it embeds others is named, found
by halving the request. Which of the two it is, is asked of the server: it has to embed `PROBE`, a word that is no
record's.

Open Inference Protocol V2: KServe, Triton, MLServer, OpenVINO; https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import binascii
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt

from connectors.http_sink import TLS_HINT, HttpClient
from detectors.errors import AccessRefused, SinkError, SourceError, SourceUnreachable

PROBE: Final = "driftd"
LONGEST_WAIT_S: Final = 30.0  # between two attempts, whatever Retry-After asks for
FIRST_WAIT_S: Final = 0.2
ATTEMPTS: Final = 3  # at a text that the server fails at, while it may be the text's fault
LARGEST_ANSWER: Final = 64 << 20  # bytes
_BUSY: Final = frozenset({408, 425, 429, 502, 503, 504})
_REFUSED_FOR_GOOD: Final = frozenset({404, 405, 501, 505})

Vector = npt.NDArray[np.float32]


class UnusableAnswer(Exception):
    """An answer that does not hold one vector for each text; the text says what it holds instead."""


class Inference(Protocol):
    """How texts are asked about, and what the answer looks like."""

    @property
    def path(self) -> str:
        """What comes after the server's address."""

    def body(self, texts: Sequence[str]) -> bytes:
        """The request."""

    def vectors(self, answer: Any, count: int) -> list[Vector]:
        """The vectors of ``count`` texts, in their order; float32 (d,) each.

        Raises:
            UnusableAnswer: it does not hold them.
        """


@dataclass(frozen=True, slots=True)
class OpenInference:
    """Open Inference Protocol V2: a tensor of BYTES in, a tensor of FP32 out.

    Attributes:
        model, version: of the server; version "" leaves the choice to it.
        input, output: names of the tensors; output "" takes the only one.
        rank: of the input tensor: 1 for [n], 2 for [n, 1].
    """

    model: str
    version: str = ""
    input: str = "text"
    output: str = ""
    rank: Literal[1, 2] = 1

    @property
    def path(self) -> str:
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.model, safe='')}{version}/infer"

    def body(self, texts: Sequence[str]) -> bytes:
        shape = [len(texts), 1][: self.rank]
        request: dict[str, Any] = {
            "inputs": [{"name": self.input, "shape": shape, "datatype": "BYTES", "data": list(texts)}]
        }
        if self.output:
            request["outputs"] = [{"name": self.output}]
        return msgspec.json.encode(request)

    def vectors(self, answer: Any, count: int) -> list[Vector]:
        outputs = _entry(answer, "outputs", list)
        named = [one for one in outputs if isinstance(one, dict) and self.output in ("", one.get("name"))]
        if len(named) != 1:
            names = ", ".join(str(one.get("name"))[:50] for one in outputs[:10] if isinstance(one, dict))
            wanted = f"no output {self.output}" if self.output else "several outputs, of which one must be named"
            raise UnusableAnswer(f"{wanted}: {names or 'none'}")
        shape, kind = named[0].get("shape"), named[0].get("datatype")
        if kind not in ("FP32", "FP64"):
            raise UnusableAnswer(f"numbers of type {str(kind)[:20]}, where FP32 was expected")
        if not isinstance(shape, list) or len(shape) != 2:
            raise UnusableAnswer(f"a tensor of shape {str(shape)[:50]}, where [{count}, dimension] was expected")
        numbers = _numbers(named[0].get("data")).reshape(-1)
        if shape[0] != count or not isinstance(shape[1], int) or shape[1] < 1 or len(numbers) != count * shape[1]:
            raise UnusableAnswer(f"a tensor of shape {str(shape)[:50]} with {len(numbers)} numbers for {count} texts")
        return list(numbers.reshape(count, shape[1]))


@dataclass(frozen=True, slots=True)
class OpenAI:
    """POST /embeddings as OpenAI defined it, and many servers answer it.

    Attributes:
        model: of the server.
        encoding: what is asked for; either is understood.
        dimensions: asked of models that can shorten their vectors; None leaves it out.
    """

    model: str
    encoding: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @property
    def path(self) -> str:
        return "/embeddings"

    def body(self, texts: Sequence[str]) -> bytes:
        request: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": self.encoding}
        if self.dimensions is not None:
            request["dimensions"] = self.dimensions
        return msgspec.json.encode(request)

    def vectors(self, answer: Any, count: int) -> list[Vector]:
        data = _entry(answer, "data", list)
        if len(data) != count:
            raise UnusableAnswer(f"{len(data)} vectors for {count} texts")
        if not all(isinstance(one, dict) and "embedding" in one for one in data):
            raise UnusableAnswer("data without embeddings")
        places = [one.get("index", place) for place, one in enumerate(data)]
        if {place for place in places if type(place) is int} != set(range(count)):
            raise UnusableAnswer(f"places that are not 0 to {count - 1}, each once")
        vectors: list[Vector] = [np.zeros(0, np.float32)] * count
        for place, one in zip(places, data, strict=True):
            vectors[place] = _vector(one["embedding"])
        return vectors


def _entry(answer: Any, name: str, kind: type) -> Any:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, kind):
        raise UnusableAnswer(f"no {name}")
    return found


def _vector(value: Any) -> Vector:
    if isinstance(value, str):
        try:
            packed = binascii.a2b_base64(value, strict_mode=True)
            return np.frombuffer(packed, dtype="<f4").astype(np.float32)
        except ValueError as error:
            raise UnusableAnswer("text that is no base64 of float32 numbers") from error
    numbers = _numbers(value)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise UnusableAnswer(f"an embedding of shape {numbers.shape}, where a list of numbers was expected")
    return numbers


def _numbers(value: Any) -> npt.NDArray[np.float32]:
    """Numbers as float32; null, as which some servers write NaN, becomes NaN."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableAnswer("an embedding that is no list of numbers") from error


class _Refusal(Exception):
    """The server answers, but not with vectors of these texts."""

    def __init__(self, problem: str, *, passing: bool) -> None:
        super().__init__(problem)
        self.problem = problem
        self.passing = passing  # the same request may be answered later


class InferenceClient:
    """Asks one server for the vectors of texts. Called from one thread.

    Args:
        client: to the server's address.
        inference: the protocol.
        batch: most texts of one request.
        patience_s: so long is a request tried again that fails; then SourceError is raised.
        section: where in the settings the server stands, for the hints of errors.
        clock: monotonic seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        client: HttpClient,
        inference: Inference,
        *,
        batch: int,
        patience_s: float,
        section: str = "models.NAME.spaces.SPACE.embedder",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._inference = inference
        self._batch = batch
        self._patience_s = patience_s
        self._section = section
        self._clock = clock
        self._sleep = sleep

    @property
    def place(self) -> str:
        """Scheme, host and port."""
        return self._client.place

    def check(self) -> int:
        """Ask once for the vector of `PROBE`. Returns its dimension.

        Raises:
            SourceError: the server does not answer, or not with a vector.
        """
        return self._probe(patience_s=0.0)

    def embed(self, texts: Sequence[str], *, took: Callable[[int, Vector | str], None]) -> None:
        """Ask for the vector of each text.

        Args:
            took: told of each text its number, and its vector, float32 (d,), or, in words, why the server gives none
                of it although it gives one of another; called as answers come, so that none is lost with an error.

        Raises:
            AccessRefused: our credentials are refused.
            SourceUnreachable: no answer that can be used within the patience, or none to any text.
            SourceError: the address or the model is wrong.
        """
        for start in range(0, len(texts), self._batch):
            self._embed(range(start, min(start + self._batch, len(texts))), texts, took)

    def _embed(self, rows: range, texts: Sequence[str], took: Callable[[int, Vector | str], None]) -> None:
        try:
            vectors = self._vectors([texts[row] for row in rows])
        except _Refusal as refusal:
            self._probe()
            if len(rows) == 1:
                took(rows[0], refusal.problem)
                return
            middle = len(rows) // 2
            self._embed(rows[:middle], texts, took)
            self._embed(rows[middle:], texts, took)
            return
        for row, vector in zip(rows, vectors, strict=True):
            took(row, vector)

    def _probe(self, *, patience_s: float | None = None) -> int:
        """See that the server embeds a text that is no record's. Returns the vector's dimension.

        Raises:
            SourceError: it does not.
        """
        try:
            return len(self._vectors([PROBE], patient=True, patience_s=patience_s)[0])
        except _Refusal as refusal:
            kind = SourceUnreachable if refusal.passing else SourceError
            raise kind(
                f"The embedding server at {self.place} embeds no text: {refusal.problem}.",
                hint=f"Check model and protocol: {self._section}",
            ) from refusal

    def _vectors(self, texts: Sequence[str], *, patient: bool = False, patience_s: float | None = None) -> list[Vector]:
        """The vectors of one request, tried again while that may help.

        Args:
            patient: an answer that cannot be used is no fault of the texts: ask as long as where there is none.
            patience_s: other than the client's.

        Raises:
            _Refusal: the server answers, but not with vectors.
            SourceError: it does not answer, or nothing else would be answered either.
        """
        body = self._inference.body(texts)
        began, wait_s = self._clock(), FIRST_WAIT_S
        patience_s = self._patience_s if patience_s is None else patience_s
        for attempt in itertools.count(1):
            problem: SourceError | _Refusal
            asked: float | None = None
            try:
                status, asked, answer = self._client.ask(body, path=self._inference.path, most=LARGEST_ANSWER)
                return self._judge(status, answer, len(texts))
            except SinkError as error:
                problem = self._unreachable(error)
            except _Refusal as refusal:
                problem = refusal
            except SourceUnreachable as error:
                problem = error
            passing = problem.passing if isinstance(problem, _Refusal) else problem.retryable
            spent = isinstance(problem, _Refusal) and not patient and attempt >= ATTEMPTS
            wait_s = min(max(wait_s, asked or 0.0), LONGEST_WAIT_S)
            if not passing or spent or self._clock() - began + wait_s > patience_s:
                raise problem
            self._sleep(wait_s)
            wait_s *= 2
        raise AssertionError("unreachable")

    def _judge(self, status: int, answer: bytes, count: int) -> list[Vector]:
        if status in (401, 403):
            raise AccessRefused(
                f"The embedding server at {self.place} refuses us ({status}).",
                hint=f"Set the token: {self._section}.token_file",
            )
        if status in _BUSY:
            raise SourceUnreachable(
                f"The embedding server at {self.place} answers {status}.", hint=_HINTS.get(status, "")
            )
        if status in _REFUSED_FOR_GOOD or 300 <= status < 400:
            moved = ": it redirects, which driftd does not follow" if status < 400 else ""
            raise SourceError(
                f"The embedding server at {self.place} answers {status}{moved}.",
                hint=f"Check url, model and protocol: {self._section}",
            )
        if not 200 <= status < 300:
            raise _Refusal(f"it answers {status}", passing=status >= 500)
        try:
            return self._inference.vectors(_document(answer), count)
        except UnusableAnswer as error:
            raise _Refusal(f"it answers with {error}", passing=True) from error

    def _unreachable(self, error: SinkError) -> SourceError:
        hint = f"Name its certificate authority: {self._section}.ca_file" if error.hint == TLS_HINT else ""
        kind = SourceUnreachable if error.retryable else SourceError
        problem = kind(error.message, hint=hint or f"Records wait until it answers. Check {self._section}.url")
        problem.__cause__ = error
        return problem


_HINTS: Final = {429: "It limits how often it is asked; records wait. A smaller batch, or another plan, may help."}


def _document(answer: bytes) -> Any:
    if len(answer) >= LARGEST_ANSWER:
        raise UnusableAnswer(f"more than {LARGEST_ANSWER >> 20} MiB; lower batch")
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError:
        pass
    try:
        return json.loads(answer)  # understands NaN, which is no JSON, but is what some servers write
    except (ValueError, RecursionError) as error:
        raise UnusableAnswer("what is no JSON") from error
