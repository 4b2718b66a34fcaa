"""Takes true answers in beside the worker; see `monitor.document_reader`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.database.connection import wall_clock_ms
from connectors.database.rows import NewTruth
from connectors.database.store import Store
from connectors.records import Partition, Source
from monitor.document_reader import DocumentReader
from monitor.truth_desk import TruthDesk
from monitor.truths import EXAMPLE, read_truth

if TYPE_CHECKING:
    from connectors.prometheus import Metrics


class TruthReader(DocumentReader[NewTruth]):
    """Reads the true answers of one model.

    Args:
        desk, source, compares: see `DocumentReader`.
        remembered_days: as the desk knows it, for the counts.
    """

    def __init__(
        self,
        model: str,
        desk: TruthDesk,
        store: Store,
        *,
        source: Source | None,
        metrics: Metrics,
        compares: bool,
        remembered_days: float,
    ) -> None:
        super().__init__("truth", EXAMPLE, model, desk, source=source, compares=compares)
        self._store = store
        self._metrics = metrics
        self._remembered_ms = int(remembered_days * 86_400_000)

    def read_document(self, value: object, now_ms: int, *, origin: str, default_ms: int | None = None) -> NewTruth:
        """See `read_truth`."""
        return read_truth(value, now_ms, origin=origin, default_ms=default_ms)

    def _stored_positions(self) -> Mapping[Partition, int]:
        return self._store.truth_positions(self._model)

    def _stored_topic_ids(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]:
        return self._store.truth_topic_ids(self._model, partitions)

    def _counted(self, outcome: str, count: int) -> None:
        self._metrics.truths_taken.labels(self._model, outcome).inc(count)

    def _count(self) -> None:
        metrics, model = self._metrics, self._model
        counts = self._store.truth_counts(model, remembered_since_ms=wall_clock_ms() - self._remembered_ms)
        metrics.truths_matched.labels(model).set(counts.version)
        metrics.truths_waiting.labels(model).set(counts.waiting)
        metrics.truths_unmatched.labels(model).set(counts.unmatched)
        metrics.truths_corrected.labels(model).set(counts.corrected)
