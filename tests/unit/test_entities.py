"""What is usual of a card, user or merchant: exact for any batch cut, bounded, and a takeover shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from detectors.conformal import hash64
from detectors.entities import EntityModel, EntityStates
from detectors.errors import InvalidInput, InvalidReference
from detectors.keyed_states import EPOCH
from detectors.reference import ANGULAR, STANDARD, Reference

CARDS, DIMENSION = 300, 12


@dataclass(frozen=True)
class Stream:
    hashes: npt.NDArray[np.uint64]
    vectors: npt.NDArray[np.float32]


def _stream(n: int, *, seed: int, cards: int = CARDS) -> Stream:
    """Every card has ways of its own, about as far apart as its records are."""
    usual = np.random.default_rng(1).normal(size=(cards, DIMENSION))
    random = np.random.default_rng(seed)
    card = random.integers(0, cards, n)
    vectors = usual[card] + random.normal(size=(n, DIMENSION))
    return Stream(hash64(card, 1), vectors.astype(np.float32))


@pytest.fixture(scope="module")
def model() -> EntityModel:
    baseline = _stream(8000, seed=2)
    reference = Reference.build(baseline.vectors, geometry=STANDARD)
    return EntityModel.fit(baseline.vectors, baseline.hashes, reference=reference)


def _cut(states: EntityStates, stream: Stream, cuts: npt.ArrayLike, *, first: int = 0) -> npt.NDArray[np.float32]:
    offsets = first + np.arange(len(stream.hashes))
    pieces = np.split(np.arange(len(stream.hashes)), np.asarray(cuts, int))
    return np.concatenate([states.push(stream.hashes[p], stream.vectors[p], offsets[p]) for p in pieces])


def _blobs(states: EntityStates) -> list[tuple[int, bytes]]:
    return [(key, blob) for key, _, blob in states.unwritten() if blob]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cards", [3, CARDS])
def test_scores_and_states_are_the_same_for_any_batch_cut(model: EntityModel, seed: int, cards: int) -> None:
    stream = _stream(3000, seed=seed, cards=cards)  # of 3 cards each passes the halving of its sums several times
    random = np.random.default_rng(seed)
    at_once, in_pieces = EntityStates(model), EntityStates(model)

    whole = _cut(at_once, stream, [])
    cut = _cut(in_pieces, stream, np.sort(random.integers(0, 3000, 40)))

    assert whole.tobytes() == cut.tobytes()
    assert at_once.unwritten() == in_pieces.unwritten()


def test_one_record_at_a_time_is_the_same_too(model: EntityModel) -> None:
    stream = _stream(400, seed=9, cards=5)
    assert np.array_equal(_cut(EntityStates(model), stream, []), _cut(EntityStates(model), stream, np.arange(1, 400)))


@pytest.mark.parametrize("seed", range(3))
def test_a_bounded_state_is_the_same_for_any_cut_and_after_a_restart(model: EntityModel, seed: int) -> None:
    stream = _stream(4 * EPOCH, seed=seed, cards=3000)
    random = np.random.default_rng(seed)
    middle = int(random.integers(EPOCH, 3 * EPOCH))
    at_once, in_pieces = EntityStates(model, most=500), EntityStates(model, most=500)

    whole = _cut(at_once, stream, [], first=77)
    head = Stream(stream.hashes[:middle], stream.vectors[:middle])
    tail = Stream(stream.hashes[middle:], stream.vectors[middle:])
    first = _cut(in_pieces, head, np.sort(random.integers(0, middle, 9)), first=77)
    restarted = EntityStates(model, most=500, stored=_blobs(in_pieces))
    second = _cut(restarted, tail, np.sort(random.integers(0, len(tail.hashes), 9)), first=77 + middle)

    assert np.array_equal(whole, np.concatenate([first, second]))
    assert at_once.dropped > 1000
    stored = dict(_blobs(in_pieces))
    for key, _, blob in restarted.unwritten():  # what a database would hold
        if blob:
            stored[key] = blob
        else:
            stored.pop(key, None)
    assert stored == dict(_blobs(at_once))
    assert len(at_once) <= 500 + EPOCH


def test_a_saved_model_scores_alike_and_damage_is_noticed(model: EntityModel, tmp_path: Path) -> None:
    model.save(tmp_path / "fraud")
    loaded = EntityModel.load(tmp_path / "fraud", reference=model.reference)
    stream = _stream(2000, seed=5)

    assert np.array_equal(_cut(EntityStates(model), stream, []), _cut(EntityStates(loaded), stream, []))

    file = tmp_path / "fraud" / "entities.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidReference, match="damaged"):
        EntityModel.load(tmp_path / "fraud", reference=model.reference)
    with pytest.raises(InvalidReference, match="cannot read"):
        EntityModel.load(tmp_path / "other", reference=model.reference)


def test_surprise_means_what_it_says_on_normal_records(model: EntityModel) -> None:
    surprise = _cut(EntityStates(model), _stream(20_000, seed=6), [])
    for column in range(2):
        assert 0.07 <= (surprise[:, column] >= 1.0).mean() <= 0.13  # p <= .1
        # p <= .01: of 300 cards three own most of the records that are strange among peers, so it varies with them.
        assert 0.004 <= (surprise[:, column] >= 2.0).mean() <= 0.02


def test_a_takeover_shows_at_the_first_record_and_a_small_lasting_change_after_some(model: EntityModel) -> None:
    states = EntityStates(model)
    before = _stream(20_000, seed=7)
    _cut(states, before, [])
    one = Stream(np.full(8, hash64(np.array([4]), 1)[0]), np.zeros((8, DIMENSION), np.float32))
    random = np.random.default_rng(3)
    usual = np.random.default_rng(1).normal(size=(CARDS, DIMENSION))
    other = Stream(one.hashes, (usual[5] + random.normal(size=(8, DIMENSION))).astype(np.float32))
    nudged = Stream(hash64(np.full(8, 6), 1), (usual[6] + 0.9 + random.normal(size=(8, DIMENSION))).astype(np.float32))

    taken_over = _cut(states, other, [], first=20_000)[:, 0]
    changed = _cut(states, nudged, [], first=20_008)[:, 0]

    assert taken_over[0] >= 2.0
    assert changed[-1] >= 2.0
    assert changed[-1] > changed[0]


def test_an_entity_unlike_all_others_is_strange_among_its_peers(model: EntityModel) -> None:
    random = np.random.default_rng(4)
    far = (8.0 + random.normal(size=(12, DIMENSION))).astype(np.float32)
    surprise = _cut(EntityStates(model), Stream(hash64(np.full(12, 10_000), 1), far), [])
    assert surprise[-1, 1] >= 3.0


def test_an_entity_that_is_new_is_not_strange_where_the_baseline_knows_all_of_its_entities_well() -> None:
    chance = np.random.default_rng(5)
    reference = Reference.build(chance.normal(size=(1_000, 6)).astype(np.float32), geometry=STANDARD)
    known = np.tile(np.arange(1, 21, dtype=np.uint64), 60)
    model = EntityModel.fit(chance.normal(size=(len(known), 6)).astype(np.float32), known, reference=reference)
    new = np.tile(np.arange(1_000, 1_400, dtype=np.uint64), 6)
    found = EntityStates(model).push(new, chance.normal(size=(len(new), 6)).astype(np.float32), np.arange(len(new)))
    for visit in range(6):  # of each of the 400 new ones
        strange = (found[400 * visit : 400 * (visit + 1)] >= 2.0).mean(axis=0)
        assert (strange < 0.03).all(), f"record {visit + 1}: {strange}, where 0.01 would be usual"


def test_nobodys_record_is_not_strange_and_changes_nothing(model: EntityModel) -> None:
    states = EntityStates(model)
    stream = _stream(50, seed=8)
    surprise = states.push(np.zeros(50, np.uint64), stream.vectors, np.arange(50))
    assert not surprise.any()
    assert states.unwritten() == []


def test_a_state_takes_less_than_300_bytes_and_what_was_written_is_not_written_again() -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    reference = Reference.build(vectors, geometry=ANGULAR)
    entities = hash64(np.arange(4000) % 200, 1)
    states = EntityStates(EntityModel.fit(vectors, entities, reference=reference))
    states.push(entities[:100], vectors[:100], np.arange(100))

    rows = states.unwritten()
    states.written()

    assert len(rows) == 100
    assert {len(blob) for _, _, blob in rows} == {267}
    assert [offset for key, offset, _ in rows if key == entities[0]] == [0]
    assert states.unwritten() == []
    with pytest.raises(InvalidReference, match="do not fit"):
        EntityStates(states.model, stored=[(1, b"short")])


def test_what_cannot_be_fitted_is_refused(model: EntityModel) -> None:
    stream = _stream(100, seed=1)
    with pytest.raises(InvalidInput, match="at least 20 records"):
        EntityModel.fit(stream.vectors, np.zeros(100, np.uint64), reference=model.reference)
    with pytest.raises(InvalidInput, match="one for each"):
        EntityModel.fit(stream.vectors, stream.hashes[:-1], reference=model.reference)
    with pytest.raises(InvalidInput, match="last"):
        EntityModel.fit(stream.vectors, stream.hashes, reference=model.reference, last=1)
