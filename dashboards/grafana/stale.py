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
from dashboards.grafana.verdicts import (
    BLIND_RANK,
    ENCODER_RANK,
    RANKED_WORDS,
    SEEN_KINDS,
    WORD_COLOURS,
    rank_in_sql,
)

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

_SEEN = ", ".join(f"'{kind}'" for kind in SEEN_KINDS if kind != "encoder_changed")

TIMELINE = StateTimeline(
    title="Verdict over time",
    question="How long has the model been in which state?",
    reading=(
        "What was said of the model after each block, as one word; the overview explains the words. While an incident "
        "was open by which nothing could be seen, it was blind, or its encoder had changed, whatever the block says."
    ),
    next_step=(
        "a long band of 'drifted' or 'mix changed' is a stale model: see the rows below; short ones are incidents."
    ),
    targets=(
        Sql(
            f"""
            WITH told AS (
              SELECT model, opened_ms, resolved_ms,
                     CASE kind WHEN 'encoder_changed' THEN {ENCODER_RANK} ELSE {BLIND_RANK} END AS rank
              FROM incidents WHERE {MODELS} AND kind NOT IN ({_SEEN})
                AND opened_ms <= {TO_MS} AND coalesce(resolved_ms, {TO_MS}) >= {FROM_MS}
            ),
            points AS (
              SELECT time, known.model, max(told.rank) AS above
              FROM generate_series({FROM_MS}, {TO_MS}, $__interval_ms::bigint) AS time
              CROSS JOIN unnest({choice_of("model")}) AS known(model)
              LEFT JOIN told
                ON told.model = known.model AND opened_ms <= time AND coalesce(resolved_ms, time + 1) > time
              GROUP BY 1, 2
            )
            SELECT time, points.model AS metric, coalesce(above, {rank_in_sql("said.word")}) AS value
            FROM points LEFT JOIN LATERAL (
              SELECT word FROM verdicts WHERE verdicts.model = points.model AND start_ms <= time
              ORDER BY start_ms DESC LIMIT 1
            ) AS said ON true
            ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    words=RANKED_WORDS,
    width=24,
    height=7,
)

_LAST = f"""
SELECT known.model, said.* FROM unnest({choice_of("model")}) AS known(model)
JOIN LATERAL (
  SELECT word, since_ms, end_ms, records, estimated, low, high, floor, realised, realised_low, realised_high, labels,
         evidence, novel, unsupported, age_s, reasons
  FROM verdicts WHERE verdicts.model = known.model ORDER BY block DESC LIMIT 1
) AS said ON true
""".strip()

RIGHT = TimeSeries(
    title="Right answers",
    question="Does the model still answer rightly?",
    reading=(
        "Share of right answers: the interval that is estimated without labels, what true answers measured where there "
        "are any, and the floor, below which the model is degraded. The lower end falls with new content, which the "
        "model may answer wrongly. Needs record.confidence, and answers that are known to be right for the baseline."
    ),
    next_step=(
        "measured below the floor is proof. Where only the lower end is below it, have some records answered: "
        "`driftd truth`."
    ),
    targets=(
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, concat_ws(' ', {MODEL_IF_SEVERAL}, name) AS metric, avg(value) AS value
            FROM verdicts CROSS JOIN LATERAL (
              VALUES ('estimated, at least', low), ('estimated, at most', high), ('floor', floor),
                     ('measured', CASE WHEN labels > 0 THEN realised END)
            ) AS named(name, value)
            WHERE {MODELS} AND {within("start_ms")} AND value IS NOT NULL GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=1,
    high=1,
    columns=(
        Column(name="/floor$/", colour=PAGE, dashed=True),
        Column(name="/measured$/", colour=FINE),
        Column(name="/estimated, at/", colour="blue"),
    ),
    calcs=("min", "lastNotNull"),
    empty="no confidence, or no answers of the baseline that are known to be right",
    width=16,
    height=9,
)

CONTENT = TimeSeries(
    title="New content",
    question="How much of the traffic has the model never seen?",
    reading=(
        "Share of the records that are like nothing in the baseline, and of those far outside of it, over the window "
        "of the estimates, corrected for what chance would make."
    ),
    next_step="see what they are: `driftd verdict --retrain-hint lacking.jsonl` names the records to train with.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, concat_ws(' ', {MODEL_IF_SEVERAL}, name) AS metric, avg(value) AS value
            FROM verdicts CROSS JOIN LATERAL (
              VALUES ('like nothing known', novel), ('far outside', unsupported)
            ) AS named(name, value)
            WHERE {MODELS} AND {within("start_ms")} AND value IS NOT NULL GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=2,
    low=0,
    columns=(Column(name="/far outside$/", colour=WARN),),
    width=8,
    height=9,
)

NUMBERS = Table(
    title="The verdict in numbers",
    question="What is known of the model's answers?",
    reading=(
        "The newest verdict of each model as the blocks give it. Evidence: chance makes true answers speak so against "
        "the floor once in 10^evidence labels."
    ),
    next_step="`driftd verdict` says the same with what stands above it, such as a source that fails.",
    targets=(
        Sql(
            f"""
            SELECT word AS verdict, model, {moment("since_ms")} AS since, low AS "at least", high AS "at most", floor,
                   realised AS measured, labels, evidence, novel AS "new content", records, age_s AS age,
                   {moment("end_ms")} AS "judged up to"
            FROM ({_LAST}) AS newest ORDER BY model LIMIT 500
            """
        ),
    ),
    unit="percentunit",
    columns=(
        Column(name="verdict", colours=WORD_COLOURS, width=130),
        Column(name="since", unit="dateTimeAsIso", width=170),
        Column(name="labels", unit="short", decimals=0, width=80),
        Column(name="evidence", unit="none", decimals=1, width=80),
        Column(name="records", unit="short", width=80),
        Column(name="age", unit="s", decimals=1, width=100),
        Column(name="judged up to", unit="dateTimeAsIso", width=170),
    ),
    empty="No block has been judged yet.",
    width=24,
    height=4,
)

WHY = Table(
    title="Why",
    question="Why is that said, and what can nobody see?",
    reading="The reasons of the newest verdict, the weightiest first; the last one says what cannot be seen.",
    next_step="the incidents behind it: `driftd verdict`, `driftd explain ID`.",
    targets=(
        Sql(
            f"""
            SELECT model, reason FROM ({_LAST}) AS newest
            CROSS JOIN LATERAL json_array_elements_text(reasons::json) WITH ORDINALITY AS said(reason, place)
            ORDER BY model, place LIMIT 100
            """
        ),
    ),
    columns=(Column(name="model", width=180),),
    width=16,
    height=7,
)

MODEL_AGE = Stat(
    title="Age of the model",
    question="When was it last trained?",
    reading=(
        "Time since the model was trained (performance.trained), or since its version came on the stream, by the time "
        "in the records. Needs one of the two."
    ),
    next_step="performance.max_age says from which age on the verdict is 'watch'.",
    targets=(
        Sql(
            f"""
            SELECT model AS metric, extract(epoch FROM now())::bigint * 1000 AS time,
                   age_s + greatest(extract(epoch FROM now())::double precision - end_ms / 1000.0, 0) AS value
            FROM ({_LAST}) AS newest WHERE age_s IS NOT NULL ORDER BY time, model LIMIT 200
            """,
            format="time_series",
        ),
    ),
    unit="s",
    decimals=1,
    empty="not known when it was trained",
    width=8,
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
    next_step="Measured below its floor: train it anew. Drift for days that it bears: build a new reference.",
    variables=(ONE_MODEL, SPACE),
    annotations=(onsets(f"{MODELS} AND {SPACES} AND segment = ''"), DEPLOYMENTS),
    since="now-30d",
    refresh="5m",
    rows=(
        Row("Does it still answer rightly?", (TIMELINE, NUMBERS, RIGHT, CONTENT, WHY, MODEL_AGE)),
        Row("How old is what we compare with?", (REFERENCE_AGE, VERSION_AGE, DRIFT_AGE)),
        Row("Is it getting worse?", (CONFIDENCE, MIX, LASTING)),
        Row("What was deployed", (REFERENCES, VERSIONS)),
    ),
)
