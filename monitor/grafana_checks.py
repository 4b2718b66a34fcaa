"""`driftd dashboards check`: whether Grafana is there, what it lets us do, and whether its data sources answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from connectors.grafana import GrafanaClient
from detectors.errors import DriftdError, GrafanaError
from monitor.publishing import NEWEST, OLDEST, POSTGRES_UID, PROMETHEUS_UID, numbers_of

# What is published, what it needs, and the role that has it.
RIGHTS = (
    ("dashboards", "dashboards:create", "Editor"),
    ("annotations", "annotations:create", "Editor"),
    ("data sources", "datasources:write", "Admin"),
    ("rules and contact points", "alert.provisioning:write", "Admin"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def check_grafana(client: GrafanaClient, dashboards: tuple[str, ...]) -> list[Finding]:
    """Look at everything that publishing and its panels need; changes nothing.

    Args:
        dashboards: uids that should be there.
    """
    findings = [_look("Grafana", lambda: _version(client))]
    if not findings[0].ok:
        return findings
    findings.append(_look("organisation", lambda: str(client.organisation.get("name", ""))))
    if not findings[-1].ok:
        return findings
    try:
        actions = client.actions()
    except GrafanaError as error:
        return [*findings, Finding("rights", False, str(error))]
    if actions is None:
        findings.append(Finding("rights", True, "Grafana does not tell; publishing will show"))
    else:
        for what, action, role in RIGHTS:
            may = action in actions
            findings.append(Finding(f"right to {what}", may, "given" if may else f"missing: the role {role} has it"))
    for uid, option in ((POSTGRES_UID, "--postgres"), (PROMETHEUS_UID, "--prometheus")):
        findings.append(_look(f"data source {uid}", partial(_source, client, uid, option)))
    return findings + [_look(f"dashboard {uid}", partial(_dashboard, client, uid)) for uid in dashboards]


def _look(name: str, action: Callable[[], str | Finding]) -> Finding:
    try:
        found = action()
    except DriftdError as error:
        return Finding(name, False, str(error))
    return found if isinstance(found, Finding) else Finding(name, True, found)


def _version(client: GrafanaClient) -> str | Finding:
    version = client.version
    if not version:
        return f"{client.place}, which hides its version"
    words = f"{client.place}, version {version}"
    if numbers_of(version) < OLDEST:
        return Finding("Grafana", False, f"{words}: too old, driftd needs 9.2")
    return words + (f": newer than {NEWEST}, the newest that driftd knows" if (client.major or 0) > NEWEST else "")


def _source(client: GrafanaClient, uid: str, option: str) -> str | Finding:
    try:
        stored = client.data_source(uid)
    except GrafanaError as error:
        if error.status != 403:
            raise
        return Finding(f"data source {uid}", True, "cannot be looked at without the role Admin")
    if stored is None:
        return Finding(f"data source {uid}", False, f"not there. Make it: driftd dashboards publish {option} URL")
    client.ask_data_source(uid, str(stored.get("type", "")))
    return f"answers, at {stored.get('url', '')}"


def _dashboard(client: GrafanaClient, uid: str) -> str | Finding:
    saved = client.dashboard(uid)
    if saved is None:
        return Finding(f"dashboard {uid}", False, "not there. Publish it: driftd dashboards publish")
    return f"version {saved.version}" + (", from a file" if saved.provisioned else "")
