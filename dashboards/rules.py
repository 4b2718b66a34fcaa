"""Rules that tell when a model has drifted, and when driftd itself needs somebody: one list for Prometheus and Grafana.

``python -m dashboards.rules`` writes dashboards/rules/driftd.yml and driftd-grafana.json anew. docs/runbooks.md says
what each rule means and what to do.

What all of them have in common:

* A rule is a query and a number: each series of the query that is above the number is an alert.
* Results have the labels ``job`` and ``model`` (or ``sink``, or ``instance`` and ``worker``), whatever other labels the
  scrape adds: of several machines and workers, one alert comes. ``job`` tells deployments apart.
* A restart ends no alert and begins none. What a process shows only some time after its start is looked for in the last
  minutes; counters that begin with an event, not at 0, count as grown.
* Nothing fires for a model that has just begun: rates need traffic, ages need a first time.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from connectors.alert import RUNBOOKS
from dashboards.grafana import all_dashboards

GROUP = "driftd"
INTERVAL_S = 60
FOLDER = Path(__file__).resolve().parent / "rules"
PROMETHEUS_FILE = "driftd.yml"
GRAFANA_FILE = "driftd-grafana.json"

DAY_S = 86_400

# Kinds of incidents while which what is said of a model cannot be relied on. Growing lag has a rule of its own.
BLIND_KINDS = ("source", "dead_letter_wave", "stalled", "silent", "embedder", "vectors", "clock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: CamelCase, the symptom first.
        query: PromQL.
        above: the alert is there while what the query gives is greater than this.
        hold_s: and has been for so many seconds; a multiple of `INTERVAL_S`, and less than a day, since Grafana before
            9.2.7 refuses what it would write with a unit of days.
        severity: critical: somebody must come; warning: somebody should look on the same day.
        about: the watched model, or driftd itself: they often go to different people.
        summary, description: templates of Prometheus, with ``$labels`` and ``$value``.
        panel: uid of the dashboard and title of the panel that show it.
    """

    name: str
    query: str
    above: float
    hold_s: int
    severity: Literal["critical", "warning"]
    about: Literal["model", "driftd"]
    summary: str
    description: str
    panel: tuple[str, str]

    @property
    def expression(self) -> str:
        """The whole condition in PromQL."""
        return f"(\n{textwrap.indent(self.query, '  ')}\n) > {self.above:g}"

    def runbook_url(self, runbooks: str = RUNBOOKS) -> str:
        """Where docs/runbooks.md, or its copy at ``runbooks``, speaks of it."""
        return f"{runbooks}#{self.name.lower()}"

    @property
    def uid(self) -> str:
        """Its name in Grafana, the same for ever."""
        return f"driftd-rule-{self.name.lower()}"


def _open(kind: str, severity: str) -> str:
    """Open incidents. For five minutes after a process ended it is not known whether they still are: taken as yes."""
    series = f'driftd_open_incidents{{kind="{kind}", severity="{severity}"}}'
    return f"max by (job, model) (max_over_time({series}[5m]))"


def _grown(counter: str, by: str) -> str:
    """By how much a counter grew in an hour, also one whose series was not there before its first event."""
    return textwrap.dedent(
        f"""\
        sum by ({by}) (
          increase({counter}[1h]) > 0
          or ({counter} unless max_over_time({counter}[3h] offset 1h))
        )"""
    )


def _query(text: str) -> str:
    return textwrap.dedent(text).strip()


