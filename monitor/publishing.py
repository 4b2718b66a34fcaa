"""Publishing into Grafana: look at what is there, say what would change, change it, and look again.

Everything of ours has a fixed uid. What was published is marked, so that the next run knows two things without a file
of its own: whether it would publish something else now, and whether somebody has edited it by hand since. A mark is two
hashes: of what we sent, and of what Grafana made of it, which later versions complete. Dashboards carry it as a hidden
constant variable, rules as an annotation whose name begins and ends with two underscores, which Grafana never shows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from connectors.grafana import POSTGRES_TYPES, GrafanaClient, SavedDashboard
from connectors.grafana_alerting import ROUTE_LABEL, GrafanaAlerting
from detectors.errors import GrafanaError, InvalidInput

FOLDER_UID = FOLDER_TITLE = "driftd"
POSTGRES_UID, PROMETHEUS_UID = "driftd-postgres", "driftd-prometheus"
CONTACT_UID, CONTACT_NAME = "driftd-contact", "driftd"
DASHBOARD_MARK, RULE_MARK = "driftd_published", "__driftd__"
OLDEST, NEWEST = (9, 2), 12  # versions of Grafana that driftd knows
FIRST_UNLOCKED = (9, 5)  # the first version in which what a call has written can be edited in the browser
LONGEST_DIFF = 200  # lines

Json = dict[str, Any]
State = Literal["new", "unchanged", "changed", "edited"]


@dataclass(frozen=True, slots=True)
class Change:
    """What publishing does, or would do, to one object.

    Attributes:
        kind: folder, data source, dashboard, rules, contact point or route.
        uid: of the object; the name of a group of rules.
        state: "edited" was changed by hand since it was published, and is left alone unless that is allowed.
        diff: a unified diff from what is there to what we publish; secrets are masked.
    """

    kind: str
    uid: str
    title: str
    state: State
    diff: str = ""
    apply: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to publish.

    Attributes:
        dashboards: their JSON, with variables ``postgres`` and ``prometheus`` for the data sources.
        rules: the group of rules for a folder and a data source, as `dashboards.rules.grafana_rule_group` makes it.
        postgres, prometheus: the address of a data source to make, or the uid of one that is there; None takes the one
            that an earlier run has made, if there is one.
        contact_point: who is told by our rules: the name of a contact point that is there, or an address to make one
            for: https://... or a mail address. None leaves it as it is.
    """

    dashboards: Sequence[Json]
    rules: Callable[[str, str], Json]
    postgres: str | None = field(default=None, repr=False)
    prometheus: str | None = field(default=None, repr=False)
    contact_point: str | None = field(default=None, repr=False)


