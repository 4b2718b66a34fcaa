"""Pieces of history that are scored by themselves: what a worker of another process, or machine, does of a backfill.

A piece is some offsets of one partition. What comes of its records depends on nothing but the references and where the
partition stood before it: its newest event time and, where records are thinned by key or paired, what earlier records
left behind. So a piece is told where the partition stood, or finds out what it must assume, and says so: whoever puts
the pieces together has a piece that assumed wrong scored again (`monitor.distributed`).

A worker writes nothing, and needs no database. It reads the source and the references itself.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import SecretStr

from connectors.database.rows import (
    Checkpoint,
    EntityRow,
    FloodRow,
    HalfRow,
    LabelRow,
    LabelSpan,
    PartitionState,
    ReferenceRow,
    ThinnedKeys,
)
from connectors.records import Cuttable, DeadLetter, Partition, RawBatch, Span
from detectors.errors import ClusterError, DriftdError, InvalidReference, InvalidSettings, RetryableError, SourceError
from monitor.app import build_history
from monitor.decode import Decoder
from monitor.history import HistoryLabels, history_pipeline
from monitor.pipeline import Pipeline
from monitor.settings import Settings, as_given

_POLL_S: Final = 5.0
_POLL_RECORDS: Final = 1_024  # more at a time take longer each: their vectors do not fit the processor's cache
# What rounds a score: with other versions the last bit of it may be another one.
_NUMERIC: Final = ("driftd", "numpy", "faiss-cpu", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Work:
    """What all pieces of a backfill have in common.

    Attributes:
        number: names it; a process that has scored another piece of it has everything at hand.
        settings: of the model, without secrets.
        secrets: paths of the secrets, from the top of the settings, which each worker takes from its environment.
        references: with absolute paths, and
        folder: the folder that they lie in; a worker whose DRIFTD_REFERENCES is set looks there instead.
        labels: version of the labels.
        poll_records: most records of one poll.
        checkpoint_records: a checkpoint ends after so many.
        piece_records: about so many records make a piece. One that holds twice as many, or
        most_s: takes longer, is answered in part.
        made_with: versions of what computes; see `made_with`.
    """

    number: str
    model: str
    settings: Mapping[str, Any]
    secrets: tuple[tuple[str, ...], ...]
    references: tuple[ReferenceRow, ...]
    folder: str
    labels: int
    poll_records: int
    checkpoint_records: int
    piece_records: int
    most_s: float
    made_with: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """Offsets first <= offset < after of one partition, and where the partition stands before them.

    Attributes:
        state: where it stands; None: nothing of it counts yet. Not looked at where ``assumes``.
        assumes: the newest time before the piece is not known: it is taken from the ``warm_up`` offsets before it, from
            ``begin`` on, and from
        at_least_ms: what is known of it.
        keys, halves: what the records before left behind, where they are thinned by key or paired.
        formats: that topics are pinned to.
        cuts: offsets at which a checkpoint ends, ascending.
    """

    partition: Partition
    first: int
    after: int
    topic_id: str | None
    state: PartitionState | None = None
    assumes: bool = False
    warm_up: int = 0
    begin: int = 0
    at_least_ms: int = -1
    keys: tuple[ThinnedKeys, ...] = ()
    halves: tuple[HalfRow, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    cuts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For logs and errors."""
        return f"{self.partition.topic}/{self.partition.number} from offset {self.first} to {self.after}"


@dataclass(frozen=True, slots=True)
class Taken:
    """The records of one checkpoint, as `monitor.dead_letters.DeadLetterLimit` asks of them.

    Attributes:
        spoiled: those that cannot be used; their offset is their place among all of these records, from 0.
    """

    records: int
    spoiled: list[DeadLetter]


