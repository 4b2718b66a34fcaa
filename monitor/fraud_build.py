"""What fraud scores need to know of the baseline: collected, built and saved beside the reference, and loaded.

A folder NUMBER of the pseudo-space "fraud" holds the fraud baseline and what was fitted with it; its manifest names the
reference that it belongs to, and the check sum of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from connectors.database.rows import ReferenceRow
from detectors.entities import EntityModel, EntityStates
from detectors.errors import InvalidReference
from detectors.flood import FloodPlan
from detectors.fraud_baseline import MAX_RECORDS, FraudBaseline, Signal
from detectors.keyed_states import Seeds
from detectors.outlier import evenly_spaced
from detectors.pyod_models import PyODScorer
from detectors.reference import Reference
from detectors.reference_build import calibration_half
from detectors.relations import Relations
from monitor.event import EventBatch
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.fraud_signals import hashes_of, numbers_of, surprise_of

if TYPE_CHECKING:
    from connectors.database.store import Store

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]

_MANIFEST = "fraud.json"
_FORMAT = "driftd fraud parts"
_FORMAT_VERSION = 1
_TILE = 4096


@dataclass(frozen=True, slots=True)
class FraudParts:
    """Everything about fraud that was fitted on a baseline.

    Attributes:
        version: its number.
        reference: the reference that it belongs to.
        baseline: normal records with their signals.
        scorers: outlier models of PyOD, by name.
        entities: None where no entity is mapped.
        relations: None where no relation is mapped.
        flood: how many near-identical records are too many.
    """

    version: int
    reference: Reference
    baseline: FraudBaseline
    scorers: dict[str, PyODScorer]
    entities: EntityModel | None
    relations: Relations | None
    flood: FloodPlan


@dataclass(slots=True)
class FraudColumns:
    """What is collected of the baseline's records for fraud scores, beside the vectors."""

    settings: FraudSettings
    numbers: list[Floats] = field(default_factory=list)
    entities: list[Hashes] = field(default_factory=list)
    lefts: list[Hashes] = field(default_factory=list)
    rights: list[Hashes] = field(default_factory=list)

    def add(self, events: EventBatch, rows: Int64s) -> None:
        """Take note of some events of a batch."""
        self.numbers.append(numbers_of(events, self.settings.fields)[rows])
        if self.settings.entity is not None:
            self.entities.append(hashes_of(events, self.settings.entity.field)[rows])
        if self.settings.relation is not None:
            self.lefts.append(hashes_of(events, self.settings.relation.of)[rows])
            self.rights.append(hashes_of(events, self.settings.relation.to)[rows])