class Publisher:
    """Brings one Grafana to what is wanted.

    Args:
        overwrite: also write over what was edited by hand, and send passwords of data sources again.

    Attributes:
        notes: what a person should know beside the changes, filled by `plan`.
    """

    def __init__(self, client: GrafanaClient, wanted: Wanted, *, overwrite: bool = False) -> None:
        self.notes: list[str] = []
        self._client = client
        self._alerting = GrafanaAlerting(client)
        self._wanted = wanted
        self._overwrite = overwrite
        self._names: dict[str, str] = {}  # of data sources by uid

    def plan(self) -> list[Change]:
        """What is there, and what would be done. Reads only.

        Raises:
            GrafanaError: Grafana refuses or does not answer.
            InvalidInput: what is wanted cannot be published there.
        """
        self.notes = []
        version = self._client.version
        if version and numbers_of(version) < OLDEST:
            raise InvalidInput(f"Grafana {version} is too old.", hint="driftd publishes into Grafana 9.2 and later.")
        changes = [self._folder()]
        actions = self._client.actions()
        rules_too = actions is None or {"alert.provisioning:write", "datasources:write"} <= actions
        asked = (self._wanted.postgres, self._wanted.prometheus, self._wanted.contact_point)
        if not rules_too and any(value is not None for value in asked):
            raise InvalidInput(
                "The token may not make data sources, rules and contact points.",
                hint="Give its service account the role Admin; docs/grafana.md says why.",
            )
        postgres = prometheus = None
        if rules_too:
            postgres = self._data_source(self._wanted.postgres, POSTGRES_UID, self._postgres, changes)
            prometheus = self._data_source(self._wanted.prometheus, PROMETHEUS_UID, prometheus_source, changes)
        else:
            self.notes.append("Data sources and rules are left out: the token has not the role Admin.")
        kind = self._client.postgres_type() if postgres is not None else POSTGRES_TYPES[-1]
        for content in self._wanted.dashboards:
            ours = prepared(content, postgres_type=kind, postgres=postgres, prometheus=prometheus, names=self._names)
            changes.append(self._dashboard(ours))
        if prometheus is not None:
            changes += self._rules_and_routes(prometheus)
        elif rules_too:
            self.notes.append("Rules are left out, since they ask Prometheus: --prometheus URL")
        if self._wanted.contact_point is not None and version and numbers_of(version) < FIRST_UNLOCKED:
            self.notes.append(
                f"Grafana {version} locks what is published: nobody can edit its notification policies in the browser."
            )
        if rules_too and postgres is None:
            self.notes.append("There is no data source for the database: --postgres URL")
        return changes

    def apply(self, changes: Iterable[Change], done: Callable[[Change], None] = lambda change: None) -> None:
        """Make the changes of a plan, but for what was edited by hand, and look whether all is as it should be.

        Raises:
            GrafanaError: a change failed, or Grafana has something else afterwards; what came before it stays.
        """
        made = 0
        for change in changes:
            if change.state == "unchanged" or (change.state == "edited" and not self._overwrite):
                continue
            change.apply()
            made += 1
            done(change)
        if not made:
            return
        self._overwrite, overwrite = False, self._overwrite
        try:
            left = [change for change in self.plan() if change.state != "unchanged"]
        finally:
            self._overwrite = overwrite
        if unsettled := [change for change in left if change.state != "edited" or overwrite]:
            first = unsettled[0]
            raise GrafanaError(
                f"Grafana has another {first.kind} {first.uid} than the one that was published.",
                status=None,
                retryable=True,
                hint="Somebody may be publishing at the same time. Look: driftd dashboards publish --dry-run",
            )

    # One part for each kind of object

    def _folder(self) -> Change:
        there = self._client.folder(FOLDER_UID) is not None
        state: State = "unchanged" if there else "new"
        return Change(
            "folder", FOLDER_UID, FOLDER_TITLE, state,
            apply=lambda: self._client.create_folder(FOLDER_UID, FOLDER_TITLE),
        )  # fmt: skip

    def _data_source(
        self, value: str | None, uid: str, body_of: Callable[[str], Json], changes: list[Change]
    ) -> str | None:
        """The uid of the data source to use; None if there is none. Adds what is to be done for it."""
        if value is None or "://" not in value:
            uid = uid if value is None else value
            found = self._client.data_source(uid)
            if found is not None:
                self._names[uid] = str(found.get("name") or uid)
                return uid
            if value is not None:
                raise InvalidInput(
                    f"Grafana has no data source with the uid {value}.",
                    hint="Its uid stands in the address of its page in Grafana. To make one, give an address: http://...",
                )
            return None
        body = body_of(value)
        stored = self._client.data_source(uid)
        if stored is not None:
            # What somebody has set beside ours, such as certificates, stays.
            body["jsonData"] = {**(stored.get("jsonData") or {}), **body["jsonData"]}
        shown = {name: part for name, part in body.items() if name != "secureJsonData"}
        has = None if stored is None else {name: stored.get(name) for name in shown}
        lacks = [
            name
            for name in body.get("secureJsonData", {})
            if self._overwrite or stored is None or not (stored.get("secureJsonFields") or {}).get(name)
        ]
        diff = _diff(has, {**shown, **dict.fromkeys(lacks, "(is sent)")})
        state: State = "new" if stored is None else "changed" if diff else "unchanged"
        changes.append(
            Change("data source", uid, body["name"], state, diff, lambda: self._client.save_data_source(body))
        )
        return uid

    def _postgres(self, url: str) -> Json:
        return postgres_source(url, kind=self._client.postgres_type())

    def _dashboard(self, ours: Json) -> Change:
        uid, title = str(ours["uid"]), str(ours["title"])
        stored = self._client.dashboard(uid)
        if stored is None:
            shown = "".join(f"+ {panel.get('title', '')}\n" for panel in ours.get("panels", ()))
            return Change("dashboard", uid, title, "new", shown, lambda: self._save_dashboard(ours, None))
        if stored.provisioned:
            raise InvalidInput(
                f"Grafana reads the dashboard {uid} from a file.",
                hint="Publish, or use file provisioning, not both: remove the files from Grafana's machine.",
            )
        sent, kept = _mark_of_dashboard(stored.content)
        theirs = _bare_dashboard(stored.content)
        # One that was imported as it is has no mark, and nothing that could be lost.
        edited = _is_edited(sent, kept, theirs) and _digest(theirs) != _digest(_bare_dashboard(ours))
        state: State = "edited" if edited else "unchanged" if sent == _digest(ours) else "changed"
        return Change(
            "dashboard", uid, title, state,
            "" if state == "unchanged" else _diff(theirs, _bare_dashboard(ours)),
            lambda: self._save_dashboard(ours, stored),
        )  # fmt: skip

    def _save_dashboard(self, ours: Json, stored: SavedDashboard | None) -> None:
        """Save it, and once more with the mark of what Grafana has made of it."""
        uid, sent = str(ours["uid"]), _digest(ours)
        # 9 leaves all as it is; of what later versions make of it, nothing is known before it is seen.
        kept = _digest(_bare_dashboard(ours)) if self._client.major == 9 else ""
        for _ in range(2):
            self._client.save_dashboard(
                _marked_dashboard(ours, f"{sent}-{kept}"),
                # Where somebody has moved it, it stays.
                folder_uid=FOLDER_UID if stored is None else stored.folder_uid,
                version=None if stored is None else stored.version,
                message="Published by driftd",
            )
            stored = self._client.dashboard(uid)
            if stored is None or (found := _digest(_bare_dashboard(stored.content))) == kept:
                return
            kept = found

    def _rules_and_routes(self, prometheus: str) -> list[Change]:
        group = self._wanted.rules(FOLDER_UID, prometheus)
        name = str(group["title"])
        stored = self._alerting.rule_group(FOLDER_UID, name) if self._client.folder(FOLDER_UID) is not None else None
        contact = self._contact_point()
        receiver = self._receiver(stored)
        own = self._alerting.rules_name_receivers
        # In 9.2 a rule that somebody published without our uid keeps its own: its title is taken.
        uids = {rule["title"]: rule["uid"] for rule in (stored or {"rules": []})["rules"]}
        rules = []
        for rule in group["rules"]:
            changed = {**rule, "uid": uids.get(rule["title"], rule["uid"])}
            if receiver is not None and own:
                changed["notification_settings"] = {"receiver": receiver}
            elif receiver is not None:
                changed["labels"] = {**rule.get("labels", {}), ROUTE_LABEL[0]: ROUTE_LABEL[1]}
            rules.append(changed)
        changes = [contact] if contact is not None else []
        changes.append(self._rule_group({**group, "rules": rules}, stored))
        changes += self._routes(receiver, own=own)
        changes += self._unused_contact_point(receiver)
        return changes

    def _receiver(self, stored: Json | None) -> str | None:
        """The contact point of our rules: the one that is wanted, or else the one that they have."""
        wanted = self._wanted.contact_point
        if wanted is not None:
            return CONTACT_NAME if _is_address(wanted) else wanted
        for rule in (stored or {"rules": []})["rules"]:
            settings = rule.get("notification_settings")
            if isinstance(settings, dict) and settings.get("receiver"):
                return str(settings["receiver"])
        return self._alerting.route()

    def _contact_point(self) -> Change | None:
        wanted = self._wanted.contact_point
        if wanted is None:
            return None
        points = self._alerting.contact_points()
        if not _is_address(wanted):
            if not any(point.get("name") == wanted for point in points):
                names = sorted({str(point.get("name")) for point in points})
                raise InvalidInput(f"Grafana has no contact point {wanted}.", hint=f"There are: {', '.join(names)}")
            return None
        body: Json = {"uid": CONTACT_UID, "name": CONTACT_NAME, "disableResolveMessage": False}
        if "://" in wanted:
            body |= {"type": "webhook", "settings": {"url": wanted, "httpMethod": "POST"}}
        else:
            body |= {"type": "email", "settings": {"addresses": wanted}}
        stored = next((point for point in points if point.get("uid") == CONTACT_UID), None)
        has = None if stored is None else {name: stored.get(name) for name in body}
        if has is not None:
            settings = has.get("settings") or {}
            has["settings"] = {name: settings.get(name) for name in body["settings"]}
        same = has == body
        diff = "" if same else _diff(None if has is None else _masked(has), _masked(body)) or "~ settings\n"
        state: State = "new" if has is None else "unchanged" if same else "changed"
        return Change(
            "contact point", CONTACT_UID, CONTACT_NAME, state, diff, lambda: self._alerting.save_contact_point(body)
        )

    def _rule_group(self, group: Json, stored: Json | None) -> Change:
        name, rules = str(group["title"]), group["rules"]
        title = f"{len(rules)} rules"
        if stored is None:
            shown = "".join(f"+ {rule['title']}\n" for rule in rules)
            return Change("rules", name, title, "new", shown, lambda: self._save_rules(group))
        theirs = {rule["uid"]: rule for rule in stored["rules"]}
        ours = {rule["uid"]: rule for rule in rules}
        marks = {uid: _mark_of_rule(rule) for uid, rule in theirs.items()}
        edited = any(
            _is_edited(*marks[uid], _bare_rule(rule))
            and (uid not in ours or _digest(_bare_rule(rule)) != _digest(_bare_rule(ours[uid])))
            for uid, rule in theirs.items()
        )
        same = (
            not edited
            and set(theirs) == set(ours)
            and all(marks[uid][0] == _digest(_bare_rule(rule)) for uid, rule in ours.items())
            and stored.get("interval") == group["interval"]
        )
        state: State = "unchanged" if same else "edited" if edited else "changed"
        diff = "" if same else _diff_of_rules(theirs, ours, stored.get("interval"), group["interval"])
        return Change("rules", name, title, state, diff, lambda: self._save_rules(group))

    def _save_rules(self, group: Json) -> None:
        """As `_save_dashboard`: once more with the marks of what Grafana has made of them."""
        sent = {rule["uid"]: _digest(_bare_rule(rule)) for rule in group["rules"]}
        kept = dict.fromkeys(sent, "")
        for _ in range(2):
            marked = [_marked_rule(rule, f"{sent[rule['uid']]}-{kept[rule['uid']]}") for rule in group["rules"]]
            self._alerting.save_rule_group({**group, "rules": marked})
            stored = self._alerting.rule_group(FOLDER_UID, str(group["title"])) or {"rules": []}
            found = {rule["uid"]: _digest(_bare_rule(rule)) for rule in stored["rules"]}
            if found == kept or set(found) != set(kept):
                return
            kept = found

    def _routes(self, receiver: str | None, *, own: bool) -> list[Change]:
        there = self._alerting.route()
        if own:
            if there is None:
                return []
            # Of the time before Grafana was updated: the rules name their contact point themselves now.
            return [Change("route", "driftd", there, "changed", f"- {there}\n", self._alerting.remove_route)]
        if receiver is None:
            return []
        state: State = "new" if there is None else "unchanged" if there == receiver else "changed"
        diff = "" if state == "unchanged" else (f"- {there}\n" if there else "") + f"+ {receiver}\n"
        return [Change("route", "driftd", receiver, state, diff, lambda: self._alerting.set_route(receiver))]

    def _unused_contact_point(self, receiver: str | None) -> list[Change]:
        """Our own contact point, where another is used now."""
        if receiver in (None, CONTACT_NAME) or self._wanted.contact_point is None:
            return []
        if not any(point.get("uid") == CONTACT_UID for point in self._alerting.contact_points()):
            return []
        delete = self._alerting.delete_contact_point
        return [
            Change("contact point", CONTACT_UID, CONTACT_NAME, "changed", "- driftd\n", lambda: delete(CONTACT_UID))
        ]


