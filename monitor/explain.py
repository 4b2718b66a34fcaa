"""`driftd explain`: everything that the database still knows of one incident: its cause, and the classic tests.

The cause is computed anew, over all blocks up to now or to its end. The classic tests compare the random sample that
was kept since the onset with the reference's exemplars, and with the sample kept before the onset where there is
enough of it. They explain; what alarms is the drift rule alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.database.rows import IncidentRow, KeptRecord
from connectors.database.store import Store
from detectors import two_sample
from detectors.conformal import position_uniforms
from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import Reference
from detectors.summary import BlockSummary, score_bins
from detectors.two_sample import MIN_SAMPLE, PSI_BINS, TestResult
from monitor import fraud_wording
from monitor.ageing import age_rules
from monitor.amounts import percent
from monitor.causes import ClosedBlocks, bounds_of, cause_of, in_segment, last_seen, vectors_of
from monitor.folding import alarmed_segments
from monitor.fraud_explain import tables_of_groups
from monitor.settings import Settings
from monitor.times import text_of

MOST_KEPT = 20_000  # kept records that are read, the newest
MOST_EXEMPLARS = 2_000
SEED = 0  # of permutations: the same incident is explained in the same words each time
UNLIKELY = 0.01

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


@dataclass(frozen=True, slots=True)
class Watched:
    """A space as an incident of the past saw it."""

    name: str
    version: int
    reference: Reference
    segments: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One classic test. ``against``: "reference" (exemplars, calibration scores) or "before" (the sample kept then)."""

    against: str
    result: TestResult
    words: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of an incident.

    Attributes:
        incident: as it is stored.
        cause: computed anew; the stored one where its blocks are gone; None where there is none.
        tests: the classic tests.
        notes: what could not be said, and why.
    """

    incident: IncidentRow
    cause: Mapping[str, Any] | None
    tests: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def data(self) -> dict[str, object]:
        """Everything, for a program."""
        tests = [{"against": test.against, **asdict(test.result), "words": test.words} for test in self.tests]
        return {"incident": asdict(self.incident), "cause": self.cause, "tests": tests, "notes": list(self.notes)}


def find_incident(store: Store, prefix: str) -> IncidentRow:
    """The incident whose id begins so.

    Raises:
        InvalidInput: none does, or several do.
    """
    rows = [row for row in store.incidents() if row.id.startswith(prefix)]
    if not rows:
        raise InvalidInput(f"There is no incident {prefix}.", hint="List them: driftd incidents")
    if len(rows) > 1:
        names = ", ".join(row.id for row in rows[:5])
        raise InvalidInput(f"{len(rows)} incidents begin with {prefix}: {names}.", hint="Type more of the id.")
    return rows[0]


def explain(settings: Settings, store: Store, prefix: str) -> Explanation:
    """Explain one incident.

    Args:
        prefix: its id, or the beginning of it.

    Raises:
        InvalidInput: no such incident, or its model is not in the settings.
        InvalidReference: the reference that it names cannot be read.
    """
    row = find_incident(store, prefix)
    if row.kind in fraud_wording.KINDS:
        hits = row.detail.get("cause")
        gone = () if hits else ("No record of it is kept any more (retention).",)
        return Explanation(row, hits if isinstance(hits, Mapping) else None, (), gone)
    if not row.space:
        note = f"An incident of kind {row.kind} is about records that could not be scored. See them: driftd doctor"
        if row.kind != "dead_letters":
            note = f"An incident of kind {row.kind} is about the watching itself; its text says all that is known."
        return Explanation(row, None, (), (note,))
    model = settings.models.get(row.model)
    if model is None:
        raise InvalidInput(
            f"Incident {row.id} is of model {row.model}, which the settings do not have.",
            hint="Name the settings file that it ran with: --settings FILE",
        )
    space = _watched(store, row)
    block_ms = round(model.drift.block * 1000)
    with store.begin_fold(row.model) as fold:
        blocks = ClosedBlocks(fold, rules=age_rules(settings, row.model), next_block=fold.next_block or 0)
        segments = alarmed_segments(space.reference, model)
        fresh = cause_of(row, space, blocks, segments=segments, block_ms=block_ms)
        stored = row.detail.get("cause")
        cause: Any = fresh if fresh is not None else stored
        notes = [] if fresh is not None else ["The blocks since the onset are deleted by now (retention)."]
        onset, end = bounds_of(row, blocks, block_ms=block_ms)
        if (onset, end) != (row.onset_ms // block_ms, last_seen(row) // block_ms):
            # What was stored when it was told is of the blocks themselves.
            cause = fresh if stored is None else stored
            notes.append(
                f"Summaries of that time are added up by now (retention.merge_summaries): the comparison of scores is "
                f"of {text_of(onset * block_ms)} to {text_of(end * block_ms)}."
            )
        sample, earlier = (
            _sample(blocks, space, row.segment, bounds, share=model.outliers.sample)
            for bounds in ((onset, end), (0, onset))
        )
        histogram = _scores(blocks, space, row.segment, (onset, end))
    tests: list[Comparison] = []
    if histogram is not None:
        tests.append(_score_psi(space.reference, histogram))
    # Rounded as the kept vectors are, so that no test finds the rounding.
    step = -(-len(space.reference.exemplars) // MOST_EXEMPLARS) or 1
    exemplars = space.reference.exemplars[::step].astype(np.float16).astype(np.float32)
    tests += _classic("reference", exemplars, sample, notes, "exemplars in the reference")
    if row.segment and len(sample) >= MIN_SAMPLE:
        notes.append("The reference's exemplars are of all segments: what always was special here differs as well.")
    tests += _classic("before", earlier[-MOST_EXEMPLARS:], sample, notes, "records kept before the onset")
    return Explanation(row, cause, tuple(tests), tuple(dict.fromkeys(notes)))


def _watched(store: Store, row: IncidentRow) -> Watched:
    version = next((one for one in store.references(row.model, row.space) if one.version == row.reference), None)
    if version is None:
        raise InvalidReference(
            f"Incident {row.id} names reference {row.reference} of {row.model}/{row.space}, which is not there.",
            hint="Type: driftd reference list",
        )
    reference = Reference.load(Path(version.path))
    return Watched(row.space, row.reference, reference, reference.segments)


def _sample(
    blocks: ClosedBlocks, space: Watched, segment: str, bounds: tuple[int, int], *, share: float
) -> npt.NDArray[np.float32]:
    """Vectors of the random sample kept from blocks of a segment, in the order of time: float32 (m, d).

    Candidates were kept for another reason; those of them that the sample would have taken are part of it.
    """
    kept = blocks.fold.kept(
        space.name, space.version, from_block=bounds[0], to_block=bounds[1], most=MOST_KEPT, order="time"
    )
    records = [record for record in reversed(kept) if in_segment(record, segment, space)]
    chosen = [record for record, drawn in zip(records, _draws(records), strict=True) if drawn < share]
    return vectors_of(chosen, space.reference.dimension)[0]


def _draws(records: Sequence[KeptRecord]) -> npt.NDArray[np.float64]:
    """The uniform numbers that decided whether each record was sampled."""
    draws = np.ones(len(records))
    for partition in {record.partition for record in records}:
        at = [i for i, record in enumerate(records) if record.partition == partition]
        offsets = np.array([records[i].offset for i in at], dtype=np.int64)
        rows = np.array([records[i].row for i in at], dtype=np.int64)
        draws[at] = position_uniforms(partition.topic, partition.number, offsets, rows=rows, purpose="sample")
    return draws


def _scores(
    blocks: ClosedBlocks, space: Watched, segment: str, bounds: tuple[int, int]
) -> npt.NDArray[np.int64] | None:
    """The histogram of the scores of all records of a segment since the onset; None where there is none."""
    total: npt.NDArray[np.int64] | None = None
    rows = blocks.fold.summaries(space.name, space.version, segment=segment, from_block=bounds[0], to_block=bounds[1])
    for row in rows:
        scores = BlockSummary.from_bytes(row.blob).scores
        if scores is not None:
            total = scores if total is None else total + scores
    return total


def _score_psi(reference: Reference, histogram: npt.NDArray[np.int64]) -> Comparison:
    known = np.bincount(score_bins(reference.calibration_scores, reference.score_scale), minlength=len(histogram))
    # Deciles of the calibration scores; neighbouring bins of the stored histogram are added up.
    tenth = np.minimum(PSI_BINS * (np.cumsum(known) - known) // max(int(known.sum()), 1), PSI_BINS - 1)
    parts = [np.bincount(tenth, weights=counts, minlength=PSI_BINS) for counts in (known, histogram)]
    result = two_sample.histogram_psi(*parts)
    return Comparison("reference", result, words_of(result))


def _classic(
    against: str,
    older: npt.NDArray[np.float32],
    newer: npt.NDArray[np.float32],
    notes: list[str],
    name: str,
) -> list[Comparison]:
    if len(newer) < MIN_SAMPLE:
        notes.append(
            f"Only {len(newer)} records of the random sample since the onset hold their vectors; the tests on vectors "
            f"need {MIN_SAMPLE}. To keep more from now on: outliers.sample (and outliers.keep_vectors: true)"
        )
        return []
    if len(older) < MIN_SAMPLE:
        notes.append(f"There are only {len(older)} {name}; a comparison needs {MIN_SAMPLE}.")
        return []
    results = (
        two_sample.mmd(older, newer, seed=SEED),
        two_sample.domain_classifier(older, newer, seed=SEED),
        two_sample.frechet(older, newer, seed=SEED),
        two_sample.component_ks(older, newer),
        two_sample.component_psi(older, newer),
    )
    return [Comparison(against, result, words_of(result)) for result in results]


def words_of(result: TestResult) -> str:
    """What a test means, in one line."""
    sure = result.p_value <= UNLIKELY
    if result.name == "domain_classifier":
        found = (
            f"of a new and an old record, a classifier finds the new one in {percent(result.statistic)} of the pairs"
        )
        return found if sure else f"{found}: no better than chance would do now and then"
    if result.name in ("psi", "score_psi"):
        size = "stable" if result.statistic < 0.1 else "a moderate change" if result.statistic < 0.25 else "a change"
        where = "the scores" if result.name == "score_psi" else f"component {result.component}"
        return f"{where}: {size} by custom (limits 0.1 and 0.25), {'and beyond' if sure else 'and within'} chance"
    if result.name == "ks":
        return f"{result.changed} principal components differ; component {result.component} most"
    what = "mean or spread of the records" if result.name == "frechet" else "the distribution of the records"
    return f"{what} {'has changed' if sure else 'could be the same'}"


_NAMES = {
    "mmd": "MMD (squared)",
    "domain_classifier": "classifier AUC",
    "frechet": "Fréchet (squared)",
    "ks": "KS by component",
    "psi": "PSI by component",
    "score_psi": "PSI of the scores",
}


def tables_of(explanation: Explanation) -> list[Table]:
    """The cause and the tests as tables for a terminal."""
    cause, tables = explanation.cause, []
    if cause is not None and explanation.incident.kind in fraud_wording.KINDS:
        return tables_of_groups(cause)
    if cause is not None:
        tables += _cause_tables(cause)
    if explanation.tests:
        rows = [
            [
                _NAMES[test.result.name],
                test.against,
                f"{test.result.n:,}",
                f"{test.result.m:,}",
                _statistic(test.result),
                f"{test.result.p_value:.2g}",
                test.words,
            ]
            for test in explanation.tests
        ]
        columns = ["test", "against", "n", "n now", "statistic", "p", "in words"]
        tables.append(("Classic tests (they trust records to be independent, and alarm nobody)", columns, rows))
    return tables


def _cause_tables(cause: Mapping[str, Any]) -> list[Table]:
    span = f"{text_of(cause['from_ms'])} to {text_of(cause['to_ms'])}, {cause['records']:,} records"
    tables: list[Table] = []
    if cause["segments"]:
        rows = [
            [
                row["segment"],
                _part(row["part"]),
                _part(row["own"]),
                _part(row["moved"]),
                percent(row["share"]),
                percent(row["before"]),
            ]
            for row in cause["segments"]
        ]
        columns = ["segment", "of the change", "by itself", "by its share", "share now", "before"]
        tables.append((f"Where the change comes from ({span})", columns, rows))
    if cause["prototypes"]:
        rows = [
            [
                str(row["prototype"]),
                percent(row["expected"]),
                percent(row["share"]),
                f"{row['z']:+.1f}",
                _like(row["exemplar"]),
                ", ".join(row["records"]) or "-",
            ]
            for row in cause["prototypes"]
        ]
        old = "in the reference" if cause["against"] == "reference" else "before"
        columns = ["prototype", old, "now", "z", "looks like", "kept records in it"]
        title = f"What there is more and less of ({cause['changed']} prototypes changed; the clearest)"
        tables.append((title, columns, rows))
    level = cause["level"]
    rows = [
        [word, str(row["prototype"]), _like(row["exemplar"])]
        for word, side in (("towards", level["towards"]), ("away from", level["away"]))
        for row in side
    ]
    if rows and level["sigmas"] > 0:
        title = f"Where the mean moved ({level['sigmas']:.2f} standard deviations)"
        tables.append((title, ["direction", "prototype", "looks like"], rows))
    if cause["strangest"]:
        rows = [
            [
                row["id"],
                text_of(row["time_ms"]),
                f"{row['score']:.3f}",
                f"{row['p_value']:.2g}",
                "-" if row["prototype"] is None else str(row["prototype"]),
                "yes" if row["in_gained"] else "",
            ]
            for row in cause["strangest"]
        ]
        columns = ["record", "time", "score", "p", "prototype", "one that grew"]
        tables.append(("The strangest records since then", columns, rows))
    return tables


def _statistic(result: TestResult) -> str:
    text = f"{result.statistic:.3g}"
    return text if result.low is None or result.high is None else f"{text} ({result.low:.2f} to {result.high:.2f})"


def _part(share: float) -> str:
    return f"{100.0 * share:.0f} %"


def _like(exemplar: Mapping[str, Any] | None) -> str:
    if exemplar is None:
        return "-"
    name = exemplar["id"] or f"exemplar {exemplar['index']}"
    return f"{name} {exemplar['excerpt']}"[:80].strip()
