"""Scores history again: with the labels that were in force when each record came, or with all that there are now.

With the labels of then, records have the scores that they had, to the last bit, if the source still holds all of them
from the first one that was scored: entities, pairs and floods know what lies before. Nothing goes to the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from connectors.database.store import Store
from connectors.records import Partition
from connectors.scores import ScoredRecords
from monitor.app import build_source
from monitor.backfill_plan import references_of
from monitor.history import HistoryLabels, NothingStored, history_pipeline
from monitor.scores import TakenScores
from monitor.settings import Settings

Labels = Literal["then", "all"]


def scored_again(name: str, settings: Settings, store: Store, *, labels: Labels = "then") -> Iterator[ScoredRecords]:
    """The scores of all records of a model that its source still holds, from where scoring began.

    Args:
        name: of the model. It scores fraud.
        labels: those that were in force at each offset, or all.

    Yields:
        A batch after the other; of each partition in the order of its offsets.

    Raises:
        InvalidInput: the model has no reference yet.
        InvalidReference: a reference does not fit the settings.
        SourceError: the records cannot be read.
        StoreError: the database refuses.
    """
    spans, scores = store.label_spans(name), TakenScores()
    in_force = HistoryLabels(store.label_version(name), store, spans if labels == "then" else None)
    rows = references_of(settings, name, store, {})
    pipeline = history_pipeline(
        name, settings, rows, store=NothingStored(), labels=in_force, scores=scores, writes=False
    )
    first: dict[Partition, int] = {}
    for span in spans:
        first[span.partition] = min(span.from_offset, first.get(span.partition, span.from_offset))
    source = build_source(name, settings.models[name])
    try:
        for batch in source.read_range(None, None):
            if batch.partition not in first:
                continue  # no record of it is scored yet
            begin = int(np.searchsorted(batch.offsets, first[batch.partition]))
            if begin < len(batch):
                pipeline.process(batch.rows(begin, len(batch)), None)
                pipeline.checkpoint()
                yield from scores.pending
                pipeline.written()
    finally:
        source.close()
