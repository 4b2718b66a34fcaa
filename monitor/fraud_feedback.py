"""From answers of people to the model that learns from them one by one: a second opinion, and whether fraud changed.

Only answers count of whose records somebody was asked whatever the answer would be: those of analysts about alerts and
about the review sample. Chargebacks come for fraud alone, so a wave of them would look like another kind of fraud.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from connectors.database.rows import LabelledRecord, LabelRow
from connectors.database.store import Store
from detectors.feedback_model import WARM_UP, Change, FeedbackModel, counted_after
from detectors.fraud_baseline import FraudBaseline, Signal
from monitor.fraud_build import fraud_row_in_use
from monitor.fraud_signals import same_columns

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FraudChange:
    """Fraud itself was found to have changed.

    Attributes:
        version: of the labels, at which it was noticed.
        time_ms: when that answer was given.
        record_id: of whose record.
        found: how much worse than expected the answers were foretold.
    """

    version: int
    time_ms: int
    record_id: str
    found: Change


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """What was learned from the answers up to a version of the labels.

    Attributes:
        model: the second opinion.
        columns: the signals that it knows, beside the score and its rank.
        changes: the oldest first.
    """

    version: int
    model: FeedbackModel
    columns: tuple[Signal, ...]
    changes: tuple[FraudChange, ...]

    def opinions(
        self,
        signals: npt.NDArray[np.float32],
        probability: npt.NDArray[np.floating],
        p_value: npt.NDArray[np.floating],
    ) -> Doubles | None:
        """Probability that people would call each record fraud, float64 (n,); None while too few have answered.

        Args:
            signals: float32 (n, s), in ``columns``.
            probability, p_value: (n,), of the fraud score.
        """
        if not self.model.has_an_opinion:
            return None
        return self.model.probability(features_of(signals, probability, p_value, columns=self.columns))

    def of_evidence(
        self, details: Sequence[Mapping[str, object]], p_value: npt.NDArray[np.floating]
    ) -> list[float | None]:
        """The same of kept records, by their evidence (`monitor.fraud_evidence`).

        Args:
            p_value: (n,), of the fraud score.
        """
        signals = [detail.get("signals") for detail in details]
        values = [
            [_number(known.get(column.name)) if isinstance(known, Mapping) else math.nan for column in self.columns]
            for known in signals
        ]
        said = self.opinions(
            np.array(values, np.float32).reshape(len(details), len(self.columns)),
            np.array([_number(detail.get("probability")) for detail in details], np.float64),
            p_value,
        )
        return [None] * len(details) if said is None else said.tolist()


def feedback_of(store: Store, model: str, *, space: str, version: int) -> Feedback | None:
    """Learn from the stored answers up to a version, in the signals of the fraud baseline in use.

    Args:
        space: the one whose vectors are scored.

    Returns:
        None without a fraud baseline, or where so few have answered that there is no opinion.

    Raises:
        StoreError: the database does not answer.
        InvalidReference: the fraud baseline is damaged.
    """
    reference = fraud_row_in_use(store, model, space)
    rows = store.labels(model, after=counted_after(version), upto=version)
    if reference is None or sum(map(is_answer, rows)) < WARM_UP:  # river takes 2 s to import
        return None
    return learned(rows, version=version, columns=FraudBaseline.load(Path(reference.path)).columns)


def is_answer(row: LabelRow) -> bool:
    """Whether a label is the answer of somebody who was asked."""
    return row.said.source == "analyst" and row.said.known is not None and row.said.known.selected != ""


def learned(rows: Sequence[LabelRow], *, version: int, columns: tuple[Signal, ...]) -> Feedback:
    """Learn from label rows, by version, those that count for a version (`counted_after`)."""
    known = [(row, row.said.known) for row in rows if is_answer(row) and row.said.known is not None]
    size = 4 * len(columns)
    asked = [
        (row, record)
        for row, record in known
        if len(record.signals) == size and same_columns(record.made_with, columns)
    ]
    model = FeedbackModel(len(columns) + 2)
    changes: list[FraudChange] = []
    if asked:
        fraud = np.array([row.said.label == "fraud" for row, _ in asked], np.bool_)
        for change in model.push(_features([record for _, record in asked], columns), fraud):
            row = asked[change.answer][0]
            changes.append(FraudChange(row.version, row.said.time_ms, row.said.record_id, change))
    return Feedback(version, model, columns, tuple(changes))


def features_of(
    signals: npt.NDArray[np.float32],
    probability: npt.NDArray[np.floating],
    p_value: npt.NDArray[np.floating],
    *,
    columns: Sequence[Signal],
) -> Doubles:
    """What `detectors.feedback_model.FeedbackModel` learns from, float64 (n, s + 2): signals, log odds, -log10 p.

    Numbers of records, such as amounts, have heavy tails: they become sign(x) log(1 + |x|).
    """
    numbers = np.array([column.kind == "number" for column in columns], np.bool_)
    values = signals.astype(np.float64)
    values[:, numbers] = np.sign(values[:, numbers]) * np.log1p(np.abs(values[:, numbers]))
    # Before the first case there is no probability: the rank stands for it.
    likely = np.where(np.isnan(probability), 1.0 - p_value, probability)
    likely = np.clip(likely.astype(np.float64), 1e-6, 1.0 - 1e-6)
    rank = -np.log10(np.clip(p_value.astype(np.float64), 1e-12, 1.0))
    return np.column_stack([values, np.log(likely / (1.0 - likely)), rank])


def _features(records: Sequence[LabelledRecord], columns: tuple[Signal, ...]) -> Doubles:
    stored = np.frombuffer(b"".join(record.signals for record in records), "<f4")
    return features_of(
        stored.reshape(len(records), len(columns)).astype(np.float32, copy=False),
        np.array([record.probability for record in records], np.float64),
        np.array([record.p_value for record in records], np.float64),
        columns=columns,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
