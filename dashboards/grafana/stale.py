"""Is the model still working on the data that it was measured on, or has the world moved on?"""

from __future__ import annotations

from dashboards.grafana.choices import DEPLOYMENTS, ONE_MODEL, SPACE, onsets, to_detail
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import (
    CAUTION,
    FINE,
    NEUTRAL,
    PAGE,
    WARN,
    Column,
    Row,
    Stat,
    StateTimeline,
    Table,
    TimeSeries,
)
from dashboards.grafana.sql import (
    FROM_MS,
    MODEL_IF_SEVERAL,
    MODELS,
    SPACES,
    TO_MS,
    bucket,
    choice_of,
    moment,
    next_step,
    within,
)
from dashboards.grafana.targets import PromQL, Sql
from dashboards.grafana.verdicts import FRESH, RANK_OF_INCIDENT, VERDICTS

DAY_S = 86_400
_WEEK_MS = 7 * DAY_S * 1000
_SERIES = f"concat_ws(' ', {MODEL_IF_SEVERAL}, space)"

REFERENCE_AGE = Stat(
    title="Age of the reference",
    question="How old is what we compare with?",
    reading=(
        "How long ago the active reference of each space was built. There is no right age: an old reference of a "
        "stream that has not drifted is a good one."
    ),
    next_step="where it is old and the mix has changed for good, build a new one: `driftd reference build`.",
    targets=(
        PromQL(
            "time() - max by (model, space)"
            ' (driftd_reference_created_timestamp_seconds{model=~"$model", space=~"$space"})',
            legend="{{model}} {{space}}",
        ),
    ),
    unit="s",
    decimals=1,
    steps=((None, FINE), (90 * DAY_S, CAUTION), (365 * DAY_S, WARN)),
    width=8,
    height=5,
)

VERSION_AGE = Stat(
    title="Since the newest model version",
    question="Was something deployed lately?",
    reading=(
        "How long the version of the watched model that came last has been on the stream, by the time in its records. "
        "Needs record.version."
    ),
    next_step=(
        "drift that began with it is the deployment's, so roll it back or tell its owner; drift long after it is the "
        "world's."
    ),
    targets=(
        Sql(
            f"""
            SELECT model AS metric, extract(epoch FROM now())::bigint * 1000 AS time,
                   extract(epoch FROM now())::double precision - max(start_ms) / 1000.0 AS value
            FROM deployments WHERE {MODELS} GROUP BY model ORDER BY time, model LIMIT 200
            """,
            format="time_series",
        ),
    ),
    unit="s",
    decimals=1,
    empty="no version on the stream",
    width=8,
    height=5,
)

DRIFT_AGE = Stat(
    title="Drift has been open for",
    question="Has the change come to stay?",
    reading=(
        "Time since the onset of the oldest drift that is still open, of each model. Hours are an incident, days are a "
        "new normal."
    ),
    next_step="after a day or more, decide whether to train anew or to build a new reference.",
    targets=(
        Sql(
            f"""
            SELECT model AS metric, extract(epoch FROM now())::bigint * 1000 AS time,
                   extract(epoch FROM now())::double precision - min(onset_ms) / 1000.0 AS value
            FROM incidents WHERE {MODELS} AND kind = 'drift' AND status = 'open'
            GROUP BY model ORDER BY time, model LIMIT 200
            """,
            format="time_series",
        ),
    ),
    unit="s",
    decimals=1,
    steps=((None, CAUTION), (DAY_S, WARN), (7 * DAY_S, PAGE)),
    empty="no drift is open",
    width=8,
    height=5,
)

