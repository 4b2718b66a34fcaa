"""`driftd doctor --soak`: the promise "counted exactly once, whatever is killed", tried on a user's own brokers.

Labelled records (monitor/soak_records.py) go into a topic that is made for this and deleted at the end. Real workers,
each a `driftd run` of its own, read them and are killed with SIGKILL at moments that the seed decides. Then the
database is compared with the labels. The database is a SQLite file in a temporary folder, whatever the settings say:
a soak must not touch what a deployment stores.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

import yaml

from connectors.database.store import Store
from connectors.kafka import KafkaSettings
from connectors.kafka_scratch import Record, scratch_topic
from detectors.errors import DriftdError, InvalidInput
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.settings import Settings
from monitor.soak_records import (
    BASELINE,
    BLOCK_MS,
    DIMENSION,
    LATENESS_MS,
    LabelledRecords,
    Truth,
    labelled_records,
    truth_of,
)

MODEL, SPACE = "soak", "input"
PARTITIONS = 4
MIN_RECORDS = 50_000  # fewer make no baseline of MIN_BASELINE
MIN_BASELINE = 2_500  # half of it calibrates: fewer than 1,000 scores could make no candidate of one in a thousand
_STUCK_S = 120.0
_LOOK_S = 0.05
_COLLECTED = 0.05  # of the stream; half of what is safe
_SESSION_S = 6.0  # the shortest that a broker allows unless told otherwise

# Small steps, so that a kill finds work in the middle: a worker that takes 4,096 records at once would be through.
CHECKPOINT = {"every": 0.2, "records": 2_000, "poll_records": 400}

Progress = Callable[[str, float], None]


class SoakFailed(DriftdError):
    """The workers did not get through the records."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the labels say, and what the database says. ``detail`` names the first difference."""

    name: str
    expected: str
    found: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What came of it. ``seconds`` is from the start of the first worker to the last record, kills included."""

    records: int
    workers: int
    kills: int
    seconds: float
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether everything is as the labels say."""
        return all(check.ok for check in self.checks)

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.seconds


