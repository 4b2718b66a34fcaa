"""What an embedder is given and gives, and its contract.

An embedder turns the columns of a batch into one vector for each record. A row's vector depends on that row and on what
was learned from the baseline, to the last bit: not on the rows around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.errors import DriftdError, InvalidReference
from detectors.reference import Geometry

Floats = npt.NDArray[np.float32]
Columns = Sequence[Sequence[Any]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Problem:
    """A record without a vector that can be used.

    Attributes:
        row: its row in the batch.
        reason: missing_field, bad_value, bad_vector, wrong_dimension, not_finite, zero_vector or embedder_failed.
        detail: one sentence on what was found, without the content.
    """

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of a batch.

    Attributes:
        vectors: float32 (n, d), C-contiguous; zero in the rows that have a problem.
        problems: at most one for each row, in the order of the rows.
    """

    vectors: Floats
    problems: list[Problem]


class Embedder(Protocol):
    """Turns columns of raw values into vectors.

    Attributes:
        kind: the name of the kind, as in the settings.
        fields: the columns that it needs, in the order in which `fit` and `embed` take them.
        geometry: how its vectors are compared.
        learns: it must see the baseline's raw values in `fit` before it can embed.
    """

    @property
    def kind(self) -> str: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def learns(self) -> bool: ...

    def fit(self, columns: Columns) -> None:
        """Learn from the columns of a baseline.

        Raises:
            InvalidInput: no row of the baseline can be used.
        """

    def state(self) -> bytes:
        """What was learned; the same baseline gives the same bytes. Empty where nothing was."""

    def restore(self, state: bytes) -> None:
        """Go on with what another one learned.

        Raises:
            InvalidReference: the state belongs to another kind or other settings.
        """

    def fingerprint(self) -> str:
        """Changes when the same input would give another vector."""

    def embed(self, columns: Columns) -> Embedded:
        """The vectors of n records; None stands for an absent field. Missing values are a problem or imputed.

        Raises:
            InvalidReference: nothing was learned yet, and something must be.
        """


@runtime_checkable
class RemoteEmbedder(Embedder, Protocol):
    """One that asks another program for vectors, which may be replaced at any moment: see docs/canaries.md.

    An embedder made of others is remote where one of them is, and hands both calls on to it.

    Attributes:
        remote: True.
    """

    @property
    def remote(self) -> bool: ...

    def embed_anew(self, columns: Columns) -> Embedded:
        """As `embed`, of what the other program says now: nothing is taken from a cache, nor put into it.

        Raises:
            SourceError: it does not answer.
        """

    def forget(self) -> None:
        """Forget every vector that is remembered: another encoder may have made it."""


class _Embeds(Protocol):
    @property
    def embed(self) -> Callable[[Columns], Embedded]: ...


def learns_apart(embedder: Embedder) -> bool:
    """Whether records that the embedder learned from have vectors unlike those of later records of the same kind.

    An embedder says so by an attribute ``apart``, one made of others where one of them does. A reference is then built
    of records that it has not seen: it learns from the first half of a baseline.
    """
    return bool(getattr(embedder, "apart", False))


def embed_all(
    embedder: _Embeds, columns: Columns, n: int, *, dimension: int = 0, failed: Callable[[str], None]
) -> Embedded:
    """The vectors of n records; where the embedder raises, of those at which it does not when each is alone.

    A model's runtime may raise anything at a single record. That record has the problem embedder_failed, and stops no
    other.

    Args:
        dimension: of the vectors; needed where it raises at every record, and they are looked at.
        failed: told the kind of each such error: its text may quote the record.

    Raises:
        DriftdError: as `Embedder.embed`.
    """
    try:
        return embedder.embed(columns)
    except DriftdError:
        raise
    except Exception:
        pass  # which record it was shows below, where each that fails alone is told
    vectors = np.zeros((n, dimension), dtype=np.float32)
    problems: list[Problem] = []
    for row in range(n):
        try:
            alone = embedder.embed([column[row : row + 1] for column in columns])
        except DriftdError:
            raise
        except Exception as error:
            kind = type(error).__name__
            failed(kind)
            problems.append(Problem(row, "embedder_failed", f"The embedder failed: {kind}."))
            continue
        if vectors.shape[1] == 0:
            vectors = np.zeros((n, alone.vectors.shape[1]), dtype=np.float32)
        vectors[row] = alone.vectors[0]
        problems += [Problem(row, problem.reason, problem.detail) for problem in alone.problems]
    return Embedded(vectors, problems)


def fingerprint(kind: str, settings: object, state: bytes) -> str:
    """A short hash of everything that a vector depends on beside its input."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (kind.encode(), msgspec.json.encode(settings, order="deterministic"), state):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def encode_state(kind: str, learned: object) -> bytes:
    """What was learned, with the kind in front."""
    return msgspec.msgpack.encode([kind, learned], order="deterministic")


def decode_state(kind: str, state: bytes, learned: type[_T]) -> _T:
    """What `encode_state` wrote.

    Raises:
        InvalidReference: it is damaged or of another kind.
    """
    try:
        found, content = msgspec.msgpack.decode(state, type=tuple[str, msgspec.Raw])
        if found != kind:
            raise InvalidReference(
                f'The reference was made with the embedder "{found}", and the settings say "{kind}".',
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        return msgspec.msgpack.decode(content, type=learned)
    except msgspec.MsgspecError as error:
        raise InvalidReference(
            f'The state of the embedder "{kind}" in the reference is damaged.',
            hint="Build a new reference: driftd reference build",
        ) from error


def not_fitted(kind: str) -> InvalidReference:
    """The error of an embedder that is used before it learned anything."""
    return InvalidReference(
        f'The embedder "{kind}" has not seen a baseline yet, and learns from it how to embed.',
        hint="Build a reference first: driftd reference build",
    )


def check_optional(*, learned: bool, set_to: bool) -> None:
    """Refuse a reference whose missing values were treated otherwise than the settings say now.

    Raises:
        InvalidReference: the two differ.
    """
    if learned != set_to:
        raise InvalidReference(
            f"The reference was made with optional: {str(learned).lower()}, and the settings say "
            f"{str(set_to).lower()}.",
            hint="Restore the settings, or build a new reference: driftd reference build",
        )
