"""Records that labels bring along: decoded and embedded like those of the stream, for labels whose records are gone.

A history of confirmed cases is taken in that way, before driftd has seen a single one of them. What a record's past
would tell (its entity, its relation) is not known then, and its score is none: nobody has scored it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from connectors.database.rows import LabelledRecord, ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from detectors.errors import InvalidReference
from monitor.decode import Decoder
from monitor.embedders import embed_all
from monitor.fraud import FraudStage
from monitor.fraud_build import fraud_row_in_use, load_fraud
from monitor.fraud_learner import Learner
from monitor.labels import SaidLabel
from monitor.log import RepeatingFailure, describe
from monitor.pipeline import Space
from monitor.settings import Settings
from monitor.spaces import load_spaces

log = logging.getLogger(__name__)

# Where such records are: in no topic.
NOWHERE = Partition("", 0)


class BroughtRecords:
    """Says what is known of records that labels brought along. The reference and the embedder are loaded at the first.

    Args:
        name: the model's name; it has fraud settings.
    """

    def __init__(self, name: str, settings: Settings, store: Store) -> None:
        self._name = name
        self._model = settings.models[name]
        self._store = store
        self._failure = RepeatingFailure(log, "records that labels brought along cannot be read")
        self._loaded: tuple[ReferenceRow, FraudStage, Space, Decoder] | None = None

    def __call__(self, labels: Sequence[SaidLabel]) -> list[LabelledRecord | None]:
        """What is known of the record of each label; None where it cannot be read, or nothing is built yet.

        Raises:
            StoreError: the database refuses.
        """
        row = fraud_row_in_use(self._store, self._name, self._model.fraud_space)
        if row is None:
            self._failure.happened("there is no reference yet", model=self._name)
            return [None] * len(labels)
        try:
            _, stage, space, decoder = self._load(row)
        except InvalidReference as error:
            self._failure.happened(describe(error), model=self._name)
            return [None] * len(labels)
        n = len(labels)
        found: list[LabelledRecord | None] = [None] * n
        batch = RawBatch(
            NOWHERE,
            offsets=np.arange(n),
            timestamps_ms=np.array([said.label.time_ms for said in labels], dtype=np.int64),
            keys=[None] * n,
            values=[msgspec.json.encode(said.record) for said in labels],
            headers=[()] * n,
            next_offset=n,
        )
        events = decoder.decode(batch, None)
        for letter in events.dead:
            self._refused(labels[letter.offset], letter.reason, letter.detail)
        columns = [events.fields[name] for name in space.embedder.fields]
        embedded = embed_all(
            space.embedder,
            columns,
            len(events),
            dimension=space.reference.dimension,
            failed=lambda kind: self._failure.happened(f"the embedder failed: {kind}", model=self._name),
        )
        problems = {problem.row: (problem.reason, problem.detail) for problem in embedded.problems}
        for place, (reason, detail) in problems.items():
            self._refused(labels[int(events.offsets[place])], reason, detail)
        events, good = events.refused(problems)
        if len(events):
            for offset, known in zip(
                events.offsets.tolist(), stage.describe(events, embedded.vectors[good]), strict=True
            ):
                found[offset] = known
        return found

    def _refused(self, said: SaidLabel, reason: str, detail: str) -> None:
        self._failure.happened(reason, model=self._name, record=said.label.record_id, detail=detail)

    def _load(self, row: ReferenceRow) -> tuple[ReferenceRow, FraudStage, Space, Decoder]:
        """What was made with the active reference; loaded anew when another one is active.

        Raises:
            InvalidReference: it is damaged, or was made by other settings.
        """
        if self._loaded is not None and self._loaded[0] == row:
            return self._loaded
        model = self._model
        assert model.fraud is not None
        reference = self._store.active_reference(self._name, model.fraud_space)
        if reference is None:
            raise InvalidReference(f"There is no active reference of {self._name}/{model.fraud_space}.")
        embedder = model.spaces[model.fraud_space].embedder.build()
        [space] = load_spaces([reference], model, {model.fraud_space: embedder})
        parts = load_fraud(row, space.reference, model.fraud)
        stage = FraudStage(
            self._name,
            model.fraud,
            space=space.name,
            parts=parts,
            versions=Learner(self._name, store=self._store, parts=parts, prevalence=model.fraud.prevalence),
            stored=self._store,
        )
        # As JSON, whatever the stream has: the documents came in a label. A pair has both halves in one document.
        plain: dict[str, object] = {"codec": "json", "format": "plain", "pair": None, "schemas": None}
        record = model.record.model_copy(update=plain | {"id": None, "segments": {}})
        decoder = Decoder(record, [*embedder.fields, *model.extra_fields])
        self._loaded = (row, stage, space, decoder)
        return self._loaded
