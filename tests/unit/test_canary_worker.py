"""A worker whose encoder is replaced, between two starts or while it runs: no drift, nothing lost or counted twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.store import Store
from monitor.app import build_source
from monitor.canaries import EncoderChanged
from monitor.canary_watch import AGAIN_S
from monitor.checks import check_everything
from monitor.history import HistoryLabels, history_pipeline
from monitor.references import describe
from monitor.retry import Retry
from monitor.settings import Settings
from monitor.troubles import AGAIN_S as OVER_S
from monitor.worker import Step, Worker
from tests.servers.embeddings import MODEL, EmbeddingServer

MODEL_NAME = "triage"
NOW_MS = 1_700_000_000_000
BASELINE = 1_000
WORDS = [
    "order",
    "parcel",
    "card",
    "refund",
    "late",
    "broken",
    "cancel",
    "Login",
    "PIN",
    "2024",
    "größe",
    "café",
    "返金",
]


class FileEncoder:
    """Sums of word vectors that lie in a file: a small encoder, which is what its file says."""

    def __init__(self, weights: str) -> None:
        self._path = Path(weights)

    def __call__(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        table = np.load(self._path)
        rows = [[hash_of(word) % len(table) for word in text.split()] for text in texts]
        return np.array([table[row].sum(axis=0) for row in rows], dtype=np.float32)


def hash_of(word: str) -> int:
    return sum((place + 1) * byte for place, byte in enumerate(word.encode()))


class TurningServer(EmbeddingServer):
    """An embedding server that somebody replaces by another one."""

    replaced = False

    def _openai(self, body: dict[str, Any], vectors: Sequence[list[float | None]]) -> dict[str, Any]:
        return super()._openai(body, [vector[::-1] for vector in vectors] if self.replaced else vectors)


def texts(count: int, seed: int) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, size=int(chance.integers(2, 7)))) for _ in range(count)]


class Stream:
    """A file that grows, a database, a clock, and one worker after another."""

    def __init__(self, folder: Path, embedder: Mapping[str, Any], **model: Any) -> None:
        self.folder = folder
        self.clock_s = 0.0
        self.written = 0
        self.embedder = dict(embedder)
        self.model = {"record": {"time": "/ts", "keep": ["/text"]}, "reference": {"collect": BASELINE}, **model}
        self.ends = False
        self.store = Store.open(f"sqlite:///{folder}/driftd.db", now_ms=lambda: self.now_ms)
        self.store.migrate()
        self.worker: Worker | None = None

    @property
    def now_ms(self) -> int:
        return NOW_MS + round(self.clock_s * 1000)

    def settings(self) -> Settings:
        source = {"kind": "files", "path": str(self.folder / "records.jsonl"), "follow": not self.ends}
        model = {"source": source, "spaces": {"input": {"embedder": self.embedder}}, **self.model}
        content = {"models": {MODEL_NAME: model}, "references": self.folder / "references", "sinks": {}}
        return Settings.model_validate({**content, "database": f"sqlite:///{self.folder}/driftd.db"})

    def write(self, count: int) -> None:
        with (self.folder / "records.jsonl").open("a") as file:
            for number, text in enumerate(texts(count, self.written), self.written):
                file.write(json.dumps({"ts": NOW_MS + number * 20, "text": text}) + "\n")
        self.written += count

    def start(self) -> Worker:
        self.close()
        settings = self.settings()
        source = build_source(MODEL_NAME, settings.models[MODEL_NAME])
        self.worker = Worker(MODEL_NAME, settings, store=self.store, source=source)
        self.worker.start()
        return self.worker

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker.source.close()

    def steps(self, seconds: float, every_s: float = 1.0) -> list[Step]:
        """Steps of the worker, until so much time has passed on its clock."""
        assert self.worker is not None
        made, end_s = [], self.clock_s + seconds
        while self.clock_s < end_s:
            self.clock_s += every_s
            made.append(self.worker.step(self.now_ms, self.clock_s, wait_s=0.0))
        return made

    def read_all(self, seconds: float = 0.0) -> None:
        """Steps until every record counts: on a busy machine a step takes few of them."""
        self.steps(seconds)
        steps = 0
        while self.counted < self.written:
            steps += 1
            assert steps < 400, f"{self.counted} of {self.written} records count"
            self.steps(0.1, every_s=0.1)
        assert self.counted == self.written, "each record once"

    @property
    def counted(self) -> int:
        return self.store.totals(MODEL_NAME).records

    def told(self) -> list[tuple[str, str]]:
        return [(row.kind, row.status) for row in self.store.incidents(model=MODEL_NAME)]

    def checked(self) -> dict[str, str]:
        return {finding.name: finding.detail for finding in check_everything(self.settings())}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.npy"
    np.save(path, np.random.default_rng(0).normal(size=(251, 16)).astype(np.float32))
    return path


@pytest.fixture
def of_file(tmp_path: Path, weights: Path) -> Iterator[Stream]:
    callable_ = "tests.unit.test_canary_worker:FileEncoder"
    embedder = {"kind": "python", "callable": callable_, "fields": ["/text"], "init": {"weights": str(weights)}}
    stream = Stream(tmp_path, embedder)
    yield stream
    stream.close()
    stream.store.close()


@pytest.fixture
def server() -> Iterator[TurningServer]:
    running = TurningServer(dimension=24)
    with running:
        yield running


@pytest.fixture
def of_server(tmp_path: Path, server: TurningServer) -> Iterator[Stream]:
    address = {"protocol": "openai", "url": f"{server.url}/v1", "model": MODEL, "batch": 256, "patience_s": 0}
    stream = Stream(tmp_path, {"kind": "http", "field": "/text", **address})
    yield stream
    stream.close()
    stream.store.close()


def bring_up(stream: Stream) -> Worker:
    """A worker with a reference, and some records that it has scored."""
    stream.write(BASELINE + 200)
    worker = stream.start()
    stream.read_all()
    assert worker.state == "running" and stream.told() == []
    return worker


def test_another_encoder_at_the_start_stops_reading_until_it_is_the_old_one_again(
    of_file: Stream, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bring_up(of_file)
    old = weights.read_bytes()
    np.save(weights, np.load(weights) @ np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0])
    of_file.write(500)
    before = of_file.counted
    worker = of_file.start()
    of_file.steps(60, every_s=6)
    assert of_file.counted == before and worker.pipeline is None
    assert "the space was turned" in worker.state and worker.encoder_changed in worker.state
    assert of_file.told() == [("encoder_changed", "open")]
    (row,) = worker.open_incidents
    assert row.title == "triage: the encoder of input was changed: its space was turned"
    assert "64 of 64 canaries" in row.text and "driftd reference build" in row.text
    assert "the encoder has changed (rotation)" in of_file.checked()["model triage, canaries of input"]

    weights.write_bytes(old)
    of_file.read_all(AGAIN_S)
    assert worker.encoder_changed == "" and worker.state == "running"
    assert of_file.told() == [("encoder_changed", "open")], "one that comes and goes must not page each time"
    of_file.steps(OVER_S + 10, every_s=10)
    assert of_file.told() == [("encoder_changed", "resolved")]
    assert of_file.checked()["model triage, canaries of input"] == "64 canaries, largest change 0"


def test_an_incident_of_a_worker_that_has_ended_is_over_when_the_next_one_starts_with_the_right_encoder(
    of_file: Stream, weights: Path
) -> None:
    bring_up(of_file)
    old = weights.read_bytes()
    np.save(weights, np.load(weights)[:, ::-1])
    of_file.start()
    of_file.steps(2)
    assert of_file.told() == [("encoder_changed", "open")]
    weights.write_bytes(old)
    of_file.start()
    of_file.steps(OVER_S + 20, every_s=10)
    assert of_file.told() == [("encoder_changed", "resolved")]


def test_history_and_dead_letters_are_not_scored_by_another_encoder(of_file: Stream, weights: Path) -> None:
    bring_up(of_file)
    np.save(weights, np.load(weights)[:, ::-1])
    settings = of_file.settings()
    source = build_source(MODEL_NAME, settings.models[MODEL_NAME])
    with pytest.raises(EncoderChanged, match="columns stand in another place"):
        Retry(MODEL_NAME, settings, store=of_file.store, source=source)
    row = of_file.store.active_reference(MODEL_NAME, "input")
    assert row is not None
    labels = HistoryLabels(0, of_file.store)
    with pytest.raises(EncoderChanged, match="driftd reference build"):
        history_pipeline(MODEL_NAME, settings, [row], store=of_file.store, labels=labels)


def test_a_source_that_ends_is_not_waited_with(of_file: Stream, weights: Path) -> None:
    bring_up(of_file)
    np.save(weights, np.load(weights)[:, :8])
    of_file.ends = True
    with pytest.raises(EncoderChanged, match="vectors; before, they had 16") as caught:
        of_file.start()
    assert caught.value.check.change is not None and caught.value.check.change.cause == "dimension"
    assert "driftd reference build" in caught.value.hint


def test_an_encoder_that_was_moved_and_makes_the_same_vectors_goes_on_with_a_caution(
    of_file: Stream, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bring_up(of_file)
    of_file.embedder["init"] = {"weights": str(weights.rename(weights.with_name("moved.npy")))}
    of_file.write(300)
    with caplog.at_level(logging.WARNING):
        worker = of_file.start()
    assert "by its fingerprint: 64 canaries, largest change 0" in caplog.text
    row = of_file.store.active_reference(MODEL_NAME, "input")
    assert row is not None and describe(Path(row.path))["canaries"].startswith(
        "64 records of the baseline, embedded on"
    )
    of_file.read_all()
    assert worker.state == "running"


def test_the_timer_sees_a_file_that_is_replaced_while_it_is_in_use(of_file: Stream, weights: Path) -> None:
    of_file.model["reference"] = {"collect": BASELINE, "canaries_every": "30s"}
    worker = bring_up(of_file)
    old = np.load(weights)
    np.save(weights, np.vstack([old[:125], old[125:] * 1.5]))  # some words have other vectors
    assert worker.encoder_changed == ""
    of_file.steps(33, every_s=3)
    assert "some inputs otherwise" in worker.encoder_changed
    assert worker.canaries["input"].change is not None


def test_a_server_that_is_replaced_while_records_come_pages_no_drift_and_counts_none_of_its_vectors(
    of_server: Stream, server: TurningServer
) -> None:
    worker = bring_up(of_server)
    before = of_server.counted
    server.replaced = True
    of_server.write(700)
    of_server.steps(90, every_s=9)
    assert of_server.counted == before and of_server.told() == [("encoder_changed", "open")]
    assert "columns stand in another place" in worker.encoder_changed

    server.replaced = False
    of_server.read_all(AGAIN_S)
    of_server.write(400)
    of_server.read_all()
    of_server.steps(OVER_S + 5, every_s=5)
    assert of_server.told() == [("encoder_changed", "resolved")], "and no drift"
    stored = of_server.store.partition_states(MODEL_NAME)
    assert sum(state.next_offset > 0 for state in stored) == 1


def test_a_server_that_makes_vectors_of_another_length_is_another_encoder(
    of_server: Stream, server: TurningServer
) -> None:
    worker = bring_up(of_server)
    server.dimension = 12
    of_server.write(100)
    of_server.steps(3)
    assert "12 dimensions; they had 24" in worker.encoder_changed
    server.dimension = 24
    of_server.read_all(AGAIN_S)


def test_a_server_that_does_not_answer_is_no_other_encoder(of_server: Stream, server: TurningServer) -> None:
    from tests.servers.receiver import Answer

    worker = bring_up(of_server)
    server.faults.extend(Answer(503) for _ in range(200))
    of_server.write(100)
    steps = of_server.steps(5)
    assert any("503" in step.failure for step in steps) and worker.encoder_changed == ""
    assert of_server.counted < of_server.written
    server.faults.clear()
    of_server.read_all()
    assert of_server.told() == []


def test_what_is_pending_when_the_server_was_replaced_is_not_written_at_the_end(
    of_server: Stream, server: TurningServer
) -> None:
    worker = bring_up(of_server)
    before = of_server.counted
    of_server.write(50)
    assert of_server.steps(0.1, every_s=0.1)[0].records > 0 and of_server.counted == before
    server.replaced = True
    worker.drain(of_server.now_ms)
    assert of_server.counted == before
    server.replaced = False
    of_server.read_all(AGAIN_S)