RULES: tuple[Rule, ...] = (
    Rule(
        name="EmbeddingDriftPage",
        query=_open("drift", "page"),
        above=0,
        hold_s=0,
        severity="critical",
        about="model",
        summary="{{ $labels.model }}: its records have drifted, and chance does not explain it",
        description=(
            "{{ $value | humanize }} incidents of drift are open that are pages: by chance, one comes in the time"
            " that alarms.page_every_days allows. What changed, since when and where: driftd incidents, then "
            "driftd explain ID."
        ),
        panel=("driftd-drift", "How near to a page"),
    ),
    Rule(
        name="EmbeddingDriftWarning",
        query=f"{_open('drift', 'warn')}\nunless on (job, model) {_open('drift', 'page')} > 0",
        above=0,
        hold_s=0,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: its records may have drifted",
        description=(
            "{{ $value | humanize }} incidents of drift are open that are warnings: by chance, one comes in the "
            "time that alarms.warn_every_days allows. Look at them by day: driftd incidents."
        ),
        panel=("driftd-drift", "How near to a page"),
    ),
    Rule(
        name="OutlierRateHigh",
        query=_open("outlier_rate", "page"),
        above=0,
        hold_s=0,
        severity="critical",
        about="model",
        summary="{{ $labels.model }}: many more strange records than usual",
        description=(
            "More records are strange than the reference explains, and chance does not explain it: an attack, a "
            "broken sender, a new kind of customer. Look at the records: driftd incidents, then driftd explain "
            "ID."
        ),
        panel=("driftd-outliers", "Strange records against the expected share"),
    ),
    Rule(
        name="OutlierRateWarning",
        query=f"{_open('outlier_rate', 'warn')}\nunless on (job, model) {_open('outlier_rate', 'page')} > 0",
        above=0,
        hold_s=0,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: more strange records than usual",
        description=(
            "More records are strange than the reference explains. Look at them by day: driftd incidents, then "
            "driftd explain ID."
        ),
        panel=("driftd-outliers", "Strange records against the expected share"),
    ),
    Rule(
        name="FraudWave",
        query=_open("fraud_wave", "page"),
        above=0,
        hold_s=0,
        severity="critical",
        about="model",
        summary="{{ $labels.model }}: many more records than usual look like fraud",
        description=(
            "More records look like fraud than the calibration explains and than this stream has had, and chance does "
            "not explain it. The hits in groups, and the confirmed cases they resemble: driftd incidents, then driftd "
            "explain ID."
        ),
        panel=("driftd-fraud", "Evidence of a wave"),
    ),
    Rule(
        name="FraudWaveWarning",
        query=f"{_open('fraud_wave', 'warn')}\nunless on (job, model) {_open('fraud_wave', 'page')} > 0",
        above=0,
        hold_s=0,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: more records than usual look like fraud",
        description=(
            "More records look like fraud than the calibration explains and than this stream has had. Look at them by "
            "day: driftd incidents, then driftd explain ID."
        ),
        panel=("driftd-fraud", "Evidence of a wave"),
    ),
    Rule(
        name="ModelDegraded",
        query=_open("stale", "page"),
        above=0,
        hold_s=0,
        severity="critical",
        about="model",
        summary="{{ $labels.model }}: fewer of its answers are right than its floor allows",
        description=(
            "True answers prove it, or all that is known of the traffic makes it likely. Measured or estimated, since "
            "when, and what speaks for it: driftd verdict."
        ),
        panel=("driftd-stale", "Right answers"),
    ),
    Rule(
        name="ModelDegradedWarning",
        query=f"{_open('stale', 'warn')}\nunless on (job, model) {_open('stale', 'page')} > 0",
        above=0,
        hold_s=0,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: fewer of its answers may be right than its floor allows",
        description=(
            "New content came that may be answered wrongly, or the first true answers speak against the model. Look "
            "at it by day: driftd verdict; true answers for some of the records since then would settle it."
        ),
        panel=("driftd-stale", "Right answers"),
    ),
    Rule(
        name="ModelToWatch",
        query=_query(
            """
            max by (job, model) (max_over_time(driftd_verdict{word="watch"}[5m]))
            unless on (job, model) sum by (job, model) (max_over_time(driftd_open_incidents[5m])) > 0
            """
        ),
        above=0,
        hold_s=3600,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: something about its answers is to be watched, and no incident says what",
        description=(
            "An estimate lies below the floor without any drift, a second opinion differs, true answers stopped, or "
            "the model is older than performance.max_age. Which of them: driftd verdict."
        ),
        panel=("driftd-stale", "Right answers"),
    ),
    Rule(
        name="EncoderChanged",
        query=_open("encoder_changed", "page"),
        above=0,
        hold_s=0,
        severity="critical",
        about="driftd",
        summary="{{ $labels.model }}: its encoder was changed, so nothing is scored",
        description=(
            "Fixed inputs no longer have the vectors that the reference holds. Reading waits and nothing is lost. Put "
            "the encoder back, or build a reference with the new one: driftd incidents, then driftd reference build."
        ),
        panel=("driftd-overview", "Verdict of each model"),
    ),
    Rule(
        name="ModelStale",
        query=_query(
            f"""
            (
              max by (job, model) (last_over_time(driftd_watermark_timestamp_seconds[10m]))
              - on (job, model) min by (job, model) (
                last_over_time(driftd_open_incident_since_timestamp_seconds{{kind="drift", severity="page"}}[10m])
              )
            ) / {DAY_S}
            """
        ),
        above=1,
        hold_s=0,
        severity="warning",
        about="model",
        summary=(
            "{{ $labels.model }}: has worked on other data than it was measured on for {{ $value | humanize }} days"
        ),
        description=(
            "A page of drift has been open for more than a day, so the new data have come to stay. Decide whether"
            " the model is to be trained anew; then, or where the change is wanted, build a new reference: driftd"
            " reference build."
        ),
        panel=("driftd-stale", "Drift has been open for"),
    ),
    Rule(
        name="ReferenceOld",
        query=_query(
            f"""
            (
              time()
              - max by (job, model, space) (last_over_time(driftd_reference_created_timestamp_seconds[10m]))
            ) / {DAY_S}
            """
        ),
        above=90,
        hold_s=0,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: the reference of {{ $labels.space }} is {{ $value | humanize }} days old",
        description=(
            "What is compared with it may be seasonal by now. Build a new one from a time when all was well: "
            "driftd reference build."
        ),
        panel=("driftd-stale", "Age of the reference"),
    ),
    Rule(
        name="ReferenceMissing",
        query="max by (job, model) (driftd_model_watched)\nunless on (job, model) driftd_reference_version",
        above=0,
        hold_s=23 * 3600,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: has no reference yet, so nothing is judged",
        description=(
            "The first reference has been collected for almost a day. Ask for fewer records (reference.collect), or "
            "build one from files: driftd reference build."
        ),
        panel=("driftd-overview", "Verdict of each model"),
    ),
    Rule(
        name="MonitorBlind",
        query=_query(
            f"""
            max by (job, model, reason) (
              label_replace(
                time() - min by (job, model) (driftd_last_poll_timestamp_seconds) > bool 300,
                "reason", "poll", "", ""
              )
              or label_replace(min by (job, model) (driftd_model_watched) == bool 0, "reason", "start", "", "")
              or label_replace(
                driftd_build_info unless on (job, instance) driftd_model_watched,
                "reason", "start", "", ""
              )
              or label_replace(
                (sum by (job, model) (driftd_lag_records) > bool 0)
                * on (job, model) (sum by (job, model) (increase(driftd_records_total[15m])) == bool 0)
                and on (job, model) driftd_reference_version,
                "reason", "unread", "", ""
              )
              or label_replace(
                (
                  time()
                  - max by (job, model) (driftd_watermark_moved_timestamp_seconds)
                  - on (job, model) 3 * max by (job, model) (driftd_block_seconds)
                  > bool 3600
                )
                * on (job, model) (sum by (job, model) (increase(driftd_records_total[30m])) > bool 0),
                "reason", "watermark", "", ""
              )
              or label_replace(
                max_over_time(driftd_open_incidents{{kind=~"{"|".join(BLIND_KINDS)}"}}[5m]) > bool 0,
                "reason", "$1", "kind", "(.*)"
              )
            )
            """
        ),
        above=0,
        hold_s=300,
        severity="critical",
        about="driftd",
        summary="{{ with $labels.model }}{{ . }}{{ else }}driftd{{ end }}: is not watched ({{ $labels.reason }})",
        description=(
            "While this lasts, that nothing is reported means nothing. Why: /readyz, driftd doctor, and the "
            "runbook's section of the reason {{ $labels.reason }}."
        ),
        panel=("driftd-overview", "Verdict of each model"),
    ),
    Rule(
        name="MonitorDown",
        query=_query(
            """
            max by (job, instance) (1 - (up and on (job, instance) last_over_time(driftd_build_info[1d])))
            or (
              absent(driftd_build_info)
              unless on () (up == 0 and on (job, instance) last_over_time(driftd_build_info[1d]))
            )
            """
        ),
        above=0,
        hold_s=300,
        severity="critical",
        about="driftd",
        summary="driftd {{ with $labels.instance }}at {{ . }} {{ end }}is down",
        description=(
            "Prometheus gets no metrics from it. Nothing is watched by it; what comes meanwhile is read when it "
            "is back."
        ),
        panel=("driftd-pipeline", "Processes that answer"),
    ),
    Rule(
        name="LagGrowing",
        query=_query(
            """
            max by (job, model) (driftd_lag_seconds)
            and on (job, model) (
              sum by (job, model) (driftd_lag_records)
              - on (job, model) sum by (job, model) (driftd_lag_records offset 15m)
              > 0
            )
            """
        ),
        above=600,
        hold_s=600,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: {{ $value | humanizeDuration }} behind, and it grows",
        description=(
            "More records come than are read, so drift is seen later and later. Start more workers, up to the "
            "number of partitions: driftd run --workers N."
        ),
        panel=("driftd-pipeline", "Age of the last record read"),
    ),
    Rule(
        name="FraudFitFailing",
        query=_grown("driftd_fraud_fit_failures_total", "job, model"),
        above=10,
        hold_s=600,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: new labels do not count, because the fraud scorer cannot be fitted",
        description=(
            "{{ $value | humanize }} attempts failed within an hour; records are scored with the labels from before. "
            "Why: the log."
        ),
        panel=("driftd-fraud", "Labels that count, and those that wait"),
    ),
    Rule(
        name="LabelsBehind",
        query=_query(
            """
            max by (job, model) (driftd_label_version)
            - on (job, model) min by (job, model) (driftd_label_version_in_force)
            """
        ),
        above=0,
        hold_s=600,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: {{ $value | humanize }} labels have not counted for ten minutes in some worker",
        description=(
            "A worker scores records with older labels than there are. Its log says why it does not fit the scorer "
            "anew; it may hang."
        ),
        panel=("driftd-fraud", "Labels that count, and those that wait"),
    ),
    Rule(
        name="LabelsUnmatched",
        query=_query(
            """
            max by (job, model) (driftd_labels_unmatched)
            - on (job, model) max by (job, model) (driftd_labels_unmatched offset 1d)
            """
        ),
        above=10,
        hold_s=0,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: {{ $value | humanize }} labels of a day name records that nobody remembers",
        description=(
            "They count for nothing. Do their ids fit record.id? Records older than retention.remembered_days need "
            "labels that bring their record along. driftd fraud counts them."
        ),
        panel=("driftd-fraud", "Labels that count, and those that wait"),
    ),
    Rule(
        name="LabelsSilent",
        query=_query(
            """
            (max by (job, model) (driftd_label_version offset 7d) > bool 20)
            * on (job, model) (
              max by (job, model) (driftd_label_version)
              == bool on (job, model) max by (job, model) (driftd_label_version offset 7d)
            )
            """
        ),
        above=0,
        hold_s=3600,
        severity="warning",
        about="model",
        summary="{{ $labels.model }}: no label has come for a week",
        description=(
            "Alerts go unanswered, or the case-management tool no longer says what came of them. Fraud changes: a "
            "score without new labels grows old. What waits for an answer: the dashboard of fraud."
        ),
        panel=("driftd-fraud", "Labels by source"),
    ),
    Rule(
        name="DeadLettersHigh",
        query=_query(
            """
            sum by (job, model) (rate(driftd_dead_letters_total[10m]))
            / on (job, model) sum by (job, model) (rate(driftd_records_total[10m]))
            and on (job, model) (sum by (job, model) (increase(driftd_dead_letters_total[10m])) > 10)
            """
        ),
        above=0.05,
        hold_s=300,
        severity="warning",
        about="driftd",
        summary="{{ $labels.model }}: {{ $value | humanizePercentage }} of the records cannot be used",
        description=(
            "Senders have changed something, or the settings do not say what they send. Which, and why: driftd "
            "deadletters list."
        ),
        panel=("driftd-pipeline", "Records that cannot be used, by reason"),
    ),
    Rule(
        name="RecordsLost",
        query=_grown("driftd_gaps_total", "job, model"),
        above=0,
        hold_s=0,
        severity="critical",
        about="driftd",
        summary="{{ $labels.model }}: records were gone before they could be read",
        description=(
            "{{ $value | humanize }} stretches of the topic were deleted, cut off or damaged before driftd read "
            "them. Which ones: driftd doctor."
        ),
        panel=("driftd-pipeline", "Records that were lost"),
    ),
    Rule(
        name="SinkFailing",
        query="max by (job, sink) (driftd_outbox_age_seconds)",
        above=600,
        hold_s=0,
        severity="critical",
        about="driftd",
        summary="driftd cannot notify {{ $labels.sink }} for {{ $value | humanizeDuration }}",
        description=(
            "The sink refuses notifications or does not answer. They are kept and tried again for about a day. "
            "Why: the log, and driftd check."
        ),
        panel=("driftd-pipeline", "How long sinks refuse"),
    ),
    Rule(
        name="NotificationsGivenUp",
        query=_grown("driftd_outbox_dead_total", "job, sink"),
        above=0,
        hold_s=0,
        severity="critical",
        about="driftd",
        summary="driftd gave up {{ $value | humanize }} notifications to {{ $labels.sink }}",
        description="The sink refused them for good, or for about a day. Somebody was not told: driftd incidents.",
        panel=("driftd-pipeline", "Notifications by what came of them"),
    ),
    Rule(
        name="DatabaseFailing",
        query=_query(
            """
            time() - min by (job, model) (driftd_database_last_ok_timestamp_seconds)
            and on (job, model) (sum by (job, model) (increase(driftd_checkpoint_failures_total[5m])) > 0)
            """
        ),
        above=120,
        hold_s=0,
        severity="critical",
        about="driftd",
        summary="{{ $labels.model }}: the database has refused everything for {{ $value | humanizeDuration }}",
        description=(
            "Nothing is counted and nothing is judged; records wait in their topic and are read again. Why: the "
            "log, and /readyz."
        ),
        panel=("driftd-pipeline", "Since the database was last in order"),
    ),
    Rule(
        name="WorkerRestarting",
        query=_query(
            """
            max by (job, instance, worker) (
              increase(driftd_worker_restarts_total[1h])
              or on (job, instance, worker) changes(process_start_time_seconds[1h])
              and on (job, instance) last_over_time(driftd_build_info[1h])
            )
            """
        ),
        above=3,
        hold_s=0,
        severity="warning",
        about="driftd",
        summary=(
            "driftd at {{ $labels.instance }} ends again and again{{ with $labels.worker }} (worker {{ . }}){{ end }}"
        ),
        description=(
            "It was started {{ $value | humanize }} times in an hour. Each start costs lag; records are not lost."
            " Why: the last lines of the log before each start."
        ),
        panel=("driftd-pipeline", "Processes that answer"),
    ),
    Rule(
        name="WorkerDown",
        query="1 - min by (job, instance, worker) (driftd_worker_up)",
        above=0,
        hold_s=600,
        severity="warning",
        about="driftd",
        summary="driftd at {{ $labels.instance }}: worker {{ $labels.worker }} does not answer",
        description="The other workers read its partitions, so lag may grow. Why: the log, and /readyz.",
        panel=("driftd-pipeline", "Processes that answer"),
    ),
    Rule(
        name="MemoryGrowing",
        query=_query(
            f"""
            max by (job, instance, worker) (
              process_resident_memory_bytes
              / (process_resident_memory_bytes offset 1d)
              and process_resident_memory_bytes > 1e9
              and time() - process_start_time_seconds > {DAY_S + 7200}
              and on (job, instance) driftd_build_info
            )
            """
        ),
        above=2,
        hold_s=3600,
        severity="warning",
        about="driftd",
        summary="driftd at {{ $labels.instance }} needs {{ $value | humanize }} times as much memory as a day ago",
        description=(
            "Its memory is bounded: this is a defect, or a reference that is much larger than the last. Restart "
            "it, and report it."
        ),
        panel=("driftd-pipeline", "Memory of each process"),
    ),
    Rule(
        name="FalsePagesAboveBudget",
        query=_query(
            """
            sum by (job) (max by (job, model) (driftd_false_pages_per_day))
            / on (job) max by (job) (driftd_expected_false_pages_per_day)
            and on (job) (
              sum by (job) (max by (job, model) (driftd_false_pages_per_day * driftd_observed_seconds / 86400)) > 1.5
            )
            """
        ),
        above=2,
        hold_s=3600,
        severity="warning",
        about="driftd",
        summary="driftd sends {{ $value | humanize }} times as many false pages as the settings allow",
        description=(
            "People called these pages false: driftd incidents --false. Something changes that they do not mind: "
            "a season that the reference does not hold, a segment nobody needs. Build a longer reference, or mute"
            " the channel."
        ),
        panel=("driftd-overview", "Pages in 30 days: promised and real"),
    ),
)


