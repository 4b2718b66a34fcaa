"""What a panel asks, and whom: SQL for history and evidence, PromQL for what is live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

POSTGRES = {"type": "postgres", "uid": "${postgres}"}
PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}


def tidy(query: str) -> str:
    """The query without the indentation of the Python around it."""
    return "\n".join(line.strip() for line in query.strip().splitlines())


@dataclass(frozen=True, slots=True)
class Sql:
    """A query of driftd's database in PostgreSQL.

    Attributes:
        query: the statement; Grafana fills in ``$__unixEpochFrom()``, ``$__unixEpochTo()``, ``$__interval_ms`` and
            variables. A column named time is the time axis.
        format: time_series draws lines, one for each value of a column named metric; table shows rows as they are.
    """

    query: str
    format: Literal["table", "time_series"] = "table"

    @property
    def datasource(self) -> dict[str, str]:
        """The data source by its variable."""
        return dict(POSTGRES)

    def to_json(self, ref_id: str) -> dict[str, Any]:
        """The target of a panel or of an annotation."""
        return {
            "refId": ref_id,
            "datasource": self.datasource,
            "editorMode": "code",
            "format": self.format,
            "rawQuery": True,
            "rawSql": tidy(self.query),
        }


@dataclass(frozen=True, slots=True)
class PromQL:
    """A query of Prometheus.

    Attributes:
        query: the expression.
        legend: what a series is called, such as ``{{model}}``.
        instant: only the newest value; such a query gives a table where ``table`` is set.
    """

    query: str
    legend: str = "__auto"
    instant: bool = False
    table: bool = False

    @property
    def datasource(self) -> dict[str, str]:
        """The data source by its variable."""
        return dict(PROMETHEUS)

    def to_json(self, ref_id: str) -> dict[str, Any]:
        """The target of a panel."""
        return {
            "refId": ref_id,
            "datasource": self.datasource,
            "editorMode": "code",
            "expr": tidy(self.query),
            "legendFormat": self.legend,
            "format": "table" if self.table else "time_series",
            "instant": self.instant,
            "range": not self.instant,
        }


Target = Sql | PromQL
