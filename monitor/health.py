"""Whether a model is watched as it should be: one check each for what can fail, with what to do about it."""

from __future__ import annotations

from monitor.troubles import Lag
from monitor.web import Check
from monitor.worker import Step, Worker

JOINING_S = 30.0  # a group that shares out its partitions for longer than this does not come to an end
SILENT_S = 60.0  # with records that wait, and none that come
DATABASE_S = 30.0  # without a transaction that succeeded


class Health:
    """The checks of one model, from what its worker and its source know; asks nobody.

    Args:
        worker: of the model.
        lag_limit_s: records may wait for so long; more is a failure once it has grown for five minutes.
    """

    def __init__(self, worker: Worker, *, lag_limit_s: float) -> None:
        self._worker = worker
        self._waiting = Lag(lag_limit_s)
        self._joining_since: float | None = None
        self._database_ok: float | None = None

    def checks(self, step: Step, now_ms: int, clock_s: float) -> list[Check]:
        """After a step: what was looked at, in the order in which it would be mended."""
        if self._worker.waits_outside:
            return [self._database(step, clock_s)]
        return [
            self._database(step, clock_s),
            *self._group(clock_s),
            *self._assignment(clock_s),
            self._lag(now_ms, clock_s),
            self._encoder(),
            self._dead_letters(),
        ]

    def _named(self, what: str, ok: bool, detail: str) -> Check:
        return Check(f"{self._worker.name}: {what}", ok, detail)

    def _database(self, step: Step, clock_s: float) -> Check:
        if not step.refused:
            self._database_ok = clock_s
            return self._named("database", True, "the last transaction was written")
        since = clock_s if self._database_ok is None else self._database_ok
        detail = f"no transaction for {clock_s - since:.0f} s: {step.failure}"
        # Losing a race for a partition is no fault of the database.
        return self._named("database", step.ownership_lost and clock_s - since < DATABASE_S, detail)

    def _group(self, clock_s: float) -> list[Check]:
        state = self._worker.source.state()
        if state.member == "none":
            return []
        if state.member == "stable":
            self._joining_since = None
        elif self._joining_since is None:
            self._joining_since = clock_s
        if not state.connected:
            return [self._named("group", False, self._worker.failure or "no broker has said anything for a while")]
        if self._joining_since is None:
            times = "1 rebalance" if state.rebalances == 1 else f"{state.rebalances} rebalances"
            return [self._named("group", True, f"stable, after {times}")]
        waited = clock_s - self._joining_since
        if waited < JOINING_S:
            return [self._named("group", True, f"sharing out the partitions for {waited:.0f} s")]
        detail = (
            f"no partitions from the group for {waited:.0f} s. Another member may be slow to join: "
            "look at the brokers' log and at kafka-consumer-groups.sh --describe"
        )
        return [self._named("group", False, detail)]

    def _assignment(self, clock_s: float) -> list[Check]:
        worker = self._worker
        assigned, known = worker.assigned, worker.source.partitions()
        silent = {
            partition: seconds for partition, seconds in worker.source.state().silent.items() if seconds > SILENT_S
        }
        if silent and not worker.halted and not worker.encoder_changed:
            (topic, number), seconds = max(silent.items(), key=lambda item: item[1])
            detail = (
                f"assigned but silent: {len(silent)} of {len(assigned)} partitions, such as {topic}/{number}, from "
                f"which nothing has come for {seconds:.0f} s though records wait. Look at the leader of the partition, "
                "and for a transaction that was left open"
            )
            return [self._named("assignment", False, detail)]
        if assigned:
            return [self._named("assignment", True, f"{len(assigned)} of {max(len(known), len(assigned))} partitions")]
        if self._joining_since is not None:
            return []  # the group's check says it
        if known:
            detail = "no partition is left for this worker; it takes over when another one ends"
            return [self._named("assignment", True, detail)]
        return [self._named("assignment", not worker.source.state().connected, "no partition is known yet")]

    def _lag(self, now_ms: int, clock_s: float) -> Check:
        lag_s = self._worker.longest_lag_s(now_ms)
        records = sum(self._worker.source.lag().values())
        detail = f"{records:,} records, {lag_s:.0f} s"
        if self._waiting.grows(lag_s, clock_s):
            detail = (
                f"{records:,} records wait, the oldest for {lag_s:.0f} s, and it grows. "
                "Start more workers: driftd run --workers N, up to the number of partitions"
            )
            return self._named("lag", False, detail)
        return self._named("lag", True, detail)

    def _encoder(self) -> Check:
        worker = self._worker
        if worker.encoder_changed:
            return self._named("encoder", False, worker.encoder_changed)
        said = "; ".join(f"{space}: {check.text}" for space, check in worker.canaries.items())
        return self._named("encoder", True, said or "no canaries")

    def _dead_letters(self) -> Check:
        worker = self._worker
        if worker.halted:
            return self._named("dead letters", False, worker.halted)
        return self._named("dead letters", True, f"{worker.dead:,} of {worker.records:,} records since the start")
