"""Where labels are taken in, and where their records are found.

    labels ──► table, each origin once ──► kept records ──► remembered records, newest first ──► they count
                                                                       └─► not found: they wait

A label counts from the moment that its record is known. One that came before its record, or names one that is long
gone, waits in the table, and is compared with what is remembered of later records as they come.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import KeptRecord, LabelledRecord, NewLabel
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.fraud_settings import FRAUD_SPACE
from monitor.joining import AT_A_TIME, Joiner, Positions, Progress, Took, Waiting
from monitor.labels import SaidLabel
from monitor.log import RepeatingFailure
from monitor.remembered import Remembered

log = logging.getLogger(__name__)

Describe = Callable[[Sequence[SaidLabel]], Sequence[LabelledRecord | None]]


class LabelDesk:
    """Takes the labels of one model in. Used by one thread at a time; several processes may have one each.

    Args:
        model: its name.
        store: the database.
        review: chance of a record to be put before a person whatever its score, `fraud.review`.
        remembered_days: a label that waited longer waits for nothing.
        describe: what is known of records that labels brought along, as far as they can be read; without it, none is.
        clock: wall clock, milliseconds since 1970.
    """

    def __init__(
        self,
        model: str,
        store: Store,
        *,
        review: float,
        remembered_days: float,
        describe: Describe | None = None,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._model = model
        self._store = store
        self._describe = describe
        ledger = _Records(model, store, review=review)
        self._joiner = Joiner("labels", model, ledger, patience_days=remembered_days, clock=clock)

    def take(
        self,
        labels: Sequence[SaidLabel],
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
        progress: Progress | None = None,
    ) -> Took:
        """Store labels, in one transaction, and find their records.

        Args:
            positions, topic_ids: of the topics that they came from; see `Store.add_labels`.
            progress: is told how many are done, and of how many.

        Raises:
            OwnershipLost: another process has read on from there. Nothing is written.
            StoreError: the database refuses. Nothing is written. Where it refuses later on, labels wait for `again`.
        """
        added = self._store.add_labels(self._model, self._described(labels), positions=positions, topic_ids=topic_ids)
        return self._joiner.took(added, progress)

    def again(self) -> int:
        """See `Joiner.again`."""
        return self._joiner.again()

    @property
    def waiting(self) -> int:
        """How many labels are compared with records as they come."""
        return self._joiner.waiting

    def _described(self, labels: Sequence[SaidLabel]) -> list[NewLabel]:
        """The labels, each that brought its record with what is known of that."""
        brought = {place: said for place, said in enumerate(labels) if said.record is not None}
        plain = [said.label for said in labels]
        places = list(brought)
        for start in range(0, len(places), AT_A_TIME):
            part = places[start : start + AT_A_TIME]
            found = self._joiner.known([(place, plain[place].record_id) for place in part])
            if self._describe is not None and (others := [place for place in part if place not in found]):
                described = self._describe([labels[place] for place in others])
                found |= {place: known for place, known in zip(others, described, strict=True) if known is not None}
            for place, known in found.items():
                plain[place] = replace(plain[place], known=known)
        return plain


class _Records:
    """The labels of a model, and its records: those that are remembered, and those that were kept for people."""

    def __init__(self, model: str, store: Store, *, review: float) -> None:
        self._model = model
        self._store = store
        self._review = review
        self._damaged = RepeatingFailure(log, "remembered records cannot be read")

    def waiting(self, *, limit: int, after: int = 0, newer_than_ms: int = 0) -> list[Waiting]:
        rows = self._store.waiting_labels(self._model, limit=limit, after=after, newer_than_ms=newer_than_ms)
        return [Waiting(row.id, row.said.record_id, row.received_ms) for row in rows]

    def match(self, found: Mapping[int, LabelledRecord]) -> int:
        return self._store.match_labels(self._model, found)

    def numbers(self, *, after: int = 0) -> list[tuple[int, int, int]]:
        return self._store.remembered_numbers(self._model, after=after)

    def ids(self, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        return self._store.remembered_ids(numbers)

    def find(self, numbers: Sequence[int], missing: Mapping[int, str]) -> dict[str, LabelledRecord]:
        left, known = dict(missing), dict[str, LabelledRecord]()
        for row in self._store.remembered(numbers):
            try:
                records = Remembered(row)
            except InvalidInput as error:
                self._damaged.happened(str(error), model=self._model)
                continue
            for key, place in records.find(np.fromiter(left, np.uint64, len(left))).items():
                known[left.pop(key)] = records.record(place)
        return known

    def choose(self, names: Sequence[str], found: Mapping[str, LabelledRecord]) -> dict[str, LabelledRecord]:
        kept = self._store.find_kept(self._model, names, space=FRAUD_SPACE)
        chosen = ((name, self._chosen(found.get(name), kept.get(name))) for name in names)
        return {name: known for name, known in chosen if known is not None}

    def _chosen(self, known: LabelledRecord | None, kept: KeptRecord | None) -> LabelledRecord | None:
        """What is known of one record: what is remembered, and why a person looked at it."""
        if kept is None:
            return known
        if known is None:
            known = _of_kept(kept)
        if known is None or (known.partition, known.offset, known.row) != (kept.partition, kept.offset, kept.row):
            return known  # a later record with the same id
        if kept.flagged:
            return replace(known, selected="alert", chance=1.0)
        if kept.reason == "review" or kept.detail.get("review") is True:
            return replace(known, selected="review", chance=self._review)
        return known


def _of_kept(kept: KeptRecord) -> LabelledRecord | None:
    """What a kept row says of its record; None where its vector or signals are not kept."""
    signals = kept.detail.get("signals")
    if kept.vector is None or not isinstance(signals, dict):
        return None
    values = [math.nan if value is None else value for value in signals.values()]
    probability = kept.detail.get("probability")
    return LabelledRecord(
        partition=kept.partition,
        offset=kept.offset,
        row=kept.row,
        event_ms=kept.time_ms,
        entity=str(kept.detail.get("entity", "")),
        vector=kept.vector,
        signals=np.array(values, "<f4").tobytes(),
        probability=probability if isinstance(probability, float) else math.nan,
        p_value=kept.p_value,
        scored_with=kept.labels,
        selected="",
        chance=math.nan,
        made_with=str(kept.detail.get("made_with", "")),
    )
