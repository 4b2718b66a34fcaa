"""A real Alertmanager for the tests, from Debian's package: takes alerts, and passes them on to one webhook if asked.

    from tests.servers.alertmanager import AlertmanagerServer, missing_alertmanager

    server = AlertmanagerServer(directory, webhook=receiver.url)
    server.start()                      # ready in 0.3 s
    server.alerts()                     # what GET /api/v2/alerts says
    server.stop()

Tests take the fixture `alertmanager` of tests/conftest.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.servers.binary import BinaryServer, found, missing_binaries

NAMES = ("prometheus-alertmanager", "alertmanager")  # Debian's name, and everybody else's


def missing_alertmanager() -> str:
    """ "" where an Alertmanager can be started, else one sentence with what is missing and what to type."""
    return missing_binaries("prometheus-alertmanager", NAMES)


class AlertmanagerServer(BinaryServer):
    """One Alertmanager with its own data; see the top of this file.

    Args:
        directory: an empty directory.
        webhook: URL that all alerts are passed on to; "" for none.
        group_by: labels; alerts that have them in common are passed on together.
        resolve_timeout: after which an alert is over that came without an end and comes no more.
        config: a settings file that is taken as it is, instead of all of these.
    """

    def __init__(
        self,
        directory: Path,
        *,
        webhook: str = "",
        group_by: tuple[str, ...] = (),
        resolve_timeout: str = "5m",
        config: Path | None = None,
    ) -> None:
        super().__init__(directory, self._command_line)
        receiver: dict[str, Any] = {"name": "tests"}
        if webhook:
            receiver["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
        self._settings = {
            "global": {"resolve_timeout": resolve_timeout},
            "route": {
                "receiver": "tests",
                "group_by": list(group_by),
                "group_wait": "100ms",
                "group_interval": "500ms",
                "repeat_interval": "1h",
            },
            "receivers": [receiver],
        }
        if config is not None:
            self._settings = yaml.safe_load(config.read_text(encoding="utf-8"))

    def _command_line(self, port: int) -> list[str]:
        settings = self.directory / "alertmanager.yml"
        settings.write_text(yaml.safe_dump(self._settings))
        return [
            found(*NAMES),
            f"--config.file={settings}",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",  # alone
        ]

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that it holds and that are not over."""
        alerts: list[dict[str, Any]] = self.get("/api/v2/alerts")
        return alerts
