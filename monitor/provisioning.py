"""A folder for Grafana's file provisioning, and Prometheus's rules: the way without calls and without a token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from detectors.errors import InvalidInput
from monitor.publishing import (
    FOLDER_TITLE,
    FOLDER_UID,
    POSTGRES_UID,
    PROMETHEUS_UID,
    Json,
    postgres_source,
    prepared,
    prometheus_source,
)

PASSWORD_VARIABLE = "DRIFTD_GRAFANA_POSTGRES_PASSWORD"
POSTGRES_TYPE = "postgres"  # the id of 9.2, which later versions take as another name of theirs


def provisioning_files(
    dashboards: Sequence[Json],
    rules: Callable[[str, str], Json],
    prometheus_rules: str,
    *,
    postgres: str,
    prometheus: str,
    at: str,
) -> dict[str, str]:
    """Texts by path.

    Args:
        dashboards, rules: as in `monitor.publishing.Wanted`.
        prometheus_rules: the text of a rule file of Prometheus.
        postgres, prometheus: addresses as Grafana reaches them. A password is not written: Grafana reads it from the
            environment, DRIFTD_GRAFANA_POSTGRES_PASSWORD.
        at: where Grafana finds this folder.

    Raises:
        InvalidInput: an address cannot be used, or two dashboards have one title, over which Grafana would load none.
    """
    titles = [str(content["title"]) for content in dashboards]
    if len(set(titles)) < len(titles):
        raise InvalidInput("Two dashboards have the same title: Grafana would load none of them.")
    source = postgres_source(postgres, kind=POSTGRES_TYPE)
    source["secureJsonData"] = {"password": f"${PASSWORD_VARIABLE}"}
    metrics = prometheus_source(prometheus)
    if "secureJsonData" in metrics:
        raise InvalidInput(
            "The address of Prometheus holds a password, which would stand in a file.",
            hint="Leave it out, and set basicAuth in datasources/driftd.yaml by a variable of the environment.",
        )
    group = rules(FOLDER_UID, PROMETHEUS_UID)
    provider = {
        "name": "driftd",
        "type": "file",
        "folder": FOLDER_TITLE,
        "folderUid": FOLDER_UID,
        "disableDeletion": False,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 30,
        "options": {"path": f"{at.rstrip('/')}/dashboards/driftd"},
    }
    files = {
        "datasources/driftd.yaml": _yaml(
            {"apiVersion": 1, "datasources": [_source(source), _source(metrics)]},
            f"Grafana reads the password from its environment: {PASSWORD_VARIABLE}",
        ),
        "dashboards/driftd.yaml": _yaml(
            {"apiVersion": 1, "providers": [provider]}, f"Grafana finds this folder at {at}"
        ),
        "alerting/driftd.yaml": _yaml(
            {"apiVersion": 1, "groups": [_group(group)]}, "The rules of Grafana's own alerting"
        ),
        "prometheus/driftd.yml": prometheus_rules,
    }
    for content in dashboards:
        ours = prepared(content, postgres_type=POSTGRES_TYPE, postgres=POSTGRES_UID, prometheus=PROMETHEUS_UID)
        files[f"dashboards/driftd/{content['uid']}.json"] = json.dumps(ours, indent=2, ensure_ascii=False) + "\n"
    return files


def write_files(files: dict[str, str], folder: Path) -> None:
    """Write them below a folder, which is made; files of the same name are replaced, others are left.

    Raises:
        InvalidInput: the folder or a file cannot be written.
    """
    for name, text in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}.", hint="Name another folder.") from error


def _source(body: Json) -> Json:
    """In the words of a file: Grafana puts the environment into every text but the variable's, which is ours."""
    return {
        name: part if name == "secureJsonData" else _literal(part) for name, part in body.items()
    } | {"orgId": 1, "editable": False}  # fmt: skip


def _group(group: Json) -> Json:
    rules = []
    for rule in group["rules"]:
        kept = {name: part for name, part in rule.items() if name not in ("orgID", "folderUID", "ruleGroup")}
        # Labels and titles have the environment put in, queries do not; of annotations, newer versions fill in ${NAME},
        # of which ours have none.
        # In a file, 9.2 knows a rule's panel by these two, not by the annotations.
        panel = {
            "dashboardUid": rule["annotations"]["__dashboardUid__"], "panelId": int(rule["annotations"]["__panelId__"])
        }  # fmt: skip
        rules.append({**kept, **panel, "title": _literal(rule["title"]), "labels": _literal(rule.get("labels", {}))})
    return {
        "orgId": 1, "name": group["title"], "folder": FOLDER_TITLE, "interval": f"{group['interval']}s", "rules": rules
    }  # fmt: skip


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _literal(part) for name, part in value.items()}
    return value.replace("$", "$$") if isinstance(value, str) else value


def _yaml(value: Json, remark: str) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=118)
    return f"# Made by `driftd dashboards build`. {remark}.\n{text}"
