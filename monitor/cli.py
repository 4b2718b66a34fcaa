"""The command line. Data goes to stdout, words to stderr; `--json` where a program may read.

Exit codes: 0 done, 1 failed, 2 usage or settings, 3 an alert is open and --fail-on-alert was given.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from detectors.errors import DriftdError, InvalidInput, InvalidSettings
from monitor.backfill_cli import backfill
from monitor.bootstrap_cli import bootstrap
from monitor.dashboards_cli import dashboards_app
from monitor.deadletters_cli import deadletters_app
from monitor.fraud_cli import fraud
from monitor.label_cli import label
from monitor.mute_cli import mute_app
from monitor.nearest_cli import nearest
from monitor.replay_cli import replay
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say
from monitor.truth_cli import truth
from monitor.verdict_cli import verdict

app = typer.Typer(
    name="driftd",
    help="Watches the models you run: outliers, fraud, drift and staleness, with a stated alarm budget.\n\n"
    "Try it: driftd demo. Then: driftd init, driftd check, driftd run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
reference_app = typer.Typer(help="What normal looks like: numbered, immutable references.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(dashboards_app, name="dashboards")
app.add_typer(mute_app, name="mute")
app.command()(bootstrap)
app.command()(label)
app.command()(nearest)
app.command()(backfill)
app.command()(fraud)
app.command()(replay)
app.command()(truth)
app.command()(verdict)


def main() -> None:
    """The entry point: every error of ours becomes a few lines and an exit code."""
    try:
        app()
    except DriftdError as error:
        say(f"driftd: {error.message}")
        if isinstance(error, InvalidSettings):
            for problem in error.problems:
                say(f"  {problem}")
        if error.hint:
            say(f"  {error.hint}")
        sys.exit(2 if isinstance(error, InvalidSettings | InvalidInput) else 1)
    except KeyboardInterrupt:
        say("driftd: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="file to make")] = DEFAULT_SETTINGS) -> None:
    """Write a commented settings file to start from. Example: driftd init"""
    from importlib.resources import files

    if path.exists():
        raise InvalidInput(f"{path} exists already.", hint=f"Name another file: driftd init {path.stem}-2.yaml")
    try:
        path.write_text(files("monitor").joinpath("starter.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}.") from error
    say(f"Wrote {path}. Edit it, then: driftd check")


@app.command()
def check(settings: SettingsPath = DEFAULT_SETTINGS, json: AsJson = False) -> None:
    """Read the settings, build everything, connect once; a line for each. Example: driftd check -s driftd.yaml"""
    from monitor.checks import check_everything
    from monitor.settings import load_settings

    results = check_everything(load_settings(settings))
    if json:
        put_json(results)
    else:
        for result in results:
            put(f"{'ok    ' if result.ok else 'FAILED'} {result.name}: {result.detail}")
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def kinds(json: AsJson = False) -> None:
    """Every kind of embedder, source, sink and detector. Example: driftd kinds --json"""
    from detectors import KINDS
    from monitor.settings import kinds as kinds_of_settings

    groups: dict[str, list[dict[str, str]]] = {}
    for group, kind, description in [*kinds_of_settings(), *(("detectors", kind, text) for kind, text in KINDS)]:
        groups.setdefault(group, []).append({"kind": kind, "description": description})
    if json:
        put_json(groups)
        return
    put_table(
        ["group", "kind", "what it is"],
        [[group, entry["kind"], entry["description"]] for group, entries in groups.items() for entry in entries],
    )


@app.command()
def run(
    settings: SettingsPath = DEFAULT_SETTINGS,
    workers: Annotated[int, typer.Option(min=1, help="processes that share the partitions of Kafka topics")] = 1,
    ordinal: Annotated[int, typer.Option(hidden=True, help="of this worker, from its supervisor")] = 0,
    parent: Annotated[int, typer.Option(hidden=True, help="file descriptor to the supervisor")] = -1,
) -> None:
    """Watch the models until told to stop (Ctrl-C or SIGTERM). Example: driftd run -s driftd.yaml --workers 4"""
    from monitor.child import Parent
    from monitor.settings import load_settings

    supervisor = None
    if parent >= 0:
        supervisor = Parent(parent)
        supervisor.follow()
    loaded = load_settings(settings)
    one_thread_per_process()
    if workers > 1:
        from monitor.supervisor import Supervisor

        raise typer.Exit(Supervisor(loaded, settings, workers=workers).run())
    from monitor.daemon import Daemon

    raise typer.Exit(Daemon(loaded, ordinal=ordinal, parent=supervisor).run())


def one_thread_per_process() -> None:
    """Re-start with single-threaded BLAS and OpenMP, which must be set before the libraries load.

    Two thread pools in one process fight over the cores: the same work runs two to ten times slower.
    """
    import os

    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if any(name not in os.environ for name in wanted):
        os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
        os.execv(sys.executable, [sys.executable, "-m", "monitor", *sys.argv[1:]])


@app.command()
def score(
    reference: Annotated[Path, typer.Option("--reference", "-r", help="folder of a reference")],
    input: Annotated[Path, typer.Option("--input", "-i", help=".npy (n, d), .parquet or .jsonl")],  # noqa: A002
    output: Annotated[Path, typer.Option("--output", "-o", help=".npy, .parquet or .jsonl")],
    p_values: Annotated[
        bool, typer.Option("--p-values", help="p-values: in .npy instead of the scores, else beside")
    ] = False,
    field: Annotated[str, typer.Option("--field", help="column of the vectors in .parquet and .jsonl")] = "vector",
) -> None:
    """Score a file of vectors; larger is stranger. Example: driftd score -r refs/1 -i Y.npy -o scores.npy"""
    from monitor.progress import bar
    from monitor.scoring import score_file

    with bar("scoring") as progress:
        rows = score_file(reference, input=input, output=output, p_values=p_values, field=field, progress=progress)
    say(f"Scored {rows:,} rows into {output}.")


@app.command()
def incidents(
    incident: Annotated[str | None, typer.Argument(help="id of one incident, or its beginning")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="only this model")] = None,
    open_only: Annotated[bool, typer.Option("--open", help="only open ones")] = False,
    called_false: Annotated[
        str | None, typer.Option("--false", metavar="ID", help="say that nothing had changed: a false alarm")
    ] = None,
    called_real: Annotated[str | None, typer.Option("--real", metavar="ID", help="say that it was right")] = None,
    acknowledged: Annotated[
        str | None, typer.Option("--ack", metavar="ID", help="say that you take care of it: it is not repeated")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="who says so, with --ack; your login name by default")] = None,
    fail_on_alert: Annotated[bool, typer.Option("--fail-on-alert", help="exit with 3 if one is open")] = False,
    json: AsJson = False,
) -> None:
    """List incidents, show one, take care of one, or say whether it was right.

    Examples: driftd incidents --open --fail-on-alert; driftd incidents --ack 3f2a91
    """
    from monitor.app import open_store
    from monitor.budget import call_incident
    from monitor.incident_list import data_of, incident_id_of, login_name, mute_of, table_of
    from monitor.settings import load_settings
    from monitor.wording import describe

    now_ms = int(time.time() * 1000)
    store = open_store(load_settings(settings))
    if acknowledged is not None:
        person = by or login_name()
        incident = store.acknowledge_incident(incident_id_of(store, acknowledged), person, now_ms).id
        say(f"Incident {incident} is acknowledged by {person}: it is not repeated, until it comes back.")
    elif by is not None:
        raise InvalidInput("--by says who acknowledges.", hint="Say what: driftd incidents --ack ID --by NAME")
    if called_false is not None or called_real is not None:
        incident = call_incident(store, str(called_false or called_real), false=called_false is not None)
        say(
            f"Incident {incident} is called {'false' if called_false is not None else 'real'}. Undo it: "
            f"driftd incidents --{'real' if called_false is not None else 'false'} {incident}"
        )
    rows = store.incidents(model=model, status="open" if open_only else None)
    if incident is not None:
        rows = [row for row in rows if row.id.startswith(incident)]
        if not rows:
            raise InvalidInput(f"There is no incident {incident}.", hint="List them: driftd incidents")
    mutes = store.mutes(now_ms)
    if json:
        put_json([data_of(row, mutes) for row in rows])
    elif incident is not None:
        for row in rows:
            put(describe(row, mute_of(row, mutes)))
    elif rows:
        put_table(*table_of(rows, mutes))
    else:
        say("No incidents.")
    if fail_on_alert and any(row.status == "open" for row in rows):
        raise typer.Exit(3)


@app.command()
def explain(
    incident: Annotated[str, typer.Argument(help="id of one incident, or its beginning; or of a record like fraud")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    json: AsJson = False,
) -> None:
    """Why an incident is there, or a record looks like fraud. Example: driftd explain 3f2a91"""
    from monitor.app import open_store
    from monitor.explain import explain as explain_incident
    from monitor.explain import tables_of
    from monitor.fraud_explain import explain_record, lines_of, tables_of_hit
    from monitor.settings import load_settings
    from monitor.wording import describe

    loaded = load_settings(settings)
    store = open_store(loaded)
    known = any(row.id.startswith(incident) for row in store.incidents())
    if not known and (hit := explain_record(loaded, store, incident)) is not None:
        if json:
            put_json(hit.data())
            return
        for line in lines_of(hit):
            put(line)
        for title, columns, rows in tables_of_hit(hit):
            put(f"\n{title}")
            put_table(columns, rows)
        return
    if not known and any(model.fraud is not None for model in loaded.models.values()):
        raise InvalidInput(
            f"There is no incident {incident}, and no record of that id was kept as a fraud candidate.",
            hint="List incidents: driftd incidents. Scores of every record: models.NAME.scores, see docs/scores.md",
        )
    found = explain_incident(loaded, store, incident)
    if json:
        put_json(found.data())
        return
    put(describe(found.incident))
    for title, columns, rows in tables_of(found):
        put(f"\n{title}")
        put_table(columns, rows)
    for note in found.notes:
        say(f"Note: {note}")


@app.command()
def report(
    settings: SettingsPath = DEFAULT_SETTINGS,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write")] = Path("driftd-report.html"),
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="only the last hours of event time")] = None,
) -> None:
    """Write one self-contained HTML file of what happened. Example: driftd report --hours 24 -o today.html"""
    from monitor.app import open_store
    from monitor.reporting import report_of
    from monitor.settings import load_settings

    loaded = load_settings(settings)
    name = loaded.model_named(model)
    from dashboards.report import write_report

    store = open_store(loaded)
    now_ms = int(time.time() * 1000)
    write_report(output, report_of(loaded, store, name, hours=hours, mutes=store.mutes(now_ms), now_ms=now_ms))
    say(f"Wrote {output}.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the data and the report")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="another stream")] = 7,
    json: AsJson = False,
) -> None:
    """The whole job on real data, no server needed: about a minute. Example: driftd demo"""
    one_thread_per_process()
    from monitor.demo import run_demo

    result = run_demo(output, seed=seed, say=say)
    if json:
        put_json(result.data)
    else:
        put(result.text)


@app.command()
def doctor(
    settings: SettingsPath = DEFAULT_SETTINGS,
    soak: Annotated[
        bool, typer.Option("--soak", help="kill workers over a topic of labelled records, made on the model's brokers")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", help="whose brokers, with --soak")] = None,
    records: Annotated[int, typer.Option("--records", help="labelled records, with --soak")] = 200_000,
    kills: Annotated[int, typer.Option("--kills", help="SIGKILLs, with --soak")] = 10,
    workers: Annotated[int, typer.Option("--workers", help="workers at a time, with --soak")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="of the records and the kills, with --soak")] = 1,
    json: AsJson = False,
) -> None:
    """What is wrong, and what to do: checks, references, dead letters, alarm budget.

    Examples: driftd doctor; driftd doctor --soak --records 500000 --kills 20 --workers 3
    """
    if soak:
        from monitor.soak_cli import soak_command

        one_thread_per_process()
        soak_command(settings, model, records=records, kills=kills, workers=workers, seed=seed, json=json)
        return
    from monitor.checks import budget_table, diagnose
    from monitor.settings import load_settings

    findings = diagnose(load_settings(settings))
    if json:
        put_json(findings)
    else:
        for finding in findings:
            put(f"{'ok    ' if finding.ok else 'LOOK  '} {finding.name}: {finding.detail}")
            if finding.alarms:
                put_table(*budget_table(finding.alarms))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@reference_app.command("build")
def reference_build(
    vectors: Annotated[Path | None, typer.Option("--vectors", help="ready vectors: .npy, .parquet or .jsonl")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder to make, with --vectors")] = None,
    field: Annotated[str, typer.Option("--field", help="column of the vectors in .parquet and .jsonl")] = "vector",
    standardised: Annotated[bool, typer.Option("--table", help="columns of a table, not an encoder's vectors")] = False,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="the rows' order means nothing: mix them")] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="begin of the baseline, such as 2026-01-31T00:00:00Z")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="end of the baseline")] = None,
    season: Annotated[
        str | None, typer.Option("--season", help="1d, 7d, auto or none; with --vectors a number of rows")
    ] = None,
) -> None:
    """Build a reference, from a file of vectors or from a time range of a model's source.

    Examples: driftd reference build --vectors X.npy --output refs/1;
    driftd reference build --model support --from 2026-01-01T00:00:00Z --to 2026-01-15T00:00:00Z
    """
    from monitor import references
    from monitor.progress import steps

    if vectors is not None:
        if output is None:
            raise InvalidInput("Where shall the reference go?", hint="Add: --output DIR")
        if season is not None and not season.isdecimal():
            raise InvalidInput(
                "Ready vectors have no times: their season is a number of rows.", hint="For example: --season 48000"
            )
        with steps() as progress:
            built = references.from_vectors(
                vectors,
                output,
                field=field,
                standardised=standardised,
                shuffle=shuffle,
                season=None if season is None else float(season),
                progress=progress,
            )
        say(f"Built {output}: {built}.")
        return
    from detectors.reference import Reference
    from monitor.fraud_build import fraud_in_words
    from monitor.fraud_settings import FRAUD_SPACE
    from monitor.settings import load_settings
    from monitor.times import parse_time

    loaded = load_settings(settings)
    with steps() as progress:
        rows = references.from_source(
            loaded,
            model,
            start_ms=None if start is None else parse_time(start),
            end_ms=None if end is None else parse_time(end),
            season=season,
            progress=progress,
        )
    for row in rows:
        if row.space == FRAUD_SPACE:
            what = fraud_in_words(Path(row.path))
            say(f"Built {row.model}/{row.space} version {row.version}, for fraud scores: {what}.")
            continue
        made = Reference.load(row.path)
        notes = [references.seasons_in_days(made, loaded.models[row.model].drift), references.small_in_words(made)]
        said = [f"{row.records:,} records, now active", *filter(None, notes)]
        say(f"Built {row.model}/{row.space} version {row.version}: {'; '.join(said)}.")


@reference_app.command("list")
def reference_list(settings: SettingsPath = DEFAULT_SETTINGS, json: AsJson = False) -> None:
    """Every reference of every model. Example: driftd reference list"""
    from monitor.app import open_store
    from monitor.settings import load_settings
    from monitor.times import text_of

    loaded = load_settings(settings)
    store = open_store(loaded)
    rows = [
        row
        for name, model in loaded.models.items()
        for space in model.reference_spaces
        for row in store.references(name, space)
    ]
    if json:
        put_json(rows)
        return
    if not rows:
        say("No references yet: driftd run collects one, or build it: driftd reference build")
    put_table(
        ["model", "space", "version", "active", "records", "dimension", "built", "checksum"],
        [
            [
                row.model,
                row.space,
                str(row.version),
                "yes" if row.active else "",
                f"{row.records:,}",
                str(row.dimension),
                text_of(row.created_ms),
                row.checksum[:12],
            ]
            for row in rows
        ],
    )


@reference_app.command("show")
def reference_show(path: Annotated[Path, typer.Argument(help="folder of the reference")], json: AsJson = False) -> None:
    """What a reference holds, after checking it whole. Example: driftd reference show references/my_model/input/1"""
    from monitor.fraud_build import describe_fraud, is_fraud
    from monitor.references import describe

    facts: dict[str, Any] = describe_fraud(path) if is_fraud(path) else describe(path)
    if json:
        put_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            put(f"{name:<{width}}  {value}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        put(installed("driftd"))
        raise typer.Exit


if __name__ == "__main__":
    main()
