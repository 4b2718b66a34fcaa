"""What labels that come later need to know of records: packed, joined, found again."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.joining import hashes_of
from monitor.remembered import Remembered, joined, pack
from monitor.thinning import key_hashes

P0 = Partition("orders", 0)


def packed(first: int, n: int, *, seed: int = 0, **more: Any) -> Any:
    random = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "offsets": np.arange(first, first + n),
        "rows": np.zeros(n, np.int64),
        "time_ms": 1_700_000_000_000 + np.arange(first, first + n),
        "ids": [f"t{number}" for number in range(first, first + n)],
        "entities": [f"card{number % 3}é" if number % 4 else None for number in range(first, first + n)],
        "probability": random.random(n, dtype=np.float32),
        "p_value": random.random(n),
        "vectors": random.standard_normal((n, 5), dtype=np.float32),
        "signals": random.standard_normal((n, 2), dtype=np.float32),
        "version": 7,
        "made_with": "abc/1",
    } | more
    return pack(P0, first, **values), values


def test_a_record_comes_out_as_it_went_in() -> None:
    row, values = packed(40, 100)
    found = Remembered(row)
    places = found.find(key_hashes(["t41", "nobody", "t139"]))
    assert sorted(places.values()) == [1, 99]
    known = found.record(99)
    assert (known.partition, known.offset, known.row, known.event_ms) == (P0, 139, 0, 1_700_000_000_139)
    assert known.entity == "card1é" and found.record(0).entity == ""
    assert known.probability == values["probability"][99] and known.p_value == values["p_value"][99]
    assert np.array_equal(np.frombuffer(known.vector, "<f4"), values["vectors"][99])
    assert np.array_equal(np.frombuffer(known.signals, "<f4"), values["signals"][99])
    assert (known.scored_with, known.selected, known.made_with) == (7, "", "abc/1") and math.isnan(known.chance)
    assert (row.from_ms, row.to_ms, row.records) == (1_700_000_000_040, 1_700_000_000_139, 100)


def test_packs_of_one_checkpoint_are_joined_and_the_last_record_of_an_id_is_found() -> None:
    first, _ = packed(0, 3, version=1)
    second, _ = packed(3, 2, version=2, ids=["t1", "x"], entities=None, seed=1)
    row = joined([first, second])
    found = Remembered(row)
    assert (len(found), row.first_offset, row.records, row.to_ms) == (5, 0, 5, second.to_ms)
    place = found.find(key_hashes(["t1"]))[int(key_hashes(["t1"])[0])]
    assert (found.record(place).offset, found.record(place).scored_with, found.record(place).entity) == (3, 2, "")
    assert hashes_of(row.ids).tolist() == key_hashes(["t0", "t1", "t2", "t1", "x"]).tolist()


def test_offsets_of_a_topic_that_was_made_anew_are_not_those_of_records_now() -> None:
    row, _ = packed(40, 2)
    assert Remembered(dataclasses.replace(row, first_offset=-(2**48))).record(0).offset == -1


@pytest.mark.parametrize("damage", [b"", b"XXXX", b"short"])
def test_damaged_bytes_are_refused_with_the_row_to_delete(damage: bytes) -> None:
    row, _ = packed(0, 3)
    blob = damage + row.blob[4:] if damage == b"XXXX" else row.blob[: -len(damage) or len(row.blob)]
    broken = dataclasses.replace(row, blob=blob, ids=row.ids if damage else row.ids[:-8], id=12)
    with pytest.raises(InvalidInput, match="WHERE id = 12"):
        Remembered(broken)


def test_what_compresses_is_compressed_and_vectors_are_not() -> None:
    row, _ = packed(0, 1000)
    room = 1000 * (4 + 8 + 4 * 5 + 4 * 2)
    assert room < len(row.blob) < room + 1000 * 8