def prometheus_rules(*, runbooks: str = RUNBOOKS) -> str:
    """The file for ``rule_files`` of Prometheus: a group about models, and one about driftd itself.

    Args:
        runbooks: address of docs/runbooks.md, for links.
    """
    groups = [
        {
            "name": f"{GROUP}-{name}",
            "interval": f"{INTERVAL_S}s",
            "rules": [_prometheus_rule(rule, runbooks) for rule in RULES if rule.about == about],
        }
        for name, about in (("models", "model"), ("itself", "driftd"))
    ]
    text: str = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True)
    return f"# Made by `python -m dashboards.rules`. What each means and what to do: {runbooks}\n{text}"


def _prometheus_rule(rule: Rule, runbooks: str) -> dict[str, Any]:
    hold = {"for": f"{rule.hold_s}s"} if rule.hold_s else {}
    return {
        "alert": rule.name,
        "expr": rule.expression,
        **hold,
        "labels": _labels(rule),
        "annotations": _words(rule, runbooks),
    }


def _labels(rule: Rule) -> dict[str, str]:
    return {"severity": rule.severity, "about": rule.about}


def _words(rule: Rule, runbooks: str) -> dict[str, str]:
    return {"summary": rule.summary, "description": rule.description, "runbook_url": rule.runbook_url(runbooks)}


