"""Embedders that are made of embedders: their settings, and what every such kind does with its parts.

A part's settings are those of any kind, nested ones too. They are checked by the union of all kinds when a value is
there, so that the file of a kind needs not know the union that it is part of.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast, get_args

import numpy as np
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from detectors.errors import InvalidInput, InvalidReference
from monitor.embedders.embedder import Columns, Embedded, Embedder, Floats, Problem, RemoteEmbedder, learns_apart

Problems = dict[int, tuple[str, str]]  # reason and detail by row


class NestedEmbedder:
    """Marks a value as the settings of an embedder of any kind. Problems name the key inside it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_validated)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from monitor.embedders import EmbedderSettings

        kinds = [each.model_fields["kind"].default for each in get_args(get_args(EmbedderSettings)[0])]
        return {"type": "object", "properties": {"kind": {"enum": kinds}}, "required": ["kind"]}


Part = Annotated[Any, NestedEmbedder()]


def _validated(value: object) -> object:
    # Pydantic hands the problems of a validator inside a validator on, with the outer keys in front.
    return _union().validate_python(value)


@functools.cache
def _union() -> TypeAdapter[Any]:
    from monitor.embedders import EmbedderSettings

    return TypeAdapter(EmbedderSettings)


class Parts:
    """The embedders that another one is made of.

    Args:
        embedders: by name, in the order of the settings.

    Attributes:
        fields: the columns that they need: those of the first, of the second, ...
        learns: one of them does.
        remote: one of them asks another program for vectors.
        apart: as `learns_apart` of one of them.
    """

    def __init__(self, embedders: Mapping[str, Embedder]) -> None:
        self.embedders = dict(embedders)
        self.fields = tuple(field for each in self.embedders.values() for field in each.fields)
        self.learns = any(each.learns for each in self.embedders.values())
        self.remote = any(getattr(each, "remote", False) for each in self.embedders.values())
        self.apart = any(learns_apart(each) for each in self.embedders.values())

    def fit(self, columns: Columns) -> None:
        """Let each part learn from its columns. Raises InvalidInput, with the name of the part."""
        for name, own in self._own(columns).items():
            try:
                self.embedders[name].fit(own)
            except InvalidInput as error:
                raise InvalidInput(f"Part {name}: {error.message}", hint=error.hint) from error

    def states(self) -> dict[str, bytes]:
        """What each part learned."""
        return {name: each.state() for name, each in self.embedders.items()}

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Let each part go on with what another one learned; with nothing, from the beginning.

        Raises:
            InvalidReference: there are other parts than those of the settings, or one refuses.
        """
        if states and set(states) != set(self.embedders):
            raise InvalidReference(
                f"The reference was made from the parts {', '.join(sorted(states))}; the settings name "
                f"{', '.join(sorted(self.embedders))}.",
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        for name, each in self.embedders.items():
            each.restore(states.get(name, b""))

    def fingerprints(self) -> list[tuple[str, str]]:
        """The name and the fingerprint of each part, in their order."""
        return [(name, each.fingerprint()) for name, each in self.embedders.items()]

    def embed(self, columns: Columns, *, anew: bool = False) -> dict[str, Embedded]:
        """What each part makes of its columns.

        Args:
            anew: what another program makes is asked for again, and not taken from a cache.
        """
        found: dict[str, Embedded] = {}
        for name, own in self._own(columns).items():
            each = self.embedders[name]
            found[name] = (getattr(each, "embed_anew", each.embed) if anew else each.embed)(own)
        return found

    def forget(self) -> None:
        """Forget all vectors of other programs that are remembered."""
        for each in self.embedders.values():
            if getattr(each, "remote", False):
                cast(RemoteEmbedder, each).forget()

    def _own(self, columns: Columns) -> dict[str, Columns]:
        own: dict[str, Columns] = {}
        start = 0
        for name, each in self.embedders.items():
            own[name] = columns[start : start + len(each.fields)]
            start += len(each.fields)
        return own


class MadeOfParts(ABC):
    """An embedder whose vectors are made of those of its parts.

    Args:
        parts: what it is made of.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.fields = parts.fields
        self.learns = parts.learns
        self.remote = parts.remote
        self.apart = parts.apart

    @property
    def parts(self) -> Mapping[str, Embedder]:
        """What it is made of, by name."""
        return self._parts.embedders

    @abstractmethod
    def _joined(self, found: Mapping[str, Embedded], n: int) -> Embedded:
        """The vectors of n records from those of the parts."""

    def embed(self, columns: Columns) -> Embedded:
        """As `Embedder.embed`."""
        return self._joined(self._parts.embed(columns), len(columns[0]))

    def embed_anew(self, columns: Columns) -> Embedded:
        """As `RemoteEmbedder.embed_anew`."""
        return self._joined(self._parts.embed(columns, anew=True), len(columns[0]))

    def forget(self) -> None:
        """As `RemoteEmbedder.forget`."""
        self._parts.forget()


def innermost(embedder: Embedder) -> Iterator[Embedder]:
    """The embedders that look at records themselves: those that it is made of, however deep, or itself."""
    if not isinstance(embedder, MadeOfParts):
        yield embedder
        return
    for part in embedder.parts.values():
        yield from innermost(part)


def problems_of(found: Mapping[str, Embedded]) -> Problems:
    """The rows that are a problem of a part, the first of several, with its name."""
    problems: Problems = {}
    for name, embedded in found.items():
        for problem in embedded.problems:
            problems.setdefault(problem.row, (problem.reason, f"{name}: {problem.detail}"))
    return problems


def unit_rows(rows: Floats) -> Floats:
    """Each row scaled to length 1, float32 (n, d); rows of zeros stay so. A row's result does not depend on others.

    Args:
        rows: float32 (n, d), finite.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = rows / np.where(largest > 0.0, largest, np.float32(1.0))  # no square of it overflows or vanishes
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return np.ascontiguousarray(scaled / np.where(lengths > 0.0, lengths, np.float32(1.0)), dtype=np.float32)


def without(vectors: Floats, problems: Problems) -> Embedded:
    """The vectors, zero in the rows that have a problem."""
    if problems:
        vectors[list(problems)] = 0.0
    return Embedded(np.ascontiguousarray(vectors, dtype=np.float32), listed(problems))


def listed(problems: Problems) -> list[Problem]:
    """The problems in the order of their rows."""
    return [Problem(row, *problems[row]) for row in sorted(problems)]
