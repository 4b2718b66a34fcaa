"""Is any model in trouble, and which one first?"""

from __future__ import annotations

from dashboards.grafana.choices import ALL_MODELS, TO_EVIDENCE
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import CAUTION, FINE, NEUTRAL, PAGE, WARN, Column, Row, Stat, Table, Text, TimeSeries
from dashboards.grafana.sql import ALL_MODELS as KNOWN
from dashboards.grafana.sql import COUNTED, DEPLOYMENT, MODELS, bucket, loudest, moment, next_step, within
from dashboards.grafana.targets import PromQL, Sql
from dashboards.grafana.verdicts import (
    BLIND_RANK,
    ENCODER_RANK,
    LEARNING_RANK,
    RANK_ABOVE,
    RANK_OF_INCIDENT,
    TOO_FEW_RANK,
    WORD_COLOURS,
    as_markdown,
    rank_in_sql,
    word_of,
)
from dashboards.verdict_words import VERDICTS, rank_of

# One row for each model: its newest verdict, or what stands above it, with the worst incident that is open.
_STATES = f"""
open AS (
  SELECT model, title, onset_ms,
         row_number() OVER (PARTITION BY model ORDER BY {RANK_OF_INCIDENT}, severity, segment <> '', onset_ms) AS place,
         count(*) OVER (PARTITION BY model) AS incidents
  FROM incidents WHERE {MODELS} AND status = 'open'
),
above AS (
  SELECT model, {RANK_ABOVE} AS rank FROM incidents WHERE {MODELS} AND status = 'open' GROUP BY model
),
states AS (
  SELECT known.model, coalesce(open.incidents, 0) AS incidents, said.low, said.realised, said.floor,
         CASE WHEN above.rank IS NULL AND said.word IS NOT NULL AND said.word <> 'fresh'
              THEN coalesce(said.reasons::json ->> 0, open.title) ELSE open.title END AS why,
         CASE WHEN above.rank IS NULL AND said.word IS NOT NULL THEN said.since_ms ELSE open.onset_ms END AS since_ms,
         coalesce(above.rank, {rank_in_sql("said.word")},
                  CASE WHEN learned.model IS NULL THEN {LEARNING_RANK} ELSE {TOO_FEW_RANK} END) AS rank
  FROM ({KNOWN}) AS known LEFT JOIN open ON open.model = known.model AND open.place = 1
  LEFT JOIN above ON above.model = known.model
  LEFT JOIN LATERAL (
    SELECT word, since_ms, low, realised, floor, reasons FROM verdicts
    WHERE verdicts.model = known.model ORDER BY block DESC LIMIT 1
  ) AS said ON true
  LEFT JOIN (SELECT DISTINCT model FROM reference_versions WHERE active) AS learned ON learned.model = known.model
  WHERE known.{MODELS}
)
""".strip()

_COUNTS = ", ".join(
    f'count(*) FILTER (WHERE rank = {rank}) AS "{verdict.word}"' for rank, verdict in enumerate(VERDICTS, 1)
)

VERDICT_COUNTS = Stat(
    title="Models by verdict",
    question="How many models are in trouble, and how badly?",
    reading="The models in each state; the words are explained at the bottom.",
    next_step="a model that is blind, degraded or drifted stands first in the table below; click its name.",
    targets=(
        Sql(
            f"""
            WITH {_STATES}
            SELECT {_COUNTS}
            FROM states
            """
        ),
    ),
    decimals=0,
    columns=tuple(Column(name=word, steps=((None, NEUTRAL), (1, colour))) for word, colour in WORD_COLOURS),
    width=12,
    height=5,
)

PAGES = Stat(
    title="Pages in 30 days: promised and real",
    question="Does driftd keep its promise about false alarms?",
    reading=(
        "The alarm budget allows at most so many false pages (drift and outlier rate, whole deployment, 30 days of "
        "event time); beside it are the pages that came and those that people called false."
    ),
    next_step=(
        "call false ones: `driftd incidents --false ID`. More of them than promised: raise drift.tolerance or "
        "alarms.page_every_days."
    ),
    targets=(
        PromQL("30 * max(driftd_expected_false_pages_per_day)", legend="false ones, at most"),
        PromQL('30 * sum(max by (model) (driftd_pages_per_day{model=~"$model"}))', legend="pages"),
        PromQL('30 * sum(max by (model) (driftd_false_pages_per_day{model=~"$model"}))', legend="called false"),
    ),
    decimals=1,
    columns=(Column(name="false ones, at most", colour=NEUTRAL), Column(name="called false", colour=WARN)),
    width=8,
    height=5,
)

