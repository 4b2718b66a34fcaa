"""Bytes of a record to the values at the pointers that are needed, by a compiled msgspec struct.

The struct holds the needed fields and skips all else. A pointer through an array is compiled as far as it can be, and a
record of another shape than the struct is parsed as a whole; both give what a plain look-up gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec

from monitor.pointers import MISSING, Tokens, is_index, resolve

Parse = Callable[[bytes], Any]

REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)  # what a parser says to bytes it cannot read
_NO_NUMBER_OF_JSON: Final = re.compile(rb"NaN|Infinity")
_JSON: Final = msgspec.json.Decoder().decode


class BrokenValue(Exception):
    """A value that cannot be parsed, with the reason and the detail of its dead letter."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Parser:
    """Parses the values of records and takes the values at pointers out of them.

    Args:
        codec: how values are encoded; raw values are not parsed.
        pointers: every pointer that will be asked for.
    """

    def __init__(self, codec: Literal["json", "msgpack", "raw"], pointers: Sequence[Tokens]) -> None:
        self._codec = codec
        self._shape = _Shape(pointers)
        self._fast: Callable[[bytes], Any] = msgspec.json.Decoder(self._shape.type).decode
        self.parse_whole: Callable[[bytes], Any] = msgspec.json.Decoder().decode
        if codec == "msgpack":
            self._fast = msgspec.msgpack.Decoder(self._shape.type).decode
            self.parse_whole = msgspec.msgpack.Decoder().decode

    def parse(self, value: bytes) -> Any:
        """What `column` takes values from. Raises BrokenValue."""
        try:
            return self._fast(value)
        except REFUSED:
            return self._parse_slowly(value)

    def fill(self, document: Any) -> Any:
        """What `column` takes values from, of a document that was parsed as a whole."""
        return self._shape.fill(document)

    def column(self, tokens: Tokens, documents: Sequence[Any]) -> list[Any]:
        """The values at a pointer in what `parse` and `fill` gave, None where there are none."""
        return self._shape.column(tokens, documents)

    def parse_document(self, value: bytes) -> Any:
        """The whole document. Raises BrokenValue."""
        if self._codec != "msgpack":
            return parse_json(value)
        try:
            return self.parse_whole(value)
        except REFUSED as error:
            raise BrokenValue("bad_msgpack", _what_is_wrong(value, error, "MessagePack")) from error

    def _parse_slowly(self, value: bytes) -> Any:
        """A value that is broken, or only of another shape than the struct."""
        return self._shape.fill(self.parse_document(value))


def parse_json(value: bytes) -> Any:
    """A whole JSON document, with Python's NaN and Infinity. Raises BrokenValue."""
    try:
        return _JSON(value)
    except REFUSED as error:
        document = _parse_like_python(value, error)
        if document is MISSING:
            raise BrokenValue("bad_json", _what_is_wrong(value, error, "JSON")) from error
        return document


class _Shape:
    """The part of a document that is needed, as a compiled struct.

    A pointer that goes through an array, or below a field that is needed as a whole, is compiled as far as it can be;
    the rest of it is looked up in each record.
    """

    def __init__(self, pointers: Sequence[Tokens]) -> None:
        stems = {_stem(tokens) for tokens in pointers}
        self._stems = {stem for stem in stems if not any(stem[:end] in stems for end in range(len(stem)))}
        self._fields: dict[Tokens, list[tuple[str, str, Tokens]]] = {}
        self._types: dict[Tokens, type[msgspec.Struct]] = {}
        self.type: Any = Any if () in self._stems else self._compile(())
        self._ways = {tokens: self._way(tokens) for tokens in pointers}

    def _compile(self, at: Tokens) -> type[msgspec.Struct]:
        names = sorted({stem[len(at)] for stem in self._stems if stem[: len(at)] == at})
        fields: list[tuple[str, Any, Any]] = []
        self._fields[at] = []
        for number, name in enumerate(names):
            inner = (*at, name)
            if inner in self._stems:
                fields.append((f"f{number}", Any, msgspec.field(default=None, name=name)))
            else:
                below = self._compile(inner)
                fields.append((f"f{number}", below, msgspec.field(default_factory=below, name=name)))
            self._fields[at].append((f"f{number}", name, inner))
        # Without cycles there is nothing for the garbage collector to look at; tracking costs a quarter of the time.
        self._types[at] = msgspec.defstruct("Record", fields, gc=False)
        return self._types[at]

    def _way(self, tokens: Tokens) -> tuple[Callable[[Any], Any] | None, Tokens]:
        if self.type is Any:
            return None, tokens
        stem = next(tokens[:end] for end in range(1, len(tokens) + 1) if tokens[:end] in self._stems)
        path = [
            next(attribute for attribute, name, _ in self._fields[stem[:end]] if name == stem[end])
            for end in range(len(stem))
        ]
        return attrgetter(".".join(path)), tokens[len(stem) :]

    def fill(self, document: Any) -> Any:
        """The struct of a document that was parsed without it."""
        return document if self.type is Any else self._fill((), document)

    def _fill(self, at: Tokens, document: Any) -> msgspec.Struct:
        values: dict[str, Any] = {}
        if isinstance(document, dict):
            for attribute, name, inner in self._fields[at]:
                value = document.get(name)
                values[attribute] = value if inner in self._stems else self._fill(inner, value)
        return self._types[at](**values)

    def column(self, tokens: Tokens, documents: Sequence[Any]) -> list[Any]:
        """The values at a pointer, None where there are none."""
        getter, rest = self._ways[tokens]
        values = list(documents) if getter is None else list(map(getter, documents))
        return [_found(value, rest) for value in values] if rest else values


def _stem(tokens: Tokens) -> Tokens:
    """The part of a pointer that a struct can hold: names that msgspec accepts and that index no array."""
    for end, token in enumerate(tokens):
        if token == "-" or is_index(token) or re.search(r'["\\\x00-\x1f]', token):
            return tokens[:end]
    return tokens


def _found(value: Any, rest: Tokens) -> Any:
    result = resolve(value, rest)
    return None if result is MISSING else result


def _parse_like_python(value: bytes, error: Exception) -> Any:
    """Python's json module writes NaN and Infinity, which are not JSON: parse them, as harm is done only by fields that
    are used, and those are looked at. MISSING where that is not what is wrong."""
    if not isinstance(error, msgspec.ValidationError) and not _NO_NUMBER_OF_JSON.search(value):
        return MISSING
    try:
        document = json.loads(value.decode("utf-8"))
        msgspec.json.encode(document)  # refuses half of a surrogate pair, which Python lets through
    except (*REFUSED, TypeError, OverflowError):
        return MISSING
    return document


def _what_is_wrong(value: bytes, error: Exception, name: str) -> str:
    if not value:
        return "The value is empty."
    if isinstance(error, UnicodeDecodeError):
        return f"Not {name}: text in it is not UTF-8."
    if isinstance(error, RecursionError):
        return f"Not {name} that can be read: nested too deeply."
    return f"Not {name}: {_without_content(str(error))}."


def _without_content(message: str) -> str:
    return message.removeprefix("JSON is malformed: ").removeprefix("MessagePack data is malformed: ")[:200].rstrip(".")
