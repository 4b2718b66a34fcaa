"""The composition root: the one place that builds concrete objects from settings."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from connectors.alertmanager import AlertmanagerSink
from connectors.database.store import Store
from connectors.kafka import KafkaSettings
from connectors.kafka_dead_letters import KafkaDeadLetterTopic
from connectors.kafka_labels import KafkaLabelsSettings
from connectors.kafka_scores import KafkaScoresSettings
from connectors.notification import Sink
from connectors.prometheus import Metrics
from connectors.records import Source
from connectors.webhook import WebhookSink
from detectors.errors import InvalidInput, InvalidSettings
from monitor.label_desk import LabelDesk
from monitor.label_reader import LabelReader
from monitor.label_records import BroughtRecords
from monitor.scores import Scores
from monitor.settings import ModelSettings, Settings
from monitor.truth_desk import TruthDesk
from monitor.truth_reader import TruthReader
from monitor.watchdog import Watchdog
from monitor.worker import Worker


def open_store(settings: Settings) -> Store:
    """The database, migrated to this version of driftd."""
    store = Store.open(settings.database)
    store.migrate()
    return store


def build_source(name: str, model: ModelSettings, *, ordinal: int = 0) -> Source:
    """The source of one model. The client id is stable over restarts, so that a static group member comes back.

    Args:
        ordinal: of the worker process among those of this machine; each is a member of its own.
    """
    group = f"driftd-{name}"
    source = model.source
    if ordinal and isinstance(source, KafkaSettings) and source.instance not in (None, "none"):
        source = source.model_copy(update={"instance": f"{source.instance}-{ordinal}"})
    return source.build(client_id=f"{group}-{socket.gethostname()}-{ordinal}", group=group)


def build_history(name: str, model: ModelSettings) -> Source:
    """Where the older records of a model are: its own source, unless the settings name another one."""
    name = f"driftd-{name}-history"
    return (model.history or model.source).build(client_id=f"{name}-{socket.gethostname()}", group=name)


def build_workers(
    settings: Settings, store: Store, *, ordinal: int = 0, watchdog: Watchdog | None = None
) -> list[Worker]:
    """A worker for each model."""
    return [
        Worker(
            name,
            settings,
            store=store,
            source=build_source(name, model, ordinal=ordinal),
            watchdog=watchdog,
            collects=ordinal == 0,
            scores=build_scores(name, model, ordinal=ordinal),
        )
        for name, model in settings.models.items()
    ]


def build_scores(name: str, model: ModelSettings, *, ordinal: int = 0) -> Scores | None:
    """Where the scores of every record of a model go; None where nobody wants them."""
    settings = model.scores
    if settings is None:
        return None
    if isinstance(settings, KafkaScoresSettings) and isinstance(model.source, KafkaSettings):
        settings = settings.beside(model.source)
    writer = settings.build(model=name, client_id=f"driftd-{name}-scores-{socket.gethostname()}-{ordinal}")
    return Scores(name, writer, vectors=settings.vectors, required=settings.required)


def build_label_desk(name: str, settings: Settings, store: Store) -> LabelDesk:
    """Where the labels of one model are taken in.

    Raises:
        InvalidInput: the model has no fraud settings.
    """
    fraud = settings.models[name].fraud
    if fraud is None:
        raise InvalidInput(
            f"Model {name} does not score fraud, so that labels are of no use to it.",
            hint=f"Set models.{name}.fraud: {{}}; see docs/labels.md",
        )
    return LabelDesk(
        name,
        store,
        review=fraud.review,
        remembered_days=settings.retention.remembered_days,
        describe=BroughtRecords(name, settings, store),
    )


def build_label_readers(
    settings: Settings, store: Store, metrics: Metrics, *, ordinal: int = 0
) -> dict[str, LabelReader]:
    """What takes labels in, for each model with fraud settings."""
    readers = {}
    for name, model in settings.models.items():
        if model.fraud is None:
            continue
        readers[name] = LabelReader(
            name,
            build_label_desk(name, settings, store),
            store,
            source=build_label_source(name, model, ordinal=ordinal),
            metrics=metrics,
            compares=ordinal == 0,
            remembered_days=settings.retention.remembered_days,
        )
    return readers


def takes_truths(model: ModelSettings) -> bool:
    """Whether true answers can be compared with what the model answered."""
    return model.record.prediction is not None


def build_truth_desk(name: str, settings: Settings, store: Store) -> TruthDesk:
    """Where the true answers of one model are taken in.

    Raises:
        InvalidInput: its own answers are not mapped.
    """
    if not takes_truths(settings.models[name]):
        raise InvalidInput(
            f"What model {name} answers is not mapped, so that true answers have nothing to be compared with.",
            hint=f"Set models.{name}.record.prediction; see docs/labels.md",
        )
    return TruthDesk(name, store, remembered_days=settings.retention.answers_days)


def build_truth_readers(
    settings: Settings, store: Store, metrics: Metrics, *, ordinal: int = 0
) -> dict[str, TruthReader]:
    """What takes true answers in, for each model whose own answers are mapped."""
    return {
        name: TruthReader(
            name,
            build_truth_desk(name, settings, store),
            store,
            source=build_truth_source(name, model, ordinal=ordinal),
            metrics=metrics,
            compares=ordinal == 0,
            remembered_days=settings.retention.answers_days,
        )
        for name, model in settings.models.items()
        if takes_truths(model)
    }


def build_truth_source(name: str, model: ModelSettings, *, ordinal: int = 0) -> Source | None:
    """The topic of a model's true answers; None where there is none."""
    return _document_source(name, model, model.performance.labels, kind="truths", ordinal=ordinal)


