"""Arrays in one file, with a check sum: what the artefacts beside a reference are kept in."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidReference

_SUM = 64  # characters of a SHA-256 in hexadecimal, before the arrays


def save_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays to a new file, the SHA-256 of the rest in front.

    Raises:
        InvalidReference: the file exists, or cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as opened:
            opened.write(hashlib.sha256(content.getvalue()).hexdigest().encode() + content.getvalue())
    except OSError as error:
        raise InvalidReference(
            f"cannot write {file}: {error.strerror or error}.",
            hint="Name a new directory on a disk with free space that you may write to.",
        ) from error


def load_arrays(file: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file, each byte checked.

    Raises:
        InvalidReference: missing, truncated or changed, or without one of ``names``.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidReference(
            f"cannot read {file}: {error.strerror or error}.", hint="Build the reference again."
        ) from error
    if hashlib.sha256(content[_SUM:]).hexdigest().encode() != content[:_SUM]:
        raise InvalidReference(
            f"{file} is damaged: its check sum differs.", hint="Restore it from a copy, or build it again."
        )
    try:
        with np.load(io.BytesIO(content[_SUM:]), allow_pickle=False) as stored:
            arrays = dict(stored.items())
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InvalidReference(f"{file} holds no arrays: {error}.", hint="Build the reference again.") from error
    if missing := [name for name in names if name not in arrays]:
        raise InvalidReference(
            f"{file}: expected {', '.join(names)}; {', '.join(missing)} is missing.",
            hint="It was written by another release of driftd: build the reference again.",
        )
    return arrays
