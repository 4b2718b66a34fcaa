"""The settings of the question whether a model still answers rightly: `models.NAME.performance`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from connectors.kafka_labels import KafkaLabelsSettings
from monitor.times import Duration

MetricName = Literal["accuracy", "balanced_accuracy", "precision", "recall", "f1", "mae", "rmse"]


def _with_zone(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("write the time with its offset from UTC, such as 2026-01-31T12:00:00Z")
    return value


class PerformanceSettings(BaseModel, frozen=True, extra="forbid"):
    """Whether the model still answers rightly: without labels estimated, with labels measured; see docs/verdict.md."""

    labels: KafkaLabelsSettings | None = Field(
        None, description="a topic of true answers; POST /truths and driftd truth work without"
    )
    remember: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the records, chosen by hash of their id, whose answers are remembered for true answers "
        "that come later; default: 1 where labels is set, else 0",
    )
    calibration: Path | None = Field(
        None,
        description="file with a column confidence, and correct (or prediction and label), of records that the model "
        "did not learn from; without it, records of the baseline that say what is true (record.label)",
    )
    metric: MetricName = Field(
        "accuracy",
        description="what is measured with labels beside the share of right answers, which is compared with the floor",
    )
    positive: str | None = Field(None, description="the class that precision, recall and f1 are of; default: all, mean")
    scale: float | None = Field(
        None, gt=0, description="for models that answer with numbers: an error of so much is a wholly wrong answer"
    )
    floor: float | None = Field(
        None, gt=0, lt=1, description="fewest right answers; below, the model is degraded. Default: the baseline's"
    )
    tolerance: float = Field(0.01, ge=0, lt=1, description="so much less than the baseline is no degradation")
    window: Duration = Field(3600.0, description="event time that estimates are over")
    least: int = Field(500, ge=50, description="records of a window, without which nothing is estimated")
    trained: Annotated[datetime, AfterValidator(_with_zone)] | None = Field(
        None, description="when the model was trained; default: when the stream first named its version"
    )
    max_age: Duration | None = Field(None, description="a model older than this is to be watched")

    @model_validator(mode="after")
    def _numbers_have_a_scale(self) -> PerformanceSettings:
        if self.metric in ("mae", "rmse") and self.scale is None:
            raise ValueError(f"metric {self.metric} needs scale: from which error on is an answer wholly wrong?")
        if self.scale is not None and self.metric not in ("accuracy", "mae", "rmse"):
            raise ValueError(f"metric {self.metric} is of classes, and scale of answers that are numbers; keep one")
        if self.positive is not None and self.metric not in ("precision", "recall", "f1"):
            raise ValueError("positive belongs to metric: precision, recall or f1")
        return self

    @property
    def remembered_share(self) -> float:
        """Share of the records whose answers are remembered."""
        if self.remember is not None:
            return self.remember
        return 0.0 if self.labels is None else 1.0