# Data sources


def postgres_source(url: str, *, kind: str) -> Json:
    """The data source for driftd's database.

    Args:
        url: postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=..., as Grafana's machine reaches it; the user is one
            that may only SELECT.

    Raises:
        InvalidInput: another kind of address, or one without user or database.
    """
    try:
        parts = urlsplit(url)
        port, query = parts.port, parse_qs(parts.query)
    except ValueError:
        parts, port, query = urlsplit(""), None, {}
    database, user = unquote(parts.path.strip("/")), unquote(parts.username or "")
    if parts.scheme.partition("+")[0] not in ("postgresql", "postgres") or not database or not user:
        raise InvalidInput(
            "The address of the database for Grafana cannot be used.",
            hint="Expected: postgresql://grafana_reader:PASSWORD@HOST:5432/driftd",
        )
    socket = query.get("host", [""])[0]
    host = parts.hostname or socket or "localhost"
    local = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    mode = query.get("sslmode", ["disable" if local else "require"])[0]
    place = f"[{host}]" if ":" in host else host
    body: Json = {
        "uid": POSTGRES_UID,
        "name": POSTGRES_UID,  # Grafana before 10.1 keeps a chosen data source by its name
        "type": kind,
        "access": "proxy",
        "url": place if host.startswith("/") else f"{place}:{port or 5432}",
        "user": user,
        "jsonData": {"database": database, "sslmode": mode, "postgresVersion": 1500, "maxOpenConns": 5},
    }
    if kind == POSTGRES_TYPES[-1]:
        body["database"] = database  # where Grafana 9 looks for it
    if parts.password:
        body["secureJsonData"] = {"password": unquote(parts.password)}
    return body


