"""What fraud scores are measured against: normal records of the baseline, with their vectors and their signals.

A signal is a column that tells something of a record beside its vector: how surprising a detector finds it, or a number
of the record itself. Records at odd rows are in no index and no model: p-values rank among their scores.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput, InvalidReference
from detectors.outlier import evenly_spaced

Floats = npt.NDArray[np.float32]
Kind = Literal["surprise", "number"]

MAX_RECORDS = 20_000
FORMAT_VERSION = 1

_FILE = "fraud_baseline.npz"
_FORMAT = "driftd fraud baseline"


@dataclass(frozen=True, slots=True)
class Signal:
    """A column of signals.

    Attributes:
        name: "outlier", a scorer's name, "entity_self", ..., or the name of a field.
        kind: "surprise", -log10 of a calibrated p-value, larger is stranger; or "number", as the record has it, NaN
            where it has none.
    """

    name: str
    kind: Kind


@dataclass(frozen=True, eq=False, slots=True)
class FraudBaseline:
    """Normal records of the baseline.

    Attributes:
        vectors: float32 (n, d), as embedded, not prepared.
        signals: float32 (n, s), NaN where unknown.
        columns: s of them, what the columns of the signals are.

    Raises:
        InvalidInput: arrays that do not fit each other, or two columns of one name.
    """

    vectors: Floats
    signals: Floats
    columns: tuple[Signal, ...]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise InvalidInput(
                f"fraud baseline: expected float32 vectors (n, d), got {self.vectors.dtype} {self.vectors.shape}."
            )
        expected = (len(self.vectors), len(self.columns))
        if self.signals.shape != expected or self.signals.dtype != np.float32:
            raise InvalidInput(
                f"fraud baseline: expected float32 signals {expected}, one column for each of "
                f"{', '.join(self.names) or 'none'}, got {self.signals.dtype} {self.signals.shape}."
            )
        if len(set(self.names)) != len(self.columns):
            raise InvalidInput(f"fraud baseline: expected different names of signals, got {', '.join(self.names)}.")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the signals, in the order of their columns."""
        return tuple(column.name for column in self.columns)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the baseline into an existing folder; at most 20,000 records, evenly spaced.

        Raises:
            InvalidReference: the folder cannot be written.
        """
        rows = evenly_spaced(len(self), MAX_RECORDS)
        columns = [[column.name, column.kind] for column in self.columns]
        described = json.dumps({"format": _FORMAT, "format_version": FORMAT_VERSION, "columns": columns})
        path = Path(folder) / _FILE
        try:
            with path.open("wb") as file:
                np.savez(
                    file,
                    described=np.frombuffer(described.encode(), np.uint8),
                    vectors=self.vectors[rows],
                    signals=self.signals[rows],
                )
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InvalidReference(
                f"cannot write the fraud baseline {path}: {error.strerror or error}.",
                hint="Name a directory on a disk with free space that you may write to.",
            ) from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FraudBaseline:
        """Read a saved baseline; every byte is under a check sum.

        Raises:
            InvalidReference: missing, damaged, or of another format version.
        """
        path = Path(folder) / _FILE
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ("described", "vectors", "signals")}
            described = json.loads(arrays["described"].tobytes())
        except FileNotFoundError as error:
            raise InvalidReference(
                f"expected a fraud baseline, but {path} does not exist.", hint="Build the reference again."
            ) from error
        except Exception as error:  # a damaged file makes numpy and zipfile raise almost anything
            raise _damaged(path, f"cannot be read ({error})") from error
        if not isinstance(described, dict) or described.get("format") != _FORMAT:
            raise _damaged(path, "it does not describe a fraud baseline")
        if described.get("format_version") != FORMAT_VERSION:
            raise InvalidReference(
                f"{path}: expected format version {FORMAT_VERSION}, got {described.get('format_version')}.",
                hint="It was written by another release of driftd: use that one, or build the reference again.",
            )
        try:
            return cls(arrays["vectors"], arrays["signals"], _columns(described.get("columns")))
        except (InvalidInput, TypeError, ValueError) as error:
            raise _damaged(path, str(error)) from error


def _columns(stored: Any) -> tuple[Signal, ...]:
    columns = tuple(Signal(name, kind) for name, kind in stored)
    for column in columns:
        if not isinstance(column.name, str) or column.kind not in get_args(Kind):
            raise ValueError(f"unknown signal {column.name!r} of kind {column.kind!r}")
    return columns


def _damaged(path: Path, what: str) -> InvalidReference:
    return InvalidReference(
        f"the fraud baseline {path} is damaged: {what}.", hint="Restore it from a copy, or build the reference again."
    )
