"""A real Prometheus for the tests, from Debian's package: scrapes what it is told to, and evaluates rules.

    from tests.servers.prometheus import PrometheusServer, missing_prometheus

    reason = missing_prometheus()       # "" where everything is there, else what is missing and what to type
    server = PrometheusServer(directory, targets={"driftd": ["127.0.0.1:9464"]}, rules=[path], alertmanager=address)
    server.start()                      # ready in 0.3 s
    server.query('up{job="driftd"}')    # [{"metric": {...}, "value": [time, "1"]}, ...]
    server.wait_for_series("driftd_records_total")
    server.alerts()                     # pending and firing ones
    server.stop()

Tests take the fixture `prometheus` of tests/conftest.py. The first scrape comes 5 s after the start, however short the
interval: Prometheus looks for targets that often. So does it for its Alertmanager.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from tests.servers.binary import BinaryServer, found, missing_binaries


def missing_prometheus() -> str:
    """ "" where a Prometheus can be started and rules can be checked, else what is missing and what to type."""
    return missing_binaries("prometheus", ("prometheus",), ("promtool",))


def promtool(*words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool: ``promtool("check", "rules", path)``."""
    done = subprocess.run([found("promtool"), *words], input=stdin, capture_output=True, timeout=120, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class PrometheusServer(BinaryServer):
    """One Prometheus with its own data; see the top of this file.

    Args:
        directory: an empty directory.
        targets: addresses ``host:port`` by the name of the job, whose /metrics is scraped.
        rules: rule files.
        alertmanager: address ``host:port`` that alerts go to; "" for none.
        interval: between two scrapes and between two evaluations, where a rule group says nothing else.
    """

    def __init__(
        self,
        directory: Path,
        *,
        targets: Mapping[str, Sequence[str]] | None = None,
        rules: Sequence[Path] = (),
        alertmanager: str = "",
        interval: str = "500ms",
    ) -> None:
        super().__init__(directory, self._command_line)
        jobs = {"prometheus": [self.address], **(targets or {})}
        self._settings: dict[str, Any] = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in jobs.items()
            ],
            "rule_files": [str(path.resolve()) for path in rules],
        }
        if alertmanager:
            self._settings["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}

    def _command_line(self, port: int) -> list[str]:
        settings = self.directory / "prometheus.yml"
        settings.write_text(yaml.safe_dump(self._settings))
        return [
            found("prometheus"),
            f"--config.file={settings}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--rules.alert.resend-delay=1s",
        ]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of a PromQL expression at this moment, a sample for each series."""
        answer = self.get("/api/v1/query?" + urlencode({"query": expression}))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def query_range(self, expression: str, *, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """The result of a PromQL expression over a stretch of time."""
        asked = {"query": expression, "start": start_s, "end": end_s, "step": step_s}
        result: list[dict[str, Any]] = self.get("/api/v1/query_range?" + urlencode(asked))["data"]["result"]
        return result

    def wait_for_series(self, expression: str, deadline_s: float = 30.0) -> list[dict[str, Any]]:
        """What the expression gives, once it gives something."""
        result: list[dict[str, Any]] = self.wait_for(lambda: self.query(expression), expression, deadline_s)
        return result

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing, with their labels and annotations."""
        found: list[dict[str, Any]] = self.get("/api/v1/alerts")["data"]["alerts"]
        return found

    def rule_groups(self) -> list[dict[str, Any]]:
        """The groups of rules, each rule with its health and its last error."""
        groups: list[dict[str, Any]] = self.get("/api/v1/rules")["data"]["groups"]
        return groups