def prometheus_source(url: str) -> Json:
    """The data source for the Prometheus that scrapes driftd; ``url`` is as Grafana's machine reaches it.

    A user name and a password in the address become basic authentication.

    Raises:
        InvalidInput: no address.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput("The address of Prometheus cannot be used.", hint="Expected: http://HOST:9090")
    body: Json = {
        "uid": PROMETHEUS_UID,
        "name": PROMETHEUS_UID,
        "type": "prometheus",
        "access": "proxy",
        "url": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
        "jsonData": {"httpMethod": "POST"},
    }
    if parts.username:
        body |= {"basicAuth": True, "basicAuthUser": unquote(parts.username)}
        body["secureJsonData"] = {"basicAuthPassword": unquote(parts.password or "")}
    return body


# Dashboards


def prepared(
    value: Any,
    *,
    postgres_type: str,
    postgres: str | None,
    prometheus: str | None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A dashboard for one Grafana: its id for PostgreSQL, and our data sources chosen at first.

    Args:
        postgres, prometheus: uids.
        names: of data sources by uid, where they differ. Grafana before 10.1 finds the chosen one by its name.
    """

    def within(part: Any) -> Any:
        return prepared(part, postgres_type=postgres_type, postgres=postgres, prometheus=prometheus, names=names)

    if isinstance(value, list):
        return [within(part) for part in value]
    if not isinstance(value, dict):
        return value
    made = {name: within(part) for name, part in value.items()}
    if made.get("type") == "postgres":
        made["type"] = postgres_type
    if made.get("type") == "datasource" and made.get("name") in ("postgres", "prometheus"):
        uid = postgres if made["name"] == "postgres" else prometheus
        made["query"] = postgres_type if made["name"] == "postgres" else "prometheus"
        if uid is not None:
            made["current"] = {"selected": False, "text": names.get(uid, uid), "value": uid}
    return made


