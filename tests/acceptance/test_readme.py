"""Every command of the README is run here, and so is its Python."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from connectors.database.store import Store
from dashboards.grafana import all_dashboards
from dashboards.rules import RULES
from monitor.operations import source_incident
from tests.acceptance.command import ROOT, Running, driftd
from tests.servers.grafana import Grafana
from tests.servers.kafka import KafkaServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def words_of(command: str) -> list[list[str]]:
    return [words[1:] for words in COMMANDS if words[:2] == ["driftd", command]]


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    ran_here = {"init", "check", "run", "incidents", "reference", "score", "dashboards", "mute", "label", "fraud"}
    ran_here |= {"bootstrap", "backfill", "replay", "verdict", "truth", "nearest"}
    assert {words[1] for words in COMMANDS if words[0] == "driftd"} == ran_here
    assert {words[1] for words in COMMANDS if words[0] == "make"} == {"demo"}
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile


def test_files_named_in_the_readme_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_commands_without_settings(tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    np.save(tmp_path / "X.npy", chance.normal(size=(3_000, 16)).astype(np.float32))
    np.save(tmp_path / "Y.npy", chance.normal(size=(500, 16)).astype(np.float32))
    (tmp_path / "refs").mkdir()
    for words in [*words_of("reference"), *words_of("score")]:
        done = driftd(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    scores = np.load(tmp_path / "scores.npy")
    assert (scores.shape, scores.dtype) == ((500,), np.float32)


def test_the_python_of_the_readme() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    chance = np.random.default_rng(5)
    vectors = chance.normal(size=(4_000, 16)).astype(np.float32)
    names = {
        "vectors": vectors,
        "new_vectors": chance.normal(size=(1_024, 16)).astype(np.float32),
        "seen": vectors[:40] + 2,
        "labels": np.repeat([0, 1], 20),
    }
    exec(program, names)
    readings = names["readings"]
    assert isinstance(readings, list)
    assert readings


def test_the_commands_about_telling_people(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "driftd.yaml").write_text(settings)
    row, notification = source_incident("support_triage", problem="It is gone.", lasting=False, since_ms=1, now_ms=2)
    (acknowledge,) = [words for words in words_of("incidents") if "--ack" in words]
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        assert store.open_incident(replace(row, id=f"{acknowledge[-1]}c0de11"), [("pager", notification)])
        for words in [acknowledge, *words_of("mute")]:
            done = driftd(*words, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        (incident,), (mute,) = store.incidents(), store.mutes(None)
    assert incident.detail["acknowledged"] and mute.covers(incident)


def test_the_commands_about_fraud(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert "`fraud: {}`" in README
    (tmp_path / "driftd.yaml").write_text(settings.replace("sinks:", "    fraud: {}\nsinks:"))
    ((_, file),) = words_of("label")
    (tmp_path / file).write_text("id,label\ntxn-4711,fraud\ntxn-4712,cleared\n")
    (label,), (fraud,) = words_of("label"), words_of("fraud")
    labelled = driftd(*label, cwd=tmp_path)
    assert labelled.returncode == 0, labelled.stderr
    assert "2 wait for their records" in labelled.stderr
    looked = driftd(*fraud, cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr


def test_the_command_about_true_answers(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "driftd.yaml").write_text(settings)
    ((_, _, file),) = words_of("truth")
    (tmp_path / file).write_text("id,label\nreq-4711,billing\nreq-4712,refund\n")
    (truth,) = words_of("truth")
    said = driftd(*truth, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "2 wait" in said.stderr


def test_the_command_about_dashboards(tmp_path: Path) -> None:
    (words,) = words_of("dashboards")
    with Grafana("11.6.5") as grafana:
        addressed = [grafana.url if word == "http://localhost:3000" else word for word in words]
        done = driftd(*addressed, cwd=tmp_path, DRIFTD_GRAFANA_TOKEN=grafana.token("Admin"))
        assert done.returncode == 0, done.stderr
        assert grafana.url in addressed and not grafana.writes
    said = re.findall(r"(\w+) dashboards and (\d+) rules", README)
    assert said == [({6: "six"}[len(all_dashboards())], str(len(RULES)))]
    assert "driftd-overview" in done.stdout


@pytest.mark.kafka
@pytest.mark.timeout(200)
def test_five_minutes_with_kafka(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kafka import KafkaProducer

    name = topic()
    with KafkaProducer(bootstrap_servers=kafka.brokers) as producer:
        for row, vector in enumerate(np.random.default_rng(5).normal(size=(3_000, 8)).round(4).tolist()):
            record = {"id": str(row), "ts": 1_772_438_400_000 + 100 * row, "embedding": vector}
            producer.send(name, json.dumps(record).encode())
        producer.flush(timeout=60)
    for key, value in {
        "DRIFTD_MODELS__MY_MODEL__SOURCE__BROKERS": kafka.brokers,
        "DRIFTD_MODELS__MY_MODEL__SOURCE__TOPIC": name,
        "DRIFTD_MODELS__MY_MODEL__REFERENCE__COLLECT": "2000",
        "DRIFTD_HTTP__BIND": "127.0.0.1:0",
    }.items():
        monkeypatch.setenv(key, value)

    (init,) = words_of("init")
    assert driftd(*init, cwd=tmp_path).returncode == 0
    (check,) = words_of("check")
    checked = driftd(*check, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert name in checked.stdout

    daemon = Running.with_settings_of(tmp_path)
    daemon.start()
    try:
        daemon.wait_for_records(3_000)
    finally:
        daemon.terminate()
    incidents = words_of("incidents")[0]
    assert driftd(*incidents, cwd=tmp_path).returncode == 0
    (verdict,), (nearest,) = words_of("verdict"), words_of("nearest")
    judged = driftd(*verdict, cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert "my_model" in judged.stdout and "cannot be seen without labels" in judged.stdout
    (named,) = re.findall(r"--id (\S+)", " ".join(nearest))
    near = driftd(*["7" if word == named else word for word in nearest], cwd=tmp_path)
    assert near.returncode == 0, near.stderr
    report = driftd("report", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "driftd-report.html").stat().st_size > 10_000

    (backfill,), (replay,), (bootstrap,) = words_of("backfill"), words_of("replay"), words_of("bootstrap")
    counted = driftd(*backfill, cwd=tmp_path)
    assert counted.returncode == 0, counted.stderr
    assert "3,000 offsets in that range count already" in counted.stdout
    replayed = driftd(*replay, cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert (tmp_path / replay[-1]).stat().st_size > 10_000
    for key in [key for key in os.environ if key.startswith("DRIFTD_MODELS__")]:
        monkeypatch.delenv(key)
    anew = [name if word == "support-triage" else word for word in bootstrap]
    booted = driftd(*anew, "--brokers", kafka.brokers, "--output", "booted.yaml", cwd=tmp_path)
    assert booted.returncode == 0, booted.stderr
    assert name in (tmp_path / "booted.yaml").read_text()
