"""What is remembered of a model's answers, and what records say themselves is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import AnswersRow, KnownAnswer
from connectors.records import DeadLetter, Partition
from detectors.errors import InvalidInput
from monitor import answers as module
from monitor.answers import Answers, RememberedAnswers, pack
from monitor.event import EventBatch
from monitor.thinning import key_hashes

P = Partition("t", 3)


def never(place: int, reason: str, detail: str) -> DeadLetter:
    raise AssertionError("no row of these is refused")


def events(
    ids: Sequence[str],
    predictions: Sequence[str | None] | None,
    *,
    labels: Sequence[str | None] | None = None,
    confidence: Sequence[float] | None = None,
    first: int = 100,
) -> EventBatch:
    n = len(ids)
    return EventBatch(
        partition=P,
        offsets=np.arange(first, first + n),
        rows=np.zeros(n, np.int64),
        places=np.arange(n),
        time_ms=1_000 * np.arange(first, first + n),
        broker_ms=np.full(n, -1),
        ids=ids,
        keys=None,
        segments={},
        predictions=predictions,
        confidence=None if confidence is None else np.array(confidence),
        labels=labels,
        versions=None,
        kept=None,
        fields={},
        next_offset=first + n,
        letter=never,
    )


def found(row: AnswersRow, names: Sequence[str]) -> dict[str, KnownAnswer]:
    """What is remembered of records with these names."""
    remembered = RememberedAnswers(row)
    of = dict(zip(key_hashes(names).tolist(), names, strict=True))
    return {of[key]: remembered.record(place) for key, place in remembered.find(key_hashes(names)).items()}


def take(kept: Answers, batch: EventBatch, *, late: bool = False) -> None:
    kept.take(batch, np.full(len(batch), late))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**40), 2**41),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            st.floats(0, 1, width=32) | st.just(math.nan),
        ),
        min_size=1,
        max_size=100,
    )
)
def test_answers_come_out_as_they_went_in(records: list[tuple[int, str, float]]) -> None:
    ids = [f"r{n}" for n in range(len(records))]
    times, said, confidence = zip(*records, strict=True)
    row = pack(
        P,
        7,
        hashes=key_hashes(ids),
        time_ms=np.array(times, np.int64),
        answers=said,
        confidence=np.array(confidence, np.float32),
    )
    assert (row.partition, row.first_offset, row.from_ms, row.to_ms) == (P, 7, min(times), max(times))
    remembered = RememberedAnswers(row)
    assert len(remembered) == row.records == len(ids)
    for place, (time_ms, answer, sure) in enumerate(records):
        known = remembered.record(place)
        assert (known.answer, known.event_ms) == (answer, time_ms)
        assert known.confidence == sure or (math.isnan(sure) and math.isnan(known.confidence))


def test_the_last_answer_to_an_id_is_found_and_ids_that_are_not_there_are_not() -> None:
    kept = Answers(1.0)
    take(kept, events(["a", "b", "a"], ["cat", "dog", "cow"]))
    take(kept, events(["c"], ["cat"], first=200, confidence=[0.5]))
    [row] = kept.rows({P: 90})
    assert row.first_offset == 90 and row.records == 4
    known = found(row, ["a", "b", "c", "d"])
    assert {name: (one.answer, one.event_ms) for name, one in known.items()} == {
        "a": ("cow", 102_000),
        "b": ("dog", 101_000),
        "c": ("cat", 200_000),
    }
    assert math.isnan(known["a"].confidence) and known["c"].confidence == 0.5
    kept.clear()
    assert kept.rows({P: 90}) == []


def test_a_share_of_the_ids_is_remembered_whatever_batch_they_come_in() -> None:
    ids = [f"order-{n}" for n in range(20_000)]
    whole, parts = Answers(0.25), Answers(0.25)
    take(whole, events(ids, ["cat"] * len(ids)))
    for start in range(0, len(ids), 777):
        part = ids[start : start + 777]
        take(parts, events(part, ["cat"] * len(part), first=100 + start))
    [row], [again] = whole.rows({P: 0}), parts.rows({P: 0})
    assert row == again
    assert row.records == pytest.approx(5_000, rel=0.05)


def test_nothing_is_remembered_of_records_without_an_answer_or_where_nobody_asks() -> None:
    for share, predictions in ((0.0, ["cat", "dog"]), (1.0, None), (1.0, [None, None])):
        kept = Answers(share)
        take(kept, events(["a", "b"], predictions))
        assert kept.rows({P: 0}) == [] and kept.truths == [] and not kept.full


def test_records_that_say_what_is_true_are_truths_by_themselves_whatever_is_remembered() -> None:
    kept = Answers(0.0)
    batch = events(
        ["a", "b", "c", "d"], ["cat", None, "cat", "dog"], labels=["dog", "dog", None, "dog"], confidence=[0.5, 1, 1, 1]
    )
    batch.rows[3] = 2
    take(kept, batch)
    first, second = kept.truths
    assert (first.record_id, first.truth, first.answer, first.confidence, first.weight) == ("a", "dog", "cat", 0.5, 1.0)
    assert (first.origin, first.time_ms, first.event_ms) == ("record:t/3/100/0", 100_000, 100_000)
    assert (second.record_id, second.origin) == ("d", "record:t/3/103/2")


def test_what_late_records_say_is_told_apart() -> None:
    said = Answers(0.0)
    take(said, events(["a"], ["cat"], labels=["dog"]))
    take(said, events(["b"], ["cat"], labels=["dog"], first=200), late=True)
    begins = [truth.origin.partition(":")[0] for truth in said.truths]
    assert begins == ["record", "late"]


def test_a_checkpoint_is_due_before_it_holds_more_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRUTHS", 3)
    monkeypatch.setattr(module, "MOST_ANSWERS", 5)
    told = Answers(0.0)
    take(told, events(["a", "b"], ["cat", "cat"], labels=["cat", "cat"]))
    assert not told.full
    take(told, events(["c"], ["cat"], labels=["cat"]))
    assert told.full
    kept = Answers(1.0)
    take(kept, events(list("abcde"), ["cat"] * 5))
    assert kept.full


def test_a_record_takes_less_than_twenty_bytes_beside_the_texts() -> None:
    rng = np.random.default_rng(0)
    n = 50_000
    names = [f"class {number}" for number in rng.integers(0, 200, n)]
    row = pack(
        P,
        0,
        hashes=key_hashes([f"order-{n}" for n in range(n)]),
        time_ms=1_700_000_000_000 + np.cumsum(rng.integers(0, 20, n)),
        answers=names,
        confidence=rng.random(n, np.float32),
    )
    a_record = (len(row.ids) + len(row.blob)) / n
    assert a_record < 13.0  # what the module's description says


def test_damaged_answers_are_named_and_nothing_is_read_out_of_them() -> None:
    kept = Answers(1.0)
    take(kept, events(["a", "b"], ["cat", "dog"]))
    [row] = kept.rows({P: 0})
    for blob in (b"", row.blob[:-1], b"dAN2" + row.blob[4:], row.blob + b"x", row.blob[:30]):
        with pytest.raises(InvalidInput, match="are damaged"):
            RememberedAnswers(replace(row, blob=blob, id=4))
    with pytest.raises(InvalidInput, match="row 4"):
        RememberedAnswers(replace(row, ids=row.ids[:8], id=4))
