"""docs/labels.md: its commands run, and what it says of documents, answers and metrics is so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from connectors.database.rows import NewTruth
from connectors.database.store import Store
from connectors.prometheus import Metrics
from monitor.cli import app
from monitor.joining import MOST_WAITING
from monitor.label_desk import LabelDesk
from monitor.label_reader import LabelReader
from monitor.label_requests import MAX_BODY, LabelRequests
from monitor.labels import MAX_TEXT_CHARS, SOURCES, WORDS
from monitor.settings import HttpSettings, RetentionSettings, Settings
from monitor.truths import read_truth
from monitor.web import Status, WebServer

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
SETTINGS, OF_TRUTHS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_its_settings_are_settings() -> None:
    model = Settings(**yaml.safe_load(SETTINGS)).models["payments"]
    assert model.fraud is not None and model.fraud.labels is not None


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load(SETTINGS) | {"database": f"sqlite:///{tmp_path}/driftd.db"}
    (tmp_path / "driftd.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "cases.csv").write_text("id,label\ntxn-1,fraud\n")
    lines = b'{"id": "txn-2", "label": "legit"}\n'
    (tmp_path / "cases.jsonl").write_bytes(lines)
    monkeypatch.chdir(tmp_path)
    commands = BASH[0].splitlines()
    for command in commands:
        words = shlex.split(command.removesuffix(" < cases.jsonl"))
        result = CliRunner().invoke(app, words[1:], input=lines)
        assert result.exit_code == 0, (command, result.output)
    assert len(json.loads(result.stdout)) == 4, "one label for each command and file; stdin held what was known"


def test_its_request_is_answered_as_it_says(tmp_path: Path) -> None:
    request, _ = (code for code in BASH if code.startswith("curl"))
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        desk = LabelDesk("payments", store, review=0.01, remembered_days=1.0)
        reader = LabelReader(
            "payments", desk, store, source=None, metrics=Metrics(), compares=False, remembered_days=1.0
        )
        file = tmp_path / "token"
        file.write_text("s3cret")
        labels = LabelRequests(HttpSettings(token_file=file))
        labels.open({"payments": reader})
        server = WebServer(Status(), Metrics(), port=0, labels=labels)
        server.start()
        try:
            command = request.replace("127.0.0.1:9464", f"127.0.0.1:{server.port}")
            done = subprocess.run(
                ["bash", "-c", command],
                env={"TOKEN": "s3cret", "PATH": "/usr/bin:/bin"},
                capture_output=True,
                timeout=30,
            )
        finally:
            server.stop()
        said = json.loads(done.stdout)
        assert said == {"new": 1, "repeated": 0, "matched": 0, "waiting": 1}
        assert list(said) == list(json.loads(re.findall(r"The answer is `(\{.*?\})`", TEXT)[0]))


def test_every_word_and_every_number_is_that_of_the_code() -> None:
    paragraph = TEXT.split("Other members are passed over.")[1].split("\n\n")[0].replace("\n", " ")
    fraud, cleared = paragraph.split(" for fraud; ")
    for word, found in (("fraud", fraud), ("cleared", cleared)):
        assert {name.replace(" ", "_") for name in re.findall(r"`([^`]+)`", found)} - {"label"} == {
            name for name, label in WORDS.items() if label == word and name != word
        }
    assert ", ".join(f"`{name}`" for name in SOURCES[:-1]) + f" or `{SOURCES[-1]}`" in TEXT
    assert f"at most {MAX_TEXT_CHARS} characters" in TEXT and f"up to {MAX_BODY >> 20} MiB" in TEXT
    keep = RetentionSettings()
    assert f"`retention.remembered_days` ({keep.remembered_days:g})" in TEXT
    assert f"`retention.remembered_mb` ({keep.remembered_mb:,.0f} MB" in TEXT
    assert f"Up to {MOST_WAITING:,} labels" in TEXT


def test_every_metric_of_labels_is_named() -> None:
    names = {spec.name for spec in Metrics().specs if spec.name.startswith("driftd_label")}
    elsewhere = {"driftd_label_version_in_force", "driftd_labelled_answers", "driftd_label_evidence"}
    assert set(re.findall(r"`(driftd_label\w+)`", TEXT)) == names - elsewhere


def test_the_settings_of_true_answers_are_settings() -> None:
    model = Settings(**yaml.safe_load(OF_TRUTHS)).models["support_triage"]
    assert model.performance.labels is not None and model.performance.remembered_share == 1.0


def test_the_commands_of_true_answers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load(OF_TRUTHS) | {"database": f"sqlite:///{tmp_path}/driftd.db"}
    (tmp_path / "driftd.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "truths.csv").write_text("id,label,prediction\nreq-1,refund,billing\n")
    monkeypatch.chdir(tmp_path)
    [block] = [code for code in BASH if code.startswith("driftd truth")]
    for command in block.splitlines():
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (command, result.output)
    assert [row["record"] for row in json.loads(result.stdout)] == ["req-4711", "req-4712"]


def test_the_request_with_a_true_answer_says_what_a_document_may_say() -> None:
    _, request = (code for code in BASH if code.startswith("curl"))
    assert "/truths?model=support_triage" in request
    document = json.loads(re.findall(r"-d '(.*)'", request)[0])
    assert read_truth(document, 1_800_000_000_000, origin="post").truth == "billing"
    part = TEXT.split("## True answers")[1]
    members = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)[:9]
    whole = {"id": "a", "label": "x", "prediction": "y", "confidence": 1, "weight": 2, "time": 1_700_000_000_000}
    said = read_truth(whole | {"event_time": 1_690_000_000_000}, 1_800_000_000_000, origin="post")
    assert said == NewTruth("a", "x", 1_700_000_000_000, 2.0, said.origin, "y", 1.0, 1_690_000_000_000)
    assert set(members) == {*whole, "event_time", "chance", "origin"}


def test_every_number_and_metric_of_true_answers_is_that_of_the_code() -> None:
    keep = RetentionSettings()
    assert f"`retention.answers_days` ({keep.answers_days:g})" in TEXT
    assert f"`retention.answers_mb` ({keep.answers_mb:,.0f} MB" in TEXT
    names = {spec.name for spec in Metrics().specs if spec.name.startswith("driftd_truths")}
    assert set(re.findall(r"`(driftd_truths\w+)`", TEXT)) == names
