"""What reads one file: the contract of the readers of `connectors.files`, and their errors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from detectors.errors import AccessRefused, SourceError, UnknownTopic

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """A piece of a file: n > 0 records, or none where only the position moved."""

    offsets: Int64s
    numbers: Int64s  # row or line numbers, for the times
    values: list[bytes]
    next_offset: int


class Reader(Protocol):
    """One open file."""

    @property
    def at_end(self) -> bool: ...

    @property
    def remaining(self) -> int: ...

    def seek(self, offset: int) -> None: ...

    def read(self, max_rows: int) -> Rows | None: ...

    def forget(self, offset: int) -> None: ...

    def close(self) -> None: ...


def listed(directory: Path) -> list[Path]:
    """What lies in a directory. Raises SourceError."""
    try:
        return list(directory.iterdir())
    except OSError as error:
        raise cannot_be_read(str(directory), error) from error


def nearest_name(path: Path) -> str:
    """A guess at what a user meant, out of the names beside it."""
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [inner.name for inner in listed(path.parent)], n=1, cutoff=0.5)
        return f"Did you mean {path.parent / near[0]}?" if near else f"Look for it: ls {path.parent}"
    return f"There is no directory {path.parent} either."


def cannot_be_read(path: str, error: OSError) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return UnknownTopic(f"{path} is gone.", hint=nearest_name(Path(path)))
    if isinstance(error, PermissionError):
        return AccessRefused(
            f"{path} may not be read.", hint=f"Allow it, with chmod +r {path}, or run as a user who may."
        )
    return SourceError(f"{path} cannot be read: {error.strerror or error}.", hint="Check the path: ls -l " + path)


def first_sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].split(". ")[0].rstrip(".")[:200]
