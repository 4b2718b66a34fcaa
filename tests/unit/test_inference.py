"""The embedder `http`, against a server that is slow, busy, broken, or does not like one text."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from connectors.http_sink import HttpClient
from connectors.inference import PROBE, InferenceClient, OpenAI, OpenInference, UnusableAnswer
from detectors.errors import AccessRefused, InvalidReference, InvalidSettings, SourceError, SourceUnreachable
from monitor.embedders.embedder import Embedded, embed_all
from monitor.embedders.http import HttpEmbedder, HttpSettings
from tests.servers.embeddings import MODEL, EmbeddingServer, vector_of
from tests.servers.receiver import Answer

TEXTS = [f"the card of customer {number} was refused" for number in range(20)]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as running:
        yield running


class Waits:
    """Notes each wait, and lets the time pass that was waited for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def clock(self) -> float:
        return sum(self.slept)


def settings_of(server: EmbeddingServer, **changes: Any) -> HttpSettings:
    protocol = changes.pop("protocol", "openai")
    url = server.url + ("/v1" if protocol == "openai" else "")
    return HttpSettings.model_validate({"field": "/t", "protocol": protocol, "url": url, "model": MODEL, **changes})


def embedder_of(server: EmbeddingServer, waits: Waits | None = None, **changes: Any) -> HttpEmbedder:
    settings = settings_of(server, **changes)
    waits = waits or Waits()
    client = InferenceClient(
        settings.client(),
        settings.inference(),
        batch=settings.batch,
        patience_s=settings.patience_s,
        clock=waits.clock,
        sleep=waits.sleep,
    )
    return HttpEmbedder(settings, client=client)


def expected(texts: list[str], dimension: int = 6) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([vector_of(text, dimension) for text in texts], dtype=np.float32)


PROTOCOLS: list[dict[str, Any]] = [
    {"protocol": "v2"},
    {"protocol": "v2", "rank": 2, "input": "TEXT", "output": "sentence", "version": "2"},
    {"protocol": "openai"},
    {"protocol": "openai", "encoding": "base64"},
]


@pytest.mark.parametrize("changes", PROTOCOLS)
def test_each_protocol_gives_the_vectors_of_the_server(server: EmbeddingServer, changes: dict[str, Any]) -> None:
    embedded = embedder_of(server, batch=7, **changes).embed([TEXTS])
    assert embedded.problems == []
    assert embedded.vectors.tobytes() == expected(TEXTS).tobytes()
    assert [len(one.texts) for one in server.asked] == [7, 7, 6]


def test_what_is_sent_is_what_the_protocols_say(server: EmbeddingServer) -> None:
    embedder_of(server, **PROTOCOLS[1]).embed([["a", "b"]])
    embedder_of(server, dimension=4, encoding="base64").embed([["a"]])
    assert server.asked[0].path == f"/v2/models/{MODEL}/versions/2/infer"
    assert server.asked[0].body == {
        "inputs": [{"name": "TEXT", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]}],
        "outputs": [{"name": "sentence"}],
    }
    assert server.asked[1].body == {"model": MODEL, "input": ["a"], "encoding_format": "base64", "dimensions": 4}


def test_vectors_are_put_in_order_by_their_index(server: EmbeddingServer) -> None:
    server.backwards = True
    assert embedder_of(server).embed([TEXTS]).vectors.tobytes() == expected(TEXTS).tobytes()


def test_a_text_is_asked_for_once(server: EmbeddingServer) -> None:
    embedder = embedder_of(server)
    embedder.embed([["a", "b", "a"]])
    embedded = embedder.embed([["b", "a", "c"]])
    assert server.texts == ["a", "b", "c"]
    assert embedded.vectors.tobytes() == expected(["b", "a", "c"]).tobytes()