def build_fraud(
    folder: Path,
    reference: Reference,
    *,
    row: ReferenceRow,
    version: int,
    vectors: Floats,
    blocks: Int64s,
    columns: FraudColumns,
    order: Int64s,
    progress: Progress,
) -> ReferenceRow:
    """Fit and save what fraud scores need, as ``folder``/``version``, whole or not at all.

    Args:
        row: of the reference.
        vectors: float32 (n, d), raw, in the order of time.
        blocks: int64 (n,), block numbers, ascending.
        order: int64 (n,), which of the collected records each vector is.
        progress: told what is being fitted, and the share that is done.

    Raises:
        InvalidReference: it exists already, or cannot be written.
        InvalidInput: a part cannot be fitted on such a baseline.
    """
    settings = columns.settings
    target = folder / str(version)
    if target.exists():
        raise InvalidReference(f"{target} exists already.", hint="See: driftd reference list")
    # p-values of records that are in the prototypes would be too large: only the others can stand for what comes.
    chosen = calibration_half(blocks)
    entities = None if settings.entity is None else np.concatenate(columns.entities)[order]
    left, right = (
        None if settings.relation is None else np.concatenate(hashes)[order]
        for hashes in (columns.lefts, columns.rights)
    )
    # Before, too little is known of most entities, and of pairs, those that are judged must not be among the known.
    if entities is not None:
        chosen = chosen[chosen >= _middle(entities != 0)]
    if left is not None and right is not None:
        chosen = chosen[chosen >= _middle((left != 0) & (right != 0))]
    chosen = chosen[evenly_spaced(len(chosen), MAX_RECORDS)]
    signals: dict[Signal, npt.NDArray[Any]] = {
        Signal("outlier", "surprise"): _outliers(reference, vectors[chosen]),
    }
    said: list[str] = []
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=folder))
        scorer_sums: dict[str, str] = {}
        for number, (name, wanted) in enumerate(settings.scorers.items()):
            begin, span = 0.6 * number / len(settings.scorers), 0.6 / len(settings.scorers)
            scorer = wanted.build(reference, progress=_part(progress, name, begin, span))
            scorer_sums[name] = scorer.save(temporary / f"scorer-{name}")
            found = [surprise_of(scorer.assess(vectors[chosen[tile]]).p_value) for tile in _tiles(len(chosen))]
            signals[Signal(name, "surprise")] = np.concatenate(found)
            said.append(f"{name}: {scorer.describe()}")
        if settings.entity is not None and entities is not None:
            progress("entities", 0.6)
            fitted = EntityModel.fit(vectors, entities, reference=reference, last=settings.entity.last)
            fitted.save(temporary)
            seen = _replayed(fitted, entities, vectors)[chosen]
            signals |= {Signal("entity_self", "surprise"): seen[:, 0], Signal("entity_peers", "surprise"): seen[:, 1]}
        if left is not None and right is not None:
            progress("relations", 0.8)
            relations = Relations.fit(left, right)
            relations.save(temporary)
            signals[Signal("relation", "surprise")] = relations.replay(left, right)[chosen]
        progress("floods", 0.9)
        flood = FloodPlan.measure(reference, vectors, blocks)
        flood.save(temporary)
        said.append(f"floods begin with {max(flood.least, settings.flood.least)} near-identical records of a block")
        numbers = np.concatenate(columns.numbers)[order][chosen]
        signals |= {Signal(name, "number"): numbers[:, place] for place, name in enumerate(settings.fields)}
        baseline = FraudBaseline(
            np.asarray(vectors[chosen], np.float32),
            np.column_stack(list(signals.values())).astype(np.float32),
            tuple(signals),
        )
        baseline.save(temporary)
        progress("saving", 0.95)
        manifest = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "reference": row.version,
            "reference_checksum": reference.checksum,
            "space": row.space,
            "settings": _fitted_settings(settings),
            "scorers": scorer_sums,
            "said": said,
            "files": {
                str(path.relative_to(temporary)): _sum_of(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            },
        }
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        with (temporary / _MANIFEST).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise InvalidReference(
            f"cannot write {target}: {error.strerror or error}.",
            hint="Set references to a directory on a disk with free space that you may write to.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return ReferenceRow(
        model=row.model,
        space=FRAUD_SPACE,
        version=version,
        path=str(target),
        records=len(baseline),
        dimension=reference.dimension,
        checksum=hashlib.sha256(content).hexdigest(),
        created_ms=row.created_ms,
        active=True,
    )


def load_fraud(row: ReferenceRow, reference: Reference, settings: FraudSettings) -> FraudParts:
    """Load what was fitted, every byte checked.

    Raises:
        InvalidReference: missing, damaged, made for another reference, or by other settings.
    """
    folder, name = Path(row.path), f"{row.model}/{row.space} version {row.version}"
    manifest, content = _manifest_of(folder)
    if manifest is None or hashlib.sha256(content).hexdigest() != row.checksum:
        raise InvalidReference(
            f"{name}: {folder / _MANIFEST} is missing or damaged.",
            hint="Restore it from a copy, or build anew: driftd reference build",
        )
    for file, expected in manifest["files"].items():
        if _sum_of(folder / file) != expected:
            raise InvalidReference(
                f"{name}: {folder / file} is missing or damaged.",
                hint="Restore it from a copy, or build anew: driftd reference build",
            )
    if manifest["reference_checksum"] != reference.checksum:
        raise InvalidReference(
            f"{name} was made with reference {manifest['reference']} of {manifest['space']}, which is not the one in "
            "use.",
            hint="Build anew: driftd reference build",
        )
    if manifest["settings"] != _fitted_settings(settings):
        changed = [key for key, value in _fitted_settings(settings).items() if manifest["settings"].get(key) != value]
        raise InvalidReference(
            f"{name} was made with other settings of fraud.{', fraud.'.join(changed)}.",
            hint="Undo the change, or build anew: driftd reference build",
        )
    return FraudParts(
        version=row.version,
        reference=reference,
        baseline=FraudBaseline.load(folder),
        scorers={
            scorer: PyODScorer.load(folder / f"scorer-{scorer}", reference, checksum=checksum)
            for scorer, checksum in manifest["scorers"].items()
        },
        entities=None if settings.entity is None else EntityModel.load(folder, reference=reference),
        relations=None if settings.relation is None else Relations.load(folder),
        flood=FloodPlan.load(folder),
    )


