"""Which records look like fraud, are there more of them than usual, and what did people answer?"""

from __future__ import annotations

from dashboards.grafana.choices import DEPLOYMENTS, ONE_MODEL
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import CAUTION, FINE, NEUTRAL, PAGE, WARN, Column, Row, Stat, Table, TimeSeries
from dashboards.grafana.sql import FROM_MS, MODEL_IF_SEVERAL, MODELS, TO_MS, bucket, loudest, moment, within
from dashboards.grafana.targets import PromQL, Sql

_SPACE = "space = 'fraud'"  # the name under which fraud scores keep records; a test compares
_KEPT = f"{MODELS} AND {_SPACE} AND {within('time_ms')}"
_READINGS = f"{MODELS} AND {_SPACE} AND channel = 'fraud_wave' AND {within('start_ms')}"
_ASKED = "(flagged OR reason = 'review')"
_PROBABILITY = "(detail::json ->> 'probability')::double precision"
# What was said last by the strongest source.
_ANSWER = """(SELECT label FROM labels
              WHERE labels.model = kept.model AND labels.record_id = kept.record_id
              ORDER BY source = 'chargeback' DESC, source = 'analyst' DESC, labels.time_ms DESC, id DESC LIMIT 1)"""

COUNTS = Stat(
    title="Fraud in this range",
    question="How many records look like fraud, and how many of them did people look at?",
    reading=(
        "Candidates look like fraud as only fraud.alpha of normal records do; alerts are the most surprising of them, "
        "as many as fraud.alerts.most allows; answered are alerts of which somebody has said what they are."
    ),
    next_step="the table of alerts names them.",
    targets=(
        Sql(
            f"""
            SELECT count(*) FILTER (WHERE reason = 'fraud') AS candidates, count(*) FILTER (WHERE flagged) AS alerts,
                   count(*) FILTER (WHERE flagged AND EXISTS (
                       SELECT FROM labels WHERE labels.model = kept.model AND labels.record_id = kept.record_id
                   )) AS answered,
                   count(*) FILTER (WHERE reason = 'review') AS "for review"
            FROM kept WHERE {_KEPT}
            """
        ),
    ),
    columns=(
        Column(name="candidates", colour=NEUTRAL),
        Column(name="alerts", colour=WARN),
        Column(name="answered", colour=FINE),
        Column(name="for review", colour=NEUTRAL),
    ),
    width=12,
    height=5,
)

KNOWN = Stat(
    title="Confirmed cases that the score rests on",
    question="Does the score know what fraud looks like?",
    reading=(
        "Confirmed cases, copies dropped, that the scorer in force has learned from. 0 means that it tells what is "
        "strange, and not yet what is fraud; from 5 on a model of its own joins."
    ),
    next_step="if it is small, label the alerts below: driftd label, or POST /labels.",
    targets=(PromQL('max by (model) (driftd_fraud_known_cases{model=~"$model"})', legend="{{model}}"),),
    unit="short",
    decimals=0,
    steps=((None, CAUTION), (1, FINE)),
    graph=True,
    width=12,
    height=5,
)

HITS = TimeSeries(
    title="Candidates and alerts",
    question="When did they come?",
    reading="Records by event time: all candidates, and those of them that are alerts within the budget.",
    next_step="a hill of candidates with few alerts on it is a wave that is larger than the budget: see its incident.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("time_ms")} AS time, count(*) AS candidates, count(*) FILTER (WHERE flagged) AS alerts
            FROM kept WHERE {_KEPT} AND reason = 'fraud' GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    bars=True,
    low=0,
    columns=(Column(name="candidates", colour=NEUTRAL), Column(name="alerts", colour=WARN)),
)

RATE = TimeSeries(
    title="Candidates against the usual share",
    question="Are there more than usual?",
    reading=(
        "Share of candidates in the window that speaks most; the dashed line is what the calibration says, or what "
        "this stream itself has had if that is more."
    ),
    next_step="if it stays at several times as much, the evidence beside it says how sure that is.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, concat_ws(' ', {MODEL_IF_SEVERAL}, 'share') AS metric,
                       max(statistic) AS value
                FROM readings WHERE {_READINGS} GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, max(statistic / nullif(effect, 0)) AS usual
            FROM readings WHERE {_READINGS} GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=2,
    low=0,
    columns=(Column(name="usual", colour=NEUTRAL, dashed=True),),
)