def grafana_rule_group(*, folder_uid: str, prometheus_uid: str, runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """The body of ``PUT /api/v1/provisioning/folder/{folderUID}/rule-groups/driftd``.

    Each rule asks Prometheus (A), takes the last value of each series (B) and compares it (C) by mathematics, which
    every version of Grafana knows since 9.

    Where a query gives nothing, all is well: that is what most give while nothing is wrong, and so noDataState is OK.
    Where Prometheus itself does not answer, one rule says so, MonitorDown, and the others are silent: execErrState.

    Args:
        folder_uid: of the folder that the rules stand in.
        prometheus_uid: of the data source that scrapes driftd.
        runbooks: address of docs/runbooks.md, for links.
    """
    rules = [
        _grafana_rule(rule, folder_uid=folder_uid, prometheus_uid=prometheus_uid, runbooks=runbooks) for rule in RULES
    ]
    return {"title": GROUP, "folderUid": folder_uid, "interval": INTERVAL_S, "rules": rules}


def _grafana_rule(rule: Rule, *, folder_uid: str, prometheus_uid: str, runbooks: str) -> dict[str, Any]:
    words = {name: text.replace("$value", "$values.B.Value") for name, text in _words(rule, runbooks).items()}
    return {
        "uid": rule.uid,
        "orgID": 1,
        "folderUID": folder_uid,
        "ruleGroup": GROUP,
        "title": rule.name,
        "condition": "C",
        "data": [
            {
                "refId": "A",
                "queryType": "",
                "relativeTimeRange": {"from": 600, "to": 0},
                "datasourceUid": prometheus_uid,
                "model": {"refId": "A", "expr": rule.query, "instant": True, "range": False},
            },
            _expression("B", {"type": "reduce", "reducer": "last", "expression": "A"}),
            _expression("C", {"type": "math", "expression": f"$B > {rule.above:g}"}),
        ],
        "noDataState": "OK",
        "execErrState": "Alerting" if rule.name == "MonitorDown" else "OK",
        "for": f"{rule.hold_s}s",
        "labels": _labels(rule),
        "annotations": {**words, "__dashboardUid__": rule.panel[0], "__panelId__": _panel_id(*rule.panel)},
        "isPaused": False,
    }


def _panel_id(dashboard: str, title: str) -> str:
    """The number of a panel, which Grafana wants as text. Raises LookupError where there is no such panel."""
    for shown in all_dashboards():
        for panel in shown.to_json()["panels"] if shown.uid == dashboard else ():
            if panel["title"] == title:
                return str(panel["id"])
    raise LookupError(f'dashboards/rules.py names the panel "{title}" of {dashboard}, which is not there')


def _expression(ref: str, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "refId": ref,
        "queryType": "",
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {"refId": ref, "datasource": {"type": "__expr__", "uid": "__expr__"}, **model},
    }


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that people can read the queries."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def files() -> dict[str, str]:
    """The generated files, by name."""
    group = grafana_rule_group(folder_uid="driftd", prometheus_uid="prometheus")
    return {PROMETHEUS_FILE: prometheus_rules(), GRAFANA_FILE: json.dumps(group, indent=2) + "\n"}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
