"""References on disk: a directory of arrays and a manifest, written whole or not at all, read with every byte checked.

    reference.json           format version, names, numbers, and for every array its dtype, shape and SHA-256
    mean.npy, prototypes.npy, ...

The check sum of the manifest covers everything. Large arrays that scoring does not need are mapped, not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidReference
from detectors.geometry import Geometry
from detectors.reference import Blocks, Canaries, EmbedderState, Reference

FORMAT_VERSION = 1

_MANIFEST = "reference.json"
_FORMAT = "driftd reference"
_MAPPED = ("exemplars", "calibration_vectors", "block_s", "block_h", "block_c")
_ARRAYS: dict[str, str] = {
    "centre": "float32",
    "scale": "float32",
    "mean": "float64",
    "covariance": "float64",
    "whitening": "float32",
    "prototypes": "float32",
    "prototype_counts": "int64",
    "calibration_scores": "float32",
    "calibration_vectors": "float32",
    "exemplars": "float32",
    "exemplar_rows": "int64",
}
_BLOCK_ARRAYS = {"number": "int64", "n": "int64", "s": "int64", "n_h": "int64", "h": "int64", "c": "int32"}
_NUMBERS = ("seed", "created_ms", "n_fit", "n_calibration", "block_records", "first_ms", "last_ms")


def save(reference: Reference, target: Path) -> str:
    """Write a reference as the new directory ``target`` and return its check sum; see `Reference.save`."""
    if target.exists():
        _refuse_to_overwrite(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        manifest = manifest_of(reference)
        for name, array in _arrays(reference).items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                _to_disk(file)
        with (temporary / _MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            _to_disk(file)
        temporary.chmod(0o755)
        _sync_directory(temporary)
        temporary.rename(target)
        _sync_directory(target.parent)
    except OSError as error:
        if target.exists():
            _refuse_to_overwrite(target)
        raise InvalidReference(
            f"cannot write the reference {target}: {error.strerror or error}.",
            hint="Name a directory on a disk with free space that you may write to.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(manifest["checksum"])


def load(path: Path) -> Reference:
    """Read a saved reference; see `Reference.load`."""
    manifest = _read_manifest(path)
    try:
        arrays = {name: _read_array(path, name, described) for name, described in manifest["arrays"].items()}
        geometry = manifest["geometry"]
        parts: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        parts |= {name: int(manifest[name]) for name in _NUMBERS}
        blocks = Blocks(**{name: arrays[f"block_{name}"] for name in _BLOCK_ARRAYS})
        reference = Reference(
            geometry=Geometry(unit=bool(geometry["unit"]), whitening=float(geometry["whitening"])),
            embedder=EmbedderState(**manifest["embedder"], state=arrays["embedder_state"].tobytes()),
            model=manifest["model"],
            space=manifest["space"],
            segments={name: tuple(values) for name, values in manifest["segments"].items()},
            exemplar_ids=tuple(json.loads(arrays["exemplar_ids"].tobytes())),
            exemplar_excerpts=tuple(json.loads(arrays["exemplar_excerpts"].tobytes())),
            blocks=blocks,
            drift={name[6:]: array for name, array in arrays.items() if name.startswith("drift_")},
            performance={name[12:]: array for name, array in arrays.items() if name.startswith("performance_")},
            canaries=_canaries(arrays),
            **parts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{_MANIFEST} lacks {error}" if isinstance(error, KeyError) else str(error)) from error
    for name, dtype in [*_ARRAYS.items(), *((f"block_{name}", dtype) for name, dtype in _BLOCK_ARRAYS.items())]:
        if arrays[name].dtype != np.dtype(dtype):
            raise _damaged(path, f"{name}.npy holds {arrays[name].dtype}, expected {dtype}")
    return reference


def manifest_of(reference: Reference) -> dict[str, Any]:
    """What `save` writes to reference.json, the check sum included."""
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "geometry": asdict(reference.geometry),
        "embedder": {"kind": reference.embedder.kind, "fingerprint": reference.embedder.fingerprint},
        "model": reference.model,
        "space": reference.space,
        "segments": {name: list(values) for name, values in reference.segments.items()},
        **{name: getattr(reference, name) for name in _NUMBERS},
        "arrays": {name: _describe(array) for name, array in _arrays(reference).items()},
    }
    manifest["checksum"] = _checksum(manifest)
    return manifest


def _arrays(reference: Reference) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: getattr(reference, name) for name in _ARRAYS}
    arrays |= {f"block_{name}": getattr(reference.blocks, name) for name in _BLOCK_ARRAYS}
    arrays |= {f"drift_{name}": np.asarray(array) for name, array in reference.drift.items()}
    arrays |= {f"performance_{name}": np.asarray(array) for name, array in reference.performance.items()}
    if reference.canaries is not None:
        arrays["canary_inputs"] = np.frombuffer(reference.canaries.inputs, np.uint8)
        arrays["canary_vectors"] = reference.canaries.vectors
        arrays["canary_made_on"] = np.frombuffer(reference.canaries.made_on.encode(), np.uint8)
    arrays["embedder_state"] = np.frombuffer(reference.embedder.state, np.uint8)
    arrays["exemplar_ids"] = _text_array(reference.exemplar_ids)
    arrays["exemplar_excerpts"] = _text_array(reference.exemplar_excerpts)
    return arrays


def _canaries(arrays: Mapping[str, npt.NDArray[Any]]) -> Canaries | None:
    if "canary_inputs" not in arrays:
        return None
    made_on = arrays["canary_made_on"].tobytes().decode()
    return Canaries(arrays["canary_inputs"].tobytes(), arrays["canary_vectors"], made_on)


def _text_array(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(list(texts)).encode("ascii"), np.uint8)


def _describe(array: npt.NDArray[Any]) -> dict[str, Any]:
    content = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": content}


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_to_overwrite(target: Path) -> NoReturn:
    raise InvalidReference(
        f"{target} exists, and a reference is never overwritten.",
        hint="Name another directory, or remove this one first.",
    )


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(path: Path, what: str) -> InvalidReference:
    return InvalidReference(
        f"the reference {path} is damaged: {what}.", hint="Restore it from a copy, or build it again."
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_dir():
            found = f"the directory {path} holds no {_MANIFEST}"
        else:
            found = f"{path} is a file" if path.exists() else f"{path} does not exist"
        raise InvalidReference(
            f"expected a reference, but {found}.", hint="Build one: driftd reference build --vectors X.npy --output DIR"
        ) from error
    except OSError as error:
        raise InvalidReference(
            f"cannot read the reference {path}: {error.strerror or error}.", hint="Check its permissions."
        ) from error
    except ValueError as error:
        raise _damaged(path, f"{_MANIFEST} is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise InvalidReference(f"{path / _MANIFEST} does not describe a reference of driftd.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InvalidReference(
            f"{path}: expected format version {FORMAT_VERSION}, got {manifest.get('format_version')}.",
            hint="It was written by another release of driftd: use that one, or build the reference again.",
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise _damaged(path, f"the check sum of {_MANIFEST} differs")
    return manifest


def _read_array(path: Path, name: str, described: Mapping[str, Any]) -> npt.NDArray[Any]:
    file = path / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        # Read, not mapped: pages that only the check needs stay out of the process.
        with file.open("rb") as opened:
            opened.seek(array.offset)
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        found = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": content}
        if name not in _MAPPED:
            array = np.array(array)
            array.flags.writeable = False
    except FileNotFoundError as error:
        raise _damaged(path, f"{file.name} is missing") from error
    except Exception as error:  # a damaged header makes numpy raise almost anything
        raise _damaged(path, f"{file.name} cannot be read ({error})") from error
    for key, expected in described.items():
        if found.get(key) != expected:
            raise _damaged(path, f"{file.name}: expected {key} {expected}, got {found.get(key)}")
    return np.asarray(array)
