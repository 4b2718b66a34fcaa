"""The wires: one file per outside system. A kind of source or sink is one file, and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from connectors.alertmanager import AlertmanagerSettings
from connectors.console import ConsoleSettings
from connectors.files import FilesSettings
from connectors.grafana_annotations import GrafanaSettings
from connectors.jsonl import JsonlSettings
from connectors.kafka import KafkaSettings
from connectors.kafka_alerts import KafkaAlertsSettings
from connectors.kafka_scores import KafkaScoresSettings
from connectors.mail import EmailSettings
from connectors.parquet_scores import ParquetScoresSettings
from connectors.query import QuerySettings
from connectors.webhook import WebhookSettings

SourceSettings = Annotated[KafkaSettings | FilesSettings | QuerySettings, Field(discriminator="kind")]
SinkSettings = Annotated[
    ConsoleSettings
    | JsonlSettings
    | WebhookSettings
    | AlertmanagerSettings
    | EmailSettings
    | KafkaAlertsSettings
    | GrafanaSettings,
    Field(discriminator="kind"),
]
ScoresSettings = Annotated[KafkaScoresSettings | ParquetScoresSettings, Field(discriminator="kind")]
