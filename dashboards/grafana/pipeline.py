"""Does driftd itself work: does it keep up, is anything lost, do its alerts get out?"""

from __future__ import annotations

from dashboards.grafana.choices import ALL_MODELS
from dashboards.grafana.dashboard import Dashboard
from dashboards.grafana.panels import CAUTION, FINE, NEUTRAL, PAGE, WARN, Column, Row, Stat, Table, TimeSeries
from dashboards.grafana.sql import COUNTED, MODELS, moment
from dashboards.grafana.targets import PromQL, Sql

_OF = '{model=~"$model"}'


def _rate(metric: str, *by: str) -> str:
    """Per second, summed over workers and machines."""
    return f"sum by ({', '.join(by)}) (rate({metric}{_OF}[$__rate_interval]))"


def _increase(metric: str) -> str:
    return f"sum(increase({metric}{_OF}[$__rate_interval]))"


WORKERS = Stat(
    title="Processes that answer",
    question="Does driftd run?",
    reading="Workers whose metrics were there at the last scrape, of all machines.",
    next_step=(
        "if there are fewer than you started, look at the log of the one that is missing; the others read its "
        "partitions meanwhile."
    ),
    targets=(PromQL("sum(driftd_worker_up) or count(driftd_build_info)", legend="processes"),),
    decimals=0,
    steps=((None, PAGE), (1, FINE)),
    width=4,
    height=5,
)

SPEED = Stat(
    title="Records read",
    question="Does it work right now?",
    reading="Records per second that were scored and written, by the clock on the wall. 0 is well where nothing waits.",
    next_step="0 while records wait means that reading stands still: look at the open incidents of the overview.",
    targets=(PromQL(f"sum(rate(driftd_records_total{_OF}[$__rate_interval]))", legend="records"),),
    unit="si:rec/s",
    low=0,
    graph=True,
    width=5,
    height=5,
)

BEHIND = Stat(
    title="Records that wait",
    question="Does it keep up?",
    reading=(
        "Records in the topics that were not read yet, of the chosen models together. It may jump at a start and must "
        "then fall."
    ),
    next_step="if it grows for minutes, add workers: `driftd run --workers N`.",
    targets=(PromQL(f"sum(driftd_lag_records{_OF})", legend="records"),),
    low=0,
    graph=True,
    width=5,
    height=5,
)

DATABASE = Stat(
    title="Since the database was last in order",
    question="Does the database take the results?",
    reading=(
        "Seconds since the last transaction that worked, of the worst process. Above a minute nothing is written, and "
        "nothing is lost: the same records are read again."
    ),
    next_step="look at the database, then at `driftd doctor`.",
    targets=(PromQL(f"max(time() - driftd_database_last_ok_timestamp_seconds{_OF})", legend="seconds"),),
    unit="s",
    low=0,
    steps=((None, FINE), (60, CAUTION), (300, PAGE)),
    width=5,
    height=5,
)

POLL = Stat(
    title="Since the source last answered",
    question="Does the source answer?",
    reading=(
        "Seconds since the last poll of the source came back, of the slowest process. Polls return within a second or "
        "two, also without records."
    ),
    next_step="above two minutes the worker hangs, and its watchdog ends it: its log says where it stood.",
    targets=(PromQL(f"max(time() - driftd_last_poll_timestamp_seconds{_OF})", legend="seconds"),),
    unit="s",
    low=0,
    steps=((None, FINE), (60, CAUTION), (120, PAGE)),
    width=5,
    height=5,
)

LAG_RECORDS = TimeSeries(
    title="Records that wait, by model",
    question="Which model is behind?",
    reading="The 20 models with the most records that were not read yet.",
    next_step="one alone has a slow embedder or a burst; all of them together have a slow database or too few workers.",
    targets=(PromQL(f"topk(20, sum by (model) (driftd_lag_records{_OF}))", legend="{{model}}"),),
    low=0,
    width=8,
)

LAG_SECONDS = TimeSeries(
    title="Age of the last record read",
    question="How late do alarms come?",
    reading="By the broker's clock, where more records wait; the oldest partition of each model.",
    next_step="above ten minutes, add workers, or look for the widest phase below.",
    targets=(PromQL(f"topk(20, max by (model) (driftd_lag_seconds{_OF}))", legend="{{model}}"),),
    unit="s",
    low=0,
    steps=((None, FINE), (600, PAGE)),
    width=8,
)

WATERMARK = TimeSeries(
    title="Age of the newest judged block",
    question="Up to when has the stream been judged?",
    reading="Event time up to which blocks are closed, against now. It is a block or two when all is well.",
    next_step=(
        "if it grows without lag, a partition is silent or ahead of its time: see the partitions below and "
        "docs/event_time.md."
    ),
    targets=(
        PromQL(
            f"topk(20, time() - max by (model) (driftd_watermark_timestamp_seconds{_OF}))",
            legend="{{model}}",
        ),
    ),
    unit="s",
    low=0,
    width=8,
)