TIMELINE = StateTimeline(
    title="Verdict over time",
    question="How long has the model been in which state?",
    reading=(
        "The worst incident that was open at each time, as a word for the whole model; the overview explains the "
        "words. An incident that came back shows as one long stretch."
    ),
    next_step=(
        "a long band of 'drifted' or 'mix changed' is a stale model: see the rows below; short ones are incidents."
    ),
    targets=(
        Sql(
            f"""
            WITH told AS (
              SELECT model, opened_ms, resolved_ms, {RANK_OF_INCIDENT} AS rank
              FROM incidents WHERE {MODELS} AND opened_ms <= {TO_MS} AND coalesce(resolved_ms, {TO_MS}) >= {FROM_MS}
            )
            SELECT time, known.model AS metric, coalesce(min(rank), {FRESH}) AS value
            FROM generate_series({FROM_MS}, {TO_MS}, $__interval_ms::bigint) AS time
            CROSS JOIN unnest({choice_of("model")}) AS known(model)
            LEFT JOIN told ON told.model = known.model AND opened_ms <= time AND coalesce(resolved_ms, time + 1) > time
            GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    words=tuple((str(rank), verdict.word, verdict.colour) for rank, verdict in enumerate(VERDICTS, 1)),
    width=24,
    height=7,
)

CONFIDENCE = TimeSeries(
    title="How sure the model is, against its own past",
    question="Does the model itself grow unsure?",
    reading=(
        "Mean confidence that the model states, with that of the week before this range as a dashed line. Unsure while "
        "its records drift: it is probably getting worse. Sure all the same: it may be wrong with confidence. Needs "
        "record.confidence."
    ),
    next_step="check the model on fresh labels.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, {_SERIES} AS metric,
                   sum(confidence * records) / nullif(sum(records) FILTER (WHERE confidence IS NOT NULL), 0) AS value
            FROM block_stats WHERE {MODELS} AND {SPACES} AND {within("start_ms")} GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
        Sql(
            f"""
            WITH past AS (
              SELECT model, space,
                     sum(confidence * records) / nullif(sum(records) FILTER (WHERE confidence IS NOT NULL), 0) AS value
              FROM block_stats
              WHERE {MODELS} AND {SPACES} AND start_ms >= {FROM_MS} - {_WEEK_MS} AND start_ms < {FROM_MS}
              GROUP BY 1, 2
            )
            SELECT time, {_SERIES} || ' the week before' AS metric, value
            FROM past, generate_series({FROM_MS}, {TO_MS}, greatest($__interval_ms, ({TO_MS} - {FROM_MS}) / 50)) AS time
            ORDER BY time
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=1,
    columns=(Column(name="/the week before$/", dashed=True),),
    calcs=("mean", "lastNotNull"),
)

MIX = TimeSeries(
    title="Mix of the whole traffic",
    question="Does the world move slowly?",
    reading=(
        "Evidence that kinds of records come in other shares than in the reference: 10^strength blocks is the time in "
        "which it appears once by chance. A slow rise over weeks is a world that moves."
    ),
    next_step="above the dashed line, the drift dashboard names the kinds that grew.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, {_SERIES} AS metric, max(strength) AS value
            FROM readings WHERE {MODELS} AND {SPACES} AND segment = '' AND channel = 'mix' AND {within("start_ms")}
            GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, min(threshold) AS page
            FROM readings WHERE {MODELS} AND {SPACES} AND segment = '' AND channel = 'mix' AND {within("start_ms")}
            GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    decimals=1,
    columns=(Column(name="page", colour=PAGE, dashed=True),),
)

LASTING = Table(
    title="Drift that is open, the longest first",
    question="Which drift has nobody dealt with?",
    reading="Each open incident of drift with its age since the onset.",
    next_step=(
        "decide the first row: mend the input, train the model anew, or accept the change and build a new reference."
    ),
    targets=(
        Sql(
            f"""
            SELECT model, title AS incident, severity, detail::json ->> 'channel' AS channel,
                   {moment("onset_ms")} AS since,
                   extract(epoch FROM now())::double precision - onset_ms / 1000.0 AS age,
                   (detail::json ->> 'effect')::double precision AS effect, reference, {next_step()} AS next
            FROM incidents WHERE {MODELS} AND kind = 'drift' AND status = 'open'
            ORDER BY onset_ms, severity LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="incident", link=to_detail("Drift of this model", "driftd-drift")),
        Column(name="severity", colours=(("page", PAGE), ("warn", WARN)), width=80),
        Column(name="channel", width=80),
        Column(name="since", unit="dateTimeAsIso", width=170),
        Column(name="age", unit="s", decimals=1, width=100),
        Column(name="effect", decimals=2, width=80),
        Column(name="reference", decimals=0, width=90),
        Column(name="next", width=220),
    ),
    empty="No drift is open.",
    width=24,
    height=7,
)

REFERENCES = Table(
    title="References",
    question="What is each space compared with?",
    reading=(
        "Every version of each space, the newest first: what it was built from, and which one is active. Below 50,000 "
        "records an alarm may only warn."
    ),
    next_step="where the active one is small or old, `driftd reference build` makes another.",
    targets=(
        Sql(
            f"""
            SELECT model, space, version, CASE WHEN active THEN 'active' ELSE '' END AS active, records, dimension,
                   {moment("created_ms")} AS built, {moment("activated_ms")} AS activated,
                   extract(epoch FROM now())::double precision - created_ms / 1000.0 AS age
            FROM reference_versions WHERE {MODELS} AND {SPACES}
            ORDER BY model, space, version DESC LIMIT 200
            """
        ),
    ),
    columns=(
        Column(name="version", decimals=0, unit="none", width=80),
        Column(name="active", colours=(("active", FINE),), width=80),
        Column(name="records", steps=((None, CAUTION), (50_000, NEUTRAL)), width=100),
        Column(name="dimension", unit="none", width=100),
        Column(name="built", unit="dateTimeAsIso", width=170),
        Column(name="activated", unit="dateTimeAsIso", width=170),
        Column(name="age", unit="s", decimals=1, width=100),
    ),
    width=14,
    height=8,
)

VERSIONS = Table(
    title="Versions of the watched model",
    question="Which version brought the change?",
    reading=(
        "Each version that the stream named, with the first block that holds records of it. Needs record.version in "
        "the settings."
    ),
    next_step="compare with the onset of drift: a change at the same time is the deployment's.",
    targets=(
        Sql(
            f"""
            SELECT model, version, {moment("start_ms")} AS "first seen",
                   extract(epoch FROM now())::double precision - start_ms / 1000.0 AS age
            FROM deployments WHERE {MODELS} ORDER BY start_ms DESC LIMIT 200
            """
        ),
    ),
    columns=(
        Column(name="first seen", unit="dateTimeAsIso", width=170),
        Column(name="age", unit="s", decimals=1, width=100),
    ),
    empty="The stream names no version.",
    width=10,
    height=8,
)

STALE = Dashboard(
    uid="driftd-stale",
    title="driftd 4: stale model",
    question="Is the model still working on the data that it was measured on, or has the world moved on?",
    next_step="If drift has been open for days, train the model anew or build a new reference.",
    variables=(ONE_MODEL, SPACE),
    annotations=(onsets(f"{MODELS} AND {SPACES} AND segment = ''"), DEPLOYMENTS),
    since="now-30d",
    refresh="5m",
    rows=(
        Row("How old is what we compare with?", (REFERENCE_AGE, VERSION_AGE, DRIFT_AGE, TIMELINE)),
        Row("Is it getting worse?", (CONFIDENCE, MIX, LASTING)),
        Row("What was deployed", (REFERENCES, VERSIONS)),
    ),
)