def clean_environment() -> dict[str, str]:
    """The environment of a child: without settings of another deployment, with one thread for each library."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DRIFTD_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class WorkerProcess:
    """A `driftd run` of its own, with the settings file of ``folder``. Its log is ``folder``/NAME.log.

    Args:
        name: also its static member id, so that it has its partitions back after a kill.
        environment: in place of the DRIFTD_ variables of this process, which are of another deployment.
    """

    def __init__(self, folder: Path, name: str, *, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._folder = folder
        self._log = folder / f"{name}.log"
        instance = {f"DRIFTD_MODELS__{MODEL.upper()}__SOURCE__INSTANCE": name}
        self._environment = {**clean_environment(), **instance, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, *more: str) -> None:
        """Start it, with ``more`` words on the command line."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monitor", "run", "-s", str(self._folder / "driftd.yaml"), *more],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the soak, which ends its workers itself
            )

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = 30.0) -> int | None:
        """Its exit code; None if it was never started."""
        return None if self.process is None else self.process.wait(timeout=timeout_s)

    def log(self) -> str:
        """Everything that it has said since the first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def soak_settings(
    folder: Path, source: Mapping[str, Any], *, records: int, database: str | None = None, **more: Any
) -> dict[str, Any]:
    """The content of a settings file that watches a topic of labelled records.

    Args:
        folder: for the references, and the SQLite file unless ``database`` names another.
        source: models.soak.source.
        more: further top-level keys.
    """
    return {
        "database": database or f"sqlite:///{folder / 'driftd.db'}",
        "references": str(folder / "references"),
        "http": {"bind": "127.0.0.1:0"},
        "incidents": {"resolve_after": 6 * BLOCK_MS / 1000},  # so that incidents also end
        "retention": {"merge_summaries": {}},  # votes are compared block by block
        "models": {
            MODEL: {
                "source": dict(source),
                "record": {"codec": "raw", "key": "key"},
                "spaces": {
                    SPACE: {
                        "embedder": {"kind": "vector", "field": "body", "encoding": "bytes", "dimension": DIMENSION}
                    }
                },
                "reference": {
                    "collect": max(MIN_BASELINE, min(50_000, round(_COLLECTED * records))),
                    "exemplars": 1000,
                },
                "drift": {
                    "block": BLOCK_MS / 1000,
                    "lateness": LATENESS_MS / 1000,
                    "idle": 2.0,
                    # So short that fast partitions are held back, too; ten times as long as a session.
                    "wait": 60.0,
                    "season": "none",
                },
            }
        },
        **more,
    }


def rows_of(records: LabelledRecords) -> Iterator[Record]:
    """The records as a topic takes them."""
    columns = (records.partition.tolist(), records.time_ms.tolist(), records.session.tolist(), records.values())
    return ((partition, time, b"s%d" % key, value) for partition, time, key, value in zip(*columns, strict=True))


def build_reference(folder: Path, records: LabelledRecords) -> None:
    """Build the reference with the real command, from the settings file in ``folder``.

    Raises:
        SoakFailed: the command failed.
    """
    until = datetime.fromtimestamp(int(records.time_ms[: round(BASELINE * len(records))].max()) / 1000, tz=UTC)
    words = ["reference", "build", "-s", str(folder / "driftd.yaml"), "--to", until.isoformat()]
    command = [sys.executable, "-m", "monitor", *words]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SoakFailed(f"The reference could not be built: {done.stderr.strip()[-500:]}", hint="Type: driftd check")


def counted(store: Store) -> int:
    """Records that committed checkpoints have counted so far."""
    return sum(state.records for state in store.partition_states(MODEL))


def all_closed(store: Store) -> bool:
    """Whether no block is open, and none came late."""
    with store.begin_fold(MODEL) as fold:
        return fold.next_block is not None and fold.first_pending_block() is None and not fold.late_deltas()


def compare(store: Store, records: LabelledRecords, truth: Truth) -> list[Check]:
    """What the database holds beside what the labels say, when all is read and closed."""
    states = {state.partition.number: state for state in store.partition_states(MODEL)}
    checks = [
        _same(
            f"{name} by partition",
            wanted,
            {number: int(getattr(states[number], attribute)) for number in sorted(states)},
            total=sum(wanted.values()),
        )
        for name, attribute, wanted in (
            ("records", "records", truth.records),
            ("dead letters", "dead", truth.dead),
            ("late records", "late", truth.late),
        )
    ]
    closed_late = sum(state.closed_late for state in states.values())
    checks.append(Check("records after their block was closed", "0", str(closed_late), closed_late == 0))
    checks.append(
        _same("dead letters by reason", truth.reasons, store.dead_letter_counts(MODEL), total=len(truth.reasons))
    )
    letters = [(row.partition.number, row.offset) for row in store.dead_letters(MODEL, limit=len(records))]
    checks.append(_places("dead letters by position", set(truth.dead_letters), letters))
    reference = store.active_reference(MODEL, SPACE)
    if reference is None:
        raise SoakFailed("There is no reference.", hint="Look at the workers' logs.")
    edge = _edge(Reference.load(Path(reference.path)), records)
    kept = store.kept(MODEL, SPACE, limit=len(records))
    strange = [(row.partition.number, row.offset) for row in kept if row.reason == "outlier" and row.score >= edge]
    checks.append(_places("planted outliers", truth.outliers, strange))
    blocks = {row.block: BlockSummary.from_bytes(row.blob).n for row in store.summaries(MODEL, SPACE, segment="")}
    checks.append(_same("votes by block", truth.votes, blocks, total=sum(truth.votes.values())))
    return checks


def _edge(reference: Reference, records: LabelledRecords) -> float:
    """A score between those of the strangest usual vector and of the least strange planted outlier."""
    usual = max(float(reference.score(pool).distance.max()) for pool in (records.usual, records.changed))
    strange = float(reference.score(records.strange).distance.min())
    if usual >= strange:
        raise SoakFailed(
            f"Planted outliers score {strange:.4g}, usual records up to {usual:.4g}: they cannot be told apart.",
            hint="That is a defect of driftd. Please report it.",
        )
    return (usual + strange) / 2


def _same(name: str, wanted: Mapping[Any, int], found: Mapping[Any, int], *, total: int) -> Check:
    wrong = [
        f"{key}: expected {wanted.get(key, 0):,}, found {found.get(key, 0):,}"
        for key in sorted(set(wanted) | set(found))
        if wanted.get(key, 0) != found.get(key, 0)
    ]
    seen = len(found) if total == len(wanted) else sum(found.values())
    return Check(name, f"{total:,}", f"{seen:,}", not wrong, "; ".join(wrong[:3]))


def _places(name: str, wanted: set[tuple[int, int]], found: list[tuple[int, int]]) -> Check:
    """Each position exactly once."""
    twice = [place for place, count in Counter(found).items() if count > 1]
    lost, extra = wanted - set(found), set(found) - wanted
    wrong = [
        f"{what}: partition {p} offset {o}"
        for what, places in (("twice", twice), ("lost", lost), ("not planted", extra))
        for p, o in sorted(places)[:2]
    ]
    return Check(name, f"{len(wanted):,}", f"{len(found):,}", not wrong, "; ".join(wrong))


def run_soak(
    settings: Settings,
    model: str | None,
    *,
    records: int,
    kills: int,
    workers: int,
    seed: int,
    progress: Progress,
) -> SoakResult:
    """The whole soak, against the brokers of one model of ``settings``.

    Args:
        model: whose brokers; may be left out if there is one model only.
        kills: how many SIGKILLs, at moments and to workers that the seed decides.
        progress: is told what is done now, and the share of it, 0..1.

    Raises:
        InvalidInput: no such model, one that does not read from Kafka, or too few records.
        SourceError: the topic cannot be made, filled or deleted.
        SoakFailed: the workers stood still.
    """
    source = _kafka_of(settings, model)
    if records < MIN_RECORDS:
        raise InvalidInput(f"{records:,} records are too few for a soak.", hint=f"At least: --records {MIN_RECORDS}")
    length_ms = records * BLOCK_MS // 1000 + 10 * BLOCK_MS
    made = labelled_records(records, partitions=PARTITIONS, seed=seed, start_ms=int(time.time() * 1000) - length_ms)
    name = f"driftd-soak-{secrets.token_hex(4)}"
    with ExitStack() as closing:
        interrupts = closing.enter_context(_Interrupts())
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="driftd-soak-")))
        progress("making the topic", 0.0)
        topic = closing.enter_context(
            scratch_topic(
                source.addresses,
                name,
                partitions=PARTITIONS,
                security=source.security,
                client_id=name,
                connect_timeout_s=source.connect_timeout_s,
            )
        )
        topic.fill(rows_of(made), lambda sent: progress("writing records", sent / records))
        content = soak_settings(folder, _source_of(source, name), records=records, checkpoint=CHECKPOINT, sinks={})
        _write_private(folder / "driftd.yaml", yaml.safe_dump(content))
        progress("building the reference", 0.0)
        build_reference(folder, made)
        store = closing.enter_context(Store.open(content["database"]))
        fleet = [WorkerProcess(folder, f"{name}-{number}") for number in range(workers)]
        for worker in fleet:
            closing.callback(worker.kill)
        began = time.monotonic()
        done, killed = _through(
            store, fleet, records=records, kills=kills, seed=seed, progress=progress, interrupts=interrupts
        )
        seconds = done - began
        for worker in fleet:
            worker.send(signal.SIGTERM)
        for worker in fleet:
            worker.wait()
        progress("comparing", 1.0)
        return SoakResult(records, workers, killed, seconds, compare(store, made, truth_of(made)))


def _through(
    store: Store,
    fleet: list[WorkerProcess],
    *,
    records: int,
    kills: int,
    seed: int,
    progress: Progress,
    interrupts: _Interrupts,
) -> tuple[float, int]:
    """Let the workers read everything, killing some on the way. Returns when the last record was counted, and how many
    kills there were: the records may be over before the last.
    """
    chance = random.Random(seed)
    due = sorted(chance.uniform(0.02, 0.95) for _ in range(kills))
    seen, killed_at, moved, finished = -1, -1, time.monotonic(), 0.0
    while True:
        for worker in fleet:
            if not worker.alive:
                if worker.process is not None and worker.process.returncode >= 0:
                    raise _stuck(fleet, f"A worker ended by itself, with code {worker.process.returncode}.")
                with interrupts.held():
                    worker.start()
        now = time.monotonic()
        count = counted(store)
        progress(f"{kills - len(due)} of {kills} workers killed", count / records)
        if count != seen:
            seen, moved = count, now
        if count >= records:
            finished = finished or now
            if all_closed(store):
                return finished, kills - len(due)
        elif due and count >= due[0] * records and count > killed_at:
            # One after the other: between two kills, a checkpoint is written.
            due.pop(0)
            killed_at = count
            chance.choice(fleet).kill()
        if now - moved > _STUCK_S:
            raise _stuck(fleet, f"The workers stood still at {seen:,} of {records:,} records for {_STUCK_S:g} s.")
        time.sleep(_LOOK_S)


def _stuck(fleet: list[WorkerProcess], what: str) -> SoakFailed:
    said = "\n".join(f"  {worker.name}: {line}" for worker in fleet for line in worker.log().splitlines()[-3:])
    return SoakFailed(f"{what} The last that they said:\n{said}", hint="Type: driftd check")


def _kafka_of(settings: Settings, model: str | None) -> KafkaSettings:
    name = settings.model_named(model)
    source = settings.models[name].source
    if not isinstance(source, KafkaSettings):
        raise InvalidInput(
            f"Model {name} does not read from Kafka, so there are no brokers to try.",
            hint="Name another model: --model",
        )
    return source


def _source_of(source: KafkaSettings, topic: str) -> dict[str, Any]:
    """The same brokers and credentials, another topic and group."""
    content = source.model_dump(mode="json", exclude_none=True, exclude={"start", "group", "instance"})
    if source.security.password is not None:
        content["security"]["password"] = source.security.password.get_secret_value()
    return {**content, "topic": topic, "group": topic, "start": "earliest", "session_timeout_s": _SESSION_S}


def _write_private(path: Path, text: str) -> None:
    """It may hold a password."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


class _Interrupts:
    """Within the block SIGTERM is a Ctrl-C too, so that the topic is deleted; neither comes between while `held`.

    A worker that is interrupted while it is being started would run on, known to nobody.
    """

    def __init__(self) -> None:
        self._holding = self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes within this block is raised at its end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._came:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if not self._holding:
            raise KeyboardInterrupt
