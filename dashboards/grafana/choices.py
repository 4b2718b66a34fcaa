"""Variables, links and annotations that the dashboards share."""

from __future__ import annotations

from dashboards.grafana.dashboard import Annotation, Variable
from dashboards.grafana.panels import PAGE, Link
from dashboards.grafana.sql import (
    FROM_MS,
    MODELS,
    MODELS_BY_STATE,
    SEGMENT,
    SEGMENTS_OF_MODELS,
    SPACES_OF_MODELS,
    TO_MS,
    WHOLE,
    within,
)

ALL_MODELS = Variable(name="model", label="Model", description="The watched models.", query=MODELS_BY_STATE, all=True)
ONE_MODEL = Variable(
    name="model",
    label="Model",
    description="The one in the worst state is chosen first; several can be chosen.",
    query=MODELS_BY_STATE,
)
SPACE = Variable(
    name="space",
    label="Space",
    description="Which view of the records: input, output, or another name in the settings.",
    query=SPACES_OF_MODELS,
    all=True,
)
SEGMENT_OF_TRAFFIC = Variable(
    name="segment",
    label="Segment",
    description="A part of the traffic, such as country=de. Graphs show the 20 loudest of those that are chosen.",
    query=SEGMENTS_OF_MODELS,
    all=True,
    first=WHOLE,
)

_KEPT = "${__url_time_range}&${postgres:queryparam}&${prometheus:queryparam}"
_OF_ROW = f"{_KEPT}&var-model=${{__data.fields.model:percentencode}}"


def to_detail(title: str, uid: str) -> Link:
    """From a row with a column ``model`` to another dashboard, about that model, at the same time."""
    return Link(title, f"/d/{uid}?{_OF_ROW}")


# To the dashboard that shows why; the row says which one that is (column ``dashboard``).
TO_EVIDENCE = Link("Look at the evidence", f"/d/${{__data.fields.dashboard}}?{_OF_ROW}")


def onsets(chosen: str) -> Annotation:
    """Since when there has been drift, as stretches of time, of the incidents for which the condition holds."""
    return Annotation(
        name="Drift since",
        colour=PAGE,
        query=f"""
            SELECT onset_ms AS time,
                   least(coalesce(resolved_ms, {TO_MS}), {TO_MS}) AS timeend,
                   title || ' (driftd explain ' || id || ')' AS text,
                   concat_ws(',', severity, space, {SEGMENT}) AS tags
            FROM incidents
            WHERE {chosen} AND kind IN ('drift', 'outlier_rate')
              AND onset_ms <= {TO_MS} AND coalesce(resolved_ms, {TO_MS}) >= {FROM_MS}
            ORDER BY severity, onset_ms DESC LIMIT 100
            """,
    )


DEPLOYMENTS = Annotation(
    name="New model version",
    colour="blue",
    query=f"""
        SELECT start_ms AS time, model || ' ' || version || ' is on the stream' AS text, 'version' AS tags
        FROM deployments WHERE {MODELS} AND {within("start_ms")}
        ORDER BY start_ms DESC LIMIT 100
        """,
)
