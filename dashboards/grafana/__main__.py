"""``python -m dashboards.grafana``: write dashboards/json/*.json anew."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.grafana import all_dashboards

FOLDER = Path(__file__).resolve().parent.parent / "json"


def files() -> dict[str, str]:
    """The files' names and texts."""
    return {
        f"{dashboard.uid}.json": json.dumps(dashboard.to_json(), indent=2, ensure_ascii=False) + "\n"
        for dashboard in all_dashboards()
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
