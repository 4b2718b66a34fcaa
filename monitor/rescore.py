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
from detectors.errors import InvalidInput
from monitor.app import build_source
from monitor.decode import Decoder
from monitor.first_reference import FirstReference
from monitor.fraud import FraudStage, NothingStored
from monitor.fraud_learner import Learner
from monitor.pipeline import Pipeline
from monitor.scores import TakenScores
from monitor.settings import Settings
from monitor.spaces import load_fraud_of, load_spaces

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
    scores = TakenScores()
    pipeline = _pipeline(name, settings, store, labels, scores)
    first: dict[Partition, int] = {}
    for span in store.label_spans(name):
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


def _pipeline(name: str, settings: Settings, store: Store, labels: Labels, scores: TakenScores) -> Pipeline:
    """One that scores records against the references in use, from whatever offset it is given."""
    model = settings.models[name]
    embedders = {space: entry.embedder.build() for space, entry in model.spaces.items()}
    fields = [field for embedder in embedders.values() for field in embedder.fields]
    decoder = Decoder(
        model.watched_record,
        fields=[*fields, *model.extra_fields],
        payload_bytes=model.dead_letters.payload_bytes,
    )
    rows = FirstReference(name, settings, store=store, decoder=decoder, embedders=embedders).built(0.0)
    if not rows:
        raise InvalidInput(f"Model {name} has no reference yet.", hint="Build it: driftd reference build")
    spaces = load_spaces(rows, model, embedders)
    stage = None
    parts = load_fraud_of(rows, model, spaces)
    if parts is not None and model.fraud is not None:
        stage = FraudStage(
            name,
            model.fraud,
            space=model.fraud_space,
            parts=parts,
            versions=Learner(name, store=store, parts=parts, prevalence=model.fraud.prevalence),
            stored=NothingStored(),
            history=store.label_spans(name),
            labels=labels,
        )
    return Pipeline(
        name,
        decoder=decoder,
        spaces=spaces,
        block_ms=round(model.drift.block * 1000),
        lateness_ms=model.lateness_ms,
        alpha=model.outliers.alpha,
        sample=model.outliers.sample,
        keep_vectors=False,
        stored=lambda partitions: {},
        stored_keys=(lambda partition: ()) if model.thins_by_key else None,
        scores=scores,
        fraud=stage,
    )
