"""docs/metrics.md, made from the metrics: ``python -m connectors.prometheus_document > docs/metrics.md``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable

from connectors.prometheus import Metrics
from connectors.prometheus_workers import OF_THE_DEPLOYMENT, SupervisorMetrics


def documentation() -> str:
    """The document."""
    rows = [
        f"| `{spec.name}` | {spec.kind} | {spec.unit} | {_code(spec.labels) or '-'} | {spec.help} |"
        for spec in [*Metrics().specs, *SupervisorMetrics().specs]
    ]
    once = textwrap.fill(_code(sorted(OF_THE_DEPLOYMENT)) + ".", 118)
    return _DOCUMENT.replace("ROWS", "\n".join(rows)).replace("ONCE", once)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_DOCUMENT = """\
# Metrics

What driftd shows at `/metrics` (by default http://127.0.0.1:9464/metrics), in the text format of Prometheus. The usual
`process_*` and `python_*` metrics of the client library are there as well: `process_resident_memory_bytes` is the
memory of the process. Times are seconds since 1970; event time is the time in the records.

| metric | kind | unit | labels | what it says |
|---|---|---|---|---|
ROWS

Counters begin at 0 when the process starts; `rate()` and `increase()` take that into account, and the exact totals over
all restarts are in the database. A unit of "-" is a number without one.

**A reading** of the drift alarm is a series of each `driftd_drift_...` for every model, space, segment and channel
(`level`, `shape`, `mix`, `outlier_rate`, and the second opinions that are switched on). The strength takes the place of
a p-value or an e-value: evidence this strong appears in a segment by chance once in 10^strength blocks, however long
one looks. It may be compared from channel to channel and from model to model; statistic and effect may not. `segment`
is empty for the whole traffic of a space.

**How many series.** No label holds anything of a single record. What the labels can be:

| label | values |
|---|---|
| `model`, `space`, `sink` | as in the settings |
| `segment` | values that the reference watches by themselves, cut to 100 characters; 200 of a model, 1,000 in all |
| `partition` | 200 of a model; `driftd_lag_records` and `driftd_lag_seconds` look at all that the process reads |
| `channel`, `level`, `kind`, `severity`, `reason`, `why`, `phase`, \
`source`, `label`, `outcome`, `word`, `how`, `bound` | a few fixed words |
| `below` | ten fixed numbers: 1, 0.5, 0.25, 0.062, 0.016, 0.0039, 0.00098, 0.00024, 6.1e-05, 7.6e-06 |
| `worker` | "0", "1", ... and "supervisor" |
| `version`, `python` | one of each process |

Segments beyond the limit are counted in `driftd_segment_series_dropped_total`. A model with one space and one partition
has about 100 series, each segment adds 24: with all 1,000 segments a scrape is 2 MB.

## Several workers

`driftd run --workers N` shows the metrics of all its processes at one address. Each series has a label `worker`: "0",
"1", ..., and "supervisor" for the process that starts them. Of a worker that does not answer there are no series, and
its `driftd_worker_up` is 0. The whole of a counter is its sum: `sum without (instance, worker) (driftd_records_total)`.

These are about the deployment, not about one process, and stand there once, without the label `worker`:

ONCE

On several machines each shows them, so take `max without (instance) (...)` of them, never the sum. The strengths of a
model are shown by the worker that judged its last block, and by no other.

## Rules

Rules that tell you when a model has drifted, and when driftd itself needs you, are in `dashboards/rules/driftd.yml`,
ready for the `rule_files` of your Prometheus; `dashboards/rules/driftd-grafana.json` has the same ones for Grafana.
What each means, and what to do when it fires: [runbooks.md](runbooks.md).
"""


if __name__ == "__main__":
    sys.stdout.write(documentation())
