"""Which records are strange, are there more of them than usual, and what do they look like?"""

from __future__ import annotations

from dashboards.grafana.choices import DEPLOYMENTS, ONE_MODEL, SEGMENT_OF_TRAFFIC, SPACE, onsets
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import FINE, NEUTRAL, PAGE, WARN, Column, Heatmap, Row, Stat, Table, TimeSeries
from dashboards.grafana.sql import (
    MODEL_IF_SEVERAL,
    MODELS,
    SEGMENTS,
    SPACES,
    WHOLE,
    bucket,
    choice_of,
    loudest,
    moment,
    within,
)
from dashboards.grafana.targets import PromQL, Sql

# The ten classes of block_stats: class k holds p-values up to 2^-BITS[k]; a test compares with monitor/block_stats.py.
BITS = (0, 1, 2, 4, 6, 8, 10, 12, 14, 17)
CANDIDATE_CLASS = BITS.index(10)  # from here on a record is stranger than all but one in 1,024 of the reference

_SHARES = [2.0**-high - 2.0**-low for high, low in zip(BITS, (*BITS[1:], 1000), strict=True)]
_CLASS_NAMES = ["p above 1/2" if bits == 0 else f"p below 1/{2**bits}" for bits in BITS]
_CANDIDATES = " + ".join(f"surprise_{number}" for number in range(CANDIDATE_CLASS, len(BITS)))
_STATS = f"{MODELS} AND {SPACES} AND {within('start_ms')}"
_SERIES = f"concat_ws(' ', {MODEL_IF_SEVERAL}, space)"

_CELLS = ",\n".join(
    f'(sum(surprise_{number}) + 1.0) / (sum(records) * {share:.6g} + 1.0) AS "{name}"'
    for number, (share, name) in enumerate(zip(_SHARES, _CLASS_NAMES, strict=True))
)