def _marked_dashboard(content: Json, mark: str) -> Json:
    templating = content.get("templating", {})
    variable = {"type": "constant", "name": DASHBOARD_MARK, "hide": 2, "skipUrlSync": True, "query": mark}
    variable["current"] = {"selected": False, "text": mark, "value": mark}
    return {**content, "templating": {**templating, "list": [*templating.get("list", []), variable]}}


def _mark_of_dashboard(content: Json) -> tuple[str, str]:
    for variable in (content.get("templating") or {}).get("list") or ():
        if variable.get("name") == DASHBOARD_MARK:
            sent, _, kept = str(variable.get("query", "")).partition("-")
            return sent, kept
    return "", ""


def _bare_dashboard(content: Json) -> Json:
    """Without what Grafana counts, and without the mark."""
    templating = content.get("templating") or {}
    variables = [one for one in templating.get("list") or () if one.get("name") != DASHBOARD_MARK]
    kept = {name: part for name, part in content.items() if name not in ("id", "version", "iteration", "templating")}
    return {**kept, "templating": {**templating, "list": variables}}


# Rules


def _marked_rule(rule: Json, mark: str) -> Json:
    return {**rule, "annotations": {**rule.get("annotations", {}), RULE_MARK: mark}}


def _mark_of_rule(rule: Json) -> tuple[str, str]:
    sent, _, kept = str((rule.get("annotations") or {}).get(RULE_MARK, "")).partition("-")
    return sent, kept