PHASES = TimeSeries(
    title="Where the time goes",
    question="What would make it faster?",
    reading="Share of one core that each phase takes; poll is mostly waiting, the others are work.",
    next_step="make the widest band smaller: embed with a smaller model, commit to a nearer database; or add workers.",
    targets=(PromQL(_rate("driftd_phase_seconds_total", "phase"), legend="{{phase}}"),),
    unit="percentunit",
    low=0,
    stacked=True,
    calcs=("mean", "max"),
    width=8,
)

CHECKPOINTS = TimeSeries(
    title="Duration of checkpoints",
    question="Is the database slow?",
    reading="Median and 99th percentile of the transactions that write results and offsets together.",
    next_step="above a second it is slow or waits for locks: pg_stat_activity says who holds them.",
    targets=(
        PromQL(f"histogram_quantile(0.99, {_rate('driftd_checkpoint_seconds_bucket', 'le')})", legend="99 %"),
        PromQL(f"histogram_quantile(0.5, {_rate('driftd_checkpoint_seconds_bucket', 'le')})", legend="median"),
    ),
    unit="s",
    low=0,
    steps=((None, FINE), (1, CAUTION)),
    width=8,
)

BY_WORKER = TimeSeries(
    title="Records per second of each process",
    question="Is the work shared out?",
    reading="Each worker's part of the work. A line that ends is a process that ended or lost its partitions.",
    next_step="if lines are very unequal, give the topic more partitions or spread its keys.",
    targets=(
        PromQL(
            f"topk(20, {_rate('driftd_records_total', 'instance', 'worker')})",
            legend="{{instance}} {{worker}}",
        ),
    ),
    unit="si:rec/s",
    low=0,
    calcs=("mean", "lastNotNull"),
    width=8,
)

DEAD_LETTERS = TimeSeries(
    title="Records that cannot be used, by reason",
    question="Did a sender change its format?",
    reading="Dead letters per second. A few are normal; a new reason that begins all at once is not.",
    next_step="`driftd deadletters list`; mend models.NAME.record; `driftd deadletters retry`.",
    targets=(PromQL(f"topk(20, {_rate('driftd_dead_letters_total', 'reason')})", legend="{{reason}}"),),
    unit="si:rec/s",
    low=0,
    calcs=("mean", "max"),
    width=8,
)

LATE = TimeSeries(
    title="Late and lost records",
    question="Do records come too late to count?",
    reading=(
        "late: after their block was closed, scored but in no drift. closed late: of them, because the wall clock "
        "closed the block. lost: gone before they could be read."
    ),
    next_step=(
        "for late ones raise drift.lateness; for lost ones see the table of lost records, and give the topic a longer "
        "retention."
    ),
    targets=(
        PromQL(_increase("driftd_late_records_total"), legend="late"),
        PromQL(_increase("driftd_closed_late_records_total"), legend="closed late"),
        PromQL(_increase("driftd_lost_records_total"), legend="lost"),
    ),
    low=0,
    calcs=("max",),
    columns=(Column(name="lost", colour=PAGE), Column(name="closed late", colour=WARN)),
    width=8,
)

MOVES = TimeSeries(
    title="Rebalances, rebuilds, refusals",
    question="Do the workers get in each other's way?",
    reading=(
        "How often partitions moved, the Kafka client was built anew, a checkpoint was rolled back because another "
        "worker had the partition, or the database refused one. Single ones while workers start and stop are normal."
    ),
    next_step="if they come every minute, docs/operations.md says what to look for.",
    targets=(
        PromQL(_increase("driftd_rebalances_total"), legend="rebalances"),
        PromQL(_increase("driftd_client_rebuilds_total"), legend="clients rebuilt"),
        PromQL(_increase("driftd_ownership_lost_total"), legend="ownership lost"),
        PromQL(_increase("driftd_checkpoint_failures_total"), legend="checkpoints refused"),
    ),
    low=0,
    calcs=("max",),
    width=8,
)

PARTITIONS = TimeSeries(
    title="Partitions that do not flow",
    question="Is a part of the traffic missing?",
    reading=(
        "silent: records wait and none come. stalled: they stand still, so that blocks are closed without them. held: "
        "they run ahead of the slowest, which is normal while catching up."
    ),
    next_step="`driftd check` says what the broker answers for silent and stalled ones.",
    targets=(
        PromQL(f"sum(driftd_silent_partitions{_OF})", legend="silent"),
        PromQL(f"sum(max by (model) (driftd_stalled_partitions{_OF}))", legend="stalled"),
        PromQL(f"sum(driftd_held_partitions{_OF})", legend="held"),
    ),
    low=0,
    calcs=("lastNotNull", "max"),
    columns=(
        Column(name="silent", colour=PAGE),
        Column(name="stalled", colour=WARN),
        Column(name="held", colour=NEUTRAL),
    ),
    width=8,
)