EVIDENCE = TimeSeries(
    title="Evidence of a wave",
    question="Is the excess more than chance?",
    reading=(
        "10^strength blocks is the time in which such evidence appears once by chance. Above the dashed line it pages."
    ),
    next_step="above the line there is an incident, which shows the hits in groups: driftd explain.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("start_ms")} AS time, concat_ws(' ', {MODEL_IF_SEVERAL}, 'strength') AS metric,
                       max(strength) AS value
                FROM readings WHERE {_READINGS} GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
        Sql(
            f"""
            SELECT {bucket("start_ms")} AS time, min(threshold) AS page
            FROM readings WHERE {_READINGS} GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="none",
    decimals=1,
    columns=(Column(name="page", colour=PAGE, dashed=True),),
)

PROBABILITY = TimeSeries(
    title="Probability of the alerts",
    question="How sure is the score of what it shows people?",
    reading=(
        "Median and largest probability of fraud of the alerts, at the prevalence of the settings. Before the first "
        "label it says only how strange they are."
    ),
    next_step="if alerts are improbable and people are busy, ask for a precision: fraud.alerts.precision.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("time_ms")} AS time, percentile_cont(0.5) WITHIN GROUP (ORDER BY {_PROBABILITY}) AS median,
                   max({_PROBABILITY}) AS largest
            FROM kept WHERE {_KEPT} AND flagged GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    unit="percentunit",
    decimals=1,
    low=0,
    high=1,
)

INCIDENTS = Table(
    title="Waves, floods and changes of fraud",
    question="What were people told?",
    reading="Incidents of fraud in this range, the newest first. The last column is the command that shows the hits.",
    next_step="run the command: it shows groups of similar hits, their nearest confirmed case, and what rules missed.",
    targets=(
        Sql(
            f"""
            SELECT severity, model, title AS incident, {moment("onset_ms")} AS since, status,
                   'driftd explain ' || id AS ask
            FROM incidents
            WHERE {MODELS} AND kind IN ('fraud_wave', 'flood', 'fraud_changed')
              AND onset_ms <= {TO_MS} AND coalesce(resolved_ms, {TO_MS}) >= {FROM_MS}
            ORDER BY onset_ms DESC LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="severity", colours=(("page", PAGE), ("warn", WARN)), width=80),
        Column(name="since", unit="dateTimeAsIso", width=190),
        Column(name="ask", width=220),
    ),
    empty="There was none in this range.",
    width=24,
    height=6,
)

