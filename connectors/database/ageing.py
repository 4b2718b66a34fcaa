"""Ageing: summaries of old blocks are added up, so that one row stands for two, four, eight ... of them.

Summaries add up exactly, so nothing of their sums is lost but when within these blocks something was. Groups begin at
multiples of their width: whichever was merged first, and in however many steps, the same rows come of it. A group is
merged as a whole, in one transaction, once its last block is old enough by event time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, select, tuple_, update

from connectors.database import schema
from connectors.database.connection import Database

_TABLE, _FOLDS, _JOBS = schema.summaries, schema.folds, schema.backfills
_BLOCKS = 512  # of one space and segment that one transaction reads; more only where one group is larger

Merge = Callable[[str, Sequence[bytes]], bytes]


@dataclass(frozen=True, slots=True)
class AgeRule:
    """Summaries that lie ``after`` blocks or more behind the newest closed one are kept as rows of ``width`` blocks."""

    after: int
    width: int


@dataclass(frozen=True, slots=True)
class Aged:
    """What one call of `Ageing.merge_summaries` did.

    Attributes:
        rows: how many it merged, and how many came of them: `into`.
        left: there is more to merge.
        waits_for: the lane of an unfinished backfill that the model's summaries wait for; "" if there is none.
    """

    rows: int = 0
    into: int = 0
    left: bool = False
    waits_for: str = ""


def group_of(block: int, rules: Iterable[AgeRule], next_block: int) -> tuple[int, int]:
    """The blocks first <= block < after whose summaries may be one row by now, because they are old enough.

    Whoever reads stored blocks from the first of a group, and up to the end of one, reads the same sums whether they
    have been merged or not.

    Args:
        next_block: blocks below it are closed.
    """
    for rule in sorted(rules, key=lambda rule: rule.width, reverse=True):
        first = block // rule.width * rule.width
        if first + rule.width <= next_block - rule.after:
            return first, first + rule.width
    return block, block + 1


class Ageing:
    """The part of Store that makes old history small."""

    _database: Database

    def merge_summaries(self, model: str, rules: Sequence[AgeRule], merge: Merge, *, most: int) -> Aged:
        """Merge summaries of a model that are old by event time. Any number of processes may do so at once.

        While history of the model is scored in a lane, nothing is merged: it may still add to old blocks.

        Args:
            rules: ages and widths, which are powers of two; of several that hold, the widest counts.
            merge: the sum of serialised summaries, of one space and in the order of their blocks.
            most: rows to merge, about, before it returns with ``left``.

        Raises:
            StoreError: the database refuses; what was merged so far stays merged.
        """
        return self._merge_old(model, model, rules, merge, most=most)

    def _merge_old(self, model: str, work: str, rules: Sequence[AgeRule], merge: Merge, *, most: int) -> Aged:
        with self._database.reading() as connection:
            next_block = connection.execute(select(_FOLDS.c.next_block).where(_FOLDS.c.model == work)).scalar()
            other = connection.execute(_others(model, work)).scalar()
        if other is not None:
            return Aged(waits_for=str(other))
        if next_block is None:
            return Aged()
        rows = into = 0
        # The widest first: what becomes a row of 64 blocks in the end is not made one of 8 before.
        for rule in sorted(rules, key=lambda rule: rule.width, reverse=True):
            end = (next_block - rule.after) // rule.width * rule.width
            for start, stop in self._narrow(model, end, rule.width):
                for space, segment in self._segments(model):
                    step = max(rule.width, _BLOCKS // rule.width * rule.width)
                    for first in range(start, stop, step):
                        if rows >= most:
                            return Aged(rows, into, left=True)
                        place = _Place(model, work, space, segment, first, min(first + step, stop))
                        merged, made = self._merge_range(place, rule.width, merge)
                        rows += merged
                        into += made
        return Aged(rows, into)

    def _narrow(self, model: str, end: int, width: int) -> list[tuple[int, int]]:
        """Stretches of neighbouring groups that hold a row of fewer than ``width`` blocks; read from an index alone."""
        query = select(_TABLE.c.block).distinct().where(_TABLE.c.model == model, _TABLE.c.block < end)
        found: list[tuple[int, int]] = []
        with self._database.reading() as connection:
            for block in connection.execute(query.where(_TABLE.c.blocks < width).order_by(_TABLE.c.block)).scalars():
                group = block // width * width
                if found and group <= found[-1][1]:
                    found[-1] = found[-1][0], group + width
                else:
                    found.append((group, group + width))
        return found

    def _segments(self, model: str) -> list[tuple[str, str]]:
        """Spaces and segments that have summaries, each found by one look into the index."""
        key = tuple_(_TABLE.c.space, _TABLE.c.segment)
        found: list[tuple[str, str]] = []
        with self._database.reading() as connection:
            while True:
                query = select(_TABLE.c.space, _TABLE.c.segment).where(_TABLE.c.model == model)
                if found:
                    query = query.where(key > tuple_(*found[-1]))
                row = connection.execute(query.order_by(_TABLE.c.space, _TABLE.c.segment).limit(1)).one_or_none()
                if row is None:
                    return found
                found.append((row.space, row.segment))

    def _merge_range(self, place: _Place, width: int, merge: Merge) -> tuple[int, int]:
        """Merge the groups of some blocks: how many rows there were, and how many came of them."""
        # Locked, so that a second process waits here, and then finds them merged.
        query = (
            select(*(_TABLE.c[name] for name in ("id", "block", "blocks", "reference", "blob")))
            .where(place.holds)
            .order_by(_TABLE.c.block, _TABLE.c.reference)
            .with_for_update()
        )
        gone: list[dict[str, Any]] = []
        wider: list[dict[str, Any]] = []
        with self._database.writing() as connection:
            if connection.execute(_others(place.model, place.work)).scalar() is not None:
                return 0, 0
            for rows in _groups(connection.execute(query), width):
                if len(rows) == 1 and rows[0].blocks >= width:
                    continue
                # Retention goes by the number of a row, which grows with the time of writing.
                newest = max(row.id for row in rows)
                gone += [{"row": row.id} for row in rows if row.id != newest]
                blob = merge(place.space, [row.blob for row in rows])
                # One that is wider already was merged when settings asked for more; what it holds cannot be parted.
                blocks = max(width, *(row.blocks for row in rows))
                first = rows[0].block // blocks * blocks
                wider.append({"row": newest, "first": first, "number": blocks, "sums": blob})
            _write(connection, gone, wider)
        return len(gone) + len(wider), len(wider)


@dataclass(frozen=True, slots=True)
class _Place:
    model: str
    work: str
    space: str
    segment: str
    first: int
    stop: int

    @property
    def holds(self) -> ColumnElement[bool]:
        return and_(
            _TABLE.c.model == self.model,
            _TABLE.c.space == self.space,
            _TABLE.c.segment == self.segment,
            _TABLE.c.block >= self.first,
            _TABLE.c.block < self.stop,
        )


def _others(model: str, work: str) -> Any:
    """Lanes in which history of the model is being scored, other than this one."""
    return (
        select(_JOBS.c.lane)
        .where(_JOBS.c.model == model, _JOBS.c.status == "scoring", _JOBS.c.lane.not_in([model, work]))
        .limit(1)
    )


def _groups(rows: Iterable[Any], width: int) -> list[list[Any]]:
    """The rows that become one, in the order of their blocks."""

    def key(row: Any) -> tuple[int, int]:
        return row.block // width, row.reference

    return [list(group) for _, group in groupby(sorted(rows, key=key), key)]


def _write(connection: Connection, gone: list[dict[str, Any]], wider: list[dict[str, Any]]) -> None:
    if gone:
        connection.execute(delete(_TABLE).where(_TABLE.c.id == bindparam("row")), gone)
    if wider:
        change = update(_TABLE).where(_TABLE.c.id == bindparam("row"))
        columns: dict[str, Any] = {
            "block": bindparam("first"),
            "blocks": bindparam("number"),
            "blob": bindparam("sums"),
        }
        connection.execute(change.values(columns), wider)