DEAD_LETTER_TABLE = Table(
    title="Dead letters since the beginning",
    question="How much of the stream cannot be judged?",
    reading=(
        "Exact counts by model and reason, over all restarts, with their share of all records of the model, the "
        "largest first."
    ),
    next_step="`driftd deadletters list` shows what was wrong with each.",
    targets=(
        Sql(
            f"""
            SELECT model, reason, dead, dead / nullif(records, 0)::double precision AS share
            FROM (SELECT model, reason, sum(count)::bigint AS dead FROM dead_letter_counts
                  WHERE {MODELS} GROUP BY 1, 2) AS counted
            JOIN (SELECT model, sum(records)::bigint AS records FROM {COUNTED}
                  WHERE {MODELS} GROUP BY 1) AS read USING (model)
            ORDER BY share DESC NULLS LAST, model, reason LIMIT 200
            """
        ),
    ),
    columns=(
        Column(name="dead", width=100),
        Column(
            name="share",
            unit="percentunit",
            decimals=2,
            width=100,
            steps=((None, FINE), (0.01, CAUTION), (0.05, PAGE)),
        ),
    ),
    empty="Every record could be used.",
    width=8,
)

GAPS = Table(
    title="Records that were lost",
    question="Was anything gone before it was read?",
    reading=(
        "Stretches of a partition that were gone before they could be read, the newest first. They are in no count and "
        "no alarm."
    ),
    next_step="retention: driftd was down or too slow, keep the topic longer; recreated: ask who deleted the topic.",
    targets=(
        Sql(
            f"""
            SELECT {moment("noticed_ms")} AS noticed, model, topic, number AS partition, reason,
                   greatest(to_offset - from_offset, 0) AS "at most", detail
            FROM gaps WHERE {MODELS} ORDER BY noticed_ms DESC LIMIT 100
            """
        ),
    ),
    columns=(
        Column(name="noticed", unit="dateTimeAsIso", width=170),
        Column(name="partition", unit="none", decimals=0, width=90),
        Column(name="at most", width=90),
    ),
    empty="No record was lost.",
    width=16,
)

WAITING = TimeSeries(
    title="Notifications that wait, all sinks",
    question="Do alerts get out in time?",
    reading="Not delivered yet. It rises with a wave of incidents and falls within minutes.",
    next_step="if it only rises, a sink does not take them: the graph beside it says which.",
    targets=(
        PromQL("max(driftd_outbox_depth)", legend="notifications"),
        PromQL("max(driftd_dead_letters_waiting)", legend="dead letters for their topic"),
    ),
    low=0,
    width=6,
)

OLDEST = TimeSeries(
    title="How long sinks refuse",
    question="Which sink does not take alerts?",
    reading=(
        "Seconds since a sink began to refuse notifications, 0 while it takes them; and how long the oldest "
        "notification has waited. Other sinks and the scoring go on."
    ),
    next_step="`driftd check` says what the sink answers.",
    targets=(
        PromQL("max by (sink) (driftd_outbox_age_seconds)", legend="{{sink}}"),
        PromQL("max(driftd_outbox_oldest_seconds)", legend="oldest of all"),
    ),
    unit="s",
    low=0,
    steps=((None, FINE), (600, PAGE)),
    width=6,
)

SENT = TimeSeries(
    title="Notifications by what came of them",
    question="What became of the alerts?",
    reading=(
        "In each stretch of time: taken by a sink, tried again, given up, and held back by a mute. What was given up, "
        "nobody heard."
    ),
    next_step=(
        "the table of sinks says why they were given up; many retries mean a sink that limits its rate: raise "
        "notify.group_interval."
    ),
    targets=(
        PromQL("sum by (sink) (increase(driftd_outbox_sent_total[$__rate_interval]))", legend="{{sink}}: sent"),
        PromQL(
            "sum by (sink) (increase(driftd_outbox_failed_total[$__rate_interval]))", legend="{{sink}}: tried again"
        ),
        PromQL("sum by (sink) (increase(driftd_outbox_dead_total[$__rate_interval]))", legend="{{sink}}: given up"),
        PromQL(
            "sum by (sink) (increase(driftd_notifications_muted_total[$__rate_interval]))", legend="{{sink}}: muted"
        ),
    ),
    low=0,
    calcs=("max",),
    columns=(Column(name="/given up$/", colour=PAGE), Column(name="/muted$/", colour=NEUTRAL)),
    width=6,
)

