"""Has the traffic of a model changed: since when, how much, where, and which records show it?"""

from __future__ import annotations

from dashboards.grafana.choices import DEPLOYMENTS, ONE_MODEL, SEGMENT_OF_TRAFFIC, SPACE, onsets, to_detail
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import CAUTION, FINE, NEUTRAL, PAGE, WARN, Column, Row, Stat, Table, TimeSeries
from dashboards.grafana.sql import (
    FROM_MS,
    MODEL_IF_SEVERAL,
    MODELS,
    SEGMENT,
    SEGMENTS,
    SPACES,
    TO_MS,
    WHOLE,
    bucket,
    loudest,
    moment,
    next_step,
    within,
)
from dashboards.grafana.targets import Sql

_CHOSEN = f"{MODELS} AND {SPACES} AND {SEGMENTS} AND {within('start_ms')}"
_SERIES = f"concat_ws(' ', {MODEL_IF_SEVERAL}, space, nullif(segment, ''))"

_LIMITS = (
    Column(name="page", colour=PAGE, dashed=True),
    Column(name="warning", colour=CAUTION, dashed=True),
)


def _strength(channel: str, title: str, question: str, what: str) -> TimeSeries:
    return TimeSeries(
        title=title,
        question=question,
        reading=(
            f"{what} 10^strength blocks is the time in which such evidence appears once by chance. Above the red "
            "dashed line it pages; warnings are judged by the evidence since the last one."
        ),
        next_step="the marks say since when it has been so, and the tables at the bottom which records show it.",
        targets=(
            Sql(
                loudest(
                    f"""
                    SELECT {bucket("start_ms")} AS time, {_SERIES} AS metric, max(strength) AS value
                    FROM readings WHERE {_CHOSEN} AND channel = '{channel}' GROUP BY 1, 2
                    """
                ),
                format="time_series",
            ),
            Sql(
                f"""
                SELECT {bucket("start_ms")} AS time, min(threshold) AS page, min(warn_threshold) AS warning
                FROM readings WHERE {_CHOSEN} AND channel = '{channel}' GROUP BY 1 ORDER BY 1
                """,
                format="time_series",
            ),
        ),
        unit="none",
        decimals=1,
        columns=_LIMITS,
        width=8,
        height=9,
    )


LEVEL = _strength(
    "level",
    "Level",
    "Has the average record moved?",
    "Evidence that the mean vector left that of the reference.",
)
SHAPE = _strength(
    "shape",
    "Shape",
    "Do records lie further out than they used to?",
    "Evidence that the distances to the reference are others than usual.",
)
MIX = _strength(
    "mix",
    "Mix",
    "Do the kinds of records come in other shares?",
    "Evidence that prototypes (kinds of records) have other shares than in the reference.",
)

