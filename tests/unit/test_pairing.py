"""Pairing: which halves meet is decided by the records of the partition, whatever cuts, crashes and new owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import HalfRow
from connectors.records import Partition, RawBatch
from monitor.decode import Decoder, RecordSettings
from monitor.pairing import MAX_PENDING, Half, Pair, Pairing, Role, role_of

P0 = Partition("calls", 0)
TIMEOUT_MS = 100

# What a pair is told by: its offset, its halves, at which record it came out.
Seen = tuple[int, int | None, int | None, int]


def half(offset: int, id_: str, role: Role, time_ms: int, value: bytes = b"{}") -> Half:
    return Half(offset, id_, role, time_ms, time_ms, b"k", value, [("ce_id", id_.encode())])


def seen(pair: Pair, at: int) -> Seen:
    request = None if pair.request is None else pair.request.offset
    response = None if pair.response is None else pair.response.offset
    return pair.offset, request, response, at


def offsets(pairs: Sequence[Pair]) -> list[tuple[int | None, int | None]]:
    return [seen(pair, 0)[1:3] for pair in pairs]


def push(pairing: Pairing, *halves: Half) -> list[Pair]:
    return [pair for half in halves for pair in pairing.push(half)[0]]


def take(pairing: Pairing, *halves: Half) -> list[tuple[int | None, int | None]]:
    return offsets(push(pairing, *halves))


# --- what pairs -------------------------------------------------------------------------------------------------------


def test_a_request_and_its_response_meet_in_either_order() -> None:
    pairing = Pairing(TIMEOUT_MS)
    assert take(pairing, half(0, "a", "request", 0), half(1, "b", "response", 1)) == []
    (found, other) = push(pairing, half(2, "b", "request", 2), half(3, "a", "response", 3))
    assert offsets([found, other]) == [(2, 1), (0, 3)]
    assert (found.joined, found.offset, found.last.role) == (True, 2, "request")
    assert (other.offset, other.last.role) == (3, "response")
    assert (len(pairing), pairing.counts.joined, pairing.oldest_ms) == (0, 2, None)


def test_a_half_goes_alone_when_a_record_comes_that_is_more_than_the_timeout_younger() -> None:
    pairing = Pairing(TIMEOUT_MS)
    assert take(pairing, half(0, "a", "request", 1_000), half(1, "b", "request", 1_100)) == []
    assert pairing.oldest_ms == 1_000
    (alone,) = push(pairing, half(2, "c", "request", 1_101))
    assert (alone.offset, alone.response, alone.joined, alone.last.id) == (0, None, False, "a")
    assert (pairing.counts.timed_out, len(pairing), pairing.oldest_ms) == (1, 2, 1_100)
    assert take(pairing, half(3, "b", "response", 1_150)) == [(1, 3)]


def test_the_partner_that_comes_too_late_finds_nobody() -> None:
    pairing = Pairing(TIMEOUT_MS)
    take(pairing, half(0, "a", "request", 0))
    assert take(pairing, half(1, "a", "response", 101)) == [(0, None)]
    assert (len(pairing), pairing.counts.joined) == (1, 0), "it waits in its turn"


def test_the_first_of_two_equal_halves_wins() -> None:
    pairing = Pairing(TIMEOUT_MS)
    assert pairing.push(half(0, "a", "request", 0)) == ([], True)
    assert pairing.push(half(1, "a", "request", 1, b"again")) == ([], False)
    assert take(pairing, half(2, "a", "response", 2)) == [(0, 2)]


def test_halves_without_a_time_wait_until_the_end() -> None:
    pairing = Pairing(TIMEOUT_MS)
    assert take(pairing, half(0, "a", "request", -1), half(1, "b", "request", 10**12)) == []
    assert take(pairing, half(2, "c", "response", -1), half(3, "a", "response", -1)) == [(0, 3)]
    assert pairing.oldest_ms == 10**12
    assert offsets(pairing.end()) == [(1, None), (None, 2)]
    assert (len(pairing), pairing.counts.timed_out) == (0, 2)


def test_the_oldest_goes_alone_when_too_many_wait() -> None:
    pairing = Pairing(TIMEOUT_MS, max_pending=2)
    assert take(pairing, *(half(at, str(at), "request", 5) for at in range(4))) == [(0, None), (1, None)]
    assert (pairing.counts.crowded_out, pairing.counts.timed_out, len(pairing)) == (2, 0, 2)


def test_the_oldest_goes_alone_when_those_that_wait_are_too_large() -> None:
    pairing = Pairing(TIMEOUT_MS, max_bytes=1_000)
    small, large = half(0, "a", "request", 5), half(1, "b", "request", 5, b"x" * 900)
    assert take(pairing, small, large) == []
    assert take(pairing, half(2, "c", "request", 5, b"x" * 100)) == [(0, None), (1, None)]
    assert take(pairing, half(3, "d", "request", 5, b"x" * 2_000)) == [(2, None), (3, None)], "not even itself has room"
    assert (len(pairing), pairing.counts.crowded_out) == (0, 4)


def test_what_is_remembered_of_halves_that_met_is_bounded() -> None:
    pairing = Pairing(10**9)
    for at in range(20_000):
        take(pairing, half(2 * at, str(at), "request", at), half(2 * at + 1, str(at), "response", at))
    assert len(pairing._by_time) <= 1_001
    assert MAX_PENDING == 100_000


def test_roles_are_the_last_word_of_a_type() -> None:
    assert role_of("org.kubeflow.serving.inference.request") == "request"
    assert role_of("io.seldon.serving.inference.response") == "response"
    assert (role_of("Request"), role_of("RESPONSE")) == ("request", "response")
    assert (role_of("org.kubeflow.serving.inference.feedback"), role_of(""), role_of("requests")) == (None, None, None)


# --- cuts, crashes, owners --------------------------------------------------------------------------------------------


@dataclass
class Database:
    """What a checkpoint leaves: the next record, the halves that wait, the pairs that came out."""

    next_offset: int = 0
    halves: dict[int, HalfRow] = field(default_factory=dict)
    pairs: list[Seen] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)

    def write(self, pairing: Pairing, next_offset: int, pairs: list[Seen], repeated: list[int]) -> None:
        for offset in pairing.left:
            del self.halves[offset]
        for row in pairing.unwritten(P0):
            assert row.offset not in self.halves
            self.halves[row.offset] = row
        self.pairs += pairs
        self.repeated += repeated
        self.next_offset = next_offset
        pairing.written()


def owner(database: Database) -> Pairing:
    return Pairing(TIMEOUT_MS, database.halves.values(), max_pending=4, max_bytes=600)


halves = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from(["request", "response"]),
        st.integers(-60, 120),  # of time since the record before
        st.integers(0, 300),  # bytes
        st.booleans(),  # has a time
    ),
    max_size=60,
)
# Batches, each with what happens after it: nothing, a checkpoint, a crash.
cuts = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["", "", "checkpoint", "crash"])), max_size=40)


def pushed(pairing: Pairing, batch: Sequence[Half]) -> tuple[list[Seen], list[int]]:
    """What came out, and the offsets of the halves that were not taken."""
    pairs, repeated = [], []
    for each in batch:
        found, taken = pairing.push(each)
        pairs += [seen(pair, each.offset) for pair in found]
        repeated += [] if taken else [each.offset]
    return pairs, repeated


@settings(max_examples=150, deadline=None)
@given(records=halves, cuts=cuts)
def test_any_cut_and_any_crash_give_the_same_pairs(
    records: list[tuple[str, Role, int, int, bool]], cuts: list[tuple[int, str]]
) -> None:
    stream, clock = [], 1_000
    for offset, (id_, role, step, size, timed) in enumerate(records):
        clock += step
        stream.append(half(offset, id_, role, clock if timed else -1, b"x" * size))

    whole = Database()
    pairing = owner(whole)
    pairs, repeated = pushed(pairing, stream)
    whole.write(pairing, len(stream), [*pairs, *(seen(pair, len(stream)) for pair in pairing.end())], repeated)
    assert not whole.halves

    database = Database()
    pairing, at, pairs, repeated = owner(database), 0, list[Seen](), list[int]()
    for size, then in [*cuts, (len(stream), "checkpoint"), (len(stream), "checkpoint")]:
        batch = stream[at : at + size]
        more, again = pushed(pairing, batch)
        pairs, repeated, at = [*pairs, *more], [*repeated, *again], at + len(batch)
        if then == "checkpoint":
            database.write(pairing, at, pairs, repeated)
        if then:
            pairing, at, pairs, repeated = owner(database), database.next_offset, [], []
    database.write(pairing, at, [seen(pair, at) for pair in pairing.end()], [])

    assert database == whole
    accounted = [offset for _, *both, _ in database.pairs for offset in both if offset is not None]
    assert sorted([*accounted, *database.repeated]) == list(range(len(stream))), "every record is accounted for once"
    assert len({offset for offset, *_ in database.pairs}) == len(database.pairs), "no two pairs stand in one place"


# --- records of any kind ----------------------------------------------------------------------------------------------

junk = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"{}", b"[]", b"null", b'{"id": 1, "role": "request"}', b'{"id": {}, "role": 2}', b"\x1f\x8b"]),
    st.builds(
        lambda id_, role: msgspec.json.encode({"id": id_, "role": role, "v": 1}),
        st.one_of(st.integers(0, 3), st.text(max_size=3), st.none(), st.booleans()),
        st.sampled_from(["request", "response", "x.y.request", "", "other"]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.none() | junk, max_size=30), headers=st.booleans(), steps=st.lists(st.integers(-90, 90)))
def test_whatever_comes_each_record_is_in_one_place(
    values: list[bytes | None], headers: bool, steps: list[int]
) -> None:
    record = RecordSettings.model_validate({"pair": {"by": "/id", "role": "header:r" if headers else "/role"}})
    decoder, pairing, n = Decoder(record, ["/request/v"]), Pairing(TIMEOUT_MS, max_pending=3), len(values)
    moments = [max(0, 1_000 + step) for step in (steps * n)[:n] or [0] * n]
    roles = [b"response", b"request", b"", b"\xff"]
    batch = RawBatch(
        P0,
        np.arange(n, dtype=np.int64),
        np.array(moments, dtype=np.int64),
        [None] * n,
        values,
        [[("r", roles[row % 4])] for row in range(n)],
        n,
    )
    events = decoder.decode(batch, None, pairing)
    places = [*events.offsets.tolist(), *(letter.offset for letter in events.dead)]
    assert len(set(places)) == len(places) == events.records
    assert events.records + pairing.counts.joined + len(pairing) == n
    assert events.next_offset == n
