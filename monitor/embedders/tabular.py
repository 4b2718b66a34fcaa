"""Tables: numbers and categories that stand in fields of the record."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import STANDARD
from monitor.embedders.autoencoder import AutoEncoder
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    Problem,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.embedders.projection import Projection
from monitor.log import event
from monitor.pointers import FieldName

log = logging.getLogger(__name__)

CLIP = 8.0  # standard deviations; one wild value must not outweigh all other columns
_TAIL = 0.005  # share at each end that mean and deviation do not see
_TOO_LARGE = 10**150  # its square is still a float64
_MAX_CACHE = 10_000  # categories whose bucket is remembered
_MOST_LEARNED_FROM = 100_000  # rows that an auto-encoder learns from, and that reductions are compared on
_HELD_OUT = 5  # every so many of them are held out
# A reduction that loses more of the variance than this is not worth its columns: of the nine ADBench tables that the
# auto-encoder's constants were chosen on, those above it lost up to 30 points of AUROC, those below it up to 3.
_MOST_LOST = 0.1

Reduce = Literal["none", "pca", "svd", "autoencoder", "auto"]


def _named(value: object) -> object:
    return {str(name): name for name in value} if isinstance(value, list | tuple) else value


Named = Annotated[dict[str, FieldName], BeforeValidator(_named)]


class TabularSettings(BaseModel, frozen=True, extra="forbid"):
    """A row of a table: numbers are standardised, categories hashed."""

    kind: Literal["tabular"] = "tabular"
    numbers: Named = Field(default_factory=dict, description="fields that hold numbers: a list, or name: field")
    categories: Named = Field(default_factory=dict, description="fields that hold names: a list, or name: field")
    hash_dimension: int = Field(32, ge=1, le=4096, description="columns that all categories share")
    dimension: int | None = Field(None, ge=1, description="numbers that rows are reduced to; without it, all columns")
    reduce: Reduce | None = Field(
        None,
        description="how: pca (what dimension alone means), svd (not centred, for hashed columns), autoencoder, auto: "
        "which of them, or none, reconstructs best what it has not seen",
    )

    @model_validator(mode="after")
    def _has_its_dimension(self) -> TabularSettings:
        if self.reduce not in (None, "none") and self.dimension is None:
            raise ValueError(f"reduce: {self.reduce} needs dimension, to how many numbers")
        if self.reduce == "none" and self.dimension is not None:
            raise ValueError("reduce: none keeps all columns; leave out dimension, or say how to reduce")
        return self

    @model_validator(mode="after")
    def _has_columns(self) -> TabularSettings:
        if not self.numbers and not self.categories:
            raise ValueError("name at least one field in numbers or categories")
        return self

    def build(self) -> TabularEmbedder:
        """Make the embedder."""
        return TabularEmbedder(self)


class _Learned(msgspec.Struct, omit_defaults=True):
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    hash_dimension: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    missing: tuple[float, ...]  # share of rows without the number
    projection: Projection | None
    auto_encoder: AutoEncoder | None = None
    reduced: str = ""  # what `reduce` said; "" of references from before there was a choice, and where none was made
    lost: dict[str, float] = {}  # share of the variance that each reduction loses of rows that it has not seen


class TabularEmbedder:
    """Makes vectors of table rows.

    Each number becomes two columns: its distance from the baseline's mean in standard deviations, clipped at 8 (0 where
    it is missing or NaN), and whether it is missing, standardised too: a gap that never was in the baseline is strange.
    All categories share ``hash_dimension`` columns by signed feature hashing (Weinberger et al. 2009).
    Mean and deviation leave out the outermost 0.5 % at each end, so that some wild values in the baseline do not hide
    those to come.

    All of these columns may be reduced to ``dimension`` numbers. An auto-encoder adds, for the numbers, the gaps and
    the categories each, the length of what its code cannot say.
    """

    kind = "tabular"
    learns = True
    geometry = STANDARD

    def __init__(self, settings: TabularSettings) -> None:
        self._settings = settings
        self._learned: _Learned | None = None
        self._numbers = tuple(settings.numbers.values())
        self._categories = tuple(settings.categories.items())
        self._buckets: dict[tuple[str, str], tuple[int, float]] = {}
        self.fields = self._numbers + tuple(settings.categories.values())

    def fit(self, columns: Columns) -> None:
        numbers, problems = self._read_numbers(columns)
        good = np.delete(np.arange(len(numbers)), list(problems))
        if len(good) == 0:
            raise InvalidInput(
                f"None of {len(numbers)} records is a row of the table.",
                hint="Check numbers and categories of the embedder.",
            )
        statistics = [_robust_statistics(numbers[good, column]) for column in range(numbers.shape[1])]
        learned = _Learned(
            numbers=self._numbers,
            categories=tuple(self._settings.categories),
            hash_dimension=self._settings.hash_dimension,
            mean=tuple(each[0] for each in statistics),
            deviation=tuple(each[1] for each in statistics),
            missing=tuple(each[2] for each in statistics),
            projection=None,
        )
        if self._settings.dimension is not None:
            table = self._table(columns, numbers, {}, learned)
            self._reduce(table[good], self._settings.dimension, learned)
        self._learned = learned

    def _reduce(self, table: Floats, dimension: int, learned: _Learned) -> None:
        """Learn how to reduce rows, float32 (n, columns), to ``dimension`` numbers."""
        learned.reduced = self._settings.reduce or ""
        how = learned.reduced or "pca"
        if how in ("autoencoder", "auto"):
            order = np.random.default_rng(0).permutation(len(table))[:_MOST_LEARNED_FROM]
            held_out, seen = table[order[::_HELD_OUT]], table[np.delete(order, np.s_[::_HELD_OUT])]
            seen = seen if len(seen) else held_out
            encoder = AutoEncoder.fit(seen, held_out, dimension, groups=self._groups(table.shape[1]))
            if how == "auto":
                how, learned.lost = _compared(encoder, seen, held_out, dimension)
                log.info(event("reduction of a table chosen", chosen=how, dimension=dimension, lost=learned.lost))
            if how == "autoencoder":
                learned.auto_encoder = encoder
        if how in ("pca", "svd"):
            learned.projection = Projection.fit(table, dimension, centred=how == "pca")

    def _groups(self, columns: int) -> list[int]:
        """Numbers, gaps and categories: the group of each column."""
        width = len(self._numbers)
        return [0] * width + [1] * width + [2] * (columns - 2 * width)

    def state(self) -> bytes:
        return b"" if self._learned is None else encode_state(self.kind, self._learned)

    def restore(self, state: bytes) -> None:
        if not state:
            self._learned = None
            return
        learned = decode_state(self.kind, state, _Learned)
        settings = self._settings
        reduction = learned.auto_encoder or learned.projection
        dimension = None if reduction is None else reduction.dimension
        if learned.reduced == "auto" and reduction is None:
            dimension = settings.dimension  # it chose to keep all columns
        found = (learned.numbers, learned.categories, learned.hash_dimension, dimension, learned.reduced)
        reduced = settings.reduce or "" if settings.dimension is not None else ""
        expected = (self._numbers, tuple(settings.categories), settings.hash_dimension, settings.dimension, reduced)
        if found != expected:
            raise InvalidReference(
                "The reference was made from other columns or dimensions of the table than the settings name.",
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        self._learned = learned

    def fingerprint(self) -> str:
        settings = self._settings.model_dump()
        if settings["reduce"] is None:
            del settings["reduce"]  # as the settings were before there was a choice
        return fingerprint(self.kind, settings, self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self._learned is None:
            raise not_fitted(self.kind)
        numbers, problems = self._read_numbers(columns)
        vectors = self._table(columns, numbers, problems, self._learned)
        reduction = self._learned.auto_encoder or self._learned.projection
        if reduction is not None:
            vectors = reduction.apply(vectors)
        if problems:
            vectors[list(problems)] = 0.0
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    def _table(
        self,
        columns: Columns,
        numbers: np.ndarray[Any, np.dtype[np.float64]],
        problems: dict[int, tuple[str, str]],
        learned: _Learned,
    ) -> Floats:
        """Standardised numbers, gaps and hashed categories, float32 (n, 2 numbers + hash_dimension)."""
        n, width = numbers.shape
        hashed = self._settings.hash_dimension if self._categories else 0
        table = np.zeros((n, 2 * width + hashed), dtype=np.float32)
        gaps = np.isnan(numbers)
        scaled = (numbers - np.array(learned.mean)) / np.array(learned.deviation)
        table[:, :width] = np.where(gaps, 0.0, np.clip(scaled, -CLIP, CLIP))
        share = np.array(learned.missing)
        table[:, width : 2 * width] = np.clip((gaps - share) / np.sqrt(share * (1.0 - share)), -CLIP, CLIP)
        for index, (name, field) in enumerate(self._categories):
            where, sign = self._hash(name, field, columns[width + index], problems)
            table[np.arange(n), 2 * width + where] += sign
        return table

    def _read_numbers(
        self, columns: Columns
    ) -> tuple[np.ndarray[Any, np.dtype[np.float64]], dict[int, tuple[str, str]]]:
        """float64 (n, numbers), NaN where missing, and the rows that hold something else."""
        problems: dict[int, tuple[str, str]] = {}
        n = len(columns[0])
        table = np.full((n, len(self._numbers)), np.nan)
        for index, field in enumerate(self._numbers):
            table[:, index] = _numbers(columns[index], field, problems)
        return table, problems

    def _hash(
        self, name: str, field: str, column: Sequence[Any], problems: dict[int, tuple[str, str]]
    ) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float32]]]:
        """The column and the sign of each row's category. A missing one is a category too."""
        where = np.zeros(len(column), dtype=np.int64)
        signs = np.zeros(len(column), dtype=np.float32)
        for row, value in enumerate(column):
            text = _category(value)
            if text is None:
                problems.setdefault(row, ("bad_value", f"{field} is neither text, a number, true nor false."))
                continue
            if (name, text) not in self._buckets:
                if len(self._buckets) >= _MAX_CACHE:
                    self._buckets.clear()
                self._buckets[name, text] = _bucket(name, text, self._settings.hash_dimension)
            where[row], signs[row] = self._buckets[name, text]
        return where, signs


