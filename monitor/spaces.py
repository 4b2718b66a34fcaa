"""The spaces of a model, with the references that records are scored against."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from connectors.database.rows import ReferenceRow
from detectors.encoder_change import SAME
from detectors.errors import InvalidReference
from detectors.reference import Reference
from monitor.canaries import CanaryCheck, EncoderChanged, are_of, checked
from monitor.collect import check_block_length
from monitor.embedders import Embedder
from monitor.fraud_build import FraudParts, load_fraud
from monitor.fraud_settings import FRAUD_SPACE
from monitor.log import event
from monitor.pipeline import Space
from monitor.settings import ModelSettings

log = logging.getLogger(__name__)


def load_spaces(rows: Sequence[ReferenceRow], model: ModelSettings, embedders: Mapping[str, Embedder]) -> list[Space]:
    """Load the references, and give each space's embedder what it learned from the baseline.

    Args:
        rows: one for each space; those of the pseudo-space "fraud" are passed over.
        embedders: of every space, as the settings build them.

    Raises:
        EncoderChanged: the embedder makes other vectors of the reference's canaries than it made then.
        InvalidReference: one is missing or damaged, was made by another embedder or other settings of it, or follows a
            season in blocks of another length.
        SourceError: the embedder asks another program for vectors, and it does not answer.
    """
    spaces = []
    for row in rows:
        if row.space == FRAUD_SPACE and FRAUD_SPACE not in embedders:
            continue
        reference = Reference.load(Path(row.path))
        check_block_length(reference, round(model.drift.block * 1000))
        embedder = embedders[row.space]
        check = fit_together(embedder, reference, f"{row.model}/{row.space} version {row.version}")
        watched = {field: known for field, known in reference.segments.items() if field in model.segment_fields}
        spaces.append(Space(row.space, embedder, reference, row.version, watched, check))
    return spaces


def load_past_spaces(
    rows: Sequence[ReferenceRow], model: ModelSettings, embedders: Mapping[str, Embedder]
) -> list[Space]:
    """Load the references of records that were scored already: an embedder of other settings may have made them.

    Raises:
        InvalidReference: one is missing or damaged, or follows a season in blocks of another length.
    """
    spaces = []
    for row in rows:
        reference = Reference.load(Path(row.path))
        check_block_length(reference, round(model.drift.block * 1000))
        embedder, made_by = embedders[row.space], reference.embedder
        if made_by is not None and made_by.kind == embedder.kind:
            embedder.restore(made_by.state)
        watched = {field: known for field, known in reference.segments.items() if field in model.segment_fields}
        spaces.append(Space(row.space, embedder, reference, row.version, watched))
    return spaces


def load_fraud_of(rows: Sequence[ReferenceRow], model: ModelSettings, spaces: Sequence[Space]) -> FraudParts | None:
    """Load what fraud scores need, where the settings ask for them and a row is there.

    Args:
        rows: of the spaces, and of the pseudo-space "fraud".
        spaces: as loaded with these rows.

    Raises:
        InvalidReference: it is damaged, was made for another reference, or by other settings.
    """
    row = next((row for row in rows if row.space == FRAUD_SPACE), None)
    if row is None or model.fraud is None:
        return None
    space = next(space for space in spaces if space.name == model.fraud_space)
    return load_fraud(row, space.reference, model.fraud)


def fit_together(embedder: Embedder, reference: Reference, name: str) -> CanaryCheck | None:
    """Give the embedder what it learned from the baseline, and see that it still makes the same vectors.

    An embedder with another fingerprint goes on where it makes the same vectors of the canaries: a library may have got
    a new version, or a file another name.

    Args:
        name: of the reference, for people.

    Returns:
        What came of the canaries; None where the reference has none.

    Raises:
        EncoderChanged: it makes other vectors of the canaries.
        InvalidReference: the reference was made by another embedder, or by other settings of this one, and there are no
            canaries that could show that it makes no difference.
        SourceError: the embedder asks another program for vectors, and it does not answer.
    """
    made_by = reference.embedder
    hint = "Undo the change of the embedder, or build a new reference: driftd reference build"
    if made_by.kind != embedder.kind:
        raise InvalidReference(
            f'Reference {name} was made by the embedder "{made_by.kind}", but the settings say "{embedder.kind}".',
            hint=hint,
        )
    embedder.restore(made_by.state)
    same = made_by.fingerprint == embedder.fingerprint()
    canaries = reference.canaries
    check = None if canaries is None or not are_of(canaries, embedder) else checked(canaries, embedder)
    if check is not None and check.change is not None:
        raise EncoderChanged(f"Reference {name}: {check.text}", space=reference.space, check=check)
    if not same and (check is None or check.canaries == 0):
        raise InvalidReference(
            f'Reference {name} was made by other settings or another model of the embedder "{embedder.kind}".',
            hint=hint,
        )
    if check is not None and (not same or check.canaries == 0 or check.largest > SAME):
        what = "" if same else "another embedder or library, by its fingerprint: "
        log.warning(event("caution", reason=f"reference {name}: {what}{check.text}"))
    return check