MESSAGES = TimeSeries(
    title="Messages per minute to people",
    question="Is it too much for people?",
    reading="What sinks that people read were sent, after grouping by model: one message may hold many notifications.",
    next_step=(
        "more than a few a minute for long gets switched off: mute what is known, or raise notify.group_interval."
    ),
    targets=(PromQL("60 * sum by (sink) (rate(driftd_messages_total[$__rate_interval]))", legend="{{sink}}"),),
    low=0,
    decimals=1,
    calcs=("mean", "max"),
    width=6,
)

OUTBOX = Table(
    title="Sinks, and what they were sent",
    question="Did every alert arrive?",
    reading=(
        "Rows of the outbox by sink and state, dead and pending ones first, with the newest error. dead: given up "
        "after many tries."
    ),
    next_step="mend the sink's settings, then driftd check.",
    targets=(
        Sql(
            f"""
            SELECT sink, status, count(*) AS notifications, {moment("max(stored_ms)")} AS newest,
                   max(attempts) AS "most tries", coalesce((array_agg(error ORDER BY id DESC)
                                                  FILTER (WHERE error <> ''))[1], '') AS "newest error"
            FROM outbox WHERE model = '' OR {MODELS}
            GROUP BY sink, status
            ORDER BY array_position(ARRAY['dead', 'pending', 'muted', 'sent'], status), sink LIMIT 100
            """
        ),
    ),
    columns=(
        Column(
            name="status", colours=(("dead", PAGE), ("pending", CAUTION), ("sent", FINE), ("muted", "blue")), width=90
        ),
        Column(name="notifications", width=110),
        Column(name="newest", unit="dateTimeAsIso", width=170),
        Column(name="most tries", width=90),
    ),
    empty="Nothing was ever to be told.",
    width=14,
)

MUTES = Table(
    title="Mutes",
    question="What are people not told of?",
    reading="What nobody is told of now or later, and until when; empty fields stand for all.",
    next_step="end what was forgotten, because it is a silent monitor: `driftd mute end ID`.",
    targets=(
        Sql(
            f"""
            SELECT id, CASE WHEN extract(epoch FROM now()) * 1000 < from_ms THEN 'later' ELSE 'now' END AS state,
                   model, kind, space, segment, {moment("until_ms")} AS until, by, reason
            FROM mutes WHERE (model = '' OR {MODELS}) AND until_ms >= extract(epoch FROM now()) * 1000
            ORDER BY until_ms DESC LIMIT 100
            """
        ),
    ),
    columns=(
        Column(name="state", colours=(("now", CAUTION), ("later", NEUTRAL)), width=70),
        Column(name="until", unit="dateTimeAsIso", width=170),
    ),
    empty="Nothing is muted.",
    width=10,
)

MEMORY = TimeSeries(
    title="Memory of each process",
    question="Is the memory bounded?",
    reading="Resident memory. It rises while references load and is flat afterwards: every cache has a cap.",
    next_step="a line that rises for hours is a defect worth a report, with what `driftd doctor` says.",
    targets=(
        PromQL(
            "topk(20, process_resident_memory_bytes and on (instance) driftd_build_info)",
            legend="{{instance}} {{worker}}",
        ),
    ),
    unit="bytes",
    low=0,
    width=8,
)

CPU = TimeSeries(
    title="Cores used by each process",
    question="Is it work or waiting?",
    reading="A worker uses one core at most.",
    next_step=(
        "near 1 with lag: add workers, up to the number of partitions. Near 0 with lag: it waits for the broker or the "
        "database, see the phases."
    ),
    targets=(
        PromQL(
            "topk(20, rate(process_cpu_seconds_total[$__rate_interval]) and on (instance) driftd_build_info)",
            legend="{{instance}} {{worker}}",
        ),
    ),
    unit="none",
    decimals=2,
    low=0,
    width=8,
)

PIPELINE = Dashboard(
    uid="driftd-pipeline",
    title="driftd 5: pipeline health",
    question="Does driftd itself work: does it keep up, is anything lost, do its alerts get out?",
    next_step="Mend what is red, from the top: what is not read is not judged, what is not sent nobody hears.",
    variables=(ALL_MODELS,),
    since="now-6h",
    refresh="30s",
    rows=(
        Row("Does it keep up?", (WORKERS, SPEED, BEHIND, DATABASE, POLL, LAG_RECORDS, LAG_SECONDS, WATERMARK)),
        Row("Where does the time go?", (PHASES, CHECKPOINTS, BY_WORKER)),
        Row(
            "Is anything lost?",
            (DEAD_LETTERS, LATE, PARTITIONS, DEAD_LETTER_TABLE, GAPS),
        ),
        Row("Do alerts get out?", (WAITING, OLDEST, SENT, MESSAGES, OUTBOX, MUTES)),
        Row("The processes", (MOVES, MEMORY, CPU)),
    ),
)