def fraud_row_of(rows: Sequence[ReferenceRow], reference: ReferenceRow) -> ReferenceRow | None:
    """The newest of the rows of the pseudo-space that belongs to a reference; None if none does.

    So that whoever goes back to an older reference goes back to what fraud scores knew then.
    """
    for row in sorted(rows, key=lambda row: -row.version):
        manifest, _ = _manifest_of(Path(row.path))
        if manifest is not None and manifest["reference_checksum"] == reference.checksum:
            return row
    return None


def fraud_row_in_use(store: Store, model: str, space: str) -> ReferenceRow | None:
    """What belongs to the active reference of the space whose vectors are scored; None if nothing does.

    Not the active row of the pseudo-space: the reference may be an older one, or one that was built without fraud.
    """
    reference = store.active_reference(model, space)
    return None if reference is None else fraud_row_of(store.references(model, FRAUD_SPACE), reference)


def is_fraud(folder: Path) -> bool:
    """Whether a folder holds what fraud scores need, and not a reference."""
    return (folder / _MANIFEST).is_file()


def describe_fraud(folder: Path) -> dict[str, Any]:
    """What the folder holds, after its baseline was loaded and checked.

    Raises:
        InvalidReference: missing or damaged.
    """
    manifest, content = _manifest_of(folder)
    if manifest is None:
        raise InvalidReference(
            f"{folder / _MANIFEST} is missing or damaged.",
            hint="Restore it from a copy, or build anew: driftd reference build",
        )
    baseline = FraudBaseline.load(folder)
    without = [
        f"no record has a number in {column.name}: check fraud.fields.{column.name}"
        for column, values in zip(baseline.columns, baseline.signals.T, strict=True)
        if column.kind == "number" and np.isnan(values).all()
    ]
    return {
        "path": str(folder),
        "for": f"fraud scores of the space {manifest['space']}, reference {manifest['reference']}",
        "normal records": len(baseline),
        "dimension": baseline.vectors.shape[1],
        "signals": {column.name: column.kind for column in baseline.columns},
        "parts": [*manifest["said"], *without],
        "bytes": sum(path.stat().st_size for path in folder.rglob("*")),
        "checksum": hashlib.sha256(content).hexdigest(),
    }


def fraud_in_words(folder: Path) -> str:
    """What was built, for people."""
    facts = describe_fraud(folder)
    signals = ", ".join(facts["signals"])
    words = f"{facts['normal records']:,} normal records, signals {signals}; {facts['bytes'] / 1e6:.1f} MB"
    return "; ".join([words, *facts["parts"]])


def _manifest_of(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    try:
        content = (folder / _MANIFEST).read_bytes()
        manifest = json.loads(content)
    except (OSError, ValueError):
        return None, b""
    fits = isinstance(manifest, dict) and manifest.get("format") == _FORMAT
    return (manifest, content) if fits and manifest.get("format_version") == _FORMAT_VERSION else (None, b"")


def _fitted_settings(settings: FraudSettings) -> dict[str, Any]:
    """The settings that the parts depend on: the columns of the signals, and what was fitted for them."""
    entity, relation = settings.entity, settings.relation
    return {
        "fields": dict(settings.fields),
        "entity": None if entity is None else {"field": entity.field, "last": entity.last},
        "relation": None if relation is None else {"of": relation.of, "to": relation.to},
        "scorers": {name: scorer.model_dump(mode="json") for name, scorer in settings.scorers.items()},
    }


def _sum_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _part(progress: Progress, name: str, begin: float, span: float) -> Progress:
    """Progress of one scorer among all parts."""
    return lambda step, share: progress(f"{name}: {step}", begin + span * share)


def _tiles(n: int) -> Iterator[slice]:
    return (slice(first, min(first + _TILE, n)) for first in range(0, n, _TILE))


def _middle(known: npt.NDArray[np.bool_]) -> int:
    """Row of the first record of the second half of those that have what is asked for; 0 if none has."""
    rows = np.flatnonzero(known)
    return int(rows[len(rows) // 2]) if len(rows) else 0


def _outliers(reference: Reference, vectors: Floats) -> Floats:
    return np.concatenate([surprise_of(reference.score(vectors[tile]).p_value) for tile in _tiles(len(vectors))])


def _replayed(entities: EntityModel, hashes: Hashes, vectors: Floats) -> Floats:
    """What the entity model says of the baseline itself, in the order of time: its seeds have seen all of that."""
    seeds = Seeds(entities.seeds.hashes[:0], entities.seeds.states[:0])
    states = EntityStates(replace(entities, seeds=seeds), most=len(hashes))
    offsets = np.arange(len(hashes), dtype=np.int64)
    return np.concatenate([states.push(hashes[tile], vectors[tile], offsets[tile]) for tile in _tiles(len(hashes))])
