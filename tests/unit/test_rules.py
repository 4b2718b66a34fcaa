"""The rules for Prometheus and Grafana: each fires when it should, and only then. promtool evaluates the real file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.rules import FOLDER, GRAFANA_FILE, PROMETHEUS_FILE, RULES, files

ROOT = Path(__file__).resolve().parents[2]
DAY = 1440  # minutes
NAMES = [rule.name for rule in RULES]


@pytest.mark.parametrize("name", [PROMETHEUS_FILE, GRAFANA_FILE])
def test_the_committed_files_are_those_that_the_list_makes(name: str) -> None:
    assert (FOLDER / name).read_text() == files()[name], (
        "a file of dashboards/rules is old. Make it anew: python -m dashboards.rules"
    )
