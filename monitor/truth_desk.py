"""Where true answers are taken in, and where the model's own answers to their records are found.

A truth that brings the model's answer along counts at once. Others count from the moment that the answer is known: that
which is remembered of the record's id, of several the last one. What comes before its record, or names one that is long
gone, waits, and is compared with the answers that are remembered later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import KnownAnswer, NewTruth
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.answers import RememberedAnswers
from monitor.joining import AT_A_TIME, Joiner, Positions, Progress, Took, Waiting
from monitor.log import RepeatingFailure

log = logging.getLogger(__name__)


class TruthDesk:
    """Takes the true answers of one model in. Used by one thread at a time; several processes may have one each.

    Args:
        model: its name.
        store: the database.
        remembered_days: a truth that waited longer waits for nothing, `retention.answers_days`.
        clock: wall clock, milliseconds since 1970.
    """

    def __init__(
        self, model: str, store: Store, *, remembered_days: float, clock: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._model = model
        self._store = store
        ledger = _AnswersOf(model, store)
        self._joiner = Joiner("true answers", model, ledger, patience_days=remembered_days, clock=clock)

    def take(
        self,
        truths: Sequence[NewTruth],
        *,
        positions: Positions | None = None,
        topic_ids: Mapping[Partition, str | None] | None = None,
        progress: Progress | None = None,
    ) -> Took:
        """Store truths, in one transaction, and find what the model had answered.

        Args:
            positions, topic_ids: of the topics that they came from; see `Store.add_truths`.
            progress: is told how many are done, and of how many.

        Raises:
            OwnershipLost: another process has read on from there. Nothing is written.
            StoreError: the database refuses. Nothing is written. Where it refuses later on, truths wait for `again`.
        """
        added = self._store.add_truths(self._model, self._timed(truths), positions=positions, topic_ids=topic_ids)
        return self._joiner.took(added, progress)

    def again(self) -> int:
        """See `Joiner.again`."""
        return self._joiner.again()

    @property
    def waiting(self) -> int:
        """How many truths are compared with answers as they come."""
        return self._joiner.waiting

    def _timed(self, truths: Sequence[NewTruth]) -> list[NewTruth]:
        """The truths; those that bring an answer, but not the time of its record, with the time.

        That of the record that is remembered; of one that is not, the time at which the truth was known: it lies in no
        stretch of event time otherwise.
        """
        timed = list(truths)
        places = [place for place, one in enumerate(truths) if one.answer is not None and one.event_ms is None]
        for start in range(0, len(places), AT_A_TIME):
            part = places[start : start + AT_A_TIME]
            known = self._joiner.known([(place, timed[place].record_id) for place in part])
            for place in part:
                found = known.get(place)
                event_ms = timed[place].time_ms if found is None else found.event_ms
                timed[place] = replace(timed[place], event_ms=event_ms)
        return timed


class _AnswersOf:
    """The true answers of a model, and the remembered ones that it gave."""

    def __init__(self, model: str, store: Store) -> None:
        self._model = model
        self._store = store
        self._damaged = RepeatingFailure(log, "remembered answers cannot be read")

    def waiting(self, *, limit: int, after: int = 0, newer_than_ms: int = 0) -> list[Waiting]:
        rows = self._store.waiting_truths(self._model, limit=limit, after=after, newer_than_ms=newer_than_ms)
        return [Waiting(row.id, row.said.record_id, row.received_ms) for row in rows]

    def match(self, found: Mapping[int, KnownAnswer]) -> int:
        return self._store.match_truths(self._model, found)

    def numbers(self, *, after: int = 0) -> list[tuple[int, int, int]]:
        return self._store.answers_numbers(self._model, after=after)

    def ids(self, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        return self._store.answers_ids(numbers)

    def find(self, numbers: Sequence[int], missing: Mapping[int, str]) -> dict[str, KnownAnswer]:
        left, known = dict(missing), dict[str, KnownAnswer]()
        for row in self._store.answers(numbers):
            try:
                answers = RememberedAnswers(row)
            except InvalidInput as error:
                self._damaged.happened(str(error), model=self._model)
                continue
            for key, place in answers.find(np.fromiter(left, np.uint64, len(left))).items():
                known[left.pop(key)] = answers.record(place)
        return known

    def choose(self, names: Sequence[str], found: Mapping[str, KnownAnswer]) -> Mapping[str, KnownAnswer]:
        return found
