"""Records that labels bring along are embedded like those of the stream, and wait where they cannot be."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import NewLabel
from monitor.app import build_label_desk, open_store
from monitor.joining import Took
from monitor.label_records import NOWHERE, BroughtRecords
from monitor.labels import SaidLabel
from monitor.references import from_source
from monitor.settings import Settings


def document(number: int) -> dict[str, Any]:
    chance = np.random.default_rng(number)
    vector = chance.normal(size=4).round(4).tolist()
    return {
        "id": f"r{number}",
        "ts": 1_700_000_000_000 + number,
        "v": vector,
        "card": f"c{number % 7}",
        "amount": number,
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("brought")
    (folder / "stream.jsonl").write_text("".join(json.dumps(document(number)) + "\n" for number in range(1500)))
    return Settings(
        database=f"sqlite:///{folder / 'driftd.db'}",
        references=folder / "references",
        models={
            "cards": {
                "source": {"kind": "files", "path": str(folder / "stream.jsonl")},
                "record": {"id": "/id", "time": "/ts", "segments": {"card": "/card"}},
                "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
                "fraud": {"fields": {"amount": "/amount"}, "entity": "/card"},
            }
        },
    )


def said(number: int, record: Any) -> SaidLabel:
    return SaidLabel(NewLabel(f"r{number}", "fraud", 1_700_000_900_000, "analyst", 1.0, "", f"o{number}"), record)


def test_a_history_of_cases_waits_without_a_reference_and_counts_with_one(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(settings) as store:
        assert build_label_desk("cards", settings, store).take([said(1, document(1))]) == Took(1, 0, 0)
        assert "there is no reference yet" in caplog.text
        from_source(settings, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)

        labels = [said(9001, document(9001)), said(9002, {"id": "r9002", "ts": 5, "v": [1]}), said(9003, "no object")]
        labels += [
            said(1, document(1)),
            said(9004, {name: value for name, value in document(9004).items() if name != "amount"}),
        ]
        assert build_label_desk("cards", settings, store).take(labels) == Took(4, 1, 2, woken=1)

        first, second, woken = store.labels("cards")
        assert woken.said.record_id == "r1"
        known = first.said.known
        assert known is not None and (known.partition, known.offset, known.event_ms) == (NOWHERE, -1, 1_700_000_009_001)
        assert np.frombuffer(known.vector, "<f4").tolist() == np.float32(document(9001)["v"]).tolist()
        signals = np.frombuffer(known.signals, "<f4")
        assert signals[0] > 0 and signals[-1] == 9001.0 and np.isnan(signals[1:-1]).all()
        assert len(known.entity) == 16 and math.isnan(known.probability) and known.selected == ""
        assert second.said.known is not None
        assert math.isnan(np.frombuffer(second.said.known.signals, "<f4")[-1])
        assert "r9002" in caplog.text and "r9003" in caplog.text
        assert [row.said.record_id for row in store.waiting_labels("cards", limit=9)] == ["r9002", "r9003"]


def test_what_is_known_of_a_brought_record_does_not_depend_on_those_beside_it(settings: Settings) -> None:
    with open_store(settings) as store:
        if store.active_reference("cards", "fraud") is None:
            from_source(settings, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)
        brought = BroughtRecords("cards", settings, store)
        labels = [said(number, document(number)) for number in range(5000, 5040)]
        together = brought(labels)
        alone = [brought([label])[0] for label in labels]
        assert [known and known.signals for known in together] == [known and known.signals for known in alone]
