"""``python -m dashboards.grafana``: write dashboards/json/*.json and docs/dashboards.md anew."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.grafana import all_dashboards
from dashboards.grafana.documentation import documentation

FOLDER = Path(__file__).resolve().parent.parent / "json"
DOCUMENT = FOLDER.parent.parent / "docs" / "dashboards.md"


def files() -> dict[str, str]:
    """The files' names and texts."""
    return {
        f"{dashboard.uid}.json": json.dumps(dashboard.to_json(), indent=2, ensure_ascii=False) + "\n"
        for dashboard in all_dashboards()
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    DOCUMENT.write_text(documentation(all_dashboards()), encoding="utf-8")
