"""`driftd verdict --retrain-hint`: the records that a training set lacks most, of those that were kept.

What a training set lacks is what the stream has more of than the baseline: `detectors.lacking`. Candidates are the kept
records of one space of inputs whose vectors were kept: the strange ones, and the random sample, each of which stands
for many. So what is rare and not strange is found only as far as the sample reaches: outliers.sample.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.database.rows import IncidentRow, KeptRecord, ReferenceRow
from connectors.database.store import Store
from dashboards.whole_file import write_whole
from detectors.errors import InvalidInput
from detectors.lacking import name_lacking
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.amounts import percent
from monitor.causes import vectors_of
from monitor.settings import Settings
from monitor.times import text_of
from monitor.verdict_wording import STALE

MOST_KEPT = 20_000  # kept records that are read, the newest
NEW = 0.01  # records with a p-value up to this are unlike the baseline; others are of known kinds, of which more come
_ENDINGS = (".jsonl", ".csv", ".parquet")
_EVERYTHING = ""


@dataclass(frozen=True, slots=True)
class LackingRecord:
    """One record to train with.

    Attributes:
        id, topic, partition, offset, row: which one.
        time: of the event.
        reason: "new" (unlike the baseline) or "more" (a known kind, of which more come).
        group: records of one number are alike; 0 is the kind that is lacking most surely.
        stands_for: records of the stream that it stands for, about.
        fields: what was kept of it.
    """

    id: str
    topic: str
    partition: int
    offset: int
    row: int
    time: str
    reason: str
    score: float
    p_value: float
    group: int
    stands_for: float
    prediction: str | None
    confidence: float | None
    segments: dict[str, str]
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Hint:
    """What a training set lacks.

    Attributes:
        since_ms: records of this event time and later were looked at; None: all that are kept.
        candidates: kept records with vectors that were looked at; ``stream``: records that came meanwhile.
        kinds: of records that come surely more often than in the baseline.
        lacking: how many more of these there are than the baseline explains, about.
        covered: share of them that is of a kind of which a record is named.
        said: sentences for people.
    """

    model: str
    space: str
    reference: int
    since_ms: int | None
    candidates: int
    stream: int
    kinds: int
    lacking: float
    covered: float
    records: tuple[LackingRecord, ...]
    said: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """Everything but the records, for a program."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "records"}
        return found | {"named": len(self.records)}


def hint_of(settings: Settings, store: Store, model: str, *, since_ms: int | None, most: int) -> Hint:
    """Name at most ``most`` records that a training set lacks.

    Args:
        since_ms: records from this event time on; None: since the onset of the open drift, or all, if none is open.

    Raises:
        InvalidInput: the model has no reference, or no record with its vector was kept.
    """
    chosen = settings.models[model]
    space, row = _space(settings, store, model)
    reference = Reference.load(Path(row.path))
    if since_ms is None:
        since_ms = _onset_ms(store.incidents(model=model, status="open"), space)
    block_ms = round(chosen.drift.block * 1000)
    first = 0 if since_ms is None else since_ms // block_ms
    last = 2**62
    with store.begin_fold(model) as fold:
        stream = sum(
            BlockSummary.from_bytes(found.blob).n
            for found in fold.summaries(space, row.version, segment=_EVERYTHING, from_block=first, to_block=last)
        )
        kept = fold.kept(space, row.version, from_block=first, to_block=last, most=MOST_KEPT, order="time")
    records = sorted(
        (one for one in kept if one.vector is not None and one.reason in ("outlier", "sample")),
        key=lambda one: (one.time_ms, one.partition, one.offset, one.row),
    )
    if not records:
        raise InvalidInput(
            f"No record of {model}/{space} was kept with its vector"
            f"{'' if since_ms is None else f' since {text_of(since_ms)}'}.",
            hint="Look further back: --since 2026-01-31T00:00:00Z; to keep vectors: outliers.keep_vectors: true",
        )
    x, _ = vectors_of(records, reference.dimension)
    each = 1.0 / chosen.outliers.sample if chosen.outliers.sample > 0 else 1.0
    weights = np.array([1.0 if one.reason == "outlier" else each for one in records])
    exemplars = reference.search_space(reference.exemplars)
    named = name_lacking(np.ascontiguousarray(reference.search_space(x)), weights, exemplars, most, records=stream)
    found = tuple(
        _lacking(records[place], int(group), float(stands))
        for place, group, stands in zip(named.rows.tolist(), named.groups, named.stands_for, strict=True)
    )
    hint = Hint(
        model=model,
        space=space,
        reference=row.version,
        since_ms=since_ms,
        candidates=len(records),
        stream=stream,
        kinds=named.sure,
        lacking=named.lacking,
        covered=named.covered,
        records=found,
        said=(),
    )
    return _with_words(hint, sampled=chosen.outliers.sample, full=len(kept) == MOST_KEPT)