WAITING = Stat(
    title="Notifications that wait",
    question="Do alerts get out?",
    reading="Notifications that are not delivered yet, over all sinks. It goes back to 0 within a minute or two.",
    next_step="if it grows, a sink does not take them: the pipeline dashboard says which, in the row of alerts.",
    targets=(PromQL("max(driftd_outbox_depth)", legend="waiting"),),
    steps=((None, FINE), (20, CAUTION), (100, PAGE)),
    decimals=0,
    graph=True,
    width=4,
    height=5,
)

MODEL_TABLE = Table(
    title="Verdict of each model",
    question="Which model needs me first?",
    reading=(
        "One row for each model, the worst first. blind outranks all, because the other numbers rest on nothing then. "
        "'why' is the weightiest reason; 'right, at least' is estimated without labels, 'right, measured' with them."
    ),
    next_step="click a model: what is known of its answers, its drift, or the pipeline where it is blind.",
    targets=(
        Sql(
            f"""
            WITH {_STATES},
            read AS (
              SELECT model, max(max_time_ms) AS newest_ms, sum(records)::bigint AS records, sum(dead)::bigint AS dead
              FROM {COUNTED} WHERE {MODELS} GROUP BY model
            )
            SELECT {word_of("rank")} AS verdict, model, coalesce(why, '') AS why, incidents,
                   {moment("since_ms")} AS since, low AS "right, at least", realised AS "right, measured", floor,
                   {moment("CASE WHEN newest_ms > 0 THEN newest_ms END")} AS "newest record",
                   records, dead / nullif(records, 0)::double precision AS unusable,
                   CASE WHEN rank IN ({BLIND_RANK}, {ENCODER_RANK}, {LEARNING_RANK}, {TOO_FEW_RANK})
                        THEN 'driftd-pipeline'
                        WHEN rank IN ({rank_of("drifted")}, {rank_of("mix changed")}) THEN 'driftd-drift'
                        ELSE 'driftd-stale' END AS dashboard
            FROM states LEFT JOIN read USING (model)
            ORDER BY rank, since_ms, model LIMIT 500
            """
        ),
    ),
    columns=(
        Column(name="verdict", colours=WORD_COLOURS, width=130),
        Column(name="model", width=180, link=TO_EVIDENCE),
        Column(name="right, at least", unit="percentunit", decimals=1, width=120),
        Column(name="right, measured", unit="percentunit", decimals=1, width=130),
        Column(name="floor", unit="percentunit", decimals=1, width=80),
        Column(name="incidents", width=90, decimals=0),
        Column(name="since", unit="dateTimeAsIso", width=170),
        Column(name="newest record", unit="dateTimeAsIso", width=170),
        Column(name="records", width=100),
        Column(name="unusable", unit="percentunit", width=100, steps=((None, FINE), (0.01, CAUTION), (0.05, PAGE))),
        Column(name="dashboard", hidden=True),
    ),
    width=24,
    height=10,
)

