"""What stands in the fields of some records: how often, of which kind, how many different values.

Nothing is decided here; `monitor.sniff` does that.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["number", "text", "truth", "numbers", "nested", "bytes", "list", "mixed"]
Packing = Literal["list", "base64", "bytes"]

MOST_FIELDS: Final = 400  # of one record: beyond, a document is data and no record
SHORTEST_VECTOR: Final = 8  # numbers: shorter lists are probabilities, boxes, pairs
_SHORTEST_TEXT: Final = 24  # characters of base64 that may be a vector
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_IMAGES: Final = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP"}
_SECRET: Final = re.compile(
    r"passw|passphrase|secret|token|credential|authori[sz]ation|api ?key|private|cookie|signature|cvv|cvc|otp\b"
)
_PERSONAL: Final = re.compile(
    r"e? ?mail|phone|mobile|\bfax|\bname$|first ?name|last ?name|full ?name|surname|user ?name|given|family"
    r"|address|street|\bzip|postal|postcode|birth|\bdob\b|\bage\b|gender|\bsex\b|\bssn|passport|licen[cs]e|tax ?id"
    r"|iban|\bbic\b|account|card|\bpan\b|\bip\b|ip ?addr|\blat\b|\blon\b|\blng\b|latitude|longitude|\bgps\b"
    r"|user ?id|customer|patient|person|employee|device ?id|imei|\bmac\b"
)
_LOOKS_PERSONAL: Final = re.compile(
    r"[^@\s]+@[^@\s]+\.[a-z]{2,}|(?:\d{1,3}\.){3}\d{1,3}|\+\d[\d ()-]{7,}|[A-Z]{2}\d{2}[A-Z0-9]{11,30}"
)
_CARD: Final = re.compile(r"\d[\d -]{11,22}\d")


@dataclass(frozen=True)
class Field:
    """The values at one pointer.

    Attributes:
        pointer: as in the settings.
        records: how many records there were, with it and without.
        values: of those that have it, in the order of the records; null is absent.
    """

    pointer: str
    records: int
    values: Sequence[Any]

    @property
    def name(self) -> str:
        """Last part of the pointer, in lower case, words parted by _."""
        last = self.pointer.rpartition("/")[2].rpartition(":")[2]
        return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()).strip("_")

    @property
    def share(self) -> float:
        """Of the records that have it."""
        return len(self.values) / self.records if self.records else 0.0

    @cached_property
    def kind(self) -> Kind:
        """Of nearly all values."""
        kinds = Counter(map(_kind_of, self.values))
        if not kinds:
            return "mixed"
        kind, count = kinds.most_common(1)[0]
        return kind if count >= 0.98 * len(self.values) else "mixed"

    @cached_property
    def distinct(self) -> Counter[str]:
        """How often each value comes, of numbers, texts and truths."""
        return Counter(str(value) for value in self.values if isinstance(value, str | int | float))

    @property
    def is_constant(self) -> bool:
        """All values are equal."""
        return all(value == self.values[0] for value in self.values[1:])

    @property
    def is_unique(self) -> bool:
        """No value comes twice."""
        return len(self.distinct) == len(self.values) and len(self.values) > 1

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """float64, those of kind number."""
        return np.array([float(value) for value in self.values if _kind_of(value) == "number"], dtype=np.float64)

    @property
    def is_whole(self) -> bool:
        """All numbers are integers."""
        return self.kind == "number" and all(isinstance(value, int) for value in self.values)

    @cached_property
    def words(self) -> float:
        """Mean number of words."""
        texts = [value for value in self.values if isinstance(value, str)]
        return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0

    @cached_property
    def is_secret(self) -> bool:
        """It is called like a password or a key."""
        return _SECRET.search(_spaced(self.pointer)) is not None

    @cached_property
    def is_personal(self) -> bool:
        """It is called like what belongs to a person, or looks like it."""
        if _PERSONAL.search(_spaced(self.pointer)) is not None:
            return True
        texts = [str(value) for value in self.values[:100] if isinstance(value, str | int) and len(str(value)) < 200]
        found = sum(_LOOKS_PERSONAL.fullmatch(text) is not None or _is_card(text) for text in texts)
        return found > 0.2 * len(texts) > 0

    @cached_property
    def packed(self) -> tuple[Packing, list[bytes]] | None:
        """Bytes in the values: as they are, or as base64; None where there are none."""
        if self.kind == "bytes":
            return "bytes", [value for value in self.values if isinstance(value, bytes)]
        if self.kind != "text" or not all(
            isinstance(value, str) and len(value) >= _SHORTEST_TEXT and len(value) % 4 == 0 for value in self.values
        ):
            return None
        opened = []
        for value in self.values:
            if _BASE64.fullmatch(value) is None:
                return None
            try:
                opened.append(base64.b64decode(value, validate=True))
            except (binascii.Error, ValueError):
                return None
        # Hexadecimal names are base64, too.
        if all(re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", value) for value in self.values):
            return None
        return "base64", opened

    @property
    def lengths(self) -> Counter[int]:
        """How long the lists of numbers are."""
        return Counter(len(value) for value in self.values if isinstance(value, list))

    @property
    def in_words(self) -> str:
        """Such as "100 % of 500 records; unique"."""
        share = math.floor(1000 * self.share) / 10
        said = f"{share:g} % of {self.records:,} records"
        if self.kind in ("number", "text", "truth"):
            count = len(self.distinct)
            said += "; unique" if self.is_unique else f"; {count:,} different value{'' if count == 1 else 's'}"
        return said


def flatten(document: Any) -> Iterator[tuple[str, Any]]:
    """Pointer and value of every leaf; lists are leaves. Nothing for null."""
    stack: list[tuple[str, Any]] = [("", document)]
    given = 0
    while stack and given < MOST_FIELDS:
        pointer, value = stack.pop()
        if isinstance(value, dict):
            inner = [
                (f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}", item) for name, item in value.items()
            ]
            stack += reversed(inner)
        elif value is not None and pointer:
            given += 1
            yield pointer, value


def fields_of(documents: Sequence[Any], *, sides: Sequence[str] = ()) -> list[Field]:
    """Every field of some documents, in the order in which they first come.

    Args:
        sides: "request" or "response" for each document where they are halves of pairs: a field's share is then
            of the documents of its side.
    """
    values: dict[str, list[Any]] = {}
    for document in documents:
        for pointer, value in flatten(document):
            values.setdefault(pointer, []).append(value)
    of_side = Counter(sides)

    def records(pointer: str) -> int:
        return of_side[pointer.split("/")[1]] if sides else len(documents)

    return [Field(pointer, records(pointer), found) for pointer, found in values.items()]


def image_format(values: Sequence[bytes]) -> str:
    """What format the values are images of: "PNG", "JPEG", ...; "" if they are none."""
    names = {_IMAGES.get(value[:4], _IMAGES.get(value[:3], "")) for value in values}
    return names.pop() if len(names) == 1 else ""


def as_floats(values: Sequence[bytes], dtype: str) -> npt.NDArray[np.float64] | None:
    """The values as rows of numbers, float64 (n, d); None where their lengths differ or they are no such numbers."""
    size = np.dtype(dtype).itemsize
    if len({len(value) for value in values}) != 1 or len(values[0]) % size or not values[0]:
        return None
    rows = np.stack([np.frombuffer(value, dtype) for value in values]).astype(np.float64)
    if not np.isfinite(rows).all():
        return None
    largest = np.abs(rows).max()
    usual = np.abs(rows[rows != 0])
    # Other bytes read as floats have exponents all over the range.
    plausible = largest < 1e6 and len(usual) > 0 and float(np.quantile(usual, 0.02)) > 1e-7
    return rows if plausible else None


def time_unit(field: Field) -> str | None:
    """The unit in which the values are times of the years 2001 to 2100; None where they are none."""
    if field.kind == "number":
        low, high = float(field.numbers.min()), float(field.numbers.max())
        for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
            if 978_307_200 * scale <= low and high <= 4_102_444_800 * scale:
                return unit
        return None
    if field.kind != "text":
        return None
    try:
        moments = [datetime.fromisoformat(value) for value in field.values]
    except (ValueError, TypeError):
        return None
    if any(len(value) < 16 for value in field.values):
        return None
    return "rfc3339" if all(moment.tzinfo is not None for moment in moments) else "local"


def times_ms(field: Field, unit: str) -> npt.NDArray[np.float64]:
    """The values in milliseconds since 1970."""
    if unit in ("rfc3339", "local"):
        return np.array([datetime.fromisoformat(value).timestamp() * 1000 for value in field.values])
    return field.numbers / {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}[unit]


def _kind_of(value: Any) -> Kind:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, list):
        if value and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            return "numbers"
        if value and all(isinstance(item, list) for item in value):
            return "nested"
        return "list"
    return "mixed"


def _spaced(pointer: str) -> str:
    """A pointer in lower case whose words are parted, so that a pattern finds whole ones."""
    last = "/".join(pointer.split("/")[-2:])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower().replace("-", "_").replace("_", " ").replace("/", " ")


def _is_card(text: str) -> bool:
    """A card number: 13 to 19 digits whose check digit is right (Luhn, 1960)."""
    if _CARD.fullmatch(text) is None:
        return False
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [2 * digit if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0