def _bare_rule(rule: Json) -> Json:
    left_out = ("id", "updated", "provenance", "orgID", "folderUID", "ruleGroup")
    kept = {name: part for name, part in rule.items() if name not in left_out}
    annotations = {name: text for name, text in (rule.get("annotations") or {}).items() if name != RULE_MARK}
    return {**kept, "annotations": annotations}


def _diff_of_rules(theirs: Mapping[str, Json], ours: Mapping[str, Json], old_s: object, new_s: object) -> str:
    """Rule by rule, since many of their lines are alike."""
    parts = [] if old_s == new_s else [f"- interval {old_s} s\n+ interval {new_s} s\n"]
    for uid in sorted({*theirs, *ours}):
        rule = ours.get(uid) or theirs[uid]
        if uid not in ours or uid not in theirs:
            parts.append(f"{'+' if uid in ours else '-'} {rule['title']}\n")
        elif diff := _diff(_bare_rule(theirs[uid]), _bare_rule(ours[uid])):
            parts.append(f"{rule['title']}\n{diff}")
    return "".join(parts)


# Comparing


def _is_edited(sent: str, kept: str, theirs: Json) -> bool:
    """Whether it is not what Grafana made of what we sent. A mark without that is of a run that broke off."""
    return kept != _digest(theirs) and not (sent and not kept)


def _is_address(contact_point: str) -> bool:
    return "://" in contact_point or "@" in contact_point


def numbers_of(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: (10, 4) of "10.4.2-pre"."""
    return tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())


def _canonical(value: Any) -> Any:
    """Without what says nothing: keys that are null are written by some versions and left out by others."""
    if isinstance(value, dict):
        return {name: _canonical(part) for name, part in sorted(value.items()) if part is not None}
    return [_canonical(part) for part in value] if isinstance(value, list) else value


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(_canonical(value)).encode()).hexdigest()[:16]


def _diff(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """A unified diff of the JSON; "" where they are the same; shortened where it is long."""
    old, new = _lines(before), _lines(after)
    lines = list(difflib.unified_diff(old, new, "in Grafana", "published by driftd", lineterm="", n=2))
    if len(lines) > LONGEST_DIFF:
        lines = [*lines[:LONGEST_DIFF], f"... and {len(lines) - LONGEST_DIFF:,} more lines"]
    return "\n".join(lines) + "\n" if lines else ""


def _lines(value: Mapping[str, Any] | None) -> list[str]:
    if value is None:
        return []
    return json.dumps(_canonical(dict(value)), indent=2, ensure_ascii=False).splitlines()


def _masked(point: Json) -> Json:
    """A contact point whose address shows no more than its host: tokens often are a part of the path."""
    settings = dict(point.get("settings") or {})
    if settings.get("url"):
        parts = urlsplit(str(settings["url"]))
        settings["url"] = f"{parts.scheme}://{parts.hostname}/..."
    return {**point, "settings": settings}
