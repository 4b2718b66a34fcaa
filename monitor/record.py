"""The settings that say what is in a record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from connectors.schema_registry import SchemaSettings
from detectors.errors import InvalidSettings
from monitor.pointers import FieldName, Place, parse_place
from monitor.times import Duration

TimeUnit = Literal["s", "ms", "us", "ns", "rfc3339"]


class TimeSettings(BaseModel, frozen=True, extra="forbid"):
    """The event time of a record."""

    path: FieldName = Field(description="where it stands: a pointer, header:NAME or key")
    unit: TimeUnit = Field("ms", description="s, ms, us or ns since 1970, or rfc3339 text with its offset from UTC")


def _time(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class PairSettings(BaseModel, frozen=True, extra="forbid"):
    """A request and its response are two records of one partition: they become one, /request/... and /response/..."""

    by: FieldName = Field("header:ce_id", description="the id that a request and its response share")
    role: FieldName = Field(
        "header:ce_type",
        description="which of the two it is: a text whose last word after a dot is request or response",
    )
    timeout: Duration = Field(60.0, description="how long one waits for the other, by the broker's time")
    on_timeout: Literal["emit", "dead_letter"] = Field(
        "emit", description="what becomes of one alone: a record whose other side is null, or a dead letter, unpaired"
    )


def _names(value: object) -> object:
    return {str(name): name for name in value} if isinstance(value, list | tuple) else value


class RecordSettings(BaseModel, frozen=True, extra="forbid"):
    """What is in a record. Fields are JSON pointers ("/input/text"), header:NAME or key."""

    codec: Literal["json", "msgpack", "raw"] = Field(
        "json", description="how values are encoded; raw: the value is the vector, all else stands in headers"
    )
    format: Literal["plain", "auto", "cloudevents", "v2", "confluent"] = Field(
        "plain",
        description="how records are wrapped; plain: the value is the document; auto: what the first record of a topic "
        "is, and from then on the whole topic",
    )
    schemas: SchemaSettings | None = Field(None, description="where the schemas of format confluent are")
    max_rows: int = Field(4096, ge=1, le=65_536, description="most rows of one record (inference requests)")
    id: FieldName | None = Field(
        None, description="the record's id; without it topic/partition/offset, or the id of a CloudEvent"
    )
    time: Annotated[TimeSettings | None, BeforeValidator(_time)] = Field(
        None,
        description="event time, a pointer (milliseconds) or {path, unit}; without it the broker's time, or a "
        "CloudEvent's",
    )
    key: FieldName | None = Field(
        None, description="who or what a record belongs to: a session, user or device; see drift.thin_by_key"
    )
    prediction: FieldName | None = Field(None, description="what the model answered")
    confidence: FieldName | None = Field(None, description="how sure the model was, a number")
    label: FieldName | None = Field(None, description="what is true, where the record says so")
    version: FieldName | None = Field(
        None, description="which version of the model answered; a new one is a deployment, see incidents.deploy_grace"
    )
    segments: dict[str, FieldName] = Field(
        default_factory=dict, description="name: field; each value of it is watched by itself"
    )
    keep: Annotated[dict[str, FieldName], BeforeValidator(_names)] = Field(
        default_factory=dict, description="fields stored with a kept record: a list, or name: field"
    )
    redact: list[FieldName] = Field(
        default_factory=list, description="fields that are never stored, in kept records and dead letters alike"
    )
    pair: PairSettings | None = Field(
        None, description="join requests and responses, such as {timeout: 60s}; {} is enough for CloudEvents"
    )
    excerpt: int = Field(2000, ge=1, le=1 << 20, description="most characters stored of one kept field")
    max_bytes: int = Field(1 << 20, ge=1, description="longest value in bytes that is decoded")
    max_past_days: float = Field(3650.0, gt=0, description="oldest event time, in days before the broker's time")
    max_future_s: float = Field(3600.0, ge=0, description="newest event time, in seconds after the broker's time")

    @model_validator(mode="after")
    def _fields_fit_the_codec(self) -> RecordSettings:
        for key, name in self.all_fields():
            _check_place(self.codec, key, name)
            if self.pair is not None:
                check_side(key, name)
        return self

    @model_validator(mode="after")
    def _format_fits(self) -> RecordSettings:
        if self.format in ("v2", "confluent") and self.codec != "json":
            raise ValueError(f"format: {self.format} has an encoding of its own; leave codec out")
        if self.format == "confluent" and self.schemas is None:
            raise ValueError("format: confluent needs schemas: {url: http://...} or {directory: DIR}")
        if self.schemas is not None and self.format not in ("confluent", "auto"):
            raise ValueError("schemas needs format: confluent, or auto")
        if self.schemas is not None and self.codec == "raw":
            raise ValueError("schemas: a raw vector may begin as a frame does; expected codec json or msgpack")
        return self

    @model_validator(mode="after")
    def _halves_are_documents(self) -> RecordSettings:
        if self.pair is not None:
            if self.codec == "raw":
                raise ValueError("pair: raw values have no sides to join; expected codec json or msgpack")
            for key in ("by", "role"):
                _check_place(self.codec, f"pair.{key}", getattr(self.pair, key))
        return self

    def all_fields(self) -> Iterable[tuple[str, str]]:
        """Every field that is named, with the key that names it."""
        for key in ("id", "key", "prediction", "confidence", "label", "version"):
            if (name := getattr(self, key)) is not None:
                yield key, name
        if self.time is not None:
            yield "time", self.time.path
        for group in ("segments", "keep"):
            yield from ((f"{group}.{key}", name) for key, name in getattr(self, group).items())
        yield from (("redact", name) for name in self.redact)


def check_side(key: str, name: str) -> None:
    """Raise ValueError if the field of a pair stands on neither side of it."""
    place = parse_place(name)
    if place.kind == "pointer" and place.tokens[0] not in ("request", "response"):
        raise ValueError(f"{key}: with pair, a field is /request{name} or /response{name}")


def _check_place(codec: str, key: str, name: str) -> None:
    kind = parse_place(name).kind
    if codec == "raw" and kind == "pointer":
        raise ValueError(f"{key}: a raw value has no fields; {name} must be header:NAME or key")
    if kind == "body":
        raise ValueError(
            f'{key}: the body is a vector, not a field; expected a pointer such as "/id", header:NAME or key'
        )


def embedded_place(codec: str, name: str, *, paired: bool = False) -> Place:
    """Where an embedder's field stands. Raises InvalidSettings where the codec has no such place."""
    try:
        place = parse_place(name)
        if codec == "raw" and place.kind == "pointer":
            raise ValueError("a raw value has no fields; expected body, header:NAME or key")
        if paired:
            check_side("the field", name)
        if codec != "raw" and place.kind == "body":
            raise ValueError(f'a body needs codec: raw, and this is {codec}; expected a pointer such as "/vector"')
    except ValueError as error:
        raise InvalidSettings(
            f"The embedder's field {name!r} cannot be taken from a record: {error}.",
            problems=[f"field {name!r}: {error}"],
            hint="See record.codec and spaces in the settings.",
        ) from error
    return place
