"""From a query and its neighbours to their map: what `dashboards.nearest_picture` draws."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dashboards.nearest_picture import MAX_DOTS, MAX_GROUPS, Named, Nearby, NearestMap, Place
from detectors.errors import InvalidInput
from detectors.index import k_means
from detectors.reference import Reference
from monitor.nearest import Found, Neighbourhood, shortened, words_of

Floats = npt.NDArray[np.float32]

GROUPS: Final = "groups"
MOST_VALUES: Final = 12  # of a field that colours the map unasked


def map_of(place: Neighbourhood, found: Found, *, by: str | None = None) -> NearestMap:
    """The map of a reference around a query.

    Args:
        by: a kept field whose values are the colours; "groups" for groups of records that are alike; by default the
            first field with few values, or groups.

    Raises:
        InvalidInput: no record of the baseline has that field.
    """
    reference = place.reference
    step = max(-(-len(reference.exemplars) // MAX_DOTS), 1)
    near = [one.exemplar for one in found.neighbours]
    drawn = np.arange(0, len(reference.exemplars), step)
    rows = np.union1d(drawn, np.array(near, dtype=np.int64)).astype(np.int64)
    axes, explained = _principal_axes(reference)

    def flat(x: Floats) -> Floats:
        return np.asarray((x - reference.mean.astype(np.float32)) @ axes, np.float32)

    documents = [_document(reference, row) for row in rows.tolist()]
    group_of, groups, grouped_by = _groups(reference, rows, documents, by, drawn)
    where = {row: number for number, row in enumerate(rows.tolist())}
    dots = flat(reference.exemplars[rows])
    closest = [one.closeness for one in found.neighbours]
    several = len(found.terms) > 1
    return NearestMap(
        title=found.query,
        said=f"{found.strangeness[0].upper()}{found.strangeness[1:]}.",
        dots=dots,
        dot_words=tuple(_words(place, row) for row in rows.tolist()),
        group_of=group_of,
        groups=groups,
        grouped_by=grouped_by,
        explained=explained,
        measure=found.measure,
        query=_place(flat(found.x[None])[0]),
        terms=tuple(Named(_place(flat(one.x[None])[0]), shortened(one.name, 60), one.sign) for one in found.terms)
        if several
        else (),
        neighbours=tuple(
            Nearby(
                at=_place(dots[where[one.exemplar]]),
                words=_words(place, one.exemplar) + (f" (x{one.times})" if one.times > 1 else ""),
                closeness=f"{one.closeness:.3f}",
                bar=_bar(found.measure, one.closeness, closest),
                group=int(group_of[where[one.exemplar]]),
            )
            for one in found.neighbours
        ),
    )


def _bar(measure: str, closeness: float, all_of_them: Sequence[float]) -> float:
    """How near a neighbour is: a cosine as it is, a distance against the largest that is shown."""
    if measure == "cosine":
        return min(max(closeness, 0.0), 1.0)
    largest = max(all_of_them)
    return 1.0 - 0.9 * closeness / largest if largest > 0 else 1.0


def _principal_axes(reference: Reference) -> tuple[Floats, float]:
    """The two directions in which the baseline varies most, float32 (d, 2), and their share of its variance."""
    variances, directions = np.linalg.eigh(reference.covariance)
    chosen = directions[:, ::-1][:, :2]
    if chosen.shape[1] < 2:
        chosen = np.hstack([chosen, np.zeros_like(chosen)])
    # The sign of a direction is nobody's choice: its largest number is positive, so that maps look alike.
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None], axis=0)
    total = float(np.maximum(variances, 0.0).sum())
    explained = float(np.maximum(variances[::-1][:2], 0.0).sum()) / total if total > 0 else 1.0
    return (chosen * np.where(largest < 0, -1.0, 1.0)).astype(np.float32), explained


def _groups(
    reference: Reference,
    rows: npt.NDArray[np.int64],
    documents: Sequence[Mapping[str, Any]],
    by: str | None,
    drawn: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], tuple[str, ...], str]:
    """The group of each row, their names, and what they are; ``drawn`` are the rows that every map shows."""
    if by != GROUPS:
        names = sorted({name for document in documents for name in document})
        if by is not None and by not in names and f"/{by}" in names:
            by = f"/{by}"
        if by is not None and by not in names:
            raise InvalidInput(
                f"No record of the baseline has kept a field {by}.",
                hint=f"Choose: --by {'|'.join([*names, GROUPS])}. What is kept is set by models.NAME.record.keep",
            )
        for name in names if by is None else [by]:
            values = [_value(document.get(name)) for document in documents]
            counts = Counter(value for value in values if value is not None)
            if by is not None or (2 <= len(counts) <= MOST_VALUES and 5 * counts.total() >= 4 * len(values)):
                common = [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
                number = {value: place for place, value in enumerate(common[:MAX_GROUPS])}
                rest = " (grey: others)" if len(common) > MAX_GROUPS or len(counts) == 0 else ""
                found = np.array([-1 if value is None else number.get(value, -1) for value in values], dtype=np.int64)
                return found, tuple(number), f"{name}, as it was kept{rest}"
    x = np.ascontiguousarray(reference.exemplars[rows])
    # Of what is drawn whatever the query: the same reference has the same groups.
    known = np.ascontiguousarray(reference.exemplars[drawn])
    centres = k_means(known, min(MAX_GROUPS, len(known)), seed=reference.seed)
    apart = np.einsum("ij,ij->i", centres, centres)[None] - 2.0 * (x @ centres.T)
    labels = [
        words_of(reference.exemplar_excerpts[rows[nearest]]) if reference.exemplar_excerpts else f"group {number + 1}"
        for number, nearest in enumerate(apart.argmin(axis=0).tolist())
    ]
    return (
        apart.argmin(axis=1).astype(np.int64),
        tuple(labels),
        "groups of records that are alike, each with its middle",
    )


def _document(reference: Reference, row: int) -> Mapping[str, Any]:
    try:
        document = json.loads(reference.exemplar_excerpts[row])
    except (IndexError, ValueError):  # nothing was kept, or more than is stored of an excerpt
        return {}
    return document if isinstance(document, dict) else {}


def _value(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) else None


def _words(place: Neighbourhood, row: int) -> str:
    words = words_of(place.reference.exemplar_excerpts[row]) if place.reference.exemplar_excerpts else ""
    return words or place.ids[row]


def _place(point: Floats) -> Place:
    return float(point[0]), float(point[1])
