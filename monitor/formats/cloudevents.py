"""CloudEvents 1.0 as they stand on Kafka, and the requests and responses that KServe and Seldon log as such.

In binary mode the value is the data, and every attribute is a header: ``ce_id``, ``ce_type``, ``ce_time``. In
structured mode the value is one JSON object that holds attributes and data. Both open to the same: attributes are
headers ``ce_NAME``. (CloudEvents Kafka protocol binding 1.0.2, JSON format 1.0.2.)

The data of an inference request or response are rows: see `monitor.formats.inference`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from monitor.formats.inference import rows_of
from monitor.formats.opened import Envelope, Kind, Opened
from monitor.parsing import BrokenValue, Parse, parse_json

PREFIX: Final = "ce_"
CONTENT_TYPE: Final = "content-type"
ID_HEADER: Final = "ce_id"
TIME_HEADER: Final = "ce_time"
_VERSION: Final = "ce_specversion"
_STRUCTURED: Final = b"application/cloudevents"
_SERVERS: Final = ("org.kubeflow.serving.inference.", "io.seldon.serving.inference.")
_KINDS: Final[dict[str, Kind]] = {"request": "request", "response": "response"}
_REQUIRED: Final = ("specversion", "id", "type", "source")
_MAX_ATTRIBUTE: Final = 64 * 1024  # bytes; the specification asks for 64 kB in all events together with their data


class CloudEvents:
    """Opens CloudEvents in both modes.

    Args:
        parse: bytes of data to a document, as the record's codec says.
        max_rows: of one inference request or response.
    """

    def __init__(self, parse: Parse, *, max_rows: int) -> None:
        self._parse = parse
        self._max_rows = max_rows

    def open(self, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        content_type = headers.get(CONTENT_TYPE, b"").strip().lower()
        if content_type.startswith(_STRUCTURED):
            kind = content_type.partition(b";")[0].strip()
            if kind != b"application/cloudevents+json":
                raise BrokenValue(
                    "bad_event", f"{str(kind[:60], 'utf-8', 'replace')} is not read; expected one event as JSON."
                )
            return self._structured(value, headers)
        if _VERSION in headers:
            return self._inside(value, None, headers)
        return self._structured(value, headers)

    def _structured(self, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        event = _parse_event(value)
        attributes = {}
        for name, attribute in event.items():
            if name in ("data", "data_base64") or attribute is None:
                continue
            attributes[PREFIX + name] = _encoded(name, attribute)
        content_type = attributes.get("ce_datacontenttype")
        merged = {**headers, **attributes}
        if content_type is not None:
            merged[CONTENT_TYPE] = content_type
        if "data_base64" in event:
            try:
                data = base64.b64decode(event["data_base64"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise BrokenValue("bad_event", "data_base64 is not base64.") from error
            return self._inside(data, None, merged)
        return self._inside(None, event.get("data"), merged)

    def _inside(self, value: bytes | None, data: Any, headers: Mapping[str, bytes]) -> Opened:
        event = _envelope(headers)
        if event.type.startswith(_SERVERS):
            body = data if value is None else self._parse(value)
            return Opened(None, rows_of(body, max_rows=self._max_rows), headers, event)
        return Opened(value, () if value is not None else (data,), headers, event)


def has_attributes(headers: Mapping[str, bytes]) -> bool:
    """Whether the headers say that the record is a CloudEvent."""
    return _VERSION in headers or headers.get(CONTENT_TYPE, b"").strip().lower().startswith(_STRUCTURED)


def is_structured(document: Any) -> bool:
    """Whether a document without such headers is a CloudEvent by itself, as in a file of JSON lines."""
    return isinstance(document, dict) and all(isinstance(document.get(name), str) for name in _REQUIRED)


def _parse_event(value: bytes) -> dict[str, Any]:
    event = parse_json(value)
    if not isinstance(event, dict) or "specversion" not in event:
        raise BrokenValue(
            "unexpected_format", "No CloudEvent: neither a header ce_specversion nor an object with a specversion."
        )
    return event


def _encoded(name: str, attribute: Any) -> bytes:
    """An attribute of a structured event as the header that it would be in binary mode."""
    if isinstance(attribute, bool):
        text = "true" if attribute else "false"
    elif isinstance(attribute, str | int):
        text = str(attribute)
    else:
        raise BrokenValue("bad_event", f"The attribute {name[:60]} is neither text, a whole number, true nor false.")
    encoded = text.encode()
    if len(encoded) > _MAX_ATTRIBUTE:
        raise BrokenValue("bad_event", f"The attribute {name[:60]} has more than {_MAX_ATTRIBUTE} bytes.")
    return encoded


def _envelope(headers: Mapping[str, bytes]) -> Envelope:
    version = _attribute(headers, _VERSION)
    if not version.startswith("1."):
        raise BrokenValue("bad_event", f"CloudEvents {version[:20]} are not read; expected specversion 1.0.")
    type_ = _attribute(headers, "ce_type")
    return Envelope(_attribute(headers, ID_HEADER), type_, _kind_of(type_), headers.get(TIME_HEADER))


@lru_cache(maxsize=100)
def _kind_of(type_: str) -> Kind:
    server = next((prefix for prefix in _SERVERS if type_.startswith(prefix)), None)
    return "" if server is None else _KINDS.get(type_.removeprefix(server), "")


def _attribute(headers: Mapping[str, bytes], name: str) -> str:
    try:
        text = str(headers.get(name, b""), "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenValue("bad_event", f"The attribute {name.removeprefix(PREFIX)} is not UTF-8 text.") from error
    if not text:
        raise BrokenValue("bad_event", f"The event has no {name.removeprefix(PREFIX)}.")
    return text