NEAREST = Stat(
    title="How near to a page",
    question="How near is the model to a page?",
    reading=(
        "The newest strength of each channel as a share of its page threshold: at 100 % it pages. Strength is a "
        "logarithm: 50 % is not half-way, but evidence that appears by chance far more often."
    ),
    next_step="above 70 %, look at the graph of that channel below.",
    targets=(
        Sql(
            f"""
            SELECT channel AS metric, {bucket("start_ms")} AS time, max(strength / nullif(threshold, 0)) AS value
            FROM readings WHERE {_CHOSEN} AND channel IN ('level', 'shape', 'mix') GROUP BY 1, 2 ORDER BY 2
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=0,
    low=0,
    high=1,
    steps=((None, FINE), (0.7, CAUTION), (1, PAGE)),
    graph=True,
    width=12,
    height=5,
)

OPEN_DRIFT = Stat(
    title="Drift incidents",
    question="Has anybody been told?",
    reading=(
        "Pages and warnings of drift of the chosen models and spaces, all segments: open now, and opened in the time "
        "range."
    ),
    next_step="the table of incidents below names them.",
    targets=(
        Sql(
            f"""
            SELECT count(*) FILTER (WHERE status = 'open' AND severity = 'page') AS "open pages",
                   count(*) FILTER (WHERE status = 'open' AND severity = 'warn') AS "open warnings",
                   count(*) FILTER (WHERE {within("opened_ms")}) AS "opened in this range"
            FROM incidents WHERE {MODELS} AND {SPACES} AND kind = 'drift'
            """
        ),
    ),
    decimals=0,
    columns=(
        Column(name="open pages", steps=((None, FINE), (1, PAGE))),
        Column(name="open warnings", steps=((None, FINE), (1, CAUTION))),
        Column(name="opened in this range", colour=NEUTRAL),
    ),
    width=12,
    height=5,
)

EFFECT = TimeSeries(
    title="Size of the change",
    question="Is the change large enough to matter?",
    reading=(
        "How far the window that speaks loudest lies from the reference, in standard deviations, for each channel. "
        "Strength says how sure it is, this says how much."
    ),
    next_step="a sure change of 0.05 may be left alone (drift.tolerance); one of 0.5 rarely.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, concat_ws(' ', {_SERIES}, channel) AS metric,
                       max(abs(effect)) AS value
                FROM readings WHERE {_CHOSEN} AND channel IN ('level', 'shape', 'mix') GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
    ),
    unit="none",
    decimals=2,
    low=0,
)

SAMPLE_SIZE = TimeSeries(
    title="Records behind the evidence",
    question="On how many records does this rest?",
    reading=(
        "Sample size n of the window that gave the strength. A short window means a sudden, strong change; a long one "
        "a slow, weak one that took many records to see."
    ),
    next_step="if it stays small, the model is too quiet to judge: choose a longer drift.block or fewer segments.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, concat_ws(' ', {_SERIES}, channel) AS metric,
                       nullif(max(n), 0) AS value
                FROM readings WHERE {_CHOSEN} AND channel IN ('level', 'shape', 'mix') GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
    ),
    decimals=0,
    low=1,
    log=True,
)

NEWEST = Table(
    title="Newest reading of each alarm",
    question="What does every alarm measure right now?",
    reading=(
        "Every chosen space, segment and channel with its newest numbers, the nearest to a page first. Statistic and "
        "effect are in the channel's own unit (docs/drift.md); n records in the window since 'window from'."
    ),
    next_step="choose the first row's segment at the top to see its history.",
    targets=(
        Sql(
            f"""
            WITH newest AS (
              SELECT DISTINCT ON (model, space, segment, channel) *
              FROM readings WHERE {_CHOSEN}
              ORDER BY model, space, segment, channel, start_ms DESC, reference DESC
            )
            SELECT model, space, {SEGMENT} AS segment, channel,
                   CASE WHEN page THEN 'page' WHEN warn THEN 'warn' ELSE '' END AS alarm,
                   strength, threshold, warn_threshold AS "warns at", statistic, effect, n,
                   {moment("window_start_ms")} AS "window from", {moment("onset_ms")} AS onset, reference
            FROM newest ORDER BY strength - threshold DESC NULLS LAST LIMIT 300
            """
        ),
    ),
    unit="none",
    decimals=2,
    columns=(
        Column(name="alarm", colours=(("page", PAGE), ("warn", WARN)), width=70),
        Column(name="threshold", width=90),
        Column(name="warns at", width=90),
        Column(name="n", decimals=0, unit="short"),
        Column(name="window from", unit="dateTimeAsIso", width=170),
        Column(name="onset", unit="dateTimeAsIso", width=170),
        Column(name="reference", decimals=0, width=90),
    ),
    width=24,
    height=8,
)

# The newest incidents of drift in the time range; their causes stand in their detail.
_INCIDENTS = f"""
told AS (
  SELECT id, model, space, segment, severity, status, title, text, opened_ms, onset_ms, resolved_ms, reference,
         detail::json AS detail
  FROM incidents
  WHERE {MODELS} AND {SPACES} AND {SEGMENTS} AND kind = 'drift'
    AND onset_ms <= {TO_MS} AND coalesce(resolved_ms, {TO_MS}) >= {FROM_MS}
  ORDER BY status, severity, opened_ms DESC LIMIT 50
)
""".strip()

INCIDENTS = Table(
    title="Incidents of drift in this range",
    question="Since when, and is it over?",
    reading=(
        "Open incidents first. 'since' is when the change began, as far as one can say: between 'earliest' and "
        "'latest'."
    ),
    next_step=(
        "run the command in the last column for tests and examples; then mend the input, build a new reference, or "
        "call it false (`driftd incidents --false ID`)."
    ),
    targets=(
        Sql(
            f"""
            WITH {_INCIDENTS}
            SELECT status, severity, model, title AS incident, {moment("onset_ms")} AS since,
                   {moment("(detail ->> 'onset_from_ms')::bigint")} AS earliest,
                   {moment("(detail ->> 'onset_to_ms')::bigint")} AS latest,
                   {moment("resolved_ms")} AS resolved, detail ->> 'channel' AS channel,
                   (detail ->> 'effect')::double precision AS effect, (detail ->> 'n')::double precision AS n,
                   (detail ->> 'flaps')::int AS "came back", coalesce(detail ->> 'verdict', '') AS called,
                   {next_step()} AS next
            FROM told ORDER BY status, severity, opened_ms DESC LIMIT 50
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="status", width=80),
        Column(name="severity", colours=(("page", PAGE), ("warn", WARN)), width=80),
        Column(name="since", unit="dateTimeAsIso", width=170),
        Column(name="earliest", unit="dateTimeAsIso", width=170),
        Column(name="latest", unit="dateTimeAsIso", width=170),
        Column(name="resolved", unit="dateTimeAsIso", width=170),
        Column(name="effect", decimals=2, width=80),
        Column(name="n", decimals=0, unit="short", width=80),
        Column(name="next", width=220),
        Column(name="incident", link=to_detail("Outliers of this model", "driftd-outliers")),
    ),
    empty="No drift in this range.",
    width=24,
    height=8,
)

