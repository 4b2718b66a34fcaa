"""The HTTP server, asked over real connections."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.prometheus import Metrics
from detectors.errors import DriftdError
from monitor.web import Status, WebServer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock) -> Status:
    return Status(clock=clock, live_within_s=60)


@pytest.fixture
def server(status: Status) -> Iterator[WebServer]:
    server = WebServer(status, Metrics(), port=0)
    server.start()
    yield server
    server.stop()


def get(server: WebServer, path: str) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=10) as response:
            return response.status, response.read().decode(), {k.lower(): v for k, v in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), {k.lower(): v for k, v in error.headers.items()}


def test_metrics_are_served_as_prometheus_text(server: WebServer) -> None:
    code, text, headers = get(server, "/metrics")
    assert code == 200 and headers["content-type"].startswith("text/plain; version=")
    assert "driftd_build_info{" in text and "process_resident_memory_bytes" in text


def test_livez_fails_when_a_poll_came_back_too_long_ago_and_recovers(
    server: WebServer, status: Status, clock: Clock
) -> None:
    assert get(server, "/livez")[:2] == (200, "ok: no model polls yet\n")
    status.model("triage", state="running")
    status.model("other", state="running")
    clock.now = 50.0
    status.polled("other")
    assert get(server, "/livez")[0] == 200
    clock.now = 61.0
    code, text, _ = get(server, "/livez")
    assert code == 503 and text == "not alive: the last poll of triage came back 61.0 s ago (limit 60 s)\n"
    status.polled("triage")
    assert get(server, "/livez")[0] == 200


def test_livez_expects_no_polls_of_a_source_that_is_read_to_its_end(
    server: WebServer, status: Status, clock: Clock
) -> None:
    status.model("triage", state="finished", finished=True)
    clock.now = 1000.0
    assert get(server, "/livez")[0] == 200


def test_readyz_lists_what_does_not_work(server: WebServer, status: Status) -> None:
    code, text, _ = get(server, "/readyz")
    assert code == 503 and json.loads(text)["checks"] == [{"name": "start", "ok": False, "detail": "starting"}]
    status.model("triage", state="collecting baseline: 12,000 of 50,000 records")
    status.check("database", ok=True, detail="sqlite driftd.db")
    code, text, headers = get(server, "/readyz")
    assert code == 503 and headers["content-type"] == "application/json"
    assert json.loads(text) == {
        "ready": False,
        "checks": [
            {"name": "database", "ok": True, "detail": "sqlite driftd.db"},
            {"name": "model triage", "ok": False, "detail": "collecting baseline: 12,000 of 50,000 records"},
        ],
    }
    status.model("triage", state="running", ready=True)
    code, text, _ = get(server, "/readyz")
    assert code == 200 and json.loads(text)["ready"] is True
    status.check("database", ok=False, detail="locked")
    assert get(server, "/readyz")[0] == 503


def test_the_page_shows_each_model_and_nothing_from_elsewhere(server: WebServer, status: Status) -> None:
    status.model(
        "triage",
        state="running <script>alert(1)</script> $checks ${rows} \ud800",
        ready=True,
        records=1234567,
        dead_letters=7,
        lag=42,
        open_incidents=3,
        watermark_ms=1_700_000_000_000,
        reference="input 1",
    )
    code, text, headers = get(server, "/")
    assert code == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    for words in ("triage", "1,234,567", ">7<", ">42<", ">3<", "2023-11-14 22:13:20Z", "input 1", "is <span"):
        assert words in text, words
    assert "<script>" not in text and "&lt;script&gt;" in text and "$checks ${rows}" in text
    assert "http://" not in text and "https://" not in text and "src=" not in text


def test_the_page_says_how_many_incidents_are_muted_and_only_the_state_is_coloured(
    server: WebServer, status: Status
) -> None:
    status.model("triage", state="running; pages turn into warnings", ready=True, open_incidents=3, muted_incidents=1)
    page = get(server, "/")[1]
    assert '<span class="bad">3, 1 muted</span>' in page
    assert '<span class="ok">running</span>; pages turn into warnings' in page


def test_a_blind_model_is_ready_and_stands_out(server: WebServer, status: Status) -> None:
    status.model("triage", state="running; blind: no records come any more", ready=True, blind=True)
    assert get(server, "/readyz")[0] == 200
    page = get(server, "/")[1]
    assert '<span class="bad">running; blind: no records come any more' in page and 'is <span class="ok">ready' in page
    status.model("triage", state="running", blind=False)
    assert '<span class="ok">running<' in get(server, "/")[1]


def test_unknown_paths_and_other_methods_are_refused(server: WebServer) -> None:
    assert get(server, "/nothing")[0] == 404
    with pytest.raises(urllib.error.HTTPError) as got:
        urllib.request.urlopen(urllib.request.Request(server.url + "/metrics", method="POST"), timeout=10)
    assert got.value.code == 405
    got.value.close()


def test_a_port_that_is_taken_is_named_with_the_setting(server: WebServer, status: Status) -> None:
    with pytest.raises(DriftdError, match=f"127.0.0.1:{server.port}: address already in use") as got:
        WebServer(status, Metrics(), port=server.port).start()
    assert "http.bind" in got.value.hint


def test_a_host_that_is_unknown_is_named_with_the_setting(status: Status) -> None:
    with pytest.raises(DriftdError, match=r"its host is unknown|assign requested") as got:
        WebServer(status, Metrics(), host="no-such-host.invalid", port=0).start()
    assert "http.bind" in got.value.hint


def test_stop_takes_less_than_two_seconds_whatever_clients_do_and_frees_the_port(status: Status) -> None:
    server = WebServer(status, Metrics(), port=0)
    server.start()
    get(server, "/livez")
    idle = socket.create_connection((server.host, server.port), timeout=5)
    half = socket.create_connection((server.host, server.port), timeout=5)
    half.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 2.5
    idle.close()
    half.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "driftd-http"]
    again = WebServer(status, Metrics(), port=server.port)
    again.start()
    assert get(again, "/livez")[0] == 200
    again.stop()
    again.stop()


@pytest.mark.chromium
def test_a_browser_shows_the_page(server: WebServer, status: Status, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        (pytest.fail if os.environ.get("REQUIRE_SERVERS") == "1" else pytest.skip)("no Chromium; type: make servers")
    status.model("support_triage", state="running", ready=True, records=512)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--window-size=1200,700", "--dump-dom", f"{server.url}/"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "support_triage" in done.stdout and "driftd is" in done.stdout