def build_label_source(name: str, model: ModelSettings, *, ordinal: int = 0) -> Source | None:
    """The topic of a model's labels; None where there is none."""
    labels = None if model.fraud is None else model.fraud.labels
    return _document_source(name, model, labels, kind="labels", ordinal=ordinal)


def _document_source(
    name: str, model: ModelSettings, labels: KafkaLabelsSettings | None, *, kind: str, ordinal: int
) -> Source | None:
    if labels is None:
        return None
    if isinstance(model.source, KafkaSettings):
        labels = labels.beside(model.source)
    group = f"driftd-{name}-{kind}"
    return labels.build(client_id=f"{group}-{socket.gethostname()}-{ordinal}", group=group)


def build_sinks(settings: Settings) -> dict[str, Sink]:
    """The sinks by their names in the settings."""
    sinks: dict[str, Sink] = {name: sink.build() for name, sink in settings.sinks.items()}
    for sink in sinks.values():
        if isinstance(sink, WebhookSink | AlertmanagerSink):
            sink.runbooks = settings.notify.runbooks
    return sinks


def build_dead_letter_topics(settings: Settings) -> dict[str, KafkaDeadLetterTopic]:
    """The dead-letter topics of the models that have one, on the brokers of the model's own source."""
    topics = {}
    for name, model in settings.models.items():
        if model.dead_letters.topic is not None and isinstance(model.source, KafkaSettings):
            client_id = f"driftd-{name}-dead-letters"
            topics[name] = model.source.dead_letter_topic(model.dead_letters.topic, client_id=client_id)
    return topics


def http_address(settings: Settings) -> tuple[str, int]:
    """Host and port of the HTTP server."""
    host, _, port = settings.http.bind.rpartition(":")
    return host.strip("[]"), int(port)


def check_references_folder(folder: Path) -> None:
    """References must be writable before hours of collecting, not after.

    Raises:
        InvalidSettings: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettings(f"The folder of the references, {folder}, cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise InvalidSettings(f"The folder of the references, {folder}, cannot be written.", hint="Set references: DIR")