def test_the_text_that_was_not_asked_for_longest_is_forgotten(server: EmbeddingServer) -> None:
    embedder = embedder_of(server, cache=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        embedder.embed([[text]])
    assert server.texts == ["a", "b", "c", "b"]
    nothing = embedder_of(server, cache=0)
    nothing.embed([["a"]])
    nothing.embed([["a"]])
    assert server.texts[4:] == ["a", "a"]


def test_asking_anew_goes_to_the_server_and_changes_nothing_that_is_remembered(server: EmbeddingServer) -> None:
    embedder = embedder_of(server)
    embedder.embed([["a"]])
    server.dimension = 4  # another model has taken its place
    assert embedder.embed_anew([["a", "b"]]).vectors.shape == (2, 4)
    assert embedder.embed([["a"]]).vectors.shape == (1, 6)
    embedder.forget()
    with pytest.raises(SourceError, match=r"4-dimensional vectors; before, they had 6 dimensions"):
        embedder.embed([["a"]])
    assert embedder.remote


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_that_fails_for_a_while_is_asked_again(server: EmbeddingServer, status: int) -> None:
    server.faults = deque([Answer(status), Answer(status)])
    waits = Waits()
    assert embedder_of(server, waits).embed([["a"]]).vectors.tobytes() == expected(["a"]).tobytes()
    assert waits.slept == [0.2, 0.4]


def test_retry_after_is_kept_within_bounds(server: EmbeddingServer) -> None:
    server.faults = deque([Answer(429, {"Retry-After": "3"}), Answer(503, {"Retry-After": "900"})])
    waits = Waits()
    assert embedder_of(server, waits, patience_s=60).embed([["a"]]).problems == []
    assert waits.slept == [3.0, 30.0]


def test_a_busy_server_is_no_fault_of_the_records(server: EmbeddingServer) -> None:
    server.faults = deque([Answer(503)] * 50)
    waits = Waits()
    with pytest.raises(SourceUnreachable, match="answers 503") as raised:
        embedder_of(server, waits).embed([TEXTS])
    assert raised.value.retryable
    assert 5 < waits.clock() <= 20  # as long as its patience
    with pytest.raises(SourceUnreachable):  # not asked for each record alone either
        embed_all(embedder_of(server, Waits()), [TEXTS], 20, failed=lambda kind: pytest.fail(kind))


def test_what_was_embedded_before_the_server_failed_is_not_asked_for_again(server: EmbeddingServer) -> None:
    embedder = embedder_of(server, batch=5, patience_s=0)
    server.refused = {"customer 12": 503}
    with pytest.raises(SourceUnreachable):
        embedder.embed([TEXTS])
    server.refused, before = {}, len(server.asked)
    assert embedder.embed([TEXTS]).vectors.tobytes() == expected(TEXTS).tobytes()
    assert [one.texts[0] for one in server.asked[before:]] == [TEXTS[10], TEXTS[15]]


def test_a_dead_server_is_no_fault_of_the_records() -> None:
    with EmbeddingServer() as server:
        embedder = embedder_of(server, patience_s=1)
    with pytest.raises(SourceUnreachable, match="connection refused") as raised:
        embedder.embed([TEXTS])
    assert raised.value.retryable and "embedder.url" in raised.value.hint


def test_a_slow_server_is_given_up_after_the_time_out(server: EmbeddingServer) -> None:
    server.faults = deque([Answer(hang=True)])
    with pytest.raises(SourceUnreachable, match=r"no answer within 0\.1 s"):
        embedder_of(server, timeout_s=0.1, patience_s=0).embed([["a"]])


def broken(kind: str) -> Answer:
    whole: dict[str, Any] = {"data": [{"index": n, "embedding": [1.0, 2.0]} for n in range(3)]}
    bodies = {
        "truncated": json.dumps(whole).encode()[:-9],
        "too few": json.dumps({"data": whole["data"][:2]}).encode(),
        "index twice": json.dumps({"data": [whole["data"][0]] * 3}).encode(),
        "no data": b'{"error": "out of memory"}',
        "not a list": b'{"data": [{"index": 0, "embedding": 3.0}, {"index": 1}, {"index": 2}]}',
        "bad base64": b'{"data": [' + b", ".join(b'{"index": %d, "embedding": "==="}' % n for n in range(3)) + b"]}",
        "HTML": b"<html>Sign in</html>",
        "breaks off": b'{"data": [',
    }
    return Answer(200, {"Content-Length": "900"} if kind == "breaks off" else {}, bodies[kind])


BROKEN = ["truncated", "too few", "index twice", "no data", "not a list", "bad base64", "HTML", "breaks off"]


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_cannot_be_used_is_asked_for_again(server: EmbeddingServer, kind: str) -> None:
    server.faults = deque([broken(kind)])
    waits = Waits()
    embedded = embedder_of(server, waits).embed([["a", "b", "c"]])
    assert embedded.problems == [] and embedded.vectors.tobytes() == expected(["a", "b", "c"]).tobytes()
    assert len(waits.slept) == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_a_server_whose_answers_can_never_be_used_is_no_fault_of_the_records(
    server: EmbeddingServer, kind: str
) -> None:
    server.faults = deque([broken(kind)] * 50)
    with pytest.raises(SourceUnreachable) as raised:
        embedder_of(server, Waits(), patience_s=3).embed([["a", "b", "c"]])
    assert "embedding server" in str(raised.value) and "Sign in" not in str(raised.value)


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_one_text_that_the_server_refuses_is_found_among_many(server: EmbeddingServer, status: int) -> None:
    server.refused = {"customer 7 ": status, "customer 13 ": status}
    embedded = embedder_of(server).embed([TEXTS])
    assert [(problem.row, problem.reason) for problem in embedded.problems] == [
        (7, "embedder_failed"),
        (13, "embedder_failed"),
    ]
    assert str(status) in embedded.problems[0].detail and "refused" not in embedded.problems[0].detail
    others = [row for row in range(20) if row not in (7, 13)]
    assert embedded.vectors[others].tobytes() == expected([TEXTS[row] for row in others]).tobytes()
    assert not embedded.vectors[[7, 13]].any()
    assert server.texts.count(PROBE) >= 1


def test_a_server_that_refuses_every_text_is_no_fault_of_the_records(server: EmbeddingServer) -> None:
    server.refused = {"": 400}
    with pytest.raises(SourceError, match="embeds no text: it answers 400") as raised:
        embedder_of(server).embed([TEXTS])
    assert "model" in raised.value.hint
    assert server.texts[20:] == [PROBE]  # no halving where all would fail


@pytest.mark.parametrize(("status", "said"), [(404, "answers 404"), (405, "answers 405"), (307, "redirects")])
def test_a_wrong_address_is_said_at_once(server: EmbeddingServer, status: int, said: str) -> None:
    server.faults = deque([Answer(status, {"Location": "http://elsewhere.example/"})])
    waits = Waits()
    with pytest.raises(SourceError, match=said) as raised:
        embedder_of(server, waits).embed([["a"]])
    assert not raised.value.retryable and not waits.slept and len(server.asked) == 1


def test_the_token_is_sent_and_never_shown(server: EmbeddingServer, tmp_path: Path) -> None:
    server.token = "sk-4711"
    (tmp_path / "token").write_text("sk-4711\n")
    with_file = settings_of(server, token_file=tmp_path / "token")
    assert HttpEmbedder(with_file).embed([["a"]]).problems == []
    wrong = settings_of(server, token=SecretStr("sk-0815"))
    with pytest.raises(AccessRefused, match="token_file") as raised:
        HttpEmbedder(wrong).embed([["a"]])
    shown = f"{raised.value!r} {raised.value} {wrong!r} {wrong.client()!r} {wrong.model_dump_json()}"
    assert "sk-0815" not in shown


def test_settings_that_cannot_work_say_so(server: EmbeddingServer, tmp_path: Path) -> None:
    for changes, said in (
        ({"url": "localhost:8000"}, "expected an address"),
        ({"url": "http://me:secret@localhost"}, "token_file"),
        ({"url": "http://localhost/v1/embeddings"}, "leave out /embeddings"),
        ({"token": "a", "token_file": "b"}, "keep one"),
    ):
        with pytest.raises(ValidationError, match=said):
            settings_of(server, **changes)
    with pytest.raises(InvalidSettings, match=r"embedder\.token_file"):
        settings_of(server, token_file=tmp_path / "missing").build()
    with pytest.raises(InvalidSettings, match=r"embedder\.ca_file"):
        settings_of(server, ca_file=tmp_path / "missing").build()
    with pytest.raises(InvalidSettings, match="cannot be sent"):
        settings_of(server, token="a\nb").build()


@pytest.mark.parametrize("protocol", ["v2", "openai"])
def test_a_vector_that_cannot_be_used_is_the_problem_of_its_row(server: EmbeddingServer, protocol: str) -> None:
    server.special = {"b": [1.0, float("nan"), 0, 0, 0, 0], "c": [None] * 6, "d": [0.0] * 6, "e": [1e300] + [0.0] * 5}
    embedded = embedder_of(server, protocol=protocol).embed([["a", "b", "c", "d", "e"]])
    assert [problem.reason for problem in embedded.problems] == [
        "not_finite",
        "not_finite",
        "zero_vector",
        "not_finite",
    ]
    assert embedded.vectors[0].tobytes() == expected(["a"]).tobytes() and not embedded.vectors[1:].any()


def test_long_texts_are_cut_and_empty_ones_not_sent(server: EmbeddingServer) -> None:
    embedded: Embedded = embedder_of(server, max_chars=5).embed([["abcdefgh", "", None, 7, "abcde"]])
    assert server.texts == ["abcde"]
    assert [problem.reason for problem in embedded.problems] == ["bad_value", "missing_field", "bad_value"]


def test_a_reference_of_another_dimension_is_refused(server: EmbeddingServer) -> None:
    embedder = embedder_of(server)
    embedder.embed([["a"]])
    other = embedder_of(server, dimension=5)
    with pytest.raises(InvalidReference, match="6-dimensional"):
        other.restore(embedder.state())
    same = embedder_of(server, dimension=6)
    same.restore(embedder.state())
    assert same.fingerprint() == embedder.fingerprint()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"name": "e", "datatype": "FP16", "shape": [2, 2], "data": [1, 2, 3, 4]}, "FP16"),
        ({"name": "e", "datatype": "FP32", "shape": [2, 3, 2], "data": [1.0] * 12}, "shape"),
        ({"name": "e", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}, "for 2 texts"),
        ({"name": "e", "datatype": "FP32", "shape": [2, 2], "data": ["a", "b"]}, "no list of numbers"),
    ],
)
def test_a_tensor_of_another_kind_is_named(output: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableAnswer, match=said):
        OpenInference(MODEL).vectors({"outputs": [output]}, 2)


def test_an_output_is_chosen_by_its_name() -> None:
    outputs = [
        {"name": "tokens", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]},
        {"name": "sentence", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]},
    ]
    assert OpenInference(MODEL, output="sentence").vectors({"outputs": outputs}, 1)[0].tolist() == [1.0, 2.0]
    with pytest.raises(UnusableAnswer, match="tokens, sentence"):
        OpenInference(MODEL).vectors({"outputs": outputs}, 1)
    with pytest.raises(UnusableAnswer, match="no output pooled"):
        OpenInference(MODEL, output="pooled").vectors({"outputs": outputs}, 1)


def test_a_client_names_the_place_without_the_path(server: EmbeddingServer) -> None:
    client = InferenceClient(HttpClient("embedding server", f"{server.url}/secret"), OpenAI("m"), batch=1, patience_s=0)
    assert client.place == server.url
