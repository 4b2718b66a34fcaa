"""What is stored of verdicts, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from connectors.database.rows import FoldResult, VerdictWord
from connectors.database.store import Store
from detectors.errors import OwnershipLost
from tests.contract.verdict_rows import verdict


def fold(store: Store, next_block: int, *verdicts: Any, model: str = "m") -> None:
    with store.begin_fold(model) as step:
        step.commit(FoldResult(next_block, [], [], [], [], [], verdicts=list(verdicts)))


def test_verdicts_come_back_as_they_were_in_the_order_of_blocks(store: Store) -> None:
    told = [
        verdict(
            n,
            word=word,
            labels=n,
            truths=n + 3,
            realised=0.5,
            realised_low=0.25,
            realised_high=0.75,
            evidence=2.5,
            metric_name="f1",
            metric=0.25,
        )
        for n, word in enumerate(get_args(VerdictWord))
    ]
    fold(store, 20, *told[::-1])
    assert store.verdicts("m") == told
    assert store.verdict("m") == told[-1]
    assert store.verdicts("other") == []
    assert store.verdict("other") is None


def test_numbers_that_are_not_known_come_back_as_not_known(store: Store) -> None:
    names = ("confidence", "estimated", "low", "high", "atc", "novel", "unsupported", "floor", "evidence", "age_s")
    fold(store, 1, verdict(0, **dict.fromkeys(names, math.nan)))
    found = store.verdict("m")
    assert found is not None
    assert all(math.isnan(getattr(found, name)) for name in (*names, "realised", "realised_low", "realised_high"))


def test_reasons_may_hold_any_text(store: Store) -> None:
    fold(store, 1, verdict(0, reasons=('å "quoted"', "nul \0 and \ud800", "")))
    found = store.verdict("m")
    assert found is not None
    assert found.reasons == ('å "quoted"', "nul \ufffd and ?", "")


def test_the_verdict_on_a_block_that_is_judged_again_replaces_the_first(store: Store) -> None:
    fold(store, 2, verdict(0), verdict(1))
    fold(store, 2, verdict(1, word="watch"))
    assert [row.word for row in store.verdicts("m")] == ["fresh", "watch"]


def test_a_fold_that_lost_its_turn_leaves_no_verdict(store: Store) -> None:
    with store.begin_fold("m") as step:
        fold(store, 1, verdict(0))
        with pytest.raises(OwnershipLost):
            step.commit(FoldResult(1, [], [], [], [], [], verdicts=[verdict(0, word="degraded")]))
    assert [row.word for row in store.verdicts("m")] == ["fresh"]


def test_verdicts_are_asked_for_by_time_and_the_newest_stay(store: Store) -> None:
    fold(store, 9, *(verdict(n) for n in range(5)))
    assert [row.block for row in store.verdicts("m", from_ms=10_000, to_ms=40_000)] == [1, 2, 3]
    assert [row.block for row in store.verdicts("m", to_ms=40_000, limit=2)] == [2, 3]
    at = store.verdict("m", at_ms=39_999)
    assert at is not None
    assert at.block == 2, "block 3 had not ended"
    assert store.verdict("m", at_ms=9_999) is None


def test_changes_of_the_word_are_the_verdicts_that_say_another_one_than_before(store: Store) -> None:
    words = ("fresh", "fresh", "watch", "watch", "fresh", "degraded", "degraded")
    fold(store, 9, *(verdict(n, word=word) for n, word in enumerate(words)))
    fold(store, 9, verdict(0, word="blind"), model="other")
    assert [(row.block, row.word) for row in store.verdict_changes("m")] == [
        (0, "fresh"),
        (2, "watch"),
        (4, "fresh"),
        (5, "degraded"),
    ]
    assert [row.block for row in store.verdict_changes("m", limit=2)] == [4, 5]
    assert [row.block for row in store.verdict_changes("m", from_ms=30_000, to_ms=50_000)] == [3, 4]
