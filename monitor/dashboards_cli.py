"""`driftd dashboards`: publish dashboards, data sources and rules into Grafana, or write them as files."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.grafana import GrafanaClient
    from monitor.publishing import Wanted

dashboards_app = typer.Typer(help="Dashboards, data sources and alert rules for Grafana.", no_args_is_help=True)

TOKEN_VARIABLE = "DRIFTD_GRAFANA_TOKEN"

Address = Annotated[
    str, typer.Option("--grafana", metavar="URL", envvar="DRIFTD_GRAFANA_URL", help="address of Grafana")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help=f"file with a service account's token; or {TOKEN_VARIABLE}")
]
Organisation = Annotated[int | None, typer.Option("--org-id", help="organisation, with a password in the address")]
Authorities = Annotated[Path | None, typer.Option("--ca-file", help="certificate authorities to trust (PEM)")]
Runbooks = Annotated[
    str | None,
    typer.Option(
        "--runbooks",
        metavar="URL",
        envvar="DRIFTD_RUNBOOKS",
        help="address of docs/runbooks.md as people reach it, for the links in alerts",
    ),
]
DEFAULT_GRAFANA = "http://localhost:3000"


@dashboards_app.command("publish")
def publish(
    grafana: Address = DEFAULT_GRAFANA,
    token_file: TokenFile = None,
    postgres: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            envvar="DRIFTD_GRAFANA_POSTGRES",
            help="driftd's database as Grafana reaches it, by a role that may only SELECT; or a data source's uid",
        ),
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(
            "--prometheus", envvar="DRIFTD_GRAFANA_PROMETHEUS", help="Prometheus likewise; or a data source's uid"
        ),
    ] = None,
    contact_point: Annotated[
        str | None,
        typer.Option(
            "--contact-point",
            envvar="DRIFTD_GRAFANA_CONTACT_POINT",
            help="who gets driftd's alerts: a contact point's name, a webhook's address, or a mail address",
        ),
    ] = None,
    runbooks: Runbooks = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would change, change nothing")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="also what was edited by hand; send passwords again")
    ] = False,
    org_id: Organisation = None,
    ca_file: Authorities = None,
    json: AsJson = False,
) -> None:
    """Bring Grafana to what this version of driftd has; twice changes nothing.

    Example: driftd dashboards publish --grafana http://localhost:3000 --token-file token --dry-run
    """
    from monitor.publishing import Publisher

    with _client(grafana, token_file, org_id, ca_file) as client:
        wanted = _wanted(postgres=postgres, prometheus=prometheus, contact_point=contact_point, runbooks=runbooks)
        publisher = Publisher(client, wanted, overwrite=overwrite)
        changes = publisher.plan()
        if not dry_run:
            publisher.apply(changes, done=lambda change: say(f"Published {change.kind} {change.uid}."))
        place = client.place
    left = [change for change in changes if change.state == "edited" and not overwrite]
    if json:
        put_json(
            [
                {"kind": c.kind, "uid": c.uid, "title": c.title, "state": c.state, "diff": c.diff}
                for c in changes
            ]
        )  # fmt: skip
    else:
        put_table(["object", "uid", "state", "what"], [[c.kind, c.uid, c.state, c.title] for c in changes])
        for change in changes:
            if change.diff and (dry_run or change.state == "edited"):
                put(f"\n{change.kind} {change.uid}\n{change.diff.rstrip()}")
    for note in publisher.notes:
        say(note)
    if dry_run:
        moved = sum(change.state != "unchanged" for change in changes)
        say(f"{moved} of {len(changes)} objects would change at {place}. Nothing was written.")
    for change in left:
        say(f"The {change.kind} {change.uid} was edited by hand in Grafana, and is left as it is.")
    if left:
        say("Save a copy of what was edited under another name, then write over it: --overwrite")
        raise typer.Exit(1)


@dashboards_app.command("check")
def check(
    grafana: Address = DEFAULT_GRAFANA,
    token_file: TokenFile = None,
    org_id: Organisation = None,
    ca_file: Authorities = None,
    json: AsJson = False,
) -> None:
    """Whether Grafana is there, what it lets driftd do, and whether data sources answer.

    Example: driftd dashboards check --grafana http://localhost:3000 --token-file token
    """
    from monitor.grafana_checks import check_grafana

    uids = tuple(str(content["uid"]) for content in _dashboards())
    with _client(grafana, token_file, org_id, ca_file) as client:
        findings = check_grafana(client, uids)
    if json:
        put_json(findings)
    else:
        for finding in findings:
            put(f"{'ok    ' if finding.ok else 'FAILED'} {finding.name}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@dashboards_app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to write, made if it is not there")],
    postgres: Annotated[
        str, typer.Option("--postgres", help="driftd's database as Grafana reaches it, without a password")
    ] = "postgresql://grafana_reader@localhost:5432/driftd",
    prometheus: Annotated[
        str, typer.Option("--prometheus", help="Prometheus as Grafana reaches it")
    ] = "http://localhost:9090",
    at: Annotated[str, typer.Option("--at", help="where Grafana finds the folder")] = "/etc/grafana/provisioning",
    runbooks: Runbooks = None,
    json: AsJson = False,
) -> None:
    """Write files for Grafana's provisioning, and rules for Prometheus. Example: driftd dashboards build DIR"""
    from dashboards.rules import prometheus_rules
    from monitor.provisioning import PASSWORD_VARIABLE, provisioning_files, write_files

    files = provisioning_files(
        _dashboards(),
        partial(_rules, runbooks=runbooks),
        prometheus_rules(runbooks=_runbooks(runbooks)),
        postgres=postgres,
        prometheus=prometheus,
        at=at,
    )
    write_files(files, folder)
    if json:
        put_json(sorted(files))
    else:
        for name in sorted(files):
            put(str(folder / name))
    say(f"Grafana reads the database's password from its environment: {PASSWORD_VARIABLE}")


