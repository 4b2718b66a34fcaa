"""What is found in records of many shapes, and what is never guessed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.settings import ModelSettings
from monitor.sniff import Sample, Sniffed, sniff
from monitor.sniff_fields import Field

START_MS = 1_767_225_600_000
PLACE = Partition("requests", 0)
N = 300


def samples(
    make: Callable[[int, np.random.Generator], Any],
    *,
    encode: Callable[[Any], bytes] = lambda document: json.dumps(document).encode(),
    headers: Callable[[int], Mapping[str, bytes]] = lambda row: {},
    key: Callable[[int], bytes | None] = lambda row: None,
) -> list[Sample]:
    random = np.random.default_rng(1)
    return [
        Sample(PLACE, row, START_MS + 60_000 * row, key(row), encode(make(row, random)), headers(row))
        for row in range(N)
    ]


def checked(found: Sniffed) -> Sniffed:
    """What was found is what the settings take."""
    source = {"kind": "files", "path": "records.jsonl"}
    ModelSettings.model_validate({"source": source, "record": found.record, "spaces": found.spaces})
    return found


def vector(random: np.random.Generator, length: int = 16) -> list[float]:
    return [round(float(value), 4) for value in random.normal(size=length)]


def nested(row: int, random: np.random.Generator) -> dict[str, Any]:
    return {
        "request_id": f"r-{row}",
        "ts": START_MS + 60_000 * row - 1500,
        "input": {"embedding": vector(random), "country": ["de", "fr", "us"][row % 3], "email": f"u{row}@example.org"},
        "output": {"label": ["spam", "ham"][row * 7 % 2], "score": round(float(random.random()), 3)},
        "model": {"version": "v7"},
        "session_id": f"s-{row // 5}",
        "api_key": "k-123",
    }


def test_a_nested_record_is_mapped_with_what_speaks_for_each_key() -> None:
    found = checked(sniff(samples(nested)))
    assert found.record["id"] == "/request_id"
    assert found.record["time"] == {"path": "/ts", "unit": "ms"}
    assert found.record["prediction"] == "/output/label"
    assert found.record["confidence"] == "/output/score"
    assert found.record["version"] == "/model/version"
    assert found.record["key"] == "/session_id"
    assert found.record["segments"] == {"country": "/input/country"}
    assert found.spaces["embedding"] == {"embedder": {"kind": "vector", "field": "/input/embedding"}}
    assert found.comments["record", "id"] == "100 % of 300 records; unique"
    assert found.comments["record", "time"].endswith("1.5 s before the broker's time (median)")


def test_secrets_and_personal_data_are_redacted_and_never_kept() -> None:
    found = sniff(samples(nested))
    assert {"/input/email", "/api_key"} <= set(found.record["redact"])
    assert not {"/input/email", "/api_key", "/session_id", "/request_id"} & set(found.record["keep"])


@pytest.mark.parametrize(
    ("pointer", "values"),
    [
        ("/customer/firstName", ["Ada"]),
        ("/note", ["ada@example.org"]),
        ("/number", ["4111 1111 1111 1111"]),
        ("/peer", ["192.168.0.7"]),
        ("/birthDate", ["1815-12-10"]),
    ],
)
def test_what_belongs_to_a_person_is_known_by_its_name_or_its_look(pointer: str, values: list[str]) -> None:
    assert Field(pointer, 1, values).is_personal


@pytest.mark.parametrize(
    ("scale", "unit"), [(1e-3, "s"), (1.0, "ms"), (1e3, "us"), (1e6, "ns")], ids=["s", "ms", "us", "ns"]
)
def test_the_unit_of_times_is_found(scale: float, unit: str) -> None:
    found = sniff(samples(lambda row, random: {"when": int((START_MS + 1000 * row) * scale), "v": vector(random)}))
    assert found.record["time"] == {"path": "/when", "unit": unit}


def test_text_times_need_an_offset_from_utc() -> None:
    def made(zone: str) -> Sniffed:
        return sniff(
            samples(lambda row, random: {"time": f"2026-01-01T00:{row % 60:02}:00{zone}", "v": vector(random)})
        )

    assert made("+01:00").record["time"] == {"path": "/time", "unit": "rfc3339"}
    without = made("")
    assert "time" not in without.record
    assert any("without a zone" in line for line in without.unsure)


def test_base64_and_messagepack_vectors_are_decoded() -> None:
    def packed(row: int, random: np.random.Generator) -> bytes:
        return random.normal(size=32).astype("<f4").tobytes()

    text = checked(sniff(samples(lambda row, random: {"e": base64.b64encode(packed(row, random)).decode()})))
    assert text.spaces["e"]["embedder"] == {"kind": "vector", "field": "/e", "encoding": "base64"}
    binary = checked(sniff(samples(lambda row, random: {"e": packed(row, random)}, encode=msgspec.msgpack.encode)))
    assert binary.record["codec"] == "msgpack"
    assert binary.spaces["e"]["embedder"] == {"kind": "vector", "field": "/e", "encoding": "bytes"}


def test_raw_vectors_have_their_time_and_segments_in_headers() -> None:
    found = checked(
        sniff(
            samples(
                lambda row, random: random.normal(size=48).astype("<f4").tobytes(),
                encode=lambda value: value,
                headers=lambda row: {"ts": str(START_MS + row).encode(), "country": [b"de", b"fr"][row % 2]},
                key=lambda row: f"id-{row}".encode(),
            )
        )
    )
    assert found.record["codec"] == "raw"
    assert found.record["id"] == "key"
    assert found.record["time"] == {"path": "header:ts", "unit": "ms"}
    assert found.record["segments"] == {"country": "header:country"}
    assert found.spaces["input"]["embedder"]["dimension"] == 48


def test_a_table_of_numbers_and_categories_is_watched_as_one() -> None:
    found = checked(
        sniff(
            samples(
                lambda row, random: {
                    "transaction_id": row,
                    "amount": round(float(random.lognormal()), 2),
                    "channel": ["web", "app", "shop"][row % 3],
                    "constant": 1,
                }
            )
        )
    )
    assert found.spaces["table"]["embedder"] == {"kind": "tabular", "numbers": ["/amount"], "categories": ["/channel"]}
    assert found.record["id"] == "/transaction_id"


def test_texts_are_embedded() -> None:
    words = ["please", "cancel", "my", "card", "and", "send", "the", "money", "back", "to", "the", "account", "today"]
    found = checked(sniff(samples(lambda row, random: {"text": " ".join(random.permutation(words).tolist())})))
    assert found.spaces == {"text": {"embedder": {"kind": "text", "field": "/text"}}}


def test_pixels_are_known_by_their_shape() -> None:
    found = checked(
        sniff(samples(lambda row, random: {"image": random.integers(0, 17, size=(8, 8)).tolist(), "id": str(row)}))
    )
    assert found.spaces["image"]["embedder"] == {"kind": "pixels", "field": "/image", "shape": [8, 8]}


def test_cloud_events_of_a_model_server_are_pairs() -> None:
    def half(row: int, random: np.random.Generator) -> dict[str, Any]:
        return {"instances": [vector(random)]} if row % 2 == 0 else {"predictions": [["cat", "dog"][row // 2 % 2]]}

    found = checked(
        sniff(
            samples(
                half,
                headers=lambda row: {
                    "ce_specversion": b"1.0",
                    "ce_id": str(row // 2).encode(),
                    "ce_source": b"http://triage",
                    "ce_type": b"org.kubeflow.serving.inference." + (b"response" if row % 2 else b"request"),
                },
            )
        )
    )
    assert found.record["format"] == "cloudevents"
    assert found.record["pair"] == {}
    assert found.spaces["instances"]["embedder"]["field"] == "/request/instances"


def test_v2_bodies_are_opened() -> None:
    found = checked(
        sniff(
            samples(
                lambda row, random: {
                    "inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": vector(random)}]
                }
            )
        )
    )
    assert found.record["format"] == "v2"
    assert found.spaces["x"]["embedder"]["field"] == "/inputs/x"


def test_broken_lines_are_counted_and_said() -> None:
    made = samples(lambda row, random: {"v": vector(random)})
    broken = [
        Sample(one.partition, one.offset, one.time_ms, None, b'{"v": [1, 2', {}) if row % 10 == 0 else one
        for row, one in enumerate(made)
    ]
    found = sniff(broken)
    assert found.broken == pytest.approx(0.1)
    assert any("30 of 300 records cannot be read (30 bad_json)" in line for line in found.unsure)


def test_a_name_like_an_id_that_comes_again_is_no_id() -> None:
    found = sniff(samples(lambda row, random: {"id": row % 7, "v": vector(random)}))
    assert "id" not in found.record
    assert any("comes more than once" in line for line in found.unsure)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda row, random: {"v": [1.0] * 16}, "are equal"),
        (lambda row, random: {"captureData": {"endpointInput": {"data": "1,2,3"}}}, "SageMaker"),
        (lambda row, random: {"databricks_request_id": str(row), "request": '{"a": 1}'}, "inference table"),
        (lambda row, random: {"constant": 1}, "no number or category that varies"),
    ],
    ids=["equal", "sagemaker", "mlflow", "nothing"],
)
def test_what_cannot_be_watched_is_said(make: Callable[[int, np.random.Generator], Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        sniff(samples(make))


def test_binary_payloads_that_are_no_vectors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no vectors of one length"):
        sniff(samples(lambda row, random: random.bytes(40 + row % 7), encode=bytes))
    with pytest.raises(InvalidInput, match="PNG images"):
        sniff(samples(lambda row, random: b"\x89PNG" + random.bytes(60), encode=bytes))
    with pytest.raises(InvalidInput, match="framed with numbers of schemas"):
        sniff(samples(lambda row, random: b"\0\0\0\0\7" + random.bytes(20 + row % 5), encode=bytes))


def test_too_few_records_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Only 5 records"):
        sniff(samples(nested)[:5])