KINDS = Table(
    title="Cause: which kinds of records grew or shrank",
    question="What is there more of now?",
    reading=(
        "Prototypes whose share changed most since the onset, against the reference, in z standard errors. 'like' is a "
        "record of the baseline that looks like it, 'now' are records of the stream."
    ),
    next_step="open one of each side by side and see whether it is a new kind of input or a broken one.",
    targets=(
        Sql(
            f"""
            WITH {_INCIDENTS}
            SELECT told.id AS incident, told.space, coalesce(nullif(told.segment, ''), '{WHOLE}') AS segment,
                   (kind ->> 'prototype')::int AS prototype,
                   (kind ->> 'expected')::double precision AS expected, (kind ->> 'share')::double precision AS share,
                   (kind ->> 'z')::double precision AS z, kind -> 'exemplar' ->> 'id' AS "like",
                   translate((kind -> 'records')::text, '[]"', '') AS now
            FROM told, json_array_elements(detail -> 'cause' -> 'prototypes') AS kind
            ORDER BY told.status, told.severity, told.opened_ms DESC, abs((kind ->> 'z')::double precision) DESC
            LIMIT 200
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="expected", unit="percentunit", decimals=2, width=90),
        Column(name="share", unit="percentunit", decimals=2, width=90),
        Column(name="z", decimals=1, width=70),
        Column(name="prototype", width=90),
    ),
    empty="No incident in this range has a cause that is known.",
    width=14,
    height=9,
)

PLACES = Table(
    title="Cause: which segments carry the change",
    question="Where does the change come from?",
    reading=(
        "'part' is how much of the change comes from the segment; 'share' and 'before' are its share of the traffic "
        "now and before."
    ),
    next_step="where the part is far above the share, choose that segment at the top.",
    targets=(
        Sql(
            f"""
            WITH {_INCIDENTS}
            SELECT told.id AS incident, told.space, place ->> 'segment' AS segment,
                   (place ->> 'part')::double precision AS part, (place ->> 'share')::double precision AS share,
                   (place ->> 'before')::double precision AS before
            FROM told, json_array_elements(detail -> 'cause' -> 'segments') AS place
            ORDER BY told.status, told.severity, told.opened_ms DESC, 4 DESC NULLS LAST
            LIMIT 200
            """
        ),
    ),
    unit="percentunit",
    decimals=0,
    empty="No segments, or no incident with a cause in this range.",
    width=10,
    height=9,
)

STRANGEST = Table(
    title="Cause: the strangest records since the onset",
    question="Which records show it best?",
    reading=(
        "Kept records of the incidents above, the strangest first; 'new kind' says that the record belongs to a kind "
        "that grew."
    ),
    next_step="look some of them up by their id in the system that made them.",
    targets=(
        Sql(
            f"""
            WITH {_INCIDENTS}
            SELECT told.id AS incident, told.space, record ->> 'id' AS record,
                   {moment("(record ->> 'time_ms')::bigint")} AS at,
                   (record ->> 'score')::double precision AS score,
                   (record ->> 'p_value')::double precision AS p, (record ->> 'in_gained')::boolean AS "new kind"
            FROM told, json_array_elements(detail -> 'cause' -> 'strangest') AS record
            ORDER BY told.status, told.severity, told.opened_ms DESC, (record ->> 'score')::double precision DESC
            LIMIT 200
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="at", unit="dateTimeAsIso", width=190),
        Column(name="score", decimals=3, width=90),
        Column(name="p", unit="sci", decimals=1, width=90),
        Column(name="new kind", width=90),
    ),
    empty="No record was kept for an incident in this range.",
    width=24,
    height=8,
)

DRIFT = Dashboard(
    uid="driftd-drift",
    title="driftd 2: drift",
    question="Has the traffic of a model changed: since when, how much, where, and which records show it?",
    next_step="Read the newest incident's cause, then type its `driftd explain` command.",
    variables=(ONE_MODEL, SPACE, SEGMENT_OF_TRAFFIC),
    annotations=(onsets(f"{MODELS} AND {SPACES} AND {SEGMENTS}"), DEPLOYMENTS),
    rows=(
        Row("Is it drifting?", (NEAREST, OPEN_DRIFT, LEVEL, SHAPE, MIX)),
        Row("How much, and on what evidence", (EFFECT, SAMPLE_SIZE, NEWEST)),
        Row("Since when, and why", (INCIDENTS, KINDS, PLACES, STRANGEST)),
    ),
)
