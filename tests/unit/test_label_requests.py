"""POST /labels, over real connections: who may, what is taken, and what is answered."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from connectors.database.rows import NewLabel
from connectors.database.store import Store
from connectors.prometheus import Metrics
from detectors.errors import StoreBusy
from monitor.checks import labels_finding
from monitor.label_desk import LabelDesk
from monitor.label_reader import LabelReader
from monitor.label_requests import MAX_BODY, LabelRequests, PassedOnLabels
from monitor.settings import HttpSettings, Settings
from monitor.web import Status, WebServer

TOKEN = HttpSettings(token=SecretStr("s3cret"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as made:
        made.migrate()
        yield made


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def requests(store: Store, metrics: Metrics) -> LabelRequests:
    made = LabelRequests(TOKEN)
    desk = LabelDesk("pay", store, review=0.01, remembered_days=1.0)
    reader = LabelReader("pay", desk, store, source=None, metrics=metrics, compares=True, remembered_days=1.0)
    made.open({"pay": reader})
    return made


@pytest.fixture
def server(requests: LabelRequests) -> Iterator[WebServer]:
    made = WebServer(Status(), Metrics(), port=0, labels=requests)
    made.start()
    yield made
    made.stop()


def post(
    server: WebServer, body: Any, *, token: str | None = "s3cret", path: str = "/labels?model=pay"
) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, body=data, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


ONE = {"id": "t1", "label": "fraud", "time": "2026-01-31T12:00:00Z"}


def test_a_label_is_taken_once_however_often_it_is_sent(server: WebServer, store: Store) -> None:
    assert post(server, ONE)[:2] == (200, {"new": 1, "repeated": 0, "matched": 0, "waiting": 1})
    assert post(server, [ONE, {"id": "t2", "label": "cleared"}])[1]["repeated"] == 1
    lines = b'{"id": "t3", "label": true}\n{"id": "t4", "label": false}\n'
    assert post(server, lines, path="/labels")[1] == {"new": 2, "repeated": 0, "matched": 0, "waiting": 2}
    assert [row.said.record_id for row in store.all_labels("pay")] == ["t1", "t2", "t3", "t4"]


def test_all_of_a_body_is_taken_or_nothing_of_it(server: WebServer, store: Store, metrics: Metrics) -> None:
    code, said, _ = post(server, [ONE, {"id": "t2", "label": "perhaps"}])
    assert (code, said["row"], said["reason"], said["taken"]) == (400, 2, "unknown_label", 0)
    assert "'perhaps'" in said["error"] and "legit" in said["hint"]
    assert post(server, b"nonsense")[1]["reason"] == "bad_json"
    assert store.all_labels("pay") == []
    assert b'driftd_labels_total{model="pay",outcome="bad_json"} 1.0' in metrics.exposition()[0].replace(b"'", b'"')


@pytest.mark.parametrize("token", [None, "", "wrong", "s3cre", "s3crett"])
def test_without_the_token_nothing_is_taken(server: WebServer, store: Store, token: str | None) -> None:
    code, said, headers = post(server, ONE, token=token)
    assert code == 401 and headers["www-authenticate"].startswith("Bearer")
    assert "s3cret" not in json.dumps(said)
    assert store.all_labels("pay") == []


def test_where_no_token_is_set_nobody_may_and_the_answer_says_what_to_set() -> None:
    server = WebServer(Status(), Metrics(), port=0, labels=LabelRequests(HttpSettings()))
    server.start()
    try:
        code, said, _ = post(server, ONE)
        assert code == 403 and "DRIFTD_HTTP__TOKEN" in said["hint"]
    finally:
        server.stop()


def test_a_token_in_a_file_may_be_changed_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "token"
    requests = LabelRequests(HttpSettings(token_file=file))
    answer = requests.allowed("Bearer one")
    assert answer is not None and answer.code == 403 and str(file) in str(answer.body["error"])
    file.write_text("one\n")
    assert requests.allowed("Bearer one") is None and requests.allowed("bearer  one ") is None
    file.write_text("two\n")
    answer = requests.allowed("Bearer one")
    assert answer is not None and answer.code == 401 and requests.allowed("Bearer two") is None
    file.write_text(" \n")
    answer = requests.allowed("Bearer ")
    assert answer is not None and answer.code == 403


def test_a_model_without_fraud_settings_takes_none(server: WebServer) -> None:
    code, said, _ = post(server, ONE, path="/labels?model=other")
    assert code == 404 and "There is: pay" in said["hint"]


def test_of_several_models_one_must_be_named(requests: LabelRequests) -> None:
    requests.open({"a": None, "b": None})  # type: ignore[dict-item]
    answer = requests.answer("", b"{}", "")
    assert answer.code == 400 and "a, b" in str(answer.body["hint"])


def test_a_body_that_is_too_large_is_not_read(server: WebServer) -> None:
    code, said, _ = post(server, b" " * (MAX_BODY + 1))
    assert code == 413 and "8 MiB" in said["error"]


def test_before_the_database_is_open_and_while_it_refuses_the_sender_is_told_to_come_again(
    server: WebServer, requests: LabelRequests, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise StoreBusy("The database is locked.")

    with monkeypatch.context() as locked:
        locked.setattr(store, "add_labels", busy)
        code, said, headers = post(server, ONE)
        assert (code, headers["retry-after"]) == (503, "5") and said["error"] == "The database is locked."
    # Stored, but their records could not be looked for: they must not be sent again.
    with monkeypatch.context() as locked:
        locked.setattr(store, "remembered_numbers", busy)
        assert post(server, ONE)[:2] == (200, {"new": 1, "repeated": 0, "matched": 0, "waiting": 1})
    requests.close()
    assert post(server, ONE)[0] == 503


def test_other_methods_are_refused(server: WebServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/labels")
    assert connection.getresponse().status == 405
    connection.close()


def test_a_supervisor_passes_labels_on_to_a_worker_that_answers(server: WebServer, store: Store) -> None:
    ports = [1, server.port]
    front = WebServer(Status(), Metrics(), port=0, labels=PassedOnLabels(TOKEN, lambda: ports))
    front.start()
    try:
        assert post(front, ONE)[:2] == (200, {"new": 1, "repeated": 0, "matched": 0, "waiting": 1})
        assert post(front, ONE, token="wrong")[0] == 401
        assert post(front, {"id": "x"})[1]["reason"] == "unknown_label"
        ports.clear()
        code, said, headers = post(front, ONE)
        assert (code, headers["retry-after"], said["error"]) == (503, "5", "No worker answers.")
    finally:
        front.stop()
    assert len(store.all_labels("pay")) == 1


def test_no_secret_is_shown(server: WebServer) -> None:
    assert "s3cret" not in repr(TOKEN) and "s3cret" not in TOKEN.model_dump_json()


def test_the_doctor_sees_labels_that_do_not_find_their_records(store: Store) -> None:
    def said(number: int) -> NewLabel:
        return NewLabel(f"t{number}", "fraud", 5, "analyst", 1.0, "", f"o{number}")

    found = labels_finding(store, "pay", 0)
    assert found.ok and found.detail == "0 labels, of which 0 count and 0 wait for their records"
    store.add_labels("pay", [said(number) for number in range(9)])
    assert labels_finding(store, "pay", 0).ok
    store.add_labels("pay", [said(9)])
    found = labels_finding(store, "pay", 2**60)
    assert not found.ok and "record.id" in found.detail and "10 of them longer" in found.detail


@pytest.mark.parametrize(
    ("source", "labels", "words"),
    [
        ({"kind": "files", "path": "x.jsonl"}, {"kind": "kafka", "topic": "labels"}, "fraud.labels needs brokers"),
        ({"kind": "kafka", "brokers": "b:9092", "topic": "t"}, {"topic": "t"}, "labels come in one of their own"),
    ],
)
def test_a_topic_of_labels_that_cannot_be_is_a_problem_of_the_settings(
    source: dict[str, str], labels: dict[str, str], words: str
) -> None:
    space = {"embedder": {"kind": "vector", "field": "/v"}}
    with pytest.raises(ValidationError, match=words):
        Settings(models={"pay": {"source": source, "spaces": {"input": space}, "fraud": {"labels": labels}}})


def test_one_token_is_enough() -> None:
    with pytest.raises(ValidationError, match="keep one"):
        HttpSettings(token=SecretStr("a"), token_file=Path("b"))
