"""Which inputs become canaries, what of them is stored, and what a reference says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from connectors.records import Partition, RawBatch
from detectors.encoder_change import SAME
from detectors.errors import InvalidReference
from detectors.reference import TEXT, Canaries
from monitor.canaries import MAX_BYTES, MAX_CANARY_BYTES, Candidates, checked, in_words, made_on
from monitor.canary_texts import TEXTS
from monitor.decode import Decoder
from monitor.embedders.embedder import Columns, Embedded, Problem
from monitor.record import RecordSettings
from monitor.settings import ReferenceSettings

P0 = Partition("orders", 0)


class Letters:
    """An embedder that counts letters: small, real, and changed by a word."""

    kind = "letters"
    learns = False
    geometry = TEXT

    def __init__(self, *, fields: Sequence[str] = ("/text",), read: Callable[[Any], str] = str) -> None:
        self.fields = tuple(fields)
        self.read = read
        self.seen: list[list[Any]] = []

    def fit(self, columns: Columns) -> None: ...
    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None: ...
    def fingerprint(self) -> str:
        return "letters"

    def embed(self, columns: Columns) -> Embedded:
        self.seen += [list(row) for row in zip(*columns, strict=True)]
        vectors = np.zeros((len(columns[0]), 256), dtype=np.float32)
        problems = []
        for row, values in enumerate(zip(*columns, strict=True)):
            if any(value is None for value in values):
                problems.append(Problem(row, "missing_field", "missing"))
                continue
            text = " ".join(self.read(value) for value in values).encode()
            vectors[row] = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
        return Embedded(vectors, problems)


def batches(documents: Sequence[Any], *cuts: int) -> list[RawBatch]:
    values = [msgspec.json.encode(document) for document in documents]
    whole = RawBatch(
        partition=P0,
        offsets=np.arange(len(values), dtype=np.int64),
        timestamps_ms=np.full(len(values), 1_700_000_000_000, dtype=np.int64),
        values=values,
        keys=[None] * len(values),
        headers=[()] * len(values),
        next_offset=len(values),
    )
    edges = [0, *cuts, len(values)]
    return [whole.rows(first, last) for first, last in pairwise(edges)]


def chosen(
    documents: Sequence[Any],
    *cuts: int,
    record: RecordSettings,
    canaries: int | None = None,
    embedder: Any = None,
) -> tuple[list[Any] | None, Canaries | None]:
    """The inputs that become canaries, one list of columns each; None where there are none."""
    embedder = embedder or Letters()
    decoder = Decoder(record, list(embedder.fields))
    candidates = Candidates(embedder, settings=ReferenceSettings(canaries=canaries), record=record)
    for batch in batches(documents, *cuts):
        events = decoder.decode(batch, None)
        candidates.push(events, np.arange(len(events)))
    made = candidates.build(embedder)
    if made is None:
        return None, None
    stored = msgspec.msgpack.decode(made.inputs)
    return [list(row) for row in zip(*stored["columns"], strict=True)], made


def documents(count: int) -> list[dict[str, Any]]:
    return [{"text": f"Order {number % 300} is late", "id": number} for number in range(count)]


KEPT = RecordSettings(keep=["/text"])


def test_records_are_chosen_by_their_positions_and_each_input_once() -> None:
    found, made = chosen(documents(2_000), record=KEPT)
    assert found is not None and made is not None and len(found) == 64
    assert len({text for (text,) in found}) == 64 and made.vectors.shape == (64, 256)
    assert {text for (text,) in found} <= {document["text"] for document in documents(300)}
    for cuts in ((1, 2, 3), (999,), tuple(range(50, 2_000, 50))):
        again, same = chosen(documents(2_000), *cuts, record=KEPT)
        assert again == found and same is not None and same.inputs == made.inputs


def test_without_consent_texts_are_made_up_and_no_record_is_stored() -> None:
    found, made = chosen(documents(500), record=RecordSettings())
    assert found == [[text] for text in TEXTS] and made is not None
    assert b"Order" not in made.inputs
    assert "64 texts that driftd made up" in in_words(made, "letters")
    assert len(set(TEXTS)) == 64 and max(map(len, TEXTS)) == 3_282, "as docs/canaries.md says"


def test_a_number_in_the_settings_is_the_consent_and_zero_means_none() -> None:
    found, made = chosen(documents(500), record=RecordSettings(), canaries=10)
    assert found is not None and len(found) == 10 and "10 records of the baseline" in in_words(made, "letters")
    assert chosen(documents(500), record=KEPT, canaries=0) == (None, None)


@pytest.mark.parametrize("hidden", ["/text", "/text/inner", ""])
def test_what_is_redacted_is_never_stored(hidden: str) -> None:
    redact = [hidden] if hidden else ["/a"]
    record = RecordSettings(keep=["/a", "/text"], redact=redact)
    embedder = Letters(fields=("/text",) if hidden else ("/a/b",))
    given = [{"text": f"secret {number}", "a": {"b": f"secret {number}"}} for number in range(200)]
    found, made = chosen(given, record=record, canaries=20, embedder=embedder)
    assert made is not None and b"secret" not in made.inputs and found == [[text] for text in TEXTS]


def test_a_field_within_a_kept_one_may_be_stored_and_one_that_nobody_keeps_may_not() -> None:
    record = RecordSettings(keep=["/input"])
    given = [{"input": {"text": f"good day {number}"}, "more": number} for number in range(200)]
    found, _ = chosen(given, record=record, embedder=Letters(fields=("/input/text",)))
    assert found is not None and len(found) == 64 and found[0][0].startswith("good day")
    two = Letters(fields=("/input/text", "/more"))
    assert chosen(given, record=record, embedder=two) == (None, None), "of two fields no text is made up"


def test_kept_texts_are_cut_as_record_excerpt_says_and_other_long_values_are_left_out() -> None:
    record = RecordSettings(keep=["/text"], excerpt=20)
    given: list[dict[str, Any]] = [{"text": f"{number} " + "x" * 100} for number in range(100)]
    found, _ = chosen(given, record=record)
    assert found is not None and {len(text) for (text,) in found} == {20}
    lists = [{"text": [number] * (2 if number % 2 else 200)} for number in range(100)]
    found, _ = chosen(lists, record=record)
    assert found is not None and {len(value) for (value,) in found} == {2}


def test_large_records_are_left_out_and_all_together_stay_within_their_room() -> None:
    size = MAX_CANARY_BYTES * 3 // 4
    given = [{"text": chr(97 + number % 26) * size + str(number)} for number in range(40)]
    given += [{"text": "y" * (MAX_CANARY_BYTES + 1)}] * 5
    record = RecordSettings(max_bytes=1 << 20)
    found, made = chosen(given, record=record, canaries=40)
    assert found is not None and made is not None and len(made.inputs) <= MAX_BYTES + 1_000
    assert len(found) == MAX_BYTES // size and all(text[0] != "y" or text[-1] != "y" for (text,) in found)
    again, _ = chosen(given, 7, 30, 31, record=record, canaries=40)
    assert again == found


def test_an_embedder_that_takes_no_text_gets_none_made_up() -> None:
    class Numbers(Letters):
        def embed(self, columns: Columns) -> Embedded:
            rows = [Problem(row, "bad_value", "no number") for row, v in enumerate(columns[0]) if type(v) is str]
            return Embedded(np.ones((len(columns[0]), 3), dtype=np.float32), rows)

    assert chosen([{"text": 3}] * 50, record=RecordSettings(), embedder=Numbers()) == (None, None)
    assert chosen([{"text": "aGVsbG8="}] * 50, record=RecordSettings(), embedder=Numbers()) == (None, None)
    ready = Letters()
    ready.kind = "vector"
    assert chosen(documents(50), record=KEPT, embedder=ready) == (None, None)
    assert "ready vectors cannot" in in_words(None, "vector") and "record.keep" in in_words(None, "pixels")


def test_an_encoder_that_says_something_else_each_time_has_no_canaries() -> None:
    class Dice(Letters):
        chance = np.random.default_rng(0)

        def embed(self, columns: Columns) -> Embedded:
            made = super().embed(columns)
            return Embedded(made.vectors + self.chance.normal(size=made.vectors.shape).astype(np.float32), [])

    assert chosen(documents(100), record=KEPT, embedder=Dice()) == (None, None)


def test_the_same_encoder_passes_and_what_a_changed_one_has_in_common_is_named() -> None:
    _, made = chosen(documents(500), record=RecordSettings())
    assert made is not None
    same = checked(made, Letters())
    assert (same.canaries, same.largest, same.change, same.tolerance) == (64, 0.0, None, SAME)
    assert same.text == "64 canaries, largest change 0"
    lower = checked(made, Letters(read=str.lower))
    assert lower.change is not None and lower.change.cause == "preprocessing"
    assert "of the 28 with capitals and 0 of the others" in lower.change.text
    short = checked(made, Letters(read=lambda text: text[:400]))
    assert short.change is not None and "3 of the 3 of more than 400 characters" in short.change.text
    few = checked(made, Letters(), rows=[3, 5])
    assert few.canaries == 2 and few.change is None


def test_elsewhere_more_is_noise_and_the_check_says_so() -> None:
    class Rounded(Letters):
        def embed(self, columns: Columns) -> Embedded:
            made = super().embed(columns)
            wave = 1.0 + 0.03 * np.sin(np.arange(256, dtype=np.float32))
            return Embedded((made.vectors * wave).astype(np.float32), made.problems)

    _, made = chosen(documents(500), record=RecordSettings())
    assert made is not None
    here = checked(made, Rounded())
    assert here.change is not None and here.change.cause == "numeric"
    there = checked(Canaries(made.inputs, made.vectors, "armv7 board, numpy 1.0"), Rounded())
    assert there.change is None and SAME < there.largest < there.tolerance
    assert "numeric noise, since they were made on armv7 board" in there.text
    assert made.made_on == made_on(Letters()) and "numpy" in made.made_on


def test_an_embedder_that_fails_proves_nothing() -> None:
    class Failing(Letters):
        def embed(self, columns: Columns) -> Embedded:
            if len(columns[0]) > 1 or columns[0][0] != TEXTS[0]:
                raise RuntimeError(columns[0][0])
            return super().embed(columns)

    _, made = chosen(documents(500), record=RecordSettings())
    assert made is not None
    one = checked(made, Failing())
    assert (one.canaries, one.failed, one.change) == (1, 63, None) and "failed at 63 more" in one.text
    none = checked(made, Failing(), rows=[1, 2])
    assert (none.canaries, none.change) == (0, None) and "cannot be told" in none.text


def test_damaged_canaries_are_named() -> None:
    _, made = chosen(documents(100), record=KEPT)
    assert made is not None
    with pytest.raises(InvalidReference, match="canaries of the reference are damaged"):
        checked(Canaries(made.inputs[:-3], made.vectors, ""), Letters())
