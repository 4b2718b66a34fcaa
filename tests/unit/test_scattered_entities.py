"""Entities in several partitions are noticed, and said once."""

from __future__ import annotations

import logging

import pytest

from connectors.database.rows import EntityRow
from connectors.records import Partition
from monitor.entities import ScatterWatch, scattered, scattered_text


def _row(number: int, entity: int, *, kind: str = "entity", topic: str = "t", blob: bytes = b"x") -> EntityRow:
    return EntityRow(Partition(topic, number), kind, entity, 7, blob)


def test_an_entity_of_two_partitions_is_counted_by_kind() -> None:
    rows = [_row(0, 1), _row(1, 1), _row(0, -2), _row(1, 3), _row(0, 4, kind="relation"), _row(1, 4, kind="relation")]
    assert scattered(rows) == {"entity": 1, "relation": 1}


def test_two_kinds_two_topics_and_dropped_ones_are_not_the_same_entity_twice() -> None:
    assert scattered([_row(0, 1), _row(1, 1, kind="relation")]) == {}
    assert scattered([_row(0, 1), _row(1, 1, topic="other")]) == {}
    assert scattered([_row(0, 1), _row(1, 1, blob=b"")]) == {}
    assert scattered([]) == {}


def test_it_is_logged_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    watch = ScatterWatch("cards")
    with caplog.at_level(logging.WARNING):
        watch.look([_row(0, 1), _row(0, 2)])
        watch.look([_row(0, 1), _row(1, 2)])
        assert caplog.records == []
        watch.look([_row(0, 1), _row(1, 1)])
        watch.look([_row(0, 5), _row(1, 5)])
        assert [record.getMessage().split(" model=")[0] for record in caplog.records] == [
            "entities in several partitions"
        ]
        watch.look([_row(0, 1, kind="relation"), _row(1, 1, kind="relation")])
    assert len(caplog.records) == 2
    assert "Key the topic by" in caplog.text


def test_doctor_has_a_sentence_for_either_case() -> None:
    class Counts:
        def __init__(self, counts: dict[str, int]) -> None:
            self.counts = counts

        def scattered_entities(self, model: str) -> dict[str, int]:
            return self.counts if model == "cards" else {}

    assert scattered_text(Counts({"entity": 1200}), "cards")[0] is False
    assert "1,200 of kind entity" in scattered_text(Counts({"entity": 1200}), "cards")[1]
    assert scattered_text(Counts({"entity": 1200}), "other") == (True, "each entity's records are in one partition")
