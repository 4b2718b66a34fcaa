"""Records framed as Confluent's serialisers do, with the number of their schema: Avro (extra ``avro``) and JSON.

    0x00, the schema's number (4 bytes, big-endian), payload
    header __value_schema_id: 0x00 and the number, or 0x01 and the schema's GUID (16 bytes); the value is the payload

Avro is read as its writer's schema says: records become objects, enums text, unions their value, timestamps times. Two
kinds of schemas are refused, because bytes that nobody checked must not decide how much memory or stack they take: a
schema that contains itself, and an array whose elements take no bytes.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from connectors.schema_registry import MAX_SCHEMAS, Schema, Schemas
from detectors.errors import MissingExtra
from monitor.formats.opened import Opened
from monitor.parsing import BrokenValue, parse_json

HEADER: Final = "__value_schema_id"
_NUMBER: Final = 0
_GUID: Final = 1
_FRAME: Final = 5
_PRIMITIVE: Final = frozenset(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])


def is_framed(value: bytes, headers: Mapping[str, bytes]) -> bool:
    """Whether the record bears the number of a schema."""
    return HEADER in headers or (len(value) >= _FRAME and value[0] == _NUMBER)


class ConfluentFrames:
    """Opens framed Avro and JSON.

    Args:
        schemas: where schemas are looked up.

    Raises:
        MissingExtra: fastavro is not installed.
    """

    def __init__(self, schemas: Schemas) -> None:
        try:
            import fastavro
        except ImportError as error:
            raise MissingExtra(
                "Confluent-framed records need fastavro, which is not installed.",
                hint="Install it: pip install 'driftd[avro]'",
            ) from error
        self._read = fastavro.schemaless_reader
        self._parse_schema = fastavro.parse_schema
        self._schemas = schemas
        self._parsed: dict[str, Any] = {}  # parsed Avro by number; a text is why a schema cannot be used

    def open(self, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        number, payload = _unframed(value, headers)
        schema = self._schemas.find(number)
        if schema is None:
            raise BrokenValue("unknown_schema", f"There is no schema {number}.")
        if schema.kind == "JSON":
            return Opened(None, (parse_json(payload),), headers)
        if schema.kind != "AVRO":
            raise BrokenValue("unknown_schema", f"Schema {number} is {schema.kind[:20]}; expected AVRO or JSON.")
        return Opened(None, (self._avro(number, schema, payload),), headers)

    def _avro(self, number: str, schema: Schema, payload: bytes) -> Any:
        parsed = self._parsed.get(number)
        if parsed is None:
            if len(self._parsed) >= MAX_SCHEMAS:
                del self._parsed[next(iter(self._parsed))]
            parsed = self._parsed[number] = self._parse(schema)
        if isinstance(parsed, _Refused):
            raise BrokenValue("unknown_schema", f"Schema {number} cannot be used: {parsed.why}.")
        stream = io.BytesIO(payload)
        try:
            document = self._read(stream, parsed, None)
        except Exception as error:  # bytes that are not of the schema fail in whatever step comes first
            raise BrokenValue("bad_avro", f"Not of schema {number}: {type(error).__name__}.") from error
        if stream.tell() != len(payload):
            raise BrokenValue("bad_avro", f"{len(payload) - stream.tell()} bytes are left over after schema {number}.")
        return document

    def _parse(self, schema: Schema) -> Any:
        """The parsed schema, or why it cannot be used."""
        try:
            named: dict[str, Any] = {}
            texts = [json.loads(text) for text in (*schema.references, schema.text)]
            for text in texts:
                parsed = self._parse_schema(text, named_schemas=named)
            _Widths(named).of(parsed)
        except _Unsafe as error:
            return _Refused(str(error))
        except Exception as error:  # whatever is not Avro
            return _Refused(f"it is no Avro schema ({type(error).__name__})")
        return parsed


class _Refused:
    def __init__(self, why: str) -> None:
        self.why = why


class _Unsafe(Exception):
    """A schema that lets a few bytes take any amount of memory or stack."""


def _unframed(value: bytes, headers: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The number or GUID of the schema, and the payload."""
    header = headers.get(HEADER)
    if header is not None:
        if len(header) == _FRAME and header[0] == _NUMBER:
            return str(int.from_bytes(header[1:], "big")), value
        if len(header) == 17 and header[0] == _GUID:
            return str(uuid.UUID(bytes=header[1:])), value
        raise BrokenValue("unexpected_format", f"The header {HEADER} holds neither a number nor a GUID.")
    if len(value) < _FRAME or value[0] != _NUMBER:
        raise BrokenValue("unexpected_format", "The value does not begin with 0x00 and the number of a schema.")
    return str(int.from_bytes(value[1:_FRAME], "big")), value[_FRAME:]


class _Widths:
    """The fewest bytes that a value of a schema takes, by type.

    Args:
        named: the definitions of the named types.
    """

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, int | None] = {}  # None while it is being looked at

    def of(self, schema: Any) -> int:
        """Raises _Unsafe: it contains itself, or has an array whose elements take no bytes."""
        if isinstance(schema, list):  # a union: the number of the branch, and the branch
            return 1 + min((self.of(branch) for branch in schema), default=0)
        if isinstance(schema, str):
            if schema not in _PRIMITIVE:
                return self._of_name(schema)
            return 0 if schema == "null" else 1
        kind = schema["type"]
        if kind in ("record", "error"):
            return self._of_name(schema["name"])
        if kind == "array":
            if self.of(schema["items"]) == 0:
                raise _Unsafe("it has an array whose elements take no bytes")
            return 1
        if kind == "map":
            self.of(schema["values"])
            return 1
        if kind == "fixed":
            return int(schema["size"])
        return 1 if kind == "enum" else self.of(kind)

    def _of_name(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = None
            definition = self._named[name]
            fields = definition["fields"] if definition["type"] in ("record", "error") else ()
            self._known[name] = sum(self.of(field["type"]) for field in fields) if fields else self._of_leaf(definition)
        width = self._known[name]
        if width is None:
            raise _Unsafe("it contains itself")
        return width

    def _of_leaf(self, definition: Any) -> int:
        """An enum, a fixed, or a record without fields."""
        return 0 if definition["type"] in ("record", "error") else self.of(definition)
