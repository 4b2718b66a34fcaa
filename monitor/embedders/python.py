"""Whatever a Python function makes of a record: an encoder of your own, named by its import path."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator

from detectors.errors import InvalidInput, InvalidReference, InvalidSettings
from monitor.embedders.embedder import Columns, Embedded, Floats, Problem, decode_state, encode_state, fingerprint
from monitor.embedders.vector import GEOMETRIES, GeometryName
from monitor.pointers import FieldName

COMPARED = 8  # rows that are embedded together and alone, once, to see whether that makes a difference

_IMPORT_PATH: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
Function = Callable[..., Any]


class PythonSettings(BaseModel, frozen=True, extra="forbid"):
    """A function of yours, by its import path: it takes a list for each field, and returns an array (n, d)."""

    kind: Literal["python"] = "python"
    callable: str = Field(description="package.module:function, or a class whose objects are called")
    fields: list[FieldName] = Field(min_length=1, description="what it takes, in this order")
    init: dict[str, Any] | None = Field(
        None,
        repr=False,  # it may hold a secret
        description="keyword arguments with which the class is made",
    )
    rows: Literal["batch", "one"] = Field(
        "batch", description="one: call it for each record alone, where a row's vector depends on the rows around it"
    )
    version: str | None = Field(
        None, min_length=1, description="changed when its vectors change; without it, a hash of the module's file"
    )
    geometry: GeometryName = Field(
        "angular", description="angular: most encoders; text: encoders of text; standard: length carries meaning"
    )

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not _IMPORT_PATH.fullmatch(value):
            raise ValueError("expected package.module:function, such as my_encoder:encode")
        return value

    def build(self) -> PythonEmbedder:
        """Import the function, or make an object of the class.

        Raises:
            InvalidSettings: it cannot be imported or made, or is nothing that can be called.
        """
        return PythonEmbedder(self)


class PythonEmbedder:
    """Calls a function with a list of n values for each field, and takes the array (n, d) that it returns.

    With ``rows: batch``, the first rows are embedded together and alone, once: a function whose vectors depend on the
    rows around them would make history differ from the live run. That it never does is not proven by this.
    """

    kind = "python"
    learns = False

    def __init__(self, settings: PythonSettings) -> None:
        self._settings = settings
        self._function, self._version = _imported(settings)
        self._dimension: int | None = None
        self._compared = settings.rows == "one"
        self.fields = tuple(settings.fields)
        self.geometry = GEOMETRIES[settings.geometry]

    def fit(self, columns: Columns) -> None:
        """The function learns nothing from a baseline."""

    def state(self) -> bytes:
        return b"" if self._dimension is None else encode_state(self.kind, self._dimension)

    def restore(self, state: bytes) -> None:
        self._dimension = decode_state(self.kind, state, int) if state else None

    def fingerprint(self) -> str:
        settings = self._settings.model_dump(include={"callable", "fields", "init"}, mode="json")
        return fingerprint(self.kind, [settings, self._version], self.state())

    def embed(self, columns: Columns) -> Embedded:
        """See `Embedder.embed`.

        Raises:
            InvalidInput: the function returns no array (n, d), or other vectors for rows that are alone.
            InvalidReference: its vectors have another dimension than those of the reference.
            Exception: whatever the function raises.
        """
        problems: dict[int, tuple[str, str]] = {}
        for name, column in zip(self.fields, columns, strict=True):
            for row in [row for row, value in enumerate(column) if value is None]:
                problems.setdefault(row, ("missing_field", f"{name} is missing."))
        n = len(columns[0])
        good: Sequence[int] = [row for row in range(n) if row not in problems] if problems else range(n)
        if not good:
            vectors = np.zeros((n, self._dimension or 0), dtype=np.float32)
            return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])
        made = self._vectors([[column[row] for row in good] if problems else list(column) for column in columns])
        vectors = made
        if problems:
            vectors = np.zeros((n, made.shape[1]), dtype=np.float32)
            vectors[good] = made
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", made, made)
        for place in np.flatnonzero(~((squares > 0) & (squares < np.inf))).tolist():
            if not np.isfinite(made[place]).all():
                what = f"{self._settings.callable} returns NaN or infinity, or more than float32 can hold."
                problems[good[place]] = ("not_finite", what)
            elif not made[place].any():
                problems[good[place]] = ("zero_vector", f"{self._settings.callable} returns zeros only.")
        if problems:
            vectors[list(problems)] = 0.0
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    def _vectors(self, columns: list[list[Any]]) -> Floats:
        """The function's vectors of rows that have all fields: float32 (n, d)."""
        n = len(columns[0])
        if self._settings.rows == "one":
            made = np.concatenate([self._called([column[row : row + 1] for column in columns]) for row in range(n)])
        else:
            made = self._called(columns)
            if not self._compared and n > 1:
                self._compare(columns, made)
                self._compared = True
        if self._dimension is None:
            self._dimension = made.shape[1]
        return made

    def _called(self, columns: list[list[Any]]) -> Floats:
        name, n = self._settings.callable, len(columns[0])
        result = self._function(*columns)
        try:
            with np.errstate(over="ignore"):
                made = np.array(result, dtype=np.float32, order="C")  # a copy: what was returned is not ours
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{name} returns {type(result).__name__}, which is no array of numbers of one length each.",
                hint=f"Return an array of shape (n, d) for lists of n values; here n is {n}.",
            ) from error
        if made.ndim != 2 or len(made) != n or made.shape[1] == 0:
            raise InvalidInput(
                f"{name} returns an array of shape {made.shape} for {n} records; expected ({n}, d).",
                hint="Return one row for each record, in their order.",
            )
        if self._dimension not in (None, made.shape[1]):
            raise InvalidReference(
                f"{name} returns {made.shape[1]}-dimensional vectors; before, they had {self._dimension} dimensions.",
                hint="Undo its change, or build a new reference: driftd reference build",
            )
        return made

    def _compare(self, columns: list[list[Any]], together: Floats) -> None:
        """See that the first rows have the same vectors when each is alone."""
        for row in range(min(len(together), COMPARED)):
            alone = self._called([column[row : row + 1] for column in columns])[0]
            if alone.tobytes() != together[row].tobytes():
                where = int(np.flatnonzero(alone.view(np.int32) != together[row].view(np.int32))[0])
                raise InvalidInput(
                    f"{self._settings.callable} gives a record another vector when it is alone: number {where} is "
                    f"{alone[where]!s} alone, and {together[row][where]!s} among {len(together)} records.",
                    hint="History would differ from the live run. Mend it, or call it for each record: rows: one",
                )


