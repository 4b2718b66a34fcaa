"""docs/dashboards.md, made from the dashboards themselves."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.verdicts import as_markdown


def documentation(dashboards: Sequence[Dashboard]) -> str:
    """The whole page."""
    parts = [_HEAD.replace("VERDICTS", as_markdown())]
    for dashboard in dashboards:
        choices = ", ".join(f"`{variable.name}`" for variable in dashboard.variables)
        parts.append(
            f"## {dashboard.title}\n\n{dashboard.question} {dashboard.next_step} To choose from: {choices}.\n\n"
            "| panel | which question it answers | what to do next |\n|---|---|---|"
        )
        parts += [f"| {panel.title} | {panel.question} | {_sentence(panel.next_step)} |" for panel in dashboard.panels]
        parts.append("")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


_HEAD = """\
# Dashboards

Six dashboards for Grafana 9.2 and later, from the general to the special. They are Python (`dashboards/grafana/`), and
`python -m dashboards.grafana` writes them as JSON to `dashboards/json/`, ready for Grafana's import page and for file
provisioning. How to publish them, and how to give Grafana a role that may only SELECT: [grafana.md](grafana.md).

Two data sources, each chosen at the top of every dashboard: `Database` is driftd's PostgreSQL, for history and
evidence; `Prometheus` scrapes `/metrics`, for what happens now. With SQLite as the database, the panels of PostgreSQL
stay empty; `driftd report` shows the same as one HTML file.

* **Model.** The overview shows all models, the worst first. The dashboards of one model open with the one that is in
  the worst state; several can be chosen.
* **Space, segment.** Graphs begin with the whole traffic. Choose a segment, or all of them: a graph shows the 20 series
  with the greatest values, so that 200 segments stay readable, and the tables beside it name them all.
* **Time** is the time in the records, wherever a graph comes from the database; a backfill fills the past.
  Graphs have about 1,000 points, however long the range is.
* **Marks** on the graphs come from the database, for what is chosen: since when drift has been there, and new versions
  of the model (`record.version`). The annotations that the sink `grafana` writes say the same for all models at once;
  a switch at the top shows them.
* Links lead from a model or an incident to its evidence and keep the time range. What a table says under "next" or
  "ask" is a command to type, mostly `driftd explain ID`.

## Verdicts

The one word for each model is the worst of its open incidents:

VERDICTS

A sink that takes nothing is an incident of no model: it stands among the open incidents, and changes no verdict.
"""
