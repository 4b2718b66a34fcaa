"""Encoders in ONNX files, run by ONNX Runtime: local, on one thread, and row by row the same whatever is around."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidSettings, MissingExtra
from monitor.embedders.embedder import Problem

Array = npt.NDArray[Any]

# One scale for the whole tensor: with it, a row's result depends on the other rows.
_WHOLE_TENSOR: Final = (b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"DynamicQuantizeLSTM")
_FLOATS: Final = ("tensor(float)", "tensor(float16)", "tensor(double)")
# An entry "location" of a tensor whose numbers lie in another file: key, and the length of the value.
_LOCATION: Final = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        type: as ONNX Runtime says it, such as "tensor(int64)".
        shape: None for an axis of any length.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("any" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name} ({axes})"


class OnnxModel:
    """A model, ready to run. Made by `load_model`.

    Attributes:
        digest: of the file, and of the files with the model's numbers beside it.
        inputs: by name.
        outputs: those of floats, by name.
    """

    def __init__(self, path: Path, *, output: str | None, extra: str) -> None:
        try:
            self._runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtra(
                f"{path} is run by ONNX Runtime, which is not installed.",
                hint=f"Install it: pip install 'driftd[{extra}]'",
            ) from error
        content = _content(path)
        self._path = path
        self.digest = _digest(path, content)
        self._mixes_rows = any(name in content for name in _WHOLE_TENSOR)
        self._session = self._start(path)
        self._describe()
        if output is not None and output not in self.outputs:
            # What is inside of a model can be seen where it is named as one more output.
            self._session = self._start(_with_output(content, output), unless=self._no_output(output))
            self._describe()
            if output not in self.outputs:
                raise self._no_output(output)

    def _start(self, model: Path | bytes, *, unless: InvalidSettings | None = None) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.enable_mem_pattern = False  # one plan for each shape would be kept for ever
        options.log_severity_level = 4  # what fails is raised
        if isinstance(model, bytes):
            folder = str(self._path.resolve().parent)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            given = str(model) if isinstance(model, Path) else model
            return self._runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise unless or InvalidSettings(
                f"{self._path} cannot be read as an ONNX model: {_said(error)}",
                hint="Name the .onnx file that was exported, with the files beside it: docs/embedders.md",
            ) from error

    def _describe(self) -> None:
        inputs = [_tensor(each) for each in self._session.get_inputs()]
        outputs = [_tensor(each) for each in self._session.get_outputs()]
        self.inputs = {each.name: each for each in inputs}
        self.outputs = {each.name: each for each in outputs if each.type in _FLOATS}
        if not self.outputs:
            raise InvalidSettings(
                f"{self._path} has no output of floats, but {_listed(outputs)}.",
                hint="Export the encoder, not what decides on top of it: docs/embedders.md",
            )

    def check_inputs(self, fed: Collection[str], *, hint: str) -> None:
        """Refuse a model that asks for more than is fed.

        Raises:
            InvalidSettings: with the names of both.
        """
        unknown = [each for name, each in self.inputs.items() if name not in fed]
        if unknown:
            raise InvalidSettings(
                f"{self._path} asks for {_listed(unknown)}, which nobody feeds; there is {', '.join(fed)}.", hint=hint
            )

    def rows_allowed(self) -> int | None:
        """How many rows the model takes at a time: None for any number, or 1.

        Raises:
            InvalidSettings: it was made for another number.
        """
        fixed = {each.shape[0] for each in self.inputs.values() if each.shape} - {None}
        if fixed - {1}:
            raise InvalidSettings(
                f"{self._path} takes exactly {max(each or 0 for each in fixed)} rows at a time.",
                hint="Export it with a first axis of any length: docs/embedders.md",
            )
        return 1 if fixed else None

    def run(self, feeds: Mapping[str, Array], outputs: Collection[str]) -> list[Array]:
        """The outputs as float32.

        Raises:
            Exception: of ONNX Runtime's own, at input that the model cannot take.
        """
        found = self._session.run(list(outputs), dict(feeds))
        return [np.asarray(each, dtype=np.float32) for each in found]

    def try_run(self, feeds: Mapping[str, Array], outputs: Collection[str], *, what: str, hint: str) -> list[Array]:
        """As `run`, with settings to blame.

        Args:
            what: what is fed, for the message.

        Raises:
            InvalidSettings: the model refuses it.
        """
        try:
            return self.run(feeds, outputs)
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise InvalidSettings(f"{self._path} refuses {what}: {_said(error)}", hint=hint) from error

    def rows_stay_apart(self, feeds: Mapping[str, Array], output: str) -> bool:
        """Whether a row's numbers are the same to the last bit alone, among others and at any place.

        Tried on the machine at hand, because it depends on the processor which kernels run. Dynamic quantisation is
        known to mix rows.

        Args:
            feeds: as many rows as shall ever run together, unlike each other.
        """
        if self._mixes_rows or self.rows_allowed() == 1:
            return False
        most = len(next(iter(feeds.values())))
        try:
            (together,) = self.run(feeds, [output])
            (backwards,) = self.run({name: each[::-1].copy() for name, each in feeds.items()}, [output])
            if len(together) != most or backwards[::-1].tobytes() != together.tobytes():
                return False
            for rows in range(1, most):
                (fewer,) = self.run({name: each[:rows] for name, each in feeds.items()}, [output])
                if fewer.tobytes() != together[:rows].tobytes():
                    return False
        except Exception:  # made for one row, and the file does not say so
            return False
        return True

    def _no_output(self, name: str) -> InvalidSettings:
        return InvalidSettings(
            f"{self._path} has no output of floats called {name!r}; there is {_listed(self.outputs.values())}.",
            hint="Name one of these, or a value inside of the model as netron.app shows it.",
        )


def unusable(vectors: npt.NDArray[np.float32], field: str, problems: dict[int, Problem]) -> list[Problem]:
    """All problems in the order of rows; a vector that came out as no number or zero is one, and set to zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    for row in np.flatnonzero(~((squares > 0) & (squares < np.inf))).tolist():
        if not np.isfinite(vectors[row]).all():
            problems.setdefault(row, Problem(row, "not_finite", f"The model gives NaN or infinity for {field}."))
        elif not vectors[row].any():
            problems.setdefault(row, Problem(row, "zero_vector", f"The model gives zero everywhere for {field}."))
    vectors[list(problems)] = 0.0
    return [problems[row] for row in sorted(problems)]


