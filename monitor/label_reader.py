"""Takes labels of fraud in beside the worker; see `monitor.document_reader`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from connectors.database.connection import wall_clock_ms
from connectors.database.store import Store
from connectors.records import Partition, Source
from monitor.document_reader import DocumentReader
from monitor.label_desk import LabelDesk
from monitor.labels import EXAMPLE, SaidLabel, read_label

if TYPE_CHECKING:
    from connectors.prometheus import Metrics


class LabelReader(DocumentReader[SaidLabel]):
    """Reads the labels of one model.

        reader = LabelReader("payments", desk, store, source=source, metrics=metrics)
        reader.start()
        reader.take(labels)     # from any thread, such as that of a request
        reader.stop()

    Args:
        desk, source, compares: see `DocumentReader`.
        remembered_days: as the desk knows it, for the counts.
    """

    def __init__(
        self,
        model: str,
        desk: LabelDesk,
        store: Store,
        *,
        source: Source | None,
        metrics: Metrics,
        compares: bool,
        remembered_days: float,
    ) -> None:
        super().__init__("label", EXAMPLE, model, desk, source=source, compares=compares)
        self._store = store
        self._metrics = metrics
        self._remembered_ms = int(remembered_days * 86_400_000)

    def read_document(self, value: object, now_ms: int, *, origin: str, default_ms: int | None = None) -> SaidLabel:
        """See `read_label`."""
        return read_label(value, now_ms, origin=origin, default_ms=default_ms)

    def _stored_positions(self) -> Mapping[Partition, int]:
        return self._store.label_positions(self._model)

    def _stored_topic_ids(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]:
        return self._store.label_topic_ids(self._model, partitions)

    def _counted(self, outcome: str, count: int) -> None:
        self._metrics.labels_taken.labels(self._model, outcome).inc(count)

    def _count(self) -> None:
        metrics, model = self._metrics, self._model
        counts = self._store.label_counts(model, remembered_since_ms=wall_clock_ms() - self._remembered_ms)
        metrics.label_versions.labels(model).set(counts.version)
        metrics.labels_waiting.labels(model).set(counts.waiting)
        metrics.labels_unmatched.labels(model).set(counts.unmatched)
        metrics.labels_contradicting.labels(model).set(counts.contradicting)
        metrics.labels_superseded.labels(model).set(counts.superseded)
        for (source, label), count in counts.by.items():
            metrics.labels_stored.labels(model, source, label).set(count)
