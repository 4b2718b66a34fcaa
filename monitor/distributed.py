"""Scores history with many processes: `driftd backfill --dask`.

    spans ──► Piece ──► score_piece, by workers, several at a time ──► ScoredPiece ──► checked, in order ──► checkpoints
                 ▲                                                           │
                 └──── again, told where the partition stood ◄── assumed ────┘ wrong

Here pieces are cut, handed out in the order of time, and written in the order of each partition, by the transactions of
one process: what is in the database at any moment could have been written by it. The fold is the same one sequence.

A piece in the middle of a partition assumes the newest time before it from the records before it. When the pieces
before it are written that time is known, and a piece that assumed another one is scored again with the known one. Where
more than a time is left behind by earlier records (thinning by key, pairs), a piece waits for the one before it, and
partitions go on beside each other.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from connectors.database.rows import Checkpoint, PartitionState
from connectors.database.store import Store
from connectors.records import Cuttable, Partition, Source, Span
from detectors.errors import (
    ClusterError,
    InvalidInput,
    RetryableError,
    SourceError,
    StoreBusy,
    StoreError,
    StoreFull,
)
from monitor.ageing import HistoryAgeing
from monitor.backfill import Job, sinks_of_history, store_of
from monitor.cluster import Cluster, Done, Task, cluster_of
from monitor.dead_letters import WAVE_HINT, DeadLetterLimit
from monitor.folding import Folder
from monitor.history import FOLD_S, POLL_S, Found, history_pipeline
from monitor.pieces import (
    FailedPiece,
    Piece,
    ScoredPiece,
    Work,
    get_ready,
    made_with,
    public,
    score_piece,
    variable,
)
from monitor.settings import Settings
from monitor.worker import DeadLetterWave

PIECE_RECORDS: Final = 50_000  # of a piece: as many as a checkpoint of a live worker holds
PIECE_S: Final = 10.0  # a piece is not to take longer: so much is done again when a worker dies
FIRST_OFFSETS: Final = 4_096  # of the first piece of a partition, before it is known what a record takes
WARM_UP: Final = 24  # a piece takes its newest time from so much of a piece before it; from more after a wrong one
SMALLEST: Final = 10  # the last pieces are not smaller than this part of the others
READY_S: Final = 300.0
PER_WORKER: Final = 2  # pieces that are scored or wait for a worker, so that none is idle
MOST_WAITING: Final = 2  # times as many pieces may be done and wait for one before them
KILLED: Final = 3  # a piece that Dask has given up so often, because workers died of it, ends the backfill


@dataclass(slots=True, eq=False)
class _Handed:
    """A piece that was handed out.

    Attributes:
        task: None while it is to be handed out again.
        scored: what came of it.
        failed: why it is to be handed out again, and
        given_up: how often the cluster could not get an answer.
    """

    piece: Piece
    task: Task[Any] | None = None
    scored: ScoredPiece | None = None
    failed: str = ""
    given_up: int = 0


@dataclass(slots=True)
class _Line:
    """One partition.

    Attributes:
        state: where it stands in the database; None where it has no row.
        handed_to: offsets before it were handed out.
        first_ms: event time of the first record, -1 where it is not known.
        handed: pieces that are not written yet, in their order.
        seen: offset, records and newest time of the first and of the last answer.
        offsets_per_record: as far as known; 0 before the first answer.
        warm_up: share of a piece.
    """

    partition: Partition
    span: Span
    state: PartitionState | None
    handed_to: int
    first_ms: int
    handed: deque[_Handed] = field(default_factory=deque)
    seen: tuple[tuple[int, int], tuple[int, int]] | None = None
    offsets_per_record: float = 0.0
    warm_up: float = 1 / WARM_UP

    @property
    def written_to(self) -> int:
        return self.span.first if self.state is None else self.state.next_offset

    @property
    def handed_out(self) -> bool:
        return self.handed_to >= self.span.after

    @property
    def reached_ms(self) -> float:
        """The newest time of what was handed out, as the answers so far suggest."""
        if self.seen is None:
            return self.first_ms
        (first, first_ms), (last, last_ms) = self.seen
        pace = (last_ms - first_ms) / (last - first) if last > first else 0.0
        return last_ms + pace * (self.handed_to - last)

    def answered(self, scored: ScoredPiece, first: int) -> None:
        """Take note of what an answer tells of the partition, whether or not it is right."""
        if scored.records:
            self.offsets_per_record = max((scored.next_offset - first) / scored.records, 1e-9)
        if scored.newest_ms >= 0:
            at = (scored.next_offset, scored.newest_ms)
            before = self.seen
            self.seen = (at, at) if before is None else (before[0], max(before[1], at))


class DistributedRunner:
    """A `monitor.backfill.Runner` whose records are scored elsewhere.

    Args:
        job: what to score.
        store: the job's, or a lane in it.
        source: where pieces may be cut; nothing is read from it but that.
        cluster: its workers score.
        work: what they are told.

    Attributes:
        found: what came of it so far.
        failure: what failed and is tried again, in words; "" while nothing does.
        pieces: how many were written, and
        again: how many were scored once more, because they had assumed another time.
        worker_cpu_s: processor time of the pieces that were written.
    """

    def __init__(
        self, job: Job, settings: Settings, *, store: Store, source: Source, cluster: Cluster, work: Work
    ) -> None:
        self.found = Found()
        self.failure = ""
        self.pieces = self.again = 0
        self.worker_cpu_s = 0.0
        self._name = job.row.model
        self._model = settings.models[self._name]
        self._history = job.range
        self._store = store
        self._source = source
        self._cluster = cluster
        self._work = work
        self._pipeline = history_pipeline(self._name, settings, job.references, store=store, labels=job.labels)
        self._folder = Folder(
            self._name,
            settings,
            spaces=self._pipeline.spaces,
            sinks=sinks_of_history(settings),
            history=job.range,
            answers=job.labels.answers,
        )
        self._in_turn = self._model.thins_by_key or self._model.record.pair is not None
        self._detects = self._model.record.format == "auto"
        self._ends = job.range.read_to_ms is None and self._model.record.pair is not None
        self._limit = DeadLetterLimit(self._model.dead_letters)
        self._lines: dict[Partition, _Line] = {}
        self._by_task: dict[Task[Any], tuple[_Line, _Handed]] = {}
        self._formats: dict[str, str] = {}
        self._record_s = 0.0  # of a worker
        self._next_fold = float("-inf")
        self._ageing = HistoryAgeing(store, settings, self._name)
        self._halves_went = False
        self._settled = True  # what is stored is known here

    def start(self) -> None:
        """Look where the partitions stand, and whether the source still has the spans.

        Raises:
            SourceError: it has not, or cannot be read from here.
        """
        reading = self._source.between(self._history.spans)
        try:
            reading.open(
                partial(self._store.positions, self._name), topic_ids=partial(self._store.topic_ids, self._name)
            )
        finally:
            reading.close()
        self._begin()

    @property
    def finished(self) -> bool:
        """Everything was read, and is written."""
        return self._all_written and (self._halves_went or not self._ends) and not self.failure

    @property
    def _all_written(self) -> bool:
        return bool(self._lines) and all(line.written_to >= line.span.after for line in self._lines.values())

    def left(self) -> int:
        """What is not written yet, in offsets."""
        return sum(max(0, line.span.after - line.written_to) for line in self._lines.values())

    def step(self, now_ms: int, clock_s: float, *, wait_s: float = POLL_S) -> int:
        """Hand out pieces, write what came back, and fold when that is due. Returns how many records were counted.

        Raises:
            OwnershipLost: another process reads on from here.
            DeadLetterWave: too many records cannot be used.
            ClusterError: the workers cannot score.
            SourceError, StoreError: of the kinds that cannot be waited out.
        """
        before = self.found.records
        refused = ""
        try:
            if not self._settled:
                self._start_over()
            self._hand_out()
            for done in self._cluster.over(0.0 if self._all_written else wait_s):
                self._take(done)
            self._write_ready()
            self._hand_out()
            if self._all_written and self._ends and not self._halves_went:
                self._end_pairs()
            if clock_s >= self._next_fold:
                partitions = frozenset(self._history.spans)
                self.found.add_fold(self._folder.step(self._store, now_ms, clock_s, partitions=partitions))
                self._next_fold = clock_s + FOLD_S
                self._ageing.step(clock_s)
        except (SourceError, StoreError) as error:
            if not error.retryable:
                raise
            refused = str(error)
        self.failure = refused or self._failed
        return self.found.records - before

    @property
    def _failed(self) -> str:
        failed = [handed.failed for line in self._lines.values() for handed in line.handed if handed.failed]
        if failed:
            return failed[0]
        if not self._by_task:
            return ""
        if not self._cluster.connected:
            return f"The Dask scheduler at {self._cluster.name} does not answer."
        return "" if self._cluster.workers else f"The Dask cluster at {self._cluster.name} has no workers now."

    def end(self, now_ms: int) -> None:
        """Everything was read: close what may be closed now.

        Raises:
            StoreError: the database refuses; what was closed before stays closed.
        """
        self.found.add_fold(self._folder.close_all(self._store, now_ms))

    def drain(self, now_ms: int) -> None:
        """Write what has come back and follows what is written."""
        for done in self._cluster.over(0.0):
            self._take(done)
        self._write_ready()

    def close(self) -> None:
        """Nobody wants the pieces that are not written."""
        for task in self._by_task:
            task.drop()
        self._by_task.clear()

    # ---- handing out -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        states = {state.partition: state for state in self._store.partition_states(self._name)}
        self._formats = self._store.formats(self._name) if self._detects else {}
        self._lines = {}
        for partition, span in sorted(self._history.spans.items()):
            state = states.get(partition)
            line = _Line(partition, span, state, span.first, self._history.first_ms.get(partition, -1))
            line.handed_to = line.written_to
            self._lines[partition] = line

    def _start_over(self) -> None:
        """Go on from what is stored."""
        self.close()
        self._halves_went = False
        self._pipeline.discard()
        self._begin()
        self._settled = True

    def _hand_out(self) -> None:
        """Keep the workers busy: what has to be done again first, then the partition that is behind the others."""
        for line in self._lines.values():
            for place, handed in enumerate(line.handed):
                if handed.task is None and handed.scored is None:
                    self._submit(line, handed, first=place == 0)
        busy = max(1, self._cluster.workers) * PER_WORKER
        while len(self._by_task) < busy:
            if sum(len(line.handed) for line in self._lines.values()) >= (1 + MOST_WAITING) * busy:
                return
            waiting = [line for line in self._lines.values() if not line.handed_out and self._may_go_on(line)]
            if not waiting:
                return
            self._next_piece(min(waiting, key=lambda line: (line.reached_ms, len(line.handed))))

    def _may_go_on(self, line: _Line) -> bool:
        """Whether a piece can be scored before those that were handed out are written."""
        if line.handed and (self._in_turn or line.seen is None):
            return False
        topic = line.partition.topic
        if self._detects and topic not in self._formats:
            return not any(other.handed for other in self._lines.values() if other.partition.topic == topic)
        return True

    def _next_piece(self, line: _Line) -> None:
        records = float(self._work.piece_records)
        if self._record_s:
            records = min(records, PIECE_S / self._record_s)
        # Towards the end they are smaller, so that all workers end at about the same time.
        rates = [other.offsets_per_record for other in self._lines.values() if other.offsets_per_record]
        if rates:
            left = sum(other.span.after - other.handed_to for other in self._lines.values()) * len(rates) / sum(rates)
            records = max(records / SMALLEST, min(records, left / (2 * PER_WORKER * max(1, self._cluster.workers))))
        size = FIRST_OFFSETS if not line.offsets_per_record else max(1, round(records * line.offsets_per_record))
        first, after = line.handed_to, line.span.after
        if first + size < after and isinstance(self._source, Cuttable):
            after = min(after, self._source.next_start(line.partition, first + size))
        else:
            after = min(after, first + size)
        handed = _Handed(self._piece(line, first, after))
        line.handed.append(handed)
        line.handed_to = after
        self._submit(line, handed)

    def _piece(self, line: _Line, first: int, after: int) -> Piece:
        topic = line.partition.topic
        cuts, cut = [], self._history.next_cut(line.partition, first)
        while cut is not None and cut < after:
            cuts.append(cut)
            cut = self._history.next_cut(line.partition, cut)
        piece = Piece(
            line.partition,
            first,
            after,
            line.span.topic_id,
            formats={topic: self._formats[topic]} if topic in self._formats else {},
            cuts=tuple(cuts),
        )
        if first > line.written_to:
            newest = [line.state.max_time_ms] if line.state is not None else []
            newest += [one.scored.newest_ms for one in line.handed if one.scored is not None and _moved(one.scored)]
            return replace(
                piece,
                assumes=True,
                warm_up=max(1, round(line.warm_up * self._work.piece_records * line.offsets_per_record)),
                begin=line.span.first,
                at_least_ms=max(newest, default=-1),
            )
        return self._known(line, piece)

    def _known(self, line: _Line, piece: Piece) -> Piece:
        """The same piece, told where the partition stands."""
        piece = replace(piece, state=line.state, assumes=False)
        if not self._in_turn or line.state is None:
            return piece
        keys = self._store.thinned_keys(self._name, line.partition) if self._model.thins_by_key else []
        paired = self._model.record.pair is not None
        halves = self._store.halves(self._name, line.partition) if paired else []
        return replace(piece, keys=tuple(keys), halves=tuple(halves))

    def _submit(self, line: _Line, handed: _Handed, *, first: bool = False) -> None:
        handed.task = self._cluster.submit(score_piece, self._work, handed.piece, first=first)
        self._by_task[handed.task] = (line, handed)

    # ---- taking back -----------------------------------------------------------------------------------------------

    def _take(self, done: Done[Any]) -> None:
        found = self._by_task.pop(done.task, None)
        if found is None:
            return  # nobody wants it any more
        line, handed = found
        handed.task, answer = None, done.answer
        if isinstance(answer, ScoredPiece):
            handed.scored, handed.failed, handed.given_up = answer, "", 0
            line.answered(answer, handed.piece.first)
            if answer.records >= FIRST_OFFSETS // 4:
                self._record_s = answer.seconds / answer.records
            return
        if isinstance(answer, FailedPiece):
            if not answer.retryable:
                raise _said_by(answer)
            handed.failed = answer.said
            return
        handed.given_up += done.killed
        if not done.again or handed.given_up >= KILLED:
            raise ClusterError(
                f"{self._cluster.name}: {handed.piece.name} cannot be scored: {done.failure}.",
                hint="If they ran out of memory, give them more: dask worker --memory-limit. Do they have driftd?",
            )
        handed.failed = f"{self._cluster.name}: {done.failure}" if done.killed else ""

    def _write_ready(self) -> None:
        for line in self._lines.values():
            while line.handed and (scored := line.handed[0].scored) is not None:
                handed = line.handed[0]
                if not self._fits(line, handed.piece, scored):
                    self.again += 1
                    line.warm_up = min(2 * line.warm_up, 1.0)
                    handed.scored, handed.piece = None, self._piece(line, handed.piece.first, handed.piece.after)
                    break
                self._write_piece(line, handed.piece, scored)
                line.handed.popleft()
                if scored.next_offset < handed.piece.after:
                    line.handed.appendleft(_Handed(self._piece(line, scored.next_offset, handed.piece.after)))

    def _fits(self, line: _Line, piece: Piece, scored: ScoredPiece) -> bool:
        """Whether a piece was scored as if those before it had been scored in the same process."""
        known_ms = -1 if line.state is None else line.state.max_time_ms
        if scored.started_ms != known_ms:
            return False
        topic = piece.partition.topic
        if scored.format is not None and topic not in self._formats:
            self._formats[topic] = self._store.pin_format(self._name, topic, scored.format, 0)
        return scored.format is None or self._formats[topic] == scored.format

    def _write_piece(self, line: _Line, piece: Piece, scored: ScoredPiece) -> None:
        """Write the checkpoints of a piece that are not written yet."""
        for checkpoint, taken in zip(scored.checkpoints, scored.taken, strict=True):
            advance = checkpoint.advances[-1]
            if advance.next_offset <= line.written_to and line.state is not None:
                continue  # written before the database refused the next one
            self._write(checkpoint)
            line.state = PartitionState(line.partition, advance.next_offset, advance.max_time_ms, 0, 0, 0)
            wave = self._limit.push(np.arange(taken.records, dtype=np.int64), taken.spoiled)
            if wave:
                raise DeadLetterWave(f"Model {self._name}: {wave}.", hint=WAVE_HINT)
        self.pieces += 1
        self.worker_cpu_s += scored.cpu_s

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.commit(checkpoint)
        except StoreError as error:
            self._settled = isinstance(error, StoreBusy | StoreFull)  # others may come after it was written
            raise
        self.found.records += sum(advance.records for advance in checkpoint.advances)
        self.found.late += sum(advance.late for advance in checkpoint.advances)
        self.found.dead.update(letter.reason for letter in checkpoint.dead_letters)

    def _end_pairs(self) -> None:
        """Everything was read: halves of pairs that wait go alone."""
        self._pipeline.discard()
        if self._pipeline.end(self._history.spans, None):
            self._write(self._pipeline.checkpoint())
            self._pipeline.written()
        self._halves_went = True


def work_of(job: Job, settings: Settings, *, piece_records: int = PIECE_RECORDS) -> tuple[Work, dict[str, str]]:
    """What workers are told of a job; and its secrets, which they are not told, as environment variables."""
    name = job.row.model
    content, secrets = public(settings, name)
    work = Work(
        number=uuid.uuid4().hex,
        model=name,
        settings=content,
        secrets=tuple(sorted(secrets)),
        references=tuple(replace(row, path=str(Path(row.path).absolute())) for row in job.references),
        folder=str(settings.references.absolute()),
        labels=job.labels.version,
        poll_records=settings.checkpoint.poll_records,
        checkpoint_records=settings.checkpoint.records,
        piece_records=piece_records,
        most_s=3 * PIECE_S,
        made_with=made_with(),
    )
    return work, {variable(path): value for path, value in secrets.items()}


@contextmanager
def distributed_runner(
    job: Job, settings: Settings, store: Store, source: Source, *, cluster: str, piece_records: int = PIECE_RECORDS
) -> Iterator[DistributedRunner]:
    """What scores a job with the workers of a Dask cluster.

    Args:
        cluster: the scheduler's address, such as "tcp://scheduler:8786", or a number of processes of this machine.
        piece_records: about so many records are scored at a time, and held in memory.

    Raises:
        InvalidInput: the model is one that only one process can score.
        ClusterError: nothing answers at the address, nobody works there, or it has other versions.
        MissingExtra: Dask is not installed.
    """
    name = job.row.model
    if settings.models[name].fraud is not None:
        raise InvalidInput(
            f"Model {name} scores fraud: what it knows of each entity is too much to be handed from worker to worker.",
            hint="Leave out --dask: one process scores it.",
        )
    work, secrets = work_of(job, settings, piece_records=piece_records)
    with ExitStack() as stack:
        there = stack.enter_context(cluster_of(cluster, secrets=secrets))
        _get_ready(there, work)
        yield DistributedRunner(job, settings, store=store_of(job, store), source=source, cluster=there, work=work)


def _get_ready(cluster: Cluster, work: Work) -> None:
    """Have all workers load what they need, at once: what one of them lacks is known before the first record.

    Raises:
        ClusterError: one cannot score.
    """
    waiting = {cluster.submit(get_ready, work, worker=address): address for address in cluster.addresses}
    given_up = time.monotonic() + READY_S
    while waiting:
        for done in cluster.over(POLL_S):
            address = waiting.pop(done.task, None)
            if isinstance(done.answer, FailedPiece):
                raise _said_by(done.answer)
            if done.failure and not done.again:
                raise ClusterError(
                    f"Worker {address} of {cluster.name} cannot score: {done.failure}.",
                    hint="Is driftd installed there, with the same extras? Run it from the same image.",
                )
        gone = waiting.keys() - {task for task, address in waiting.items() if address in cluster.addresses}
        for task in gone:
            del waiting[task]
        if waiting and time.monotonic() > given_up:
            raise ClusterError(
                f"Worker {next(iter(waiting.values()))} of {cluster.name} did not get ready within {READY_S:.0f} s.",
                hint="It may be busy with other work, or slow to read the references. Look at its log.",
            )


def _moved(scored: ScoredPiece) -> bool:
    """Whether a piece's newest time is that of one of its own records, whatever it was told or assumed."""
    return scored.newest_ms > scored.started_ms


def _said_by(failed: FailedPiece) -> Exception:
    """The error of a worker, with its name."""
    error = failed.error
    if isinstance(error, RetryableError):
        error.message = failed.said
        error.args = (failed.said,)
        return error
    return ClusterError(failed.said, hint=error.hint)
