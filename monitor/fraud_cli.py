"""`driftd fraud`: what the fraud scores rest on, and how good they are."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from monitor.fraud_report import FraudFacts


def fraud(
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="only this model")] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.001, help="only the last hours of event time; 30 days by default")
    ] = None,
    json: AsJson = False,
) -> None:
    """Say what fraud scores rest on, how many labels count, and how good the alerts are.

    Examples: driftd fraud; driftd fraud --model cards --json
    """
    from monitor.app import open_store
    from monitor.fraud_report import fraud_facts, in_words
    from monitor.settings import load_settings

    loaded = load_settings(settings)
    if model is not None:
        loaded.model_named(model)
    names = [name for name in loaded.models if model in (None, name) and loaded.models[name].fraud is not None]
    if not names:
        of = f"{model} has" if model is not None else "No model has"
        raise InvalidInput(f"{of} no fraud scores." if model else f"{of} fraud scores.", hint="Set models.NAME.fraud.")
    now_ms = int(time.time() * 1000)
    with open_store(loaded) as store:
        found = [fraud_facts(loaded, store, name, now_ms=now_ms, hours=hours) for name in names]
    known = [facts for facts in found if facts is not None]
    if json:
        put_json([{"said": in_words(facts), **dataclasses.asdict(facts)} for facts in known])
        return
    for facts in known:
        put(f"{facts.model}, space {facts.space}")
        for line in in_words(facts):
            put(f"  {line}")
        if facts.labels.sources:
            _put_tables(facts)
    if not any(facts.labels.sources for facts in known):
        say("No labels yet. Bring some: driftd label --id RECORD --as fraud")


def _put_tables(facts: FraudFacts) -> None:
    from monitor.fraud_report import share_in_words
    from monitor.times import text_of

    put_table(
        ["labels of", "fraud", "cleared"],
        [[line.source, str(line.fraud), str(line.cleared)] for line in facts.labels.sources],
    )
    if len(facts.periods) > 1:
        put_table(
            ["from", "alerts", "answered", "fraud", "precision", "reviewed", "answered", "fraud", "recall"],
            [
                [
                    text_of(period.start_ms),
                    *map(str, (period.alerted.records, period.alerted.answered, period.alerted.fraud)),
                    share_in_words(*dataclasses.astuple(period.found.precision)),
                    *map(str, (period.rest.asked, period.rest.answered, period.rest.fraud)),
                    share_in_words(*dataclasses.astuple(period.found.recall)),
                ]
                for period in facts.periods
            ],
        )
