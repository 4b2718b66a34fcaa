"""A dashboard: what stands at its top, and rows of panels below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dashboards.grafana.panels import AnyPanel, Row
from dashboards.grafana.targets import POSTGRES, PROMETHEUS, Sql, tidy

COLUMNS = 24  # of Grafana's grid
SCHEMA_VERSION = 36  # of Grafana 9.0: what is newer converts it on loading
TAG = "driftd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of a dashboard, out of the rows of a query.

    Attributes:
        name: as queries use it: ``${NAME:sqlstring}`` in SQL, ``=~"$NAME"`` in PromQL.
        query: SQL that gives one text column; its first row is the choice where nothing was chosen.
        all: there is a choice of all, which is the first.
        first: chosen at first, whatever the query gives.
    """

    name: str
    label: str
    description: str
    query: str
    all: bool = False
    first: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The variable, of several values, filled anew whenever the time range changes."""
        current: dict[str, Any] = {}
        if self.first is not None:
            current = {"selected": True, "text": [self.first], "value": [self.first]}
        elif self.all:
            current = {"selected": True, "text": ["All"], "value": ["$__all"]}
        return {
            "type": "query",
            "name": self.name,
            "label": self.label,
            "description": self.description,
            "datasource": dict(POSTGRES),
            "query": tidy(self.query),
            "definition": tidy(self.query),
            "refresh": 2,
            "multi": True,
            "includeAll": self.all,
            "allValue": None,
            "current": current,
            "options": [],
            "regex": "",
            "sort": 0,
            "hide": 0,
            "skipUrlSync": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Marks on every graph, out of the rows of a query: time, timeend, text, tags."""

    name: str
    query: str
    colour: str
    shown: bool = True

    def to_json(self) -> dict[str, Any]:
        """The annotation, once as Grafana 9.2 reads it (rawQuery) and once as later versions do (target)."""
        target = Sql(self.query).to_json("Anno")
        return {
            "name": self.name,
            "datasource": dict(POSTGRES),
            "enable": self.shown,
            "hide": False,
            "iconColor": self.colour,
            "rawQuery": target["rawSql"],
            "target": target,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard.

    Attributes:
        uid: begins with "driftd-", since folders and dashboards share one space of uids.
        question: what it answers, in one sentence.
        next_step: what a person does who has read it.
    """

    uid: str
    title: str
    question: str
    next_step: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    since: str = "now-24h"
    refresh: str = "1m"

    @property
    def panels(self) -> Iterator[AnyPanel]:
        """All panels, from top to bottom."""
        return (panel for row in self.rows for panel in row.panels)

    def to_json(self) -> dict[str, Any]:
        """What Grafana imports: ``id`` is null and there is no version, so that the uid alone says which one it is."""
        return {
            "id": None,
            "uid": self.uid,
            "title": self.title,
            "description": f"{self.question} {self.next_step}",
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "style": "dark",
            "editable": False,
            "graphTooltip": 1,
            "fiscalYearStartMonth": 0,
            "liveNow": False,
            "timezone": "",
            "weekStart": "",
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "refresh": self.refresh,
            "links": [
                {
                    "type": "dashboards",
                    "title": "driftd",
                    "tags": [TAG],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                    "targetBlank": False,
                    "icon": "external link",
                    "tooltip": "",
                    "url": "",
                }
            ],
            "annotations": {"list": [_BUILT_IN, *(annotation.to_json() for annotation in self.annotations)]},
            "templating": {"list": [*_DATA_SOURCES, *(variable.to_json() for variable in self.variables)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        """Panels beside each other as far as they fit, the next line below the tallest of them."""
        placed: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            head = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
            placed.append(
                {
                    "id": len(placed) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "gridPos": head,
                    "panels": [],
                }
            )
            y += 1
            x = tallest = 0
            for panel in row.panels:
                if x + panel.width > COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                placed.append(panel.to_json(len(placed) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return placed


def _data_source(name: str, label: str, kind: str, description: str) -> dict[str, Any]:
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "description": description,
        "query": kind,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


_DATA_SOURCES = (
    _data_source("postgres", "Database", POSTGRES["type"], "driftd's database, by a role that may only SELECT"),
    _data_source("prometheus", "Prometheus", PROMETHEUS["type"], "the Prometheus that scrapes driftd's /metrics"),
)

# Annotations that somebody wrote into Grafana, such as the sink grafana does: a switch at the top shows them. They know
# nothing of the chosen model, and the marks out of the database say the same.
_BUILT_IN = {
    "builtIn": 1,
    "name": "Annotations & Alerts",
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": False,
    "hide": False,
    "iconColor": "rgba(0, 211, 255, 1)",
    "type": "dashboard",
    "target": {"limit": 100, "matchAny": False, "tags": [], "type": "dashboard"},
}