def _space(settings: Settings, store: Store, model: str) -> tuple[str, ReferenceRow]:
    """The first space of inputs that has a reference, else the first of outputs."""
    chosen = settings.models[model]
    found = [(name, row) for name in chosen.spaces if (row := store.active_reference(model, name)) is not None]
    found.sort(key=lambda entry: chosen.side_of(entry[0]) != "input")  # stable: of one side, in the settings' order
    if not found:
        raise InvalidInput(
            f"{model} has no reference yet, so nothing can be lacking.", hint="Build one: driftd reference build"
        )
    return found[0]


def _onset_ms(open_now: Sequence[IncidentRow], space: str) -> int | None:
    """When the oldest open drift of the space, or the oldest loss of right answers, began."""
    onsets = [row.onset_ms for row in open_now if row.kind == STALE or (row.kind == "drift" and row.space == space)]
    return min(onsets, default=None)


def _lacking(record: KeptRecord, group: int, stands_for: float) -> LackingRecord:
    return LackingRecord(
        id=record.id,
        topic=record.partition.topic,
        partition=record.partition.number,
        offset=record.offset,
        row=record.row,
        time=text_of(record.time_ms),
        reason="new" if record.p_value <= NEW else "more",
        score=record.score,
        p_value=record.p_value,
        group=group,
        stands_for=round(stands_for, 1),
        prediction=record.prediction,
        confidence=None if record.confidence is None or math.isnan(record.confidence) else record.confidence,
        segments=record.segments,
        fields=record.kept,
    )


def _with_words(hint: Hint, *, sampled: float, full: bool) -> Hint:
    since = "" if hint.since_ms is None else f" since {text_of(hint.since_ms)}"
    share = min(hint.lacking / max(hint.stream, 1), 1.0)
    kinds = len({record.group for record in hint.records})
    said = [
        f"Of {hint.stream:,} records of {hint.model}/{hint.space}{since}, {hint.candidates:,} are kept with their "
        "vectors.",
        f"{hint.kinds:,} kinds of records come surely more often than in reference {hint.reference}: at least "
        f"{round(hint.lacking):,} records too many ({percent(share)}). What is named is of kinds that "
        f"make up {percent(hint.covered)} of these."
        if hint.kinds
        else f"No kind of records comes surely more often than in reference {hint.reference}.",
        f"Named are {len(hint.records):,} records of {kinds:,} kinds, the surest first.",
    ]
    if not sampled:
        said.append("Only strange records are kept (outliers.sample: 0): a known kind that grew is not seen.")
    if full:
        said.append(f"Only the newest {MOST_KEPT:,} kept records were looked at: choose a later --since.")
    return Hint(**{name: getattr(hint, name) for name in Hint.__dataclass_fields__} | {"said": tuple(said)})


def write_hint(path: Path, hint: Hint) -> None:
    """Write the records as the ending of the name says. The file appears whole or not at all.

    Raises:
        InvalidInput: another ending than .jsonl, .csv and .parquet, or a file that cannot be written.
    """
    rows = [asdict(record) for record in hint.records]
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode(
            "utf-8", "replace"
        )
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(LackingRecord.__dataclass_fields__))
        table.writeheader()
        table.writerows(map(_flat, rows))
        content = text.getvalue().encode("utf-8", "replace")
    elif path.suffix == ".parquet":
        content = _parquet([_flat(row) for row in rows])
    else:
        raise InvalidInput(f"{path} ends in none of {', '.join(_ENDINGS)}.", hint="Such as: --retrain-hint lacking.csv")
    write_whole(path, content, what="The list of records")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Segments and fields as JSON texts: a table has no room for more."""
    texts = {name: json.dumps(row[name], ensure_ascii=False, default=str) for name in ("segments", "fields")}
    return {name: _without_surrogates(value) for name, value in (row | texts).items()}


def _without_surrogates(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"partition": pa.int64(), "offset": pa.int64(), "row": pa.int64(), "group": pa.int64()}
    shares = dict.fromkeys(("score", "p_value", "stands_for", "confidence"), pa.float64())
    schema = pa.schema(
        [(name, (numbers | shares).get(name, pa.string())) for name in LackingRecord.__dataclass_fields__]
    )
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), written)
    return written.getvalue()
