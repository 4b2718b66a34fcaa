"""Pieces of SQL that several dashboards share, for the tables of connectors/database/schema.py.

Times in the database are milliseconds since 1970, as bigint. Conditions compare the columns as they are, so that the
indexes on (model, start_ms) and (model, time_ms) serve them. NaN is stored as NULL.
"""

from __future__ import annotations

from dashboards.grafana.verdicts import RANK_OF_INCIDENT

FROM_MS = "1000::bigint * $__unixEpochFrom()"
TO_MS = "1000::bigint * $__unixEpochTo()"


def choice_of(variable: str) -> str:
    """What was chosen at the top of the dashboard: of all of nothing, an empty array, where IN () would be an error."""
    return f"ARRAY[${{{variable}:sqlstring}}]::text[]"


MODELS = f"model = ANY({choice_of('model')})"
SPACES = f"space = ANY({choice_of('space')})"

# In the database the whole traffic has no name, and Grafana's variables know no empty choice.
WHOLE = "(whole traffic)"
SEGMENT = f"coalesce(nullif(segment, ''), '{WHOLE}')"
SEGMENTS = f"{SEGMENT} = ANY({choice_of('segment')})"

# With one model chosen, its name in every legend says nothing.
MODEL_IF_SEVERAL = f"CASE WHEN cardinality({choice_of('model')}) > 1 THEN model END"

# Stands for the model in incidents that are about none, such as a sink that takes nothing.
DEPLOYMENT = "driftd"

# History is scored in a lane of the model, "support~1" of "support": what is known of one belongs to the other.
OF_LANE = "split_part(model, '~', 1)"

# Every model that driftd knows of, also one whose source was never read.
ALL_MODELS = f"""
SELECT {OF_LANE} AS model FROM partitions
UNION SELECT model FROM reference_versions
UNION SELECT {OF_LANE} FROM incidents WHERE status = 'open' AND model <> '{DEPLOYMENT}'
""".strip()

# The partitions with the names of their models.
COUNTED = f"(SELECT {OF_LANE} AS model, max_time_ms, records, dead FROM partitions) AS counted_in"

# The model in the worst state first: it is what a detail dashboard opens with.
MODELS_BY_STATE = f"""
SELECT model FROM ({ALL_MODELS}) AS known
ORDER BY (SELECT min({RANK_OF_INCIDENT}) FROM incidents
          WHERE incidents.model = known.model AND status = 'open') NULLS LAST, model
LIMIT 1000
""".strip()

SPACES_OF_MODELS = f"SELECT DISTINCT space FROM fold_states WHERE {MODELS} AND space <> '' ORDER BY space LIMIT 100"

SEGMENTS_OF_MODELS = f"""
SELECT DISTINCT {SEGMENT} AS segment FROM fold_states
WHERE {MODELS} AND {SPACES} ORDER BY 1 LIMIT 1000
""".strip()


def within(column: str) -> str:
    """Of the dashboard's time range, by a column of milliseconds."""
    return f"{column} BETWEEN {FROM_MS} AND {TO_MS}"


def bucket(column: str) -> str:
    """The beginning of the stretch of time that one point of a graph stands for, in milliseconds."""
    return f"{column} - {column} % $__interval_ms"


def moment(column: str) -> str:
    """Milliseconds as a moment that a table shows as a date."""
    return f"to_timestamp({column} / 1000.0)"


def next_step(text: str = "text") -> str:
    """What an incident's text says to do next, which is how it ends."""
    return f"coalesce(substring({text} FROM 'Next: (.*)$'), '')"


def loudest(points: str, *, most: int = 20) -> str:
    """The points of the ``most`` series with the greatest values, for a graph that stays readable with 200 segments.

    Args:
        points: a SELECT of time, metric, value.
    """
    return f"""
WITH points AS ({points}),
loudest AS (SELECT metric FROM points GROUP BY metric ORDER BY max(value) DESC NULLS LAST, metric LIMIT {most})
SELECT time, metric, value FROM points JOIN loudest USING (metric) ORDER BY time
""".strip()
