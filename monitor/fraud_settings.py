"""The settings of fraud scores: `models.NAME.fraud`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from connectors.kafka_labels import KafkaLabelsSettings
from detectors.pyod_models import PyODSettings
from monitor.pointers import FieldName
from monitor.times import Duration

# What fraud scores leave behind is named like what the spaces do, under this name.
FRAUD_SPACE = "fraud"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Names of the signals that driftd makes itself.
TAKEN = ("outlier", "entity_self", "entity_peers", "relation")


class _Section(BaseModel, frozen=True, extra="forbid"):
    pass


class EntitySettings(_Section):
    """Whose record it is: its latest records are compared with its own past, and with its peers."""

    field: FieldName = Field(description="where the card, user or merchant stands: a pointer, header:NAME or key")
    last: int = Field(8, ge=2, le=64, description="its latest records, whose average is compared")
    most: int = Field(100_000, ge=100, description="entities remembered in a partition; those not seen longest go")


class RelationSettings(_Section):
    """Two sides that belong together, such as cards and merchants: a pair far from the usual ones is strange."""

    of: FieldName = Field(description="where the first side stands, such as the card")
    to: FieldName = Field(description="where the second side stands, such as the merchant")
    most: int = Field(100_000, ge=100, description="first sides remembered in a partition; those not seen longest go")

    @model_validator(mode="after")
    def _has_two_sides(self) -> RelationSettings:
        if self.of == self.to:
            raise ValueError(f"of and to are both {self.of}; a pair has two sides, such as a card and a merchant")
        return self


def _entity(value: object) -> object:
    return {"field": value} if isinstance(value, str) else value


class FloodSettings(_Section):
    """Bursts of near-identical records."""

    least: int = Field(20, ge=3, description="fewest near-identical records of a block and partition that are one")


class RuleSettings(_Section):
    """A rule that is in use already: evidence says whether it would have caught the record."""

    field: str = Field(description="name of one of fraud.fields")
    above: float | None = Field(None, description="the rule speaks above this value")
    below: float | None = Field(None, description="the rule speaks below this value")

    @model_validator(mode="after")
    def _has_a_bound(self) -> RuleSettings:
        if self.above is None and self.below is None:
            raise ValueError("a rule needs above or below")
        return self


class FraudAlertSettings(_Section):
    """How many records are put before people, who have only so many hours."""

    most: int = Field(100, ge=1, description="alerts in each period")
    every: Duration = Field(86_400.0, description="the period, in event time")
    segments: dict[str, int] = Field(
        default_factory=dict,
        description='alerts in each period that a segment has for itself, such as {"country=de": 20}',
    )
    precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="once labels flow: alert from the probability on at which so many alerts are fraud, within most",
    )
    tolerance: float = Field(
        0.5, ge=0, le=100, description="up to (1 + tolerance) times as many candidates as usual are no wave"
    )


class FraudSettings(_Section):
    """Scores every record as fraud; see docs/fraud.md."""

    space: str | None = Field(None, description="the space whose vectors are scored; default: the first")
    labels: KafkaLabelsSettings | None = Field(
        None, description="a topic of labels; POST /labels and driftd label work without"
    )
    fields: dict[str, FieldName] = Field(
        default_factory=dict, description="numbers of the record that the score sees beside the vector, name: field"
    )
    entity: Annotated[EntitySettings | None, BeforeValidator(_entity)] = Field(
        None, description="whose record it is, a field or {field, last, most}"
    )
    relation: RelationSettings | None = Field(None, description="{of: /card, to: /merchant}")
    scorers: dict[str, PyODSettings] = Field(
        default_factory=dict, description="outlier models of PyOD beside driftd's own score, name: {kind: pyod, ...}"
    )
    flood: FloodSettings = FloodSettings()
    rules: dict[str, RuleSettings] = Field(
        default_factory=dict, description="rules in use, name: {field, above}: evidence says what they would have said"
    )
    prevalence: float = Field(0.01, gt=0, lt=0.5, description="share of fraud in the traffic, as far as known")
    alpha: float = Field(0.001, gt=0, le=0.1, description="largest p-value of a candidate")
    review: float = Field(
        0.0005, ge=0, le=0.1, description="share of all records, chosen by hash, that people judge whatever the score"
    )
    alerts: FraudAlertSettings = FraudAlertSettings()

    @model_validator(mode="after")
    def _names(self) -> FraudSettings:
        for key, named in (("fields", self.fields), ("scorers", self.scorers), ("rules", self.rules)):
            if wrong := [name for name in named if not _NAME.fullmatch(name)]:
                raise ValueError(f"{key}: names are lower case letters, digits and _: {', '.join(wrong)}")
        twice = [name for name in self.scorers if name in self.fields]
        if taken := [*twice, *(name for name in (*self.fields, *self.scorers) if name in TAKEN)]:
            raise ValueError(f"these names are in use already: {', '.join(taken)}")
        for name, rule in self.rules.items():
            if rule.field not in self.fields:
                known = ", ".join(self.fields) or "none"
                raise ValueError(
                    f"rules.{name}.field: there is no field {rule.field} in fraud.fields; there is: {known}"
                )
        return self

    @property
    def record_fields(self) -> list[str]:
        """Every field of a record that the fraud score needs."""
        found = list(self.fields.values())
        found += [] if self.entity is None else [self.entity.field]
        found += [] if self.relation is None else [self.relation.of, self.relation.to]
        return list(dict.fromkeys(found))
