"""Bodies of model servers, of the Open Inference Protocol (V2) and its forerunner (V1): one body, many rows.

    V2   {"id": ..., "inputs": [{"name", "shape": [N, ...], "datatype", "data": [...]}, ...], "outputs": [...]}
    V1   {"instances": [...], ...} and {"predictions": [...], ...}

Row number r of a V2 body is the document {"id": ..., "inputs": {NAME: element r, ...}, "outputs": {...}}, of a V1 body
{"instances": element r, "predictions": element r}; everything else of the body is in every row as it is. An element of
a tensor of shape [N] is a number or a text, of shape [N, ...] the list of its numbers, row-major, whether the data were
nested or flat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

from monitor.formats.opened import Opened
from monitor.parsing import BrokenValue, Parse

DATATYPES: Final = frozenset(
    [
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "FP32",
        "FP64",
        "BF16",
        "BYTES",
    ]
)
_TENSORS: Final = ("inputs", "outputs")
_LISTS: Final = ("instances", "predictions")
_MAX_DIMENSIONS: Final = 16


class InferenceBody:
    """Records that are V2 bodies themselves.

    Args:
        parse: bytes to a document.
        max_rows: of one record.
    """

    def __init__(self, parse: Parse, *, max_rows: int) -> None:
        self._parse = parse
        self._max_rows = max_rows

    def open(self, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        document = self._parse(value)
        if not is_v2(document):
            raise BrokenValue("unexpected_format", 'Not a V2 body: expected an object with "inputs" or "outputs".')
        return Opened(None, rows_of(document, max_rows=self._max_rows), headers)


def is_v2(document: Any) -> bool:
    """Whether a document looks like a V2 body: an object with a list of named tensors."""
    if not isinstance(document, dict):
        return False
    tensors = [document[key] for key in _TENSORS if key in document]
    return bool(tensors) and all(
        isinstance(each, list) and all(isinstance(one, dict) and "name" in one and "shape" in one for one in each)
        for each in tensors
    )


def rows_of(body: Any, *, max_rows: int) -> list[dict[str, Any]]:
    """The rows of a V1 or V2 body, one document each.

    Raises:
        BrokenValue: ``bad_rows``: it is neither, is empty, or its parts do not fit together; ``too_many_rows``.
    """
    if not isinstance(body, dict):
        raise BrokenValue("bad_rows", "The body is not an object.")
    columns: dict[str, Sequence[Any]] = {key: body[key] for key in _LISTS if key in body}
    nested: dict[str, dict[str, Sequence[Any]]] = {}
    for key, rows in columns.items():
        if not isinstance(rows, list):
            raise BrokenValue("bad_rows", f'"{key}" is not a list.')
        _check_number(len(rows), f'"{key}"', max_rows)
    if not columns:
        nested = {key: _tensors(key, body[key], max_rows) for key in _TENSORS if key in body}
    every = [(f'"{key}"', column) for key, column in columns.items()]
    every += [(f"tensor {name[:100]}", column) for group in nested.values() for name, column in group.items()]
    if not every:
        raise BrokenValue("bad_rows", "The body has neither inputs nor outputs, instances nor predictions.")
    n = len(every[0][1])
    for name, column in every:
        if len(column) != n:
            raise BrokenValue("bad_rows", f"{name} has {len(column)} rows, but {every[0][0]} has {n}.")
    shared = {key: value for key, value in body.items() if key not in columns and key not in nested}
    return [
        {
            **shared,
            **{key: column[row] for key, column in columns.items()},
            **{key: {name: column[row] for name, column in group.items()} for key, group in nested.items()},
        }
        for row in range(n)
    ]


def _check_number(rows: int, name: str, max_rows: int) -> None:
    if rows == 0:
        raise BrokenValue("bad_rows", f"{name} has no rows.")
    if rows > max_rows:
        raise BrokenValue("too_many_rows", f"{name} has {rows} rows; max_rows is {max_rows}.")


def _tensors(key: str, tensors: Any, max_rows: int) -> dict[str, Sequence[Any]]:
    if not isinstance(tensors, list):
        raise BrokenValue("bad_rows", f'"{key}" is not a list of tensors.')
    columns: dict[str, Sequence[Any]] = {}
    for tensor in tensors:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or not name:
            raise BrokenValue("bad_rows", f'A tensor of "{key}" has no name.')
        if name in columns:
            raise BrokenValue("bad_rows", f'Two tensors of "{key}" are called {name[:100]}.')
        columns[name] = _elements(f"tensor {name[:100]}", tensor, max_rows)
    return columns


def _elements(name: str, tensor: dict[str, Any], max_rows: int) -> Sequence[Any]:
    """One element for each row of a tensor."""
    shape, data, datatype = tensor.get("shape"), tensor.get("data"), tensor.get("datatype")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= _MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise BrokenValue("bad_rows", f"The shape of {name} is not a list of sizes [N, ...].")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise BrokenValue("bad_rows", f"The datatype of {name} is none of the protocol's.")
    if not isinstance(data, list):
        parameters = tensor.get("parameters")
        if isinstance(parameters, dict) and "binary_data_size" in parameters:
            raise BrokenValue("bad_rows", f"{name} is sent as binary data, which is not read; log it as JSON.")
        raise BrokenValue("bad_rows", f"{name} has no list of data.")
    n = shape[0]
    _check_number(n, name, max_rows)
    flat = _flat(name, data, shape)
    if len(shape) == 1:
        return flat
    size = math.prod(shape[1:])
    return [flat[start : start + size] for start in range(0, n * size, size)] if size else [[] for _ in range(n)]


def _flat(name: str, data: list[Any], shape: list[int]) -> list[Any]:
    """The values of a tensor, row-major. Nested data must be nested as the shape says."""
    if data and type(data[0]) is list and len(data) == shape[0]:
        for size in shape[1:]:
            if not all(type(part) is list and len(part) == size for part in data):
                raise BrokenValue("bad_rows", f"The data of {name} are not nested as its shape {shape} says.")
            data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise BrokenValue("bad_rows", f"{name} holds {len(data)} values, but its shape is {shape}.")
    if not {list, dict}.isdisjoint(map(type, data)):
        raise BrokenValue("bad_rows", f"The data of {name} are not nested as its shape {shape} says.")
    return data
