"""Pairs of cards and merchants: a never-seen far pair is strange, a never-seen near one and a usual one are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from detectors.conformal import hash64
from detectors.errors import InvalidInput, InvalidReference
from detectors.keyed_states import EPOCH
from detectors.relations import Relations, RelationStates

TOWNS, CARDS, MERCHANTS = 20, 40, 30  # cards and merchants of each town
Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


def _card(number: npt.ArrayLike) -> Hashes:
    return hash64(np.asarray(number, np.int64), 1)


def _merchant(number: npt.ArrayLike) -> Hashes:
    return hash64(np.asarray(number, np.int64), 2)


def _visits(n: int, *, seed: int) -> tuple[Numbers, Numbers]:
    """Cards visit 10 merchants of their own, out of the 30 of their town; one visit in 100 is somewhere else."""
    random = np.random.default_rng(seed)
    card = random.integers(0, TOWNS * CARDS, n)
    own = np.random.default_rng(0).permuted(np.tile(np.arange(MERCHANTS), (TOWNS * CARDS, 1)), axis=1)
    own = own[card, random.integers(0, 10, n)]
    town = np.where(random.random(n) < 0.01, random.integers(0, TOWNS, n), card // CARDS)
    return card, town * MERCHANTS + own


@pytest.fixture(scope="module")
def model() -> Relations:
    card, merchant = _visits(20_000, seed=1)
    return Relations.fit(_card(card), _merchant(merchant))


def _pushed(states: RelationStates, left: Hashes, right: Hashes, cuts: npt.ArrayLike = (), *, first: int = 0) -> Floats:
    offsets = first + np.arange(len(left))
    pieces = np.split(np.arange(len(left)), np.asarray(cuts, int))
    return np.concatenate([states.push(left[p], right[p], offsets[p]) for p in pieces])


def _far_near_usual(model: Relations) -> tuple[Floats, ...]:
    card, merchant = _visits(20_000, seed=1)
    shown = {*zip(card.tolist(), merchant.tolist(), strict=True)}
    cards = np.arange(TOWNS * CARDS)
    near = np.array(
        [next(m for m in range(c // CARDS * 30, c // CARDS * 30 + 30) if (c, m) not in shown) for c in cards.tolist()]
    )
    far = (cards // CARDS + TOWNS // 2) % TOWNS * MERCHANTS + cards % MERCHANTS
    usual = np.array([next(m for c, m in shown if c == card) for card in cards.tolist()[:50]])

    def scored(card: Numbers, merchant: Numbers) -> Floats:
        return RelationStates(model).push(_card(card), _merchant(merchant), np.arange(len(card)))

    return scored(cards, far), scored(cards, near), scored(cards[:50], usual)


def test_a_never_seen_far_pair_is_strange_and_a_near_or_a_usual_one_is_not(model: Relations) -> None:
    far, near, usual = _far_near_usual(model)
    assert np.median(far) >= 2.0  # of 1 % of the visits it is known that they were elsewhere
    assert np.median(near) <= 1.0
    assert (far[:, None] > near).mean() >= 0.98
    assert (usual <= 0.0).all()


def test_a_merchant_that_nobody_knows_is_as_strange_as_such_visits_are_rare(model: Relations) -> None:
    card = _card(np.arange(100))
    never = RelationStates(model).push(card, _merchant(np.full(100, 10**6)), np.arange(100))
    assert (never >= 3.0).all()
    assert len(np.unique(never)) == 1


def test_a_pair_is_usual_from_its_second_time_on_and_a_first_visit_of_a_card_is_not_strange(model: Relations) -> None:
    states = RelationStates(model)
    card, merchant = _card([3, 3, 3, 10**6]), _merchant([599, 599, 599, 599])
    first, second, third, of_new_card = states.push(card, merchant, np.arange(4))
    assert first >= 1.5
    assert (second, third, of_new_card) == (0.0, 0.0, 0.0)


def test_surprise_means_what_it_says_on_usual_visits(model: Relations) -> None:
    card, merchant = _visits(20_000, seed=2)
    surprise = RelationStates(model).push(_card(card), _merchant(merchant), np.arange(20_000))
    assert (surprise >= 2.0).mean() <= 0.015


@pytest.mark.parametrize("seed", range(3))
def test_scores_and_states_are_the_same_for_any_batch_cut_and_after_a_restart(model: Relations, seed: int) -> None:
    n = 3 * EPOCH
    card, merchant = _visits(n, seed=10 + seed)
    card[::3] = 5  # one that has many records in every batch
    left, right = _card(card), _merchant(merchant)
    random = np.random.default_rng(seed)
    middle = int(random.integers(EPOCH, 2 * EPOCH))
    at_once, in_pieces = RelationStates(model, most=200), RelationStates(model, most=200)

    whole = _pushed(at_once, left, right)
    cuts = np.sort(random.integers(0, middle, 20))
    head = _pushed(in_pieces, left[:middle], right[:middle], cuts)
    stored = {key: blob for key, _, blob in in_pieces.unwritten() if blob}
    restarted = RelationStates(model, most=200, stored=stored.items())
    tail = _pushed(restarted, left[middle:], right[middle:], [1, 2, 3, 900], first=middle)

    assert np.array_equal(whole, np.concatenate([head, tail]))
    stored |= {key: blob for key, _, blob in restarted.unwritten()}
    assert {key: blob for key, blob in stored.items() if blob} == {k: b for k, _, b in at_once.unwritten() if b}
    assert at_once.dropped > 0


def test_a_saved_model_scores_alike_and_damage_is_noticed(model: Relations, tmp_path: Path) -> None:
    model.save(tmp_path / "fraud")
    loaded = Relations.load(tmp_path / "fraud")
    card, merchant = _visits(3000, seed=3)
    left, right = _card(card), _merchant(merchant)
    assert np.array_equal(_pushed(RelationStates(model), left, right), _pushed(RelationStates(loaded), left, right))
    file = tmp_path / "fraud" / "relations.npz"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InvalidReference, match="damaged"):
        Relations.load(tmp_path / "fraud")


def test_the_same_baseline_gives_the_same_file(tmp_path: Path) -> None:
    card, merchant = _visits(4000, seed=4)
    for name in ("one", "two"):
        Relations.fit(_card(card), _merchant(merchant)).save(tmp_path / name)
    one, two = ((tmp_path / name / "relations.npz").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_baseline_is_replayed_without_what_it_taught(model: Relations) -> None:
    card, merchant = _visits(20_000, seed=1)
    surprise = model.replay(_card(card), _merchant(merchant))
    assert (surprise > 0).mean() > 0.05  # as its own pairs all would be usual
    assert (surprise >= 2.0).mean() <= 0.02


def test_missing_sides_are_not_strange_and_small_baselines_are_refused(model: Relations) -> None:
    states = RelationStates(model)
    nothing = np.zeros(3, np.uint64)
    assert not states.push(nothing, _merchant([1, 2, 3]), np.arange(3)).any()
    assert states.unwritten() == []
    with pytest.raises(InvalidInput, match="at least 20 records"):
        Relations.fit(nothing, nothing)
    with pytest.raises(InvalidInput, match="as many left as right"):
        Relations.fit(nothing, nothing[:2])
    few = Relations.fit(_card(np.zeros(30)), _merchant(np.arange(30)))  # one card: nothing is told by who visits
    assert RelationStates(few).push(_card([0]), _merchant([99]), np.arange(1))[0] == 0.0  # as all of its visits