def unit_length(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A vector scaled to unit length; zero stays zero."""
    wide = vector.astype(np.float64)
    length = float(np.sqrt(np.sum(wide * wide)))
    return vector if length == 0 else (wide / length).astype(np.float32)


_loaded: dict[tuple[Path, str | None], tuple[tuple[int, int], OnnxModel]] = {}


def load_model(path: Path, *, output: str | None = None, extra: str) -> OnnxModel:
    """The model of a file; all spaces of a process share it until the file changes.

    Args:
        output: an output, or any value inside of the model, that must be there.
        extra: of driftd, which brings ONNX Runtime.

    Raises:
        InvalidSettings: no such file, no ONNX model, no such output.
        MissingExtra: ONNX Runtime is not installed.
    """
    key = (path.resolve(), output)
    stamp = _stamp(path)
    if key not in _loaded or _loaded[key][0] != stamp:
        _loaded[key] = (stamp, OnnxModel(path, output=output, extra=extra))
    return _loaded[key][1]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_mtime_ns, found.st_size


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidSettings:
    return InvalidSettings(
        f"The model {path} cannot be read: {os.strerror(error.errno or 0)}.",
        hint="Name an .onnx file on this machine; driftd downloads none: docs/embedders.md",
    )


def _digest(path: Path, content: bytes) -> str:
    digest = hashlib.blake2b(content, digest_size=16)
    places = {
        content[found.end() : found.end() + found.group(1)[0]].decode(errors="replace")
        for found in _LOCATION.finditer(content)
    }
    for place in sorted(places):
        try:
            with (path.resolve().parent / place).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except (OSError, ValueError):
            continue  # ONNX Runtime says so in a moment, if the file is really needed
    return digest.hexdigest()


def _with_output(content: bytes, name: str) -> bytes:
    """A model with one more output. Two messages of Protocol Buffers, one after the other, are read as one merged."""
    return content + _length_delimited(7, _length_delimited(12, _length_delimited(1, name.encode())))


def _length_delimited(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _tensor(described: Any) -> Tensor:
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in described.shape or ())
    return Tensor(described.name, described.type, shape)


def _listed(tensors: Collection[Tensor]) -> str:
    some = [str(each) for each in tensors][:8]
    return ", ".join(some) + (f" and {len(tensors) - len(some)} more" if len(tensors) > len(some) else "") or "nothing"


def _said(error: Exception) -> str:
    """The sentence of an error of ONNX Runtime, without its codes and source lines."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip().rpartition("Status Message: ")[2]
    text = re.sub(r"\S*/onnxruntime_src/\S+ .*?\) ", "", text.splitlines()[0] if text else type(error).__name__)
    return text.strip()[:200].rstrip(". ") + "."
