"""`driftd doctor --soak`, as an operator types it, against a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.command import ROOT, driftd, wait_until
from tests.servers.kafka import PASSWORD, USER, KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def settings_in(folder: Path, brokers: str, **source: Any) -> None:
    """A deployment that the soak must leave alone: its database does not exist and its topic neither."""
    model = {
        "source": {"kind": "kafka", "brokers": brokers, "topic": "tickets", **source},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
    }
    (folder / "driftd.yaml").write_text(
        yaml.safe_dump({"database": f"sqlite:///{folder / 'theirs.db'}", "models": {"tickets": model}})
    )


def soak_topics(kafka: KafkaServer) -> list[str]:
    with kafka.admin() as admin:
        return [name for name in admin.list_topics() if name.startswith("driftd-soak-")]


def test_a_soak_finds_every_record_once_and_leaves_nothing_behind(kafka: KafkaServer, tmp_path: Path) -> None:
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-256", "username": USER, "password": PASSWORD}
    settings_in(tmp_path, kafka.sasl_brokers, security=security)
    words = ("doctor", "--soak", "--records", "60000", "--kills", "3", "--workers", "2", "--json")
    # Settings in the environment are of the deployment, and must not reach the soak's own workers.
    done = driftd(*words, cwd=tmp_path, timeout=200, DRIFTD_MODELS__TICKETS__WEIGHT="2")
    assert done.returncode == 0, done.stderr + done.stdout
    said = json.loads(done.stdout)
    assert (said["ok"], said["records"], said["workers"]) == (True, 60_000, 2)
    assert said["kills"] >= 1
    assert {check["name"] for check in said["checks"]} >= {"records by partition", "planted outliers"}
    assert "SQLite file in a temporary folder" in done.stderr
    assert soak_topics(kafka) == []
    assert not (tmp_path / "theirs.db").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_soak_that_is_interrupted_deletes_its_topic_and_ends_its_workers(
    kafka: KafkaServer, tmp_path: Path, number: signal.Signals
) -> None:
    settings_in(tmp_path, kafka.brokers)
    soak = subprocess.Popen(
        [sys.executable, "-m", "monitor", "doctor", "--soak", "--records", "60000", "--kills", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    try:
        children = Path(f"/proc/{soak.pid}/task/{soak.pid}/children")
        found = wait_until(
            lambda: [pid for pid in children.read_text().split() if b"run" in words_of(pid)], "a worker is running"
        )
        soak.send_signal(number)
        assert soak.wait(timeout=60) == 130
    finally:
        soak.kill()
        soak.communicate()
    assert soak_topics(kafka) == []
    assert [pid for pid in found if Path(f"/proc/{pid}").exists()] == []


def words_of(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return []


def test_a_soak_without_brokers_or_with_too_few_records_says_what_to_type(kafka: KafkaServer, tmp_path: Path) -> None:
    settings_in(tmp_path, kafka.brokers)
    few = driftd("doctor", "--soak", "--records", "1000", cwd=tmp_path)
    assert (few.returncode, "At least: --records 50000" in few.stderr) == (2, True), few.stderr
    settings_in(tmp_path, "127.0.0.1:9", connect_timeout_s=1)
    nobody = driftd("doctor", "--soak", cwd=tmp_path)
    assert nobody.returncode == 1, nobody.stderr
    assert "could not be made" in nobody.stderr
    assert "driftd check" in nobody.stderr