SURPRISE = Heatmap(
    title="Surprise: times as many records as usual",
    question="Are a few records very strange, or all of them a little?",
    reading=(
        "Each row is a class of p-values, the strangest at the top; the colour is how many times as many records fell "
        "into it as in the reference (one is added to both, so that a single record does not shine). Even and pale is "
        "normal."
    ),
    next_step=(
        "colour at the top only: see the table of flagged records. Colour in the middle: all traffic moves outwards, "
        "see the drift dashboard."
    ),
    targets=(
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time,
            {_CELLS}
            FROM block_stats WHERE {_STATS} GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    decimals=1,
    low=0,
    width=24,
    height=10,
)

COUNTS = Stat(
    title="Outliers in this range",
    question="How many records are strange?",
    reading=(
        "Candidates are stranger than all but one in 1,024 of the reference; flagged are the strangest, as many as the "
        "budget allows (models.NAME.outliers.budget). 'share' is flagged of all records: it stays near the budget "
        "unless the traffic changed."
    ),
    next_step="the tables below show the flagged records.",
    targets=(
        Sql(
            f"""
            SELECT records, candidates, flagged, flagged / nullif(records, 0)::double precision AS share
            FROM (SELECT sum(records)::bigint AS records, sum({_CANDIDATES})::bigint AS candidates
                  FROM block_stats WHERE {_STATS}) AS judged,
                 (SELECT count(*) AS flagged FROM kept
                  WHERE {MODELS} AND {SPACES} AND flagged AND {within("time_ms")}) AS kept
            """
        ),
    ),
    columns=(
        Column(name="records", colour=NEUTRAL),
        Column(name="candidates", colour=NEUTRAL),
        Column(name="flagged", colour=WARN),
        Column(name="share", unit="percentunit", decimals=3, colour=WARN),
    ),
    width=12,
    height=5,
)

LIVE = Stat(
    title="Flagged now, of all records",
    question="Is the budget kept at this moment?",
    reading=(
        "Records flagged as outliers, of all that were counted, by the clock on the wall. It comes with closed blocks, "
        "so a quiet model shows nothing."
    ),
    next_step="compare it with outliers.budget; far above it, look at the evidence below.",
    targets=(
        PromQL(
            'sum by (model, space) (rate(driftd_outliers_total{model=~"$model", space=~"$space"}[$__rate_interval]))'
            " / on (model) group_left"
            ' sum by (model) (rate(driftd_records_total{model=~"$model"}[$__rate_interval]))',
            legend="{{model}} {{space}}",
        ),
    ),
    unit="percentunit",
    decimals=3,
    low=0,
    steps=((None, FINE), (0.01, WARN), (0.05, PAGE)),
    graph=True,
    width=12,
    height=5,
)

RATE = TimeSeries(
    title="Strange records against the expected share",
    question="Are there more than usual?",
    reading=(
        "Share of candidates in each block; the dashed line is what the reference has, one in 1,024. Noise around it "
        "is normal."
    ),
    next_step="if it stays at several times as much, the alarm beside it says how sure that is.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, {_SERIES} AS metric,
                       sum({_CANDIDATES}) / nullif(sum(records), 0)::double precision AS value
                FROM block_stats WHERE {_STATS} GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, 1.0 / 1024 AS expected
            FROM block_stats WHERE {_STATS} GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=2,
    low=0,
    columns=(Column(name="expected", colour=NEUTRAL, dashed=True),),
    calcs=("mean", "max"),
)

RATE_ALARM = TimeSeries(
    title="Evidence that there are too many",
    question="Is the excess more than chance?",
    reading=(
        "Strength of the outlier-rate alarm of each chosen segment: 10^strength blocks is the time in which such "
        "evidence appears once by chance. Above the dashed line it pages."
    ),
    next_step="if it is one segment, choose it at the top; if it is all, look for what changed for everybody.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time,
                       concat_ws(' ', {_SERIES}, nullif(segment, '')) AS metric, max(strength) AS value
                FROM readings
                WHERE {_STATS} AND {SEGMENTS} AND channel = 'outlier_rate' GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, min(threshold) AS page
            FROM readings WHERE {_STATS} AND {SEGMENTS} AND channel = 'outlier_rate' GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    decimals=1,
    columns=(Column(name="page", colour=PAGE, dashed=True),),
)

EXEMPLARS = Table(
    title="The strangest flagged records",
    question="What do the strange records look like?",
    reading=(
        "Flagged records of this range, the strangest first: smaller p is stranger. 'position' is "
        "topic/partition/offset; 'read it', with your brokers added, fetches the raw record. 'ask' explains the "
        "incident that was open then."
    ),
    next_step="look at the first ten; if they are of one kind, it is a cause and not chance.",
    targets=(
        Sql(
            f"""
            SELECT {moment("time_ms")} AS at, model, space, record_id AS record, score, p_value AS p, prediction,
                   confidence, segments, left(fields, 500) AS kept,
                   topic || '/' || number || '/' || position AS position,
                   'kcat -C -t ' || topic || ' -p ' || number || ' -o ' || position || ' -c 1 -b ' AS "read it",
                   coalesce((SELECT 'driftd explain ' || id FROM incidents
                             WHERE incidents.model = kept.model AND incidents.space = kept.space
                               AND onset_ms <= time_ms AND coalesce(resolved_ms, time_ms) >= time_ms
                             ORDER BY severity, segment <> '', opened_ms LIMIT 1), '') AS ask
            FROM kept
            WHERE {MODELS} AND {SPACES} AND flagged AND {within("time_ms")}
              AND ('{WHOLE}' = ANY({choice_of("segment")})
                   OR EXISTS (SELECT FROM json_each_text(segments::json) AS part
                              WHERE part.key || '=' || part.value = ANY({choice_of("segment")})))
            ORDER BY p_value, score DESC LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="at", unit="dateTimeAsIso", width=190),
        Column(name="score", decimals=3, width=80),
        Column(name="p", unit="sci", decimals=1, width=90),
        Column(name="confidence", unit="percentunit", decimals=0, width=100),
        Column(name="position", width=200),
        Column(name="read it", width=200),
        Column(name="ask", width=220),
    ),
    empty="No record was flagged in this range.",
    width=24,
    height=12,
)

BY_PREDICTION = Table(
    title="Flagged records by what the model said",
    question="Does the model know that these are strange?",
    reading="Which answers of the model the flagged records have, and how sure it was of them.",
    next_step="many of one answer with high confidence are the dangerous ones: check that answer by hand.",
    targets=(
        Sql(
            f"""
            SELECT model, space, coalesce(prediction, '(none)') AS prediction, count(*) AS flagged,
                   avg(confidence) AS confidence, min(p_value) AS "smallest p"
            FROM kept WHERE {MODELS} AND {SPACES} AND flagged AND {within("time_ms")}
            GROUP BY 1, 2, 3 ORDER BY flagged DESC, prediction LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="flagged", unit="short", decimals=0),
        Column(name="confidence", unit="percentunit", decimals=0),
        Column(name="smallest p", unit="sci", decimals=1),
    ),
    empty="No record was flagged in this range.",
    width=24,
    height=8,
)

OUTLIERS = Dashboard(
    uid="driftd-outliers",
    title="driftd 3: outliers",
    question="Which records are strange, are there more of them than usual, and what do they look like?",
    next_step="Look at the first ten flagged records: if they are one kind, find who sends it.",
    variables=(ONE_MODEL, SPACE, SEGMENT_OF_TRAFFIC),
    annotations=(onsets(f"{MODELS} AND {SPACES} AND {SEGMENTS}"), DEPLOYMENTS),
    rows=(
        Row("Are there more than usual?", (COUNTS, LIVE, SURPRISE, RATE, RATE_ALARM)),
        Row("What do they look like?", (EXEMPLARS, BY_PREDICTION)),
    ),
)
