"""Grafana dashboards, as typed Python that makes the JSON that Grafana imports.

``all_dashboards()`` gives them; ``python -m dashboards.grafana`` writes them to dashboards/json.
"""

from __future__ import annotations

from dashboards.grafana.dashboard import Dashboard as Dashboard
from dashboards.grafana.drift import DRIFT
from dashboards.grafana.fraud import FRAUD
from dashboards.grafana.outliers import OUTLIERS
from dashboards.grafana.overview import OVERVIEW
from dashboards.grafana.pipeline import PIPELINE
from dashboards.grafana.stale import STALE


def all_dashboards() -> tuple[Dashboard, ...]:
    """Every dashboard, from the general to the special."""
    return (OVERVIEW, DRIFT, OUTLIERS, STALE, PIPELINE, FRAUD)