OPEN_INCIDENTS = Table(
    title="Open incidents",
    question="What is wrong right now?",
    reading="Everything that a person should know of and that is not over, pages first. Empty is good.",
    next_step=(
        "click the incident for its evidence, or do what its last column says. `driftd mute` keeps it quiet while you "
        "work on it."
    ),
    targets=(
        Sql(
            f"""
            SELECT severity, model, title AS incident, {moment("onset_ms")} AS since, {moment("opened_ms")} AS opened,
                   kind, coalesce(detail::json -> 'acknowledged' ->> 'by', '') AS "seen by",
                   EXISTS (SELECT FROM mutes
                           WHERE mutes.model IN ('', incidents.model) AND mutes.kind IN ('', incidents.kind)
                             AND mutes.space IN ('', incidents.space) AND mutes.segment IN ('', incidents.segment)
                             AND extract(epoch FROM now()) * 1000 BETWEEN from_ms AND until_ms) AS muted,
                   {next_step()} AS next,
                   CASE kind WHEN 'drift' THEN 'driftd-drift' WHEN 'outlier_rate' THEN 'driftd-outliers'
                             WHEN 'stale' THEN 'driftd-stale'
                             WHEN 'fraud_wave' THEN 'driftd-fraud' WHEN 'flood' THEN 'driftd-fraud'
                             WHEN 'fraud_changed' THEN 'driftd-fraud'
                             ELSE 'driftd-pipeline' END AS dashboard
            FROM incidents WHERE ({MODELS} OR model = '{DEPLOYMENT}') AND status = 'open'
            ORDER BY severity, onset_ms DESC LIMIT 200
            """
        ),
    ),
    columns=(
        Column(name="severity", colours=(("page", PAGE), ("warn", WARN)), width=80),
        Column(name="model", width=160),
        Column(name="incident", link=TO_EVIDENCE),
        Column(name="since", unit="dateTimeAsIso", width=170),
        Column(name="opened", unit="dateTimeAsIso", width=170),
        Column(name="kind", width=120),
        Column(name="seen by", width=110),
        Column(name="muted", width=80),
        Column(name="next", width=260),
        Column(name="dashboard", hidden=True),
    ),
    empty="No incident is open.",
    width=24,
    height=9,
)

TRAFFIC = TimeSeries(
    title="Traffic by event time",
    question="Does every model still have traffic?",
    reading="Records per second of each model, by the time in the records; the 20 busiest.",
    next_step=(
        "a line that ends is a model that is silent or a driftd that is behind: compare it with the lag beside it."
    ),
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, model AS metric,
                       sum(records)::double precision * 1000 / greatest($__interval_ms, max(end_ms - start_ms)) AS value
                FROM block_stats WHERE {MODELS} AND space = '' AND {within("start_ms")}
                GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
    ),
    unit="si:rec/s",
    low=0,
    calcs=("mean", "lastNotNull"),
    width=8,
)

LAG = TimeSeries(
    title="Behind the stream",
    question="How late would an alarm come?",
    reading=(
        "Age of the last record that was read, where more wait; the 20 models that are furthest behind. Seconds are "
        "normal, ten minutes are an alarm."
    ),
    next_step=(
        "if it grows, add workers (`driftd run --workers N`), or find the phase that takes the time on the pipeline "
        "dashboard."
    ),
    targets=(PromQL('topk(20, max by (model) (driftd_lag_seconds{model=~"$model"}))', legend="{{model}}"),),
    unit="s",
    low=0,
    steps=((None, FINE), (600, PAGE)),
    width=8,
)

INCIDENTS_OPENED = TimeSeries(
    title="Incidents opened",
    question="Is this one trouble or a wave of them?",
    reading=(
        "How many incidents opened in each stretch of time. A wave over many models at once usually has one cause "
        "outside of them: a deployment, a source, an encoder."
    ),
    next_step="compare with the new versions on the dashboard of stale models.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("opened_ms")} AS time, severity AS metric, count(*) AS value
            FROM incidents WHERE {MODELS} AND {within("opened_ms")}
            GROUP BY 1, 2 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    bars=True,
    stacked=True,
    low=0,
    decimals=0,
    calcs=("sum",),
    columns=(Column(name="page", colour=PAGE), Column(name="warn", colour=WARN)),
    width=8,
)

WORDS = Text(
    title="What the verdicts mean",
    question="What do the words say?",
    next_step="do what the last column says.",
    content=as_markdown(),
)

OVERVIEW = Dashboard(
    uid="driftd-overview",
    title="driftd 1: overview",
    question="Is any model in trouble, and which one first?",
    next_step="Click the model or the incident that stands first.",
    variables=(ALL_MODELS,),
    rows=(
        Row("Now", (VERDICT_COUNTS, PAGES, WAITING, MODEL_TABLE, OPEN_INCIDENTS)),
        Row("Traffic and alarms", (TRAFFIC, LAG, INCIDENTS_OPENED)),
        Row("Words", (WORDS,)),
    ),
)