def _compared(encoder: AutoEncoder, seen: Floats, held_out: Floats, dimension: int) -> tuple[str, dict[str, float]]:
    """The reduction that loses least of rows held out, and the share of their variance that each one loses."""
    variance = float(np.sum((held_out - seen.mean(axis=0)) ** 2, dtype=np.float64)) or 1.0
    lost = {
        "pca": Projection.fit(seen, dimension).lost(held_out) / variance,
        "svd": Projection.fit(seen, dimension, centred=False).lost(held_out) / variance,
        "autoencoder": encoder.lost(held_out) / variance,
    }
    lost = {name: round(share, 4) for name, share in lost.items()}
    best = min(lost, key=lambda name: lost[name])  # of ties the first, which is the simplest
    return ("none" if lost[best] > _MOST_LOST else best), lost


def _numbers(column: Sequence[Any], field: str, problems: dict[int, tuple[str, str]]) -> Any:
    if set(map(type, column)) == {float}:
        numbers = np.array(column, dtype=np.float64)
    else:
        numbers = np.full(len(column), np.nan)
        for row, value in enumerate(column):
            if isinstance(value, float):
                numbers[row] = value
            elif isinstance(value, int):  # true and false too; Python's are of any size
                numbers[row] = max(min(value, _TOO_LARGE), -_TOO_LARGE)
            elif value is not None:
                problems.setdefault(row, ("bad_value", f"{field} is not a number."))
    for row in np.flatnonzero(np.abs(numbers) >= _TOO_LARGE).tolist():
        problems.setdefault(row, ("not_finite", f"{field} is infinite, or larger than can be compared."))
        numbers[row] = np.nan
    return numbers


def _category(value: Any) -> str | None:
    if type(value) is str:
        return value
    if value is None:
        return "(none)"
    if type(value) is bool:
        return "true" if value else "false"
    return repr(value) if type(value) in (int, float) else None


def _bucket(name: str, text: str, buckets: int) -> tuple[int, float]:
    """Column and sign of a category; the same on every machine and in every version."""
    encoded = name.encode("utf-8", "surrogatepass") + b"\0" + text.encode("utf-8", "surrogatepass")
    digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
    return (digest >> 1) % buckets, 1.0 if digest & 1 else -1.0


def _robust_statistics(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """Mean and standard deviation of a column, tails cut, and the share of rows without it, never quite 0 or 1."""
    present = values[~np.isnan(values)]
    missing = (len(values) - len(present) + 1) / (len(values) + 2)
    if len(present) == 0:
        return 0.0, 1.0, missing
    low, high = np.quantile(present, [_TAIL, 1.0 - _TAIL])
    kept = np.clip(present, low, high)
    deviation = float(kept.std())
    if not deviation > 0.0:  # almost constant: the rare other values are all that it says
        deviation = float(present.std()) or 1.0
    return float(kept.mean()), deviation, missing
