"""A worker whose records, vectors, clocks or pace go wrong says that it is blind, and says when it is over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.store import Store
from connectors.records import Partition, RawBatch, SourceState
from monitor.settings import Settings
from monitor.worker import Worker

ORDERS = Partition("orders", 0)
NOW_MS = 1_800_000_000_000
STEP_S = 10.0
BASELINE = 1_000
A_STEP = 100  # records that come in one step of the stream

Made = Callable[[np.random.Generator, int], tuple[Any, int, int]]  # vector, event time, broker's time


class Live:
    """A topic that grows by what the test hands over; a poll takes what ``pace`` allows."""

    finished = False

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.times: list[int] = []
        self.pace = 10**6
        self.at = 0

    def open(self, positions: Any, *, topic_ids: Any = None) -> None: ...

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        first, self.at = self.at, min(self.at + min(max_records, self.pace), len(self.values))
        n = self.at - first
        if not n:
            return []
        times = np.array(self.times[first : self.at], dtype=np.int64)
        offsets = np.arange(first, self.at, dtype=np.int64)
        return [RawBatch(ORDERS, offsets, times, [None] * n, self.values[first : self.at], [()] * n, self.at)]

    def assignment(self) -> frozenset[Partition]:
        return frozenset([ORDERS])

    partitions = assignment

    def state(self) -> SourceState:
        return SourceState("stable", True, 0, 0, 0, {})

    def lag(self) -> Mapping[Partition, int]:
        return {ORDERS: len(self.values) - self.at}

    def rewind(self) -> None:
        raise AssertionError("nothing is refused here")

    def hold(self, partitions: frozenset[Partition]) -> None: ...
    def commit(self, next_offsets: Mapping[Partition, int]) -> None: ...


class Stream:
    """A worker, its clock, and the topic that it reads."""

    def __init__(self, folder: Path) -> None:
        self._clock_s = 0.0
        self._chance = np.random.default_rng(1)
        model = {
            "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "orders"},
            "record": {"time": {"path": "/ts", "unit": "ms"}},
            "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
            "reference": {"collect": BASELINE},
            "drift": {"idle": "5s", "wait": "60s"},
        }
        settings = Settings.model_validate({"models": {"m": model}, "references": folder / "references", "sinks": {}})
        self.store = Store.open(f"sqlite:///{folder}/driftd.db", now_ms=lambda: self.now_ms)
        self.store.migrate()
        self.source = Live()
        self.worker = Worker("m", settings, store=self.store, source=self.source)  # type: ignore[arg-type]
        self.worker.start()

    @property
    def now_ms(self) -> int:
        return NOW_MS + round(self._clock_s * 1000)

    def steps(self, count: int, make: Made, records: int = A_STEP) -> None:
        for _ in range(count):
            for _ in range(records):
                vector, time_ms, broker_ms = make(self._chance, self.now_ms)
                self.source.values.append(json.dumps({"ts": time_ms, "v": vector}).encode())
                self.source.times.append(broker_ms)
            step = self.worker.step(self.now_ms, self._clock_s, wait_s=0.0)
            assert step.failure == ""
            self._clock_s += STEP_S

    def told(self) -> list[tuple[str, str]]:
        rows = self.store.incidents(model="m")
        return [(row.kind, row.status) for row in rows if row.kind not in ("drift", "outlier_rate", "dead_letters")]


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(tmp_path)
    made.steps(1, usual, BASELINE)
    made.steps(12, usual)
    assert made.worker.pipeline is not None and made.told() == [] and made.worker.state == "running"
    yield made
    made.store.close()


def vector(chance: np.random.Generator, dimension: int = 6) -> list[float]:
    return [float(x) for x in chance.normal(size=dimension).round(3)]


def usual(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return vector(chance), now_ms, now_ms


def cut_short(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return vector(chance, 5 if chance.random() < 0.3 else 6), now_ms, now_ms


def often_zero(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return [0.0] * 6 if chance.random() < 0.3 else vector(chance), now_ms, now_ms


def the_same(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return [0.5] * 6, now_ms, now_ms


def dated_ahead(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return vector(chance), now_ms + 120_000, now_ms


def broker_ahead(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return vector(chance), now_ms, now_ms + 120_000


def out_of_bounds(chance: np.random.Generator, now_ms: int) -> tuple[Any, int, int]:
    return vector(chance), now_ms // 1000 if chance.random() < 0.3 else now_ms, now_ms


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (cut_short, "embedder"),
        (often_zero, "vectors"),
        (the_same, "vectors"),
        (dated_ahead, "clock"),
        (broker_ahead, "clock"),
        (out_of_bounds, "clock"),
    ],
)
def test_what_makes_it_blind_is_told_after_a_minute_and_over_a_minute_after(
    stream: Stream, wrong: Made, kind: str
) -> None:
    stream.steps(5, wrong)
    assert stream.told() == []
    stream.steps(6, wrong)
    assert stream.told() == [(kind, "open")]
    assert stream.worker.blind == [kind] and stream.worker.state.startswith("running; blind: ")
    stream.steps(14, usual)
    assert stream.told() == [(kind, "resolved")]
    assert stream.worker.blind == [] and stream.worker.state == "running"


def test_a_worker_that_is_too_slow_is_told_when_lag_has_grown_and_over_when_it_has_caught_up(stream: Stream) -> None:
    stream.source.pace = A_STEP // 2
    stream.steps(12, usual)
    assert stream.told() == [], "a minute is allowed"
    stream.steps(20, usual)
    assert stream.told() == [("lag", "open")] and stream.worker.blind == ["lag"]
    stream.source.pace = 3 * A_STEP
    stream.steps(24, usual)
    assert stream.told() == [("lag", "resolved")]


def test_a_stream_that_stops_is_told_in_its_own_time(stream: Stream) -> None:
    """Two minutes were seen before it, one block after the other: that does not say much, so six waits are waited."""
    stream.steps(35, usual, 0)
    assert stream.told() == []
    stream.steps(3, usual, 0)
    assert stream.told() == [("silent", "open")]
    stream.steps(1, usual)
    stream.steps(2, usual)
    assert stream.told() == [("silent", "resolved")]
