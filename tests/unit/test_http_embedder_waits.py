"""A worker whose embedding server goes away: records wait, none becomes a dead letter, none counts twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.database.store import Store
from detectors.errors import SourceUnreachable
from monitor.app import build_workers, open_store
from monitor.checks import check_everything
from monitor.references import from_source
from monitor.settings import Settings, load_settings
from monitor.worker import Worker
from tests.servers.embeddings import MODEL, EmbeddingServer

START_MS = 1_772_438_400_000
COLLECT, RECORDS = 1_000, 1_500
WORDS = ["card", "refused", "at", "the", "till", "please", "help", "me", "now", "parcel", "is", "late", "where"]


def text(number: int) -> str:
    return " ".join(WORDS[number * factor % 13] for factor in (1, 3, 5, 7)) + f" {number % 89}"


def settings_of(folder: Path, server: EmbeddingServer, **embedder: Any) -> Settings:
    with (folder / "stream.jsonl").open("w") as file:
        for number in range(RECORDS):
            record = {"id": f"r{number}", "ts": START_MS + 100 * number, "text": text(number)}
            file.write(json.dumps(record) + "\n")
    entry = {"kind": "http", "protocol": "v2", "url": server.url, "model": MODEL, "field": "/text", "patience_s": 0}
    content = {
        "database": f"sqlite:///{folder}/driftd.db",
        "references": str(folder / "references"),
        "checkpoint": {"every": 0.2},
        "models": {
            "support": {
                "source": {"kind": "files", "path": str(folder / "stream.jsonl"), "follow": True},
                "record": {"id": "/id", "time": "/ts"},
                "spaces": {"input": {"embedder": {**entry, **embedder}}},
                "reference": {"collect": COLLECT, "canaries": 0},
            }
        },
    }
    (folder / "driftd.yaml").write_text(json.dumps(content))
    return load_settings(folder / "driftd.yaml")


class Steps:
    """A worker, stepped by hand."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.clock_s = 0.0

    def until(self, condition: Any) -> None:
        for _ in range(200):
            self.clock_s += 0.3
            step = self.worker.step(START_MS + round(self.clock_s * 1000), self.clock_s, wait_s=0.0)
            if condition(step):
                return
        raise AssertionError("it stands still")


def counted(store: Store) -> tuple[int, int]:
    states = store.partition_states("support")
    return sum(state.records for state in states), sum(state.dead for state in states)


def test_records_wait_for_the_server_while_a_reference_is_collected_and_afterwards(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        settings = settings_of(tmp_path, server)
        with open_store(settings) as store:
            (worker,) = build_workers(settings, store)
            worker.start()
            steps = Steps(worker)
            server.refused = {" 77": 503}
            steps.until(lambda step: "answers 503" in step.failure)
            assert counted(store) == (0, 0)
            server.refused = {}
            steps.until(lambda step: worker.pipeline is not None)
            before = counted(store)
            assert before == (COLLECT, 0)
            server.refused = {"": 503}
            steps.until(lambda step: "answers 503" in step.failure)
            assert counted(store) == before
            server.refused = {}
            steps.until(lambda step: counted(store)[0] == RECORDS)
            assert counted(store) == (RECORDS, 0)
            steps.until(lambda step: not step.failure)
            worker.source.close()
            worker.close()


def test_a_text_that_the_server_refuses_is_one_dead_letter(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        server.refused = {text(1_200): 422}
        settings = settings_of(tmp_path, server)
        with open_store(settings) as store:
            (worker,) = build_workers(settings, store)
            worker.start()
            Steps(worker).until(lambda step: counted(store)[0] == RECORDS)
            refused = [number for number in range(RECORDS) if text(number) == text(1_200)]
            assert counted(store) == (RECORDS, len(refused))
            assert {letter.reason for letter in store.dead_letters("support")} == {"embedder_failed"}
            worker.source.close()
            worker.close()


def test_building_a_reference_says_that_the_server_does_not_answer(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        settings = settings_of(tmp_path, server)
    with pytest.raises(SourceUnreachable, match="embedding server"):
        from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)


def test_the_token_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_MODELS__SUPPORT__SPACES__INPUT__EMBEDDER__TOKEN", "sk-4711")
    with EmbeddingServer(token="sk-4711") as server:
        settings = settings_of(tmp_path, server)
        embedder = settings.models["support"].spaces["input"].embedder.build()
        assert embedder.embed([["a"]]).problems == []
    assert "sk-4711" not in repr(settings)


def test_check_asks_the_server_once(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        settings = settings_of(tmp_path, server, patience_s=60)
        (found,) = [one for one in check_everything(settings) if "space input" in one.name]
        assert found.ok and found.detail.endswith(f"{server.url} answers with 6-dimensional vectors")
        server.refused = {"": 500}
        (found,) = [one for one in check_everything(settings) if "space input" in one.name]
        assert not found.ok and "embeds no text: it answers 500" in found.detail
    assert len(server.asked) == 2


def test_check_asks_the_server_of_a_part_of_a_part(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        settings_of(tmp_path, server)
        content = json.loads((tmp_path / "driftd.yaml").read_text())
        space = content["models"]["support"]["spaces"]["input"]
        both = {"kind": "average", "fields": ["/text", "/text"], "embedder": space["embedder"]}
        both["embedder"].pop("field")
        space["embedder"] = {"kind": "concat", "parts": {"a": both, "b": {"kind": "ngrams", "field": "/text"}}}
        (tmp_path / "driftd.yaml").write_text(json.dumps(content))
        (found,) = [one for one in check_everything(load_settings(tmp_path / "driftd.yaml")) if "space" in one.name]
    assert found.ok and found.detail.endswith(f"; {server.url} answers with 6-dimensional vectors")
    assert len(server.asked) == 1
