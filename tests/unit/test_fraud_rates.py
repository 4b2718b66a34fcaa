"""Candidates among normal live records are about as frequent as `fraud.alpha` says, whatever has been learned."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from connectors.database.rows import ReferenceRow
from detectors.conformal import position_uniforms
from detectors.entities import EntityStates
from detectors.fraud import FraudScorer
from detectors.reference import Reference
from detectors.relations import RelationStates
from monitor.fraud_build import FraudColumns, FraudParts, build_fraud, load_fraud
from monitor.fraud_settings import FraudSettings
from monitor.fraud_signals import arranged, of_vectors
from monitor.thinning import key_hashes

D = 6
BASELINE, LIVE, TILE = 16_000, 16_000, 4_000
MERCHANTS = 300
SETTINGS = FraudSettings.model_validate({"entity": "/card", "relation": {"of": "/card", "to": "/merchant"}})


def visits(cards: int, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors around what is usual of each card, whose card each is, and a merchant, one of its usual ones mostly."""
    usual = np.random.default_rng(99).normal(size=(cards, D))
    chance = np.random.default_rng(seed)
    card = chance.integers(0, cards, n)
    own = (card * 7 + chance.integers(0, 5, n)) % MERCHANTS
    merchant = np.where(chance.uniform(size=n) < 0.8, own, chance.integers(0, MERCHANTS, n))
    vectors = (usual[card] + 0.7 * chance.normal(size=(n, D))).astype(np.float32)
    return vectors, key_hashes([f"c{one}" for one in card]), key_hashes([f"m{one}" for one in merchant])


def built(folder: Path, cards: int) -> FraudParts:
    vectors, card, merchant = visits(cards, BASELINE, seed=1)
    blocks = np.arange(BASELINE) // 100
    reference = Reference.build(vectors, block_ids=blocks)
    row = build_fraud(
        folder,
        reference,
        row=ReferenceRow("cards", "input", 1, "", BASELINE, D, reference.checksum, 0, True),
        version=1,
        vectors=vectors,
        blocks=blocks,
        columns=FraudColumns(
            SETTINGS, numbers=[np.zeros((BASELINE, 0), np.float32)], entities=[card], lefts=[card], rights=[merchant]
        ),
        order=np.arange(BASELINE),
        progress=lambda step, share: None,
    )
    return load_fraud(row, reference, SETTINGS)


def live_signals(parts: FraudParts, vectors: np.ndarray, card: np.ndarray, merchant: np.ndarray) -> np.ndarray:
    """As the stage makes them, with the seeds of the whole baseline."""
    assert parts.entities is not None and parts.relations is not None
    entities, relations = EntityStates(parts.entities), RelationStates(parts.relations)
    found = []
    for first in range(0, len(vectors), TILE):
        tile = slice(first, first + TILE)
        offsets = np.arange(first, first + len(card[tile]))
        of_entity = entities.push(card[tile], vectors[tile], offsets)
        columns = {
            **of_vectors(parts, vectors[tile], parts.reference.score(vectors[tile]).p_value),
            "entity_self": of_entity[:, 0],
            "entity_peers": of_entity[:, 1],
            "relation": relations.push(card[tile], merchant[tile], offsets),
        }
        found.append(arranged(parts, len(offsets), columns))
    return np.concatenate(found)


def most(alpha: float, held_out: int) -> float:
    """What the share of p-values of at most alpha stays under but for once in 30,000 times: four deviations.

    A share of ``held_out`` records stands for alpha, one of ``LIVE`` is looked at: both vary as binomial shares do. The
    average of an entity's last 8 records is in 8 of its records, so that eight of them count as one.
    """
    return alpha + 4 * math.sqrt(8 * alpha * (1 - alpha) * (1 / held_out + 1 / LIVE))


@pytest.mark.parametrize("cards", [200, 3_000])  # 80 and 5 records of a card in the baseline
def test_candidates_are_as_frequent_as_alpha_says(tmp_path: Path, cards: int) -> None:
    parts = built(tmp_path, cards)
    vectors, card, merchant = visits(cards, LIVE, seed=2)
    columns = live_signals(parts, vectors, card, merchant)
    uniforms = position_uniforms("cards", 0, np.arange(LIVE), rows=np.zeros(LIVE, np.int64), purpose="fraud")
    held_out = len(parts.baseline) // 2
    chance = np.random.default_rng(3)
    for cases in (0, 5, 50, 500):
        # Fraud lies elsewhere, is stranger than a usual record, and has as many new pairs as there are.
        stolen, taken = visits(cards, cases, seed=4)[0] + np.float32(1.0), chance.integers(0, LIVE, cases)
        of_stolen = columns[taken] + chance.exponential(1.0, (cases, columns.shape[1])).astype(np.float32)
        scorer = FraudScorer(parts.reference, baseline=parts.baseline)
        scorer.fit(stolen, np.ones(cases), signals=of_stolen)

        p = scorer.assess(vectors, signals=columns, uniforms=uniforms).p_value

        for alpha in (0.005, 0.05):
            share = float((p <= alpha).mean())
            assert alpha / 5 <= share <= most(alpha, held_out), (cases, alpha, share)  # more is known live: fewer


def test_the_signals_of_the_baseline_are_as_strange_as_live_ones(tmp_path: Path) -> None:
    parts = built(tmp_path, 200)
    columns = live_signals(parts, *visits(200, LIVE, seed=2))
    for name, baseline, live in zip(parts.baseline.names, parts.baseline.signals.T, columns.T, strict=True):
        for alpha in (0.01, 0.1):
            of_baseline, of_live = (float((column >= -math.log10(alpha)).mean()) for column in (baseline, live))
            assert of_live <= of_baseline + most(alpha, len(baseline)) - alpha, (name, alpha, of_baseline, of_live)
            assert of_baseline >= alpha / 3, (name, alpha, of_baseline)