def _imported(settings: PythonSettings) -> tuple[Function, str]:
    """What is called, and its version.

    Raises:
        InvalidSettings: it cannot be imported or made, or is nothing that can be called.
    """
    name = settings.callable
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module of somebody else may raise anything
        raise InvalidSettings(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}.",
            hint="Install its package where driftd is, or set PYTHONPATH to the folder that holds it.",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            names = ", ".join(sorted(one for one in vars(found) if not one.startswith("_"))[:20])
            raise InvalidSettings(f"{module_name} has no {path}.", hint=f"It has: {names}" if names else "")
        found = getattr(found, part)
    home = found.__module__ if inspect.isclass(found) or inspect.isfunction(found) else module_name
    if inspect.isclass(found):
        try:
            found = found(**(settings.init or {}))
        except Exception as error:
            raise InvalidSettings(
                f"No object of {name} can be made: {type(error).__name__}: {error}.", hint="Check init."
            ) from error
    elif settings.init is not None:
        raise InvalidSettings(f"init makes an object of a class, and {name} is none.", hint="Leave init out.")
    if not callable(found):
        raise InvalidSettings(f"{name} cannot be called.", hint="Name a function, or a class with __call__.")
    return found, settings.version or _hash_of(home, name)


def _hash_of(module_name: str, name: str) -> str:
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None:
        raise InvalidSettings(f"{name} comes from no file whose hash could be its version.", hint="Set version.")
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