ALERTS = Table(
    title="Alerts, the most surprising first",
    question="Which records should people look at?",
    reading=(
        "Surprise is -log10 of the p-value among normal records; the probability is at the prevalence of the settings; "
        "'labels' is the version of the labels that the record was scored with; 'answer' is what was said of it."
    ),
    next_step="look at those without an answer, and label them: each label counts within seconds.",
    targets=(
        Sql(
            f"""
            SELECT {moment("time_ms")} AS at, model, record_id AS record, score AS surprise,
                   {_PROBABILITY} AS probability, labels, segments, left(fields, 300) AS kept,
                   coalesce({_ANSWER}, '') AS answer, 'driftd explain ' || record_id AS ask
            FROM kept WHERE {_KEPT} AND flagged
            ORDER BY score DESC, topic, number, position LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(
        Column(name="at", unit="dateTimeAsIso", width=190),
        Column(name="surprise", decimals=2, width=90),
        Column(name="probability", unit="percentunit", decimals=1, width=110),
        Column(name="answer", colours=(("fraud", PAGE), ("cleared", FINE)), width=90),
        Column(name="ask", width=220),
    ),
    empty="No record was an alert in this range.",
    width=24,
    height=10,
)

QUEUE = Table(
    title="Waiting for an answer, the oldest first",
    question="What has nobody looked at yet?",
    reading=(
        "Alerts, and records of the review sample, of which nothing was said. The sample is drawn by a hash from all "
        "traffic: only with answers to it can precision, recall and prevalence be estimated."
    ),
    next_step="answer the sample first: those few answers say how good everything else is.",
    targets=(
        Sql(
            f"""
            SELECT {moment("time_ms")} AS at, model, record_id AS record,
                   CASE WHEN flagged THEN 'alert' ELSE 'review' END AS "asked as", segments,
                   left(fields, 300) AS kept, 'driftd explain ' || record_id AS ask
            FROM kept
            WHERE {_KEPT} AND {_ASKED}
              AND NOT EXISTS (SELECT FROM labels
                              WHERE labels.model = kept.model AND labels.record_id = kept.record_id)
            ORDER BY time_ms, topic, number, position LIMIT 100
            """
        ),
    ),
    unit="none",
    columns=(Column(name="at", unit="dateTimeAsIso", width=190), Column(name="ask", width=220)),
    empty="Everything has an answer.",
    width=24,
    height=8,
)

ANSWERS = TimeSeries(
    title="What people said of the alerts",
    question="Are the alerts right?",
    reading="Alerts by the time of the record and by their answer: fraud, cleared, or none yet.",
    next_step="many cleared ones: see the precision in driftd fraud, and ask for one in fraud.alerts.precision.",
    targets=(
        Sql(
            f"""
            SELECT {bucket("time_ms")} AS time, count(*) FILTER (WHERE answer = 'fraud') AS fraud,
                   count(*) FILTER (WHERE answer = 'cleared') AS cleared,
                   count(*) FILTER (WHERE answer IS NULL) AS unanswered
            FROM (SELECT time_ms, {_ANSWER} AS answer FROM kept WHERE {_KEPT} AND flagged) AS asked
            GROUP BY 1 ORDER BY 1
            """,
            format="time_series",
        ),
    ),
    bars=True,
    stacked=True,
    low=0,
    columns=(
        Column(name="fraud", colour=PAGE),
        Column(name="cleared", colour=FINE),
        Column(name="unanswered", colour=NEUTRAL),
    ),
)

LABELS = TimeSeries(
    title="Labels by source",
    question="Do labels come, and from whom?",
    reading="Labels by the time at which it was decided what the record is, and by who says so.",
    next_step="a source that has stopped: see that it still writes to the topic of labels, or posts them.",
    targets=(
        Sql(
            loudest(
                f"""
                SELECT {bucket("time_ms")} AS time, source || ' ' || label AS metric, count(*) AS value
                FROM labels WHERE {MODELS} AND {within("time_ms")} GROUP BY 1, 2
                """
            ),
            format="time_series",
        ),
    ),
    bars=True,
    stacked=True,
    low=0,
)

VERSIONS = TimeSeries(
    title="Labels that count, and those that wait",
    question="Does each label take effect?",
    reading=(
        "Labels in force are those that the scorers know, one line for each process; waiting are those whose record is "
        "not known yet. The lines in force should follow the labels within seconds."
    ),
    next_step="if one stands still, the log of that process says why its fit fails; if many wait, see driftd fraud.",
    targets=(
        PromQL('driftd_label_version_in_force{model=~"$model"}', legend="{{model}} in force, {{instance}}"),
        PromQL('max by (model) (driftd_labels_waiting{model=~"$model"})', legend="{{model}} waiting"),
    ),
    low=0,
)

FITS = TimeSeries(
    title="Time to take in labels",
    question="How soon does a label count?",
    reading="Seconds that reading new labels and fitting the scorer took, 95 of 100 of them less.",
    next_step="above a second with many labels, see how many there are: the newest 100,000 are learned from.",
    targets=(
        PromQL(
            "histogram_quantile(0.95, sum by (le, model) "
            '(rate(driftd_fraud_fit_seconds_bucket{model=~"$model"}[$__rate_interval])))',
            legend="{{model}}",
        ),
    ),
    unit="s",
    decimals=2,
    low=0,
)

FRAUD = Dashboard(
    uid="driftd-fraud",
    title="driftd 6: fraud",
    question="Which records look like fraud, are there more of them than usual, and what did people answer?",
    next_step="Open the newest wave, then answer the alerts and the review sample: each label counts within seconds.",
    variables=(ONE_MODEL,),
    annotations=(DEPLOYMENTS,),
    rows=(
        Row("Are there more than usual?", (COUNTS, KNOWN, HITS, RATE, EVIDENCE, PROBABILITY, INCIDENTS)),
        Row("Whom should people look at?", (ALERTS, QUEUE)),
        Row("What did people say?", (ANSWERS, LABELS, VERSIONS, FITS)),
    ),
)