@dataclass(frozen=True, slots=True)
class ScoredPiece:
    """What came of a piece.

    Attributes:
        checkpoints: in their order, each with
        taken: its records.
        started_ms: the newest time that the partition was taken to have before the piece.
        newest_ms: and after it.
        next_offset: how far it got: below the end of the piece where it holds too much for one answer.
        format: of the topic, where it was not pinned, and was detected on the way.
        seconds: that it took, cpu_s: of processor time.
    """

    checkpoints: list[Checkpoint]
    taken: list[Taken]
    started_ms: int
    newest_ms: int
    next_offset: int
    records: int
    format: str | None
    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class FailedPiece:
    """A piece that could not be scored, and who could not."""

    worker: str
    error: DriftdError

    @property
    def retryable(self) -> bool:
        """The same piece may be scored later."""
        return isinstance(self.error, RetryableError) and self.error.retryable

    @property
    def said(self) -> str:
        """What is wrong, in a line."""
        return f"Worker {self.worker}: {self.error.message}"


def made_with() -> dict[str, str]:
    """Versions of everything that has a say in the last bit of a score."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "processor": platform.machine(),
        **{name: version(name) for name in _NUMERIC},
    }


def public(settings: Settings, model: str) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The settings of a model without its secrets, and the secrets, by their paths from the top."""
    secrets: dict[tuple[str, ...], str] = {}

    def without(value: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {}
        for key, inner in value.items():
            if isinstance(inner, SecretStr):
                secrets[*path, str(key)] = inner.get_secret_value()
            else:
                kept[key] = without(inner, (*path, str(key)))
        return kept

    content = {"models": {model: settings.models[model].model_dump(exclude_unset=True)}}
    return without(content, ()), secrets


def variable(path: Sequence[str]) -> str:
    """The environment variable of a key of the settings."""
    return "DRIFTD_" + "__".join(path).upper()


def score_piece(work: Work, piece: Piece) -> ScoredPiece | FailedPiece:
    """Score a piece. The same piece gives the same answer in every process; nothing else changes."""
    # One piece at a time in a process: the pipeline is one thread's, and a second one would need its memory again.
    with _LOCK:
        try:
            return _scorer(work, piece.formats).score(piece)
        except DriftdError as error:
            return _failed(error)


def get_ready(work: Work) -> FailedPiece | None:
    """Load what pieces need, before the first. Returns why that cannot be done."""
    with _LOCK:
        try:
            _scorer(work, {})
        except DriftdError as error:
            return _failed(error)
    return None


def _failed(error: DriftdError) -> FailedPiece:
    return FailedPiece(f"{socket.gethostname()}, process {os.getpid()}", error)


_LOCK: Final = threading.Lock()
_SCORERS: Final[dict[str, _Scorer]] = {}  # one: that of the work of the last piece


def _scorer(work: Work, formats: Mapping[str, str]) -> _Scorer:
    scorer = _SCORERS.get(work.number)
    if scorer is None or not scorer.agrees(formats):
        _SCORERS.clear()
        scorer = _SCORERS[work.number] = _Scorer(work)
    return scorer


class _Start:
    """Where a partition stands before a piece: what a worker with a database would read there."""

    def __init__(self) -> None:
        self.piece: Piece | None = None
        self.state: PartitionState | None = None
        self.formats: dict[str, str] = {}

    def begin(self, piece: Piece) -> None:
        self.piece, self.state = piece, piece.state
        self.formats |= piece.formats

    def pin_format(self, model: str, topic: str, found: str, now_ms: int) -> str:
        return self.formats.setdefault(topic, found)

    def partition_states(self, model: str, partition: Partition | None = None) -> list[PartitionState]:
        return [] if self.state is None else [self.state]

    def thinned_keys(self, model: str, partition: Partition) -> list[ThinnedKeys]:
        return [] if self.piece is None else list(self.piece.keys)

    def halves(self, model: str, partition: Partition) -> list[HalfRow]:
        return [] if self.piece is None else list(self.piece.halves)

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        return []

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        return []

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        return []

    def label_version(self, model: str) -> int:
        return 0

    def labels(self, model: str, *, after: int = 0, upto: int | None = None) -> list[LabelRow]:
        return []


class _Scorer:
    """Scores pieces of one backfill, one after the other.

    Raises:
        ClusterError: this process computes with other versions.
        InvalidSettings: a secret is missing in its environment.
        InvalidReference: a reference is not here, damaged, or another one.
    """

    def __init__(self, work: Work) -> None:
        here = made_with()
        if other := [
            f"{name} {here[name]}, not {there}" for name, there in work.made_with.items() if here[name] != there
        ]:
            raise ClusterError(
                f"It has other versions than the machine that started the backfill: {'; '.join(other)}.",
                hint="Its scores could differ in the last bit. Run both from the same image, or the same lock file.",
            )
        settings = _settings_of(work)
        model = settings.models[work.model]
        self._work = work
        self._start = _Start()
        self._source = build_history(work.model, model)
        rows = [_found_here(row, Path(work.folder)) for row in work.references]
        labels = HistoryLabels(work.labels, self._start)
        self._pipeline = history_pipeline(work.model, settings, rows, store=self._start, labels=labels)
        loaded = {space.name: space.reference.checksum for space in self._pipeline.spaces}
        for row in rows:
            if row.space in loaded and loaded[row.space] != row.checksum:
                raise InvalidReference(
                    f"{row.path} is not version {row.version} of {row.model}/{row.space}: its content differs.",
                    hint="Copy the references anew, or mount the folder that the daemon writes them to.",
                )
        # Only times are taken from the records before a piece.
        self._times = Decoder(
            model.watched_record.model_copy(update={"pair": None, "keep": {}}),
            fields=model.extra_fields,
            payload_bytes=0,
            pin=lambda topic, found, now_ms: self._start.pin_format("", topic, found, now_ms),
        )

    def agrees(self, formats: Mapping[str, str]) -> bool:
        """Whether topics are pinned to what they were taken for here."""
        mine = self._start.formats
        return all(mine.get(topic, found) == found for topic, found in formats.items())

    def score(self, piece: Piece) -> ScoredPiece:
        """See `score_piece`."""
        began, began_cpu = time.monotonic(), time.process_time()
        self._pipeline.discard()
        self._start.begin(piece)
        begin = piece.first
        if piece.assumes:
            begin = max(piece.begin, piece.first - piece.warm_up)
            if isinstance(self._source, Cuttable):
                begin = min(self._source.next_start(piece.partition, begin), piece.first)
        reading = self._source.between({piece.partition: Span(begin, piece.after, piece.topic_id)})
        scored = _Answer(self._pipeline, self._work, piece)
        newest_ms = piece.at_least_ms
        stored = {} if piece.state is None and not piece.assumes else {piece.partition: begin}
        try:
            reading.open(lambda partitions: stored)
            before = piece.assumes
            while not reading.finished and not scored.full:
                if scored.begun and time.monotonic() - began >= self._work.most_s:
                    break
                for batch in reading.poll(min(self._work.poll_records, _POLL_RECORDS), _POLL_S):
                    rest: RawBatch | None = batch
                    if before:
                        warm, rest = _cut(batch, piece.first)
                        newest_ms = max(newest_ms, self._newest_ms(warm))
                        if rest is None:
                            continue
                        before = False
                        self._start.state = PartitionState(piece.partition, piece.first, newest_ms, 0, 0, 0)
                    if rest is not None and not scored.full:
                        scored.take(rest)
            scored.end()
        finally:
            reading.close()
            self._pipeline.discard()
        if not scored.checkpoints or not scored.checkpoints[-1].advances:
            raise SourceError(f"The source gave nothing of {piece.name}.", hint="Look at the source: driftd check")
        last = scored.checkpoints[-1].advances[-1]
        state, topic = self._start.state, piece.partition.topic
        return ScoredPiece(
            scored.checkpoints,
            scored.taken,
            started_ms=-1 if state is None else state.max_time_ms,
            newest_ms=last.max_time_ms,
            next_offset=last.next_offset,
            records=sum(advance.records for one in scored.checkpoints for advance in one.advances),
            format=None if topic in piece.formats else self._start.formats.get(topic),
            seconds=time.monotonic() - began,
            cpu_s=time.process_time() - began_cpu,
        )

    def _newest_ms(self, batch: RawBatch) -> int:
        """The newest time that a partition has after these records, if all of them can be embedded; -1 if none can."""
        newest_ms, rest = -1, batch
        while len(rest):
            events = self._times.decode(rest, None)
            if len(events):
                known = events.broker_ms >= 0
                times = np.where(known, np.minimum(events.time_ms, events.broker_ms), events.time_ms)
                newest_ms = max(newest_ms, int(times.max()))
            rest = rest.rows(int(np.searchsorted(rest.offsets, events.next_offset)), len(rest))
        return newest_ms


class _Answer:
    """Takes the records of a piece in, and cuts them into checkpoints as `monitor.history.HistoryWorker` does."""

    def __init__(self, pipeline: Pipeline, work: Work, piece: Piece) -> None:
        self.checkpoints: list[Checkpoint] = []
        self.taken: list[Taken] = []
        self.full = False  # what follows is another answer
        self._pipeline = pipeline
        self._most, self._most_in_all = work.checkpoint_records, 2 * work.piece_records
        self._cuts = list(piece.cuts)
        self._records = 0
        self._spoiled: list[DeadLetter] = []
        self._pending = False
        self._all = 0

    def take(self, batch: RawBatch) -> None:
        rest: RawBatch | None = batch
        while rest is not None and not self.full:
            ends = bool(self._cuts) and rest.next_offset > self._cuts[0]
            piece, left = _cut(rest, self._cuts.pop(0)) if ends else (rest, None)
            self._take_piece(piece)
            rest = left
            if ends or self._pipeline.records >= self._most:
                self._write()
        self.full = self.full or self._all >= self._most_in_all

    @property
    def begun(self) -> bool:
        """There is something to answer."""
        return self._pending or bool(self.checkpoints)

    def end(self) -> None:
        if self._pending:
            self._write()

    def _take_piece(self, piece: RawBatch) -> None:
        before = len(self._pipeline.pending_spoiled)
        left = self._pipeline.process(piece, None, until_full=True)
        taken = piece.offsets[: len(piece) - (0 if left is None else len(left))]
        for letter in self._pipeline.pending_spoiled[before:]:
            place = self._records + int(np.searchsorted(taken, letter.offset))
            self._spoiled.append(replace(letter, offset=place, payload=b""))
        self._records += len(taken)
        self._all += len(taken)
        self._pending = True
        self.full = left is not None or self._pipeline.full

    def _write(self) -> None:
        self.checkpoints.append(self._pipeline.checkpoint())
        self.taken.append(Taken(self._records, self._spoiled))
        self._pipeline.written()
        self._records, self._spoiled, self._pending = 0, [], False


def _cut(batch: RawBatch, offset: int) -> tuple[RawBatch, RawBatch | None]:
    """A batch up to an offset, and from there on; None where it ends before."""
    if batch.next_offset <= offset:
        return batch, None
    row = int(np.searchsorted(batch.offsets, offset))
    return batch.below(offset), batch.rows(row, len(batch))


def _settings_of(work: Work) -> Settings:
    """The settings that were sent, with the secrets of this machine."""
    content: dict[str, Any] = {"models": {work.model: dict(work.settings["models"][work.model])}}
    here = {name.upper(): value for name, value in os.environ.items()}
    if missing := [variable(path) for path in work.secrets if variable(path) not in here]:
        raise InvalidSettings(
            f"{', '.join(missing)} is not set in its environment: secrets are not sent to workers.",
            hint="Give the workers the same secrets as the daemon.",
        )
    for path in work.secrets:
        place = content
        for name in path[:-1]:
            place[name] = place = dict(place.get(name, {}))
        place[path[-1]] = here[variable(path)]
    return as_given(content, named="settings of the backfill")


def _found_here(row: ReferenceRow, folder: Path) -> ReferenceRow:
    """The reference where this machine has it.

    Raises:
        InvalidReference: it has not.
    """
    path = Path(row.path)
    own = os.environ.get("DRIFTD_REFERENCES")
    if own is not None and path.is_relative_to(folder):
        path = Path(own) / path.relative_to(folder)
    if not path.is_dir():
        raise InvalidReference(
            f"Reference {row.model}/{row.space} version {row.version} is not here: {path}.",
            hint="Workers read references themselves: mount the folder there, or set DRIFTD_REFERENCES to where it is.",
        )
    return replace(row, path=str(path))
