"""Hashed character n-grams: equal to a plain count, and what they are good for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from monitor.embedders.ngrams import NgramsEmbedder, NgramsSettings
from monitor.embedders.parts import unit_rows


def ngrams(**settings: Any) -> NgramsEmbedder:
    return NgramsSettings(field="/t", **settings).build()


def plain_hash(gram: str) -> int:
    """The hash of one n-gram, as its definition says it."""
    mask, hashed = (1 << 64) - 1, 0
    for letter in gram:
        hashed = (hashed * 0x9E3779B97F4A7C15 + ord(letter) + 1) & mask
    hashed = ((hashed ^ (hashed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    hashed = ((hashed ^ (hashed >> 27)) * 0x94D049BB133111EB) & mask
    return hashed ^ (hashed >> 31)


def plainly(text: str, n: tuple[int, int], dimension: int) -> list[float]:
    columns = Counter[int]()
    padded = f" {text} "
    for length in range(n[0], n[1] + 1):
        for start in range(len(padded) - length + 1):
            hashed = plain_hash(padded[start : start + length])
            columns[(hashed >> 20 & 0xFFFFFF) % dimension] += -1 if hashed >> 63 else 1
    return [float(columns[column]) for column in range(dimension)]


@pytest.mark.parametrize("n", [(1, 1), (2, 3), (3, 5), (4, 4)])
def test_vectors_are_the_counts_that_a_plain_loop_finds(n: tuple[int, int]) -> None:
    texts = ["card refused", "kortti hylätty", "カード 😀", "a", "x" * 50, "aaaa"]
    found = ngrams(n=n, dimension=64, idf=False).embed([texts])
    for text, vector in zip(texts, found.vectors.tolist(), strict=True):
        padded = text if len(text) + 2 >= n[0] else text.ljust(n[0] - 2)
        assert vector == plainly(padded, n, 64)


def test_pieces_of_a_batch_meet_without_a_seam() -> None:
    texts = [f"{number} " + "some longer text " * (number % 97) for number in range(3000)]  # some pieces of 65,536
    embedder = ngrams(max_chars=100_000)
    embedder.fit([texts])
    together = embedder.embed([texts]).vectors
    for row in (0, 1, 96, 500, 2999):
        assert together[row].tobytes() == embedder.embed([[texts[row]]]).vectors.tobytes()


def test_white_space_and_capital_letters_are_nothing_where_they_are_set_to() -> None:
    embedder = ngrams(idf=False)
    same = embedder.embed([["Card refused", " card\n\trefused  ", "CARD REFUSED"]]).vectors
    assert same[0].tobytes() == same[1].tobytes() == same[2].tobytes()
    cased = ngrams(idf=False, lowercase=False).embed([["Card refused", "CARD REFUSED"]]).vectors
    assert cased[0].tobytes() != cased[1].tobytes()


def test_a_typo_stays_near_and_another_word_does_not() -> None:
    vectors = unit_rows(ngrams(idf=False).embed([["reimbursement", "reimbursment", "temperature"]]).vectors)
    assert vectors[0] @ vectors[1] > 0.7 > 0.4 > vectors[0] @ vectors[2]


def test_what_every_text_has_counts_less_than_what_few_have() -> None:
    texts = [f"invoice number {number}" for number in range(200)]
    weighted, plain = ngrams(), ngrams(idf=False)
    weighted.fit([texts])
    pair = [["invoice number 7", "invoice number 88"]]
    near, nearer = (float(np.dot(*unit_rows(embedder.embed(pair).vectors))) for embedder in (weighted, plain))
    assert near < nearer - 0.1


def test_lengths_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest and the longest"):
        NgramsSettings(field="/t", n=(5, 3))
