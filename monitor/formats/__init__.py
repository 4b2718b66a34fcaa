"""How records are wrapped: opening one gives the documents that pointers are looked up in.

A format is one file, one name in `FormatName` and one line in `build_format`. "plain" is no file: the value is the
document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from connectors.schema_registry import Schemas
from monitor.formats.cloudevents import CloudEvents, has_attributes, is_structured
from monitor.formats.confluent import ConfluentFrames, is_framed
from monitor.formats.inference import InferenceBody, is_v2
from monitor.formats.opened import Envelope, Format, Opened
from monitor.parsing import BrokenValue, Parse

__all__ = ["Envelope", "Format", "FormatName", "Opened", "build_format", "detected", "marked"]

FormatName = Literal["plain", "cloudevents", "v2", "confluent"]


def build_format(name: FormatName, *, parse: Parse, max_rows: int, schemas: Schemas | None) -> Format | None:
    """The format of a name; None for plain records.

    Args:
        parse: bytes inside a record to a document, as the record's codec says.
        max_rows: of one record.
        schemas: needed by "confluent".
    """
    if name == "cloudevents":
        return CloudEvents(parse, max_rows=max_rows)
    if name == "v2":
        return InferenceBody(parse, max_rows=max_rows)
    if name == "confluent":
        assert schemas is not None  # the settings see to it
        return ConfluentFrames(schemas)
    return None


def marked(value: bytes, headers: Mapping[str, bytes], *, framed: bool) -> FormatName | None:
    """The format that a record's headers or first byte name; None where it bears no mark.

    Args:
        framed: the first byte may be a frame's: there is a schema registry.
    """
    if has_attributes(headers):
        return "cloudevents"
    if framed and is_framed(value, headers):
        return "confluent"
    return None


def detected(value: bytes, headers: Mapping[str, bytes], *, framed: bool, parse: Parse | None) -> FormatName | None:
    """The format of a record, by its marks and by the shape of its document; None where it cannot be read at all.

    Args:
        parse: as the record's codec says; None for codec raw.
    """
    mark = marked(value, headers, framed=framed)
    if mark is not None or parse is None:
        return mark or "plain"
    try:
        document = parse(value)
    except BrokenValue:
        return None
    return "cloudevents" if is_structured(document) else "v2" if is_v2(document) else "plain"