@dashboards_app.command("grants")
def grants(
    settings: SettingsPath = DEFAULT_SETTINGS,
    role: Annotated[str, typer.Option("--role", help="name of the role for Grafana")] = "grafana_reader",
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="run it in the settings' database; DRIFTD_GRAFANA_POSTGRES_PASSWORD is its password"
        ),
    ] = False,
) -> None:
    """SQL for a PostgreSQL role that may read driftd's tables and nothing else. Example: driftd dashboards grants"""
    from connectors.database.reader_role import make_reader_role, reader_role_sql
    from monitor.provisioning import PASSWORD_VARIABLE

    if not run:
        for statement in reader_role_sql(role):
            put(f"{statement};")
        say(f"Run it as the owner of driftd's tables, then set a password, in psql: \\password {role}")
        return
    from monitor.settings import load_settings

    password = os.environ.get(PASSWORD_VARIABLE)
    make_reader_role(load_settings(settings).database, role, password=password)
    say(
        f"The role {role} may read driftd's tables." + ("" if password else f" It has no password: {PASSWORD_VARIABLE}")
    )


def _client(address: str, token_file: Path | None, org_id: int | None, ca_file: Path | None) -> GrafanaClient:
    from connectors.grafana import Access, GrafanaClient, token_of

    if ca_file is not None and not ca_file.is_file():
        raise InvalidInput(f"{ca_file} does not exist.", hint="Name a PEM file: --ca-file")
    # A file that is named goes before the environment.
    token = os.environ.get(TOKEN_VARIABLE) if token_file is None else None
    return GrafanaClient(
        Access(
            url=address,
            token=token_of(token, token_file, where="driftd dashboards"),
            org_id=org_id,
            verify=True if ca_file is None else str(ca_file),
        )
    )


def _wanted(*, postgres: str | None, prometheus: str | None, contact_point: str | None, runbooks: str | None) -> Wanted:
    from monitor.publishing import Wanted

    return Wanted(
        dashboards=_dashboards(),
        rules=partial(_rules, runbooks=runbooks),
        postgres=postgres,
        prometheus=prometheus,
        contact_point=contact_point,
    )


def _dashboards() -> list[dict[str, Any]]:
    from dashboards.grafana import all_dashboards

    return [dashboard.to_json() for dashboard in all_dashboards()]


def _rules(folder_uid: str, prometheus_uid: str, *, runbooks: str | None = None) -> dict[str, Any]:
    from dashboards.rules import grafana_rule_group

    return grafana_rule_group(folder_uid=folder_uid, prometheus_uid=prometheus_uid, runbooks=_runbooks(runbooks))


def _runbooks(address: str | None) -> str:
    """The address, which becomes a part of templates. Raises InvalidInput where it is none."""
    from connectors.alert import RUNBOOKS

    if address and not re.fullmatch(r"https?://[^\s#${}]+", address):
        raise InvalidInput(
            "The address of the runbooks cannot be used.", hint="Expected: https://docs.example.org/driftd/runbooks"
        )
    return address or RUNBOOKS
