"""A Grafana for the tests: a real HTTP server that keeps state and answers as the versions of Grafana do.

Not Grafana: Grafana is in no package that a test could install. What 9.2.2 answers was measured on a real server; what
later versions answer comes from their source and documentation. Where the two differ, ``version`` decides.

    with Grafana("9.2.2") as grafana:
        client = GrafanaClient(Access(url=grafana.url, token=grafana.token("Editor")))
        grafana.fail(Fault(503), verb="POST", path="/api/annotations")
        assert grafana.annotations == []
"""

from __future__ import annotations

import base64
import copy
import json
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VERSIONS = ("9.2.2", "10.4.19", "11.6.5", "12.1.0")
PROXY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>message: upstream is gone</body></html>"
ROLES = ("Viewer", "Editor", "Admin")
PASSWORD = "correct horse"

_STATE = ("_ids", "folders", "dashboards", "data_sources", "rules", "intervals", "contact_points", "policies")
_STATE += ("annotations", "policies_provenance")

Json = dict[str, Any]
Result = tuple[int, Any]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call.

    Attributes:
        status, body, headers: of the answer; 200 with ``body`` None leaves the answer as it would be.
        hang: no answer comes until the server is closed.
        reset: the connection is reset after half of the answer.
        trickle: the answer comes byte by byte, and never ends.
        done: the call takes effect, and only its answer is lost or wrong.
    """

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    reset: bool = False
    trickle: bool = False
    done: bool = False


@dataclass(frozen=True)
class Call:
    """One call that came in."""

    verb: str
    path: str
    query: dict[str, list[str]]
    body: Any
    headers: dict[str, str]
    status: int


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = code
        self.body = {"message": message, **more}


class Grafana:
    """One server with one organisation.

    Attributes:
        folders, dashboards, data_sources, rules, intervals, contact_points, policies, annotations: what it holds.
        calls: what came in, oldest first.
        broken_data_sources: uids whose queries fail.
        hides_version: /api/health does not tell it to strangers.
        tells_rights: a caller can ask what it may do.
    """

    def __init__(self, version: str = "10.4.19", *, prefix: str = "") -> None:
        self.version = version
        self.numbers = tuple(int(part) for part in version.split(".")[:2])
        self.prefix = prefix
        self.folders: dict[str, Json] = {}
        self.dashboards: dict[str, Json] = {}
        self.data_sources: dict[str, Json] = {}
        self.rules: dict[str, Json] = {}
        self.intervals: dict[tuple[str, str], int] = {}
        self.contact_points: list[Json] = [
            {"uid": "", "name": "grafana-default-email", "type": "email", "settings": {"addresses": "<example@email>"}}
        ]
        self.policies: Json = {
            "receiver": "grafana-default-email",
            "group_by": ["grafana_folder", "alertname"],
            "routes": [{"receiver": "grafana-default-email", "object_matchers": [["team", "=", "other"]]}],
        }
        self.policies_provenance = ""
        self.annotations: list[Json] = []
        self.calls: list[Call] = []
        self.broken_data_sources: set[str] = set()
        self.hides_version = False
        self.tells_rights = True
        self.defects: list[str] = []  # of this file
        self.caller = ""  # role of who is being answered
        self.provenance = ""  # what the caller's objects are marked with: "api" cannot be edited in the browser
        self._ids = 0
        self._faults: list[tuple[Fault, str | None, re.Pattern[str] | None, int]] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._server = _server_of(self)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def writes(self) -> list[Call]:
        """Calls that change something; those that were refused are among them."""
        return [call for call in self.calls if call.verb != "GET" and call.path != "/api/ds/query"]

    def token(self, role: str) -> str:
        """The token of a service account with this role."""
        assert role in ROLES
        return f"glsa_{role.lower()}_0123456789abcdef"

    def fail(self, fault: Fault, *, verb: str | None = None, path: str | None = None, times: int = 1) -> None:
        """Let the next ``times`` calls like this go wrong; ``path`` is a regular expression over all of the path."""
        with self._lock:
            self._faults.append((fault, verb, None if path is None else re.compile(path), times))

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._faults.clear()

    def edit_dashboard(self, uid: str, **changes: Any) -> None:
        """What a person does in the browser: change something, and save."""
        with self._lock:
            self.dashboards[uid]["content"].update(changes)
            self.dashboards[uid]["version"] += 1

    def state(self) -> Json:
        """A copy of everything that it holds, for `load`."""
        with self._lock:
            return copy.deepcopy({name: getattr(self, name) for name in _STATE})

    def load(self, state: Json) -> None:
        """Hold this from now on."""
        with self._lock:
            for name, value in copy.deepcopy(state).items():
                setattr(self, name, value)

    def __enter__(self) -> Grafana:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        assert not self.defects, self.defects[0]

    # What the handler calls

    def take_fault(self, verb: str, path: str) -> Fault | None:
        with self._lock:
            for place, (fault, of_verb, of_path, times) in enumerate(self._faults):
                if (of_verb in (None, verb)) and (of_path is None or of_path.fullmatch(path)):
                    if times > 1:
                        self._faults[place] = (fault, of_verb, of_path, times - 1)
                    else:
                        del self._faults[place]
                    return fault
        return None

    def answer(self, verb: str, path: str, query: dict[str, list[str]], body: Any, headers: dict[str, str]) -> Result:
        with self._lock:
            try:
                status, value = self._route(verb, path, query, body, headers)
            except Refused as refused:
                status, value = refused.status, refused.body
            except Hang:
                raise
            self.calls.append(Call(verb, path, query, body, headers, status))
            return status, copy.deepcopy(value)

    def wait_for_the_end(self) -> None:
        self._closing.wait(30)

    def _route(self, verb: str, path: str, query: dict[str, list[str]], body: Any, headers: dict[str, str]) -> Result:
        if path == "/api/health":
            version = {} if self.hides_version else {"version": self.version, "commit": "2a7d4b7b1e"}
            return 200, {"database": "ok", **version}
        self.caller = role = self._role(headers)
        # Before 9.5 the header is ignored, but for single rules.
        self.provenance = "" if self.numbers >= (9, 5) and "X-Disable-Provenance" in headers else "api"
        for pattern, verbs, needed, handler in ROUTES:
            found = pattern.fullmatch(path)
            if found and verb in verbs:
                if ROLES.index(role) < ROLES.index(needed):
                    raise Refused(
                        403, "You'll need additional permissions to perform this action.", title="Access denied"
                    )
                return handler(self, verb, [unquote(part) for part in found.groups()], query, body)
        raise Refused(404, "Not found")

    def _role(self, headers: dict[str, str]) -> str:
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        for role in ROLES:
            if scheme == "Bearer" and credentials == self.token(role):
                return role
        if scheme == "Basic" and base64.b64decode(credentials).decode() == f"admin:{PASSWORD}":
            return "Admin"
        raise Refused(401, "invalid API key" if self.numbers < (10, 0) else "Invalid API key")

    def next_id(self) -> int:
        self._ids += 1
        return self._ids


class Hang(Exception):
    """No answer, as long as the client waits."""


# Who is there


def _org(grafana: Grafana, *_: Any) -> Result:
    return 200, {"id": 1, "name": "Main Org.", "address": {}}


def _settings(grafana: Grafana, *_: Any) -> Result:
    return 200, {"buildInfo": {"version": grafana.version, "hideVersion": False}}


def _plugins(grafana: Grafana, *_: Any) -> Result:
    postgres = "postgres" if grafana.numbers < (10, 0) else "grafana-postgresql-datasource"
    return 200, [{"id": name, "type": "datasource"} for name in ("prometheus", postgres, "testdata")]


def _permissions(grafana: Grafana, *_: Any) -> Result:
    role = grafana.caller
    if not grafana.tells_rights:
        raise Refused(404, "Not found")
    reading = ["dashboards:read", "folders:read", "annotations:read", "datasources:query"]
    editing = ["dashboards:create", "dashboards:write", "folders:create", "annotations:create", "annotations:write"]
    ruling = ["datasources:create", "datasources:write", "datasources:read", "alert.provisioning:write"]
    actions = reading + (editing if role != "Viewer" else []) + (ruling if role == "Admin" else [])
    return 200, {action: ["*"] for action in actions}


# Folders and dashboards, which share one space of uids


def _folders(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    if verb == "GET":
        if parts[0] not in grafana.folders:
            if grafana.caller != "Admin":  # who may not see all folders is not told which there are
                raise Refused(403, "You'll need additional permissions to perform this action.", title="Access denied")
            raise Refused(404, "folder not found", status="not-found")
        return 200, grafana.folders[parts[0]]
    uid = str(body.get("uid") or f"made{grafana.next_id()}")
    _check_uid(uid)
    if not body.get("title"):
        raise Refused(400, "folder title cannot be empty")
    if uid in grafana.dashboards:
        raise Refused(400, "Dashboard cannot be changed to a folder")
    if uid in grafana.folders:
        if grafana.numbers < (10, 0):
            raise Refused(412, "The folder has been changed by someone else", status="version-mismatch")
        raise Refused(409, "a folder with the same uid already exists")
    grafana.folders[uid] = {"id": grafana.next_id(), "uid": uid, "title": body["title"], "version": 1}
    return 200, grafana.folders[uid]


def _dashboard(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    saved = grafana.dashboards.get(parts[0])
    if saved is None:
        raise Refused(404, "Dashboard not found")
    content = {**saved["content"], "id": saved["id"], "uid": parts[0], "version": saved["version"]}
    meta = {"folderUid": saved["folder"], "provisioned": saved["provisioned"], "version": saved["version"]}
    return 200, {"dashboard": content, "meta": meta}


def _save_dashboard(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    content, folder = dict(body["dashboard"]), body.get("folderUid") or ""
    uid = content.get("uid") or f"made{grafana.next_id()}"
    _check_uid(uid)
    if not content.get("title"):
        raise Refused(400, "Dashboard title cannot be empty", status="empty-name")
    if folder and folder not in grafana.folders:
        old = grafana.numbers < (10, 0)
        raise Refused(400 if old else 404, "Folder not found" if old else "folder not found")
    if uid in grafana.folders:
        raise Refused(400, "Folder cannot be changed to a dashboard")
    saved = grafana.dashboards.get(uid)
    if saved is not None and saved["provisioned"]:
        raise Refused(400, "Cannot save provisioned dashboard")
    if saved is not None and not body.get("overwrite") and content.get("version") != saved["version"]:
        raise Refused(412, "The dashboard has been changed by someone else", status="version-mismatch")
    for other, entry in grafana.dashboards.items():
        same = other != uid and entry["folder"] == folder and entry["content"]["title"] == content["title"]
        if same and grafana.numbers <= (11, 2):
            if not body.get("overwrite"):
                raise Refused(412, "A dashboard with the same name in the folder already exists", status="name-exists")
            del grafana.dashboards[other]  # as it does: the other one is written over
            break
    content.pop("id", None)
    content.pop("version", None)
    if grafana.numbers >= (12, 0):  # later schemas complete what they store
        content = {"preload": False, **content, "schemaVersion": max(41, content.get("schemaVersion", 0))}
    version = 1 if saved is None else saved["version"] + 1
    number = grafana.next_id() if saved is None else saved["id"]
    grafana.dashboards[uid] = {
        "id": number, "folder": folder, "version": version, "provisioned": False, "content": content
    }  # fmt: skip
    return 200, {"uid": uid, "id": number, "url": f"/d/{uid}/x", "version": version, "slug": "x", "status": "success"}


# Data sources


def _data_sources(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    if verb == "GET":
        return 200, [_shown(source) for source in grafana.data_sources.values()]
    uid = body.get("uid") or f"made{grafana.next_id()}"
    if uid in grafana.data_sources or any(s["name"] == body["name"] for s in grafana.data_sources.values()):
        raise Refused(409, "data source with the same name already exists")
    # Any type is taken, also one that is not installed.
    grafana.data_sources[uid] = {**body, "uid": uid, "id": grafana.next_id(), "version": 1}
    return 200, {"message": "Datasource added", "datasource": _shown(grafana.data_sources[uid])}


def _data_source(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    uid = parts[0]
    if uid not in grafana.data_sources:
        raise Refused(404, "Data source not found")
    saved = grafana.data_sources[uid]
    if verb == "GET":
        return 200, _shown(saved)
    if saved.get("readOnly"):
        raise Refused(403, "Cannot update read-only data source")
    secrets = {**saved.get("secureJsonData", {}), **body.get("secureJsonData", {})}
    grafana.data_sources[uid] = {
        **body, "uid": uid, "id": saved["id"], "version": saved["version"] + 1, "secureJsonData": secrets
    }  # fmt: skip
    return 200, {"message": "Datasource updated", "datasource": _shown(grafana.data_sources[uid])}


def _shown(source: Json) -> Json:
    shown = {"access": "proxy", "readOnly": False, "isDefault": False, "orgId": 1, "typeLogoUrl": "", **source}
    secrets = shown.pop("secureJsonData", {})
    return {**shown, "secureJsonFields": {name: True for name, value in secrets.items() if value}}


def _data_source_health(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    if grafana.numbers < (10, 0):
        raise Refused(404, "Not found")
    if parts[0] in grafana.broken_data_sources:
        return 400, {"status": "ERROR", "message": "connection refused"}
    return 200, {"status": "OK", "message": "Database Connection OK"}


def _query(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    uid = body["queries"][0]["datasource"]["uid"]
    if uid not in grafana.data_sources:
        raise Refused(404, "Data source not found")
    if uid in grafana.broken_data_sources:
        return 400, {"results": {"A": {"error": "dial tcp 10.0.0.9:5432: connect: connection refused", "status": 400}}}
    return 200, {"results": {"A": {"frames": [{"schema": {}, "data": {"values": [[1]]}}], "status": 200}}}


# Alert rules


def _rules(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    for name in ("orgID", "folderUID", "ruleGroup", "title", "condition", "data"):
        if not body.get(name):
            raise Refused(400, f"invalid alert rule: {name} is missing")
    uid = body.get("uid") or f"made{grafana.next_id()}"
    _check_uid(uid)
    if uid in grafana.rules:
        raise Refused(*((500, "UNIQUE constraint failed") if grafana.numbers < (10, 0) else (409, "rule uid exists")))
    _check_title(grafana, body, uid)
    _store_rule(grafana, {**body, "uid": uid})
    grafana.intervals.setdefault((body["folderUID"], body["ruleGroup"]), 60)
    return 201, grafana.rules[uid]


def _rule(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    uid = parts[0]
    if verb == "DELETE":
        _check_provenance(grafana, grafana.rules.get(uid, {}).get("provenance"))
        grafana.rules.pop(uid, None)  # one that is not there is no error
        return 204, None
    if uid not in grafana.rules:
        # At 9.2 it is only the PUT that tells.
        old = grafana.numbers < (10, 0) and verb == "GET"
        raise Refused(*((500, "could not find alert rule") if old else (404, "rule not found")))
    if verb == "PUT":
        _check_title(grafana, body, uid)
        _check_provenance(grafana, grafana.rules[uid].get("provenance"))
        _store_rule(grafana, {**body, "uid": uid})
    return 200, grafana.rules[uid]


def _rule_group(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    folder, name = parts
    inside = {
        uid: rule for uid, rule in grafana.rules.items() if (rule["folderUID"], rule["ruleGroup"]) == (folder, name)
    }
    if verb == "GET":
        if not inside:
            raise Refused(404, "rule group not found")
        # The group leaves the provenance of its rules out.
        rules = [{key: value for key, value in rule.items() if key != "provenance"} for rule in inside.values()]
        return 200, {"title": name, "folderUid": folder, "interval": grafana.intervals[folder, name], "rules": rules}
    if body["interval"] % 10:
        raise Refused(400, "interval should be a multiple of 10 seconds")
    named = set()
    for rule in body["rules"]:  # the folder need not exist: 200 all the same
        uid = rule.get("uid")
        if uid and uid not in grafana.rules and grafana.numbers < (10, 0):
            raise Refused(500, "could not find alert rule")
        uid = uid or f"made{grafana.next_id()}"
        _check_title(grafana, {**rule, "folderUID": folder}, uid)
        receiver = (rule.get("notification_settings") or {}).get("receiver")
        if receiver and grafana.numbers >= (11, 0) and receiver not in _receivers(grafana):
            raise Refused(400, f"receiver {receiver} does not exist")
        # Of a rule in a group, the mark of the API may be taken away.
        _check_provenance(grafana, inside.get(uid, {}).get("provenance"), relaxed=True)
        if grafana.numbers < (9, 3):
            _duration(grafana, str(rule.get("for") or ""))
            rule = {**rule, "for": f"{body['interval']}s"}  # as it does
        _store_rule(grafana, {**rule, "uid": uid, "folderUID": folder, "ruleGroup": name})
        named.add(uid)
    if body["rules"]:  # an empty list deletes nothing
        for uid in set(inside) - named:
            del grafana.rules[uid]
    grafana.intervals[folder, name] = body["interval"]
    return 200, body


def _check_title(grafana: Grafana, rule: Json, uid: str) -> None:
    for other, entry in grafana.rules.items():
        if other != uid and (entry["folderUID"], entry["title"]) == (rule["folderUID"], rule["title"]):
            raise Refused(
                500 if grafana.numbers < (10, 0) else 409,
                "a conflicting alert rule is found: rule title under the same organisation and folder should be unique",
            )


def _store_rule(grafana: Grafana, rule: Json) -> None:
    known = {"uid", "orgID", "folderUID", "ruleGroup", "title", "condition", "data", "noDataState", "execErrState"}
    known |= {"for", "labels", "annotations"}
    if grafana.numbers >= (9, 4):
        known.add("isPaused")
        rule = {"isPaused": False, **rule}
    if grafana.numbers >= (11, 0):
        known.add("notification_settings")
    stored = {key: value for key, value in rule.items() if key in known}
    stored |= {
        "id": grafana.next_id(),
        "updated": f"2026-01-01T00:00:{grafana.next_id() % 60:02}Z",
        "for": _duration(grafana, str(rule.get("for") or "0s")),
        **({"provenance": grafana.provenance} if grafana.provenance else {}),
    }
    for query in stored["data"]:
        query["model"] = {"intervalMs": 1000, "maxDataPoints": 43200, **query["model"]}
    grafana.rules[stored["uid"]] = stored


def _check_provenance(grafana: Grafana, stored: str | None, *, relaxed: bool = False) -> None:
    if stored and stored != grafana.provenance and not (relaxed and stored == "api"):
        raise Refused(500, f"cannot change provenance from '{stored}' to '{grafana.provenance}'")


def _duration(grafana: Grafana, text: str) -> str:
    """As Prometheus writes durations: the largest units first."""
    units = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
    left = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([wdhms])", text))
    if left >= units["d"] and grafana.numbers < (9, 3):  # up to 9.2.6 it reads what it wrote by rules without days
        raise Refused(400, "invalid alert rule")
    written = ""
    for unit, seconds in units.items():
        if left >= seconds and (unit != "w" or left % seconds == 0):
            written += f"{left // seconds}{unit}"
            left %= seconds
    return written or "0s"


# Contact points and policies


def _receivers(grafana: Grafana) -> set[str]:
    return {point["name"] for point in grafana.contact_points}


def _contact_points(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    if verb == "GET":
        return 200, grafana.contact_points
    if any(point["uid"] == body["uid"] for point in grafana.contact_points):
        raise Refused(500, f"receiver configuration with UID '{body['uid']}' already exist in contact point")
    _check_contact_point(body)
    mark = {"provenance": grafana.provenance} if grafana.provenance else {}
    grafana.contact_points.append({"disableResolveMessage": False, **body, **mark})
    return 202, grafana.contact_points[-1]


def _contact_point(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    found = [point for point in grafana.contact_points if point["uid"] == parts[0]]
    if verb == "DELETE":
        for point in found:
            old = grafana.numbers < (10, 0)
            if point["name"] in {route["receiver"] for route in [grafana.policies, *grafana.policies["routes"]]}:
                raise Refused(500 if old else 409, "contact point is currently used by a notification policy")
            settings = [rule.get("notification_settings") or {} for rule in grafana.rules.values()]
            if any(entry.get("receiver") == point["name"] for entry in settings):
                raise Refused(409, "contact point is currently used by alert rules")
            grafana.contact_points.remove(point)
        return 202, {"message": "contactpoint deleted"}
    if not found:
        raise Refused(404, "contact point not found")
    _check_contact_point(body)
    _check_provenance(grafana, found[0].get("provenance"))
    found[0].update(body, **({"provenance": grafana.provenance} if grafana.provenance else {}))
    return 202, {"message": "contactpoint updated"}


def _check_contact_point(body: Json) -> None:
    if body["type"] == "webhook" and not body["settings"].get("url"):
        raise Refused(400, "invalid contact point: required field 'url' is not specified")


def _policies(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    if verb == "PUT":
        for route in [body, *(body.get("routes") or [])]:
            if route["receiver"] not in _receivers(grafana):
                raise Refused(400, f"receiver '{route['receiver']}' does not exist")
        _check_provenance(grafana, grafana.policies_provenance)
        grafana.policies, grafana.policies_provenance = body, grafana.provenance
        return 202, {"message": "policies updated"}
    mark = {"provenance": grafana.policies_provenance} if grafana.policies_provenance else {}
    return 200, {**grafana.policies, **mark}


# Annotations


def _annotations(grafana: Grafana, verb: str, parts: list[str], query: dict[str, list[str]], body: Any) -> Result:
    if verb == "GET":
        wanted, limit = query.get("tags", []), int(query.get("limit", ["100"])[0])
        matches = any if query.get("matchAny") == ["true"] else all
        found = [entry for entry in grafana.annotations if not wanted or matches(t in entry["tags"] for t in wanted)]
        return 200, found[::-1][:limit]
    if not body.get("text"):
        raise Refused(400, "Failed to save annotation")
    tags = [tag.strip() for tag in body.get("tags") or []]
    if len(json.dumps(tags)) > 500:
        raise Refused(400, "tags length (501) exceeds the maximum allowed")
    dashboard = body.get("dashboardUID") or ""
    if dashboard and dashboard not in grafana.dashboards:
        if grafana.numbers >= (11, 0):
            if grafana.caller != "Admin":
                raise Refused(403, "Access denied to save the annotation")
            raise Refused(404, "Dashboard not found")
        dashboard = ""  # it becomes the organisation's
    entry = {
        "id": grafana.next_id(), "text": body["text"], "tags": tags, "time": body["time"],
        "timeEnd": body.get("timeEnd") or body["time"], "dashboardUID": dashboard, "alertId": 0,
    }  # fmt: skip
    grafana.annotations.append(entry)
    return 200, {"message": "Annotation added", "id": entry["id"]}


def _annotation(grafana: Grafana, verb: str, parts: list[str], query: Any, body: Any) -> Result:
    found = [entry for entry in grafana.annotations if str(entry["id"]) == parts[0]]
    if not found:
        raise Refused(404, "Annotation not found")
    if verb == "DELETE":
        grafana.annotations.remove(found[0])
        return 200, {"message": "Annotation deleted"}
    if "tags" in body and grafana.numbers < (10, 0):
        raise Hang
    found[0].update({key: value for key, value in body.items() if key in ("text", "time", "timeEnd", "tags")})
    return 200, {"message": "Annotation patched"}


def _check_uid(uid: str) -> None:
    if len(uid) > 40:
        raise Refused(400, "uid too long, max 40 characters")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", uid):
        raise Refused(400, "uid contains illegal characters")


_P = "/api/v1/provisioning"
ROUTES: list[tuple[re.Pattern[str], tuple[str, ...], str, Callable[..., Result]]] = [
    (re.compile(pattern), verbs, role, handler)
    for pattern, verbs, role, handler in [
        ("/api/org", ("GET",), "Viewer", _org),
        ("/api/frontend/settings", ("GET",), "Viewer", _settings),
        ("/api/plugins", ("GET",), "Viewer", _plugins),
        ("/api/access-control/user/permissions", ("GET",), "Viewer", _permissions),
        ("/api/folders/([^/]+)", ("GET",), "Viewer", _folders),
        ("/api/folders", ("POST",), "Editor", _folders),
        ("/api/dashboards/uid/([^/]+)", ("GET",), "Viewer", _dashboard),
        ("/api/dashboards/db", ("POST",), "Editor", _save_dashboard),
        ("/api/datasources", ("GET", "POST"), "Admin", _data_sources),
        ("/api/datasources/uid/([^/]+)", ("GET", "PUT"), "Admin", _data_source),
        ("/api/datasources/uid/([^/]+)/health", ("GET",), "Viewer", _data_source_health),
        ("/api/ds/query", ("POST",), "Viewer", _query),
        (f"{_P}/alert-rules", ("POST",), "Admin", _rules),
        (f"{_P}/alert-rules/([^/]+)", ("GET", "PUT", "DELETE"), "Admin", _rule),
        (f"{_P}/folder/([^/]+)/rule-groups/([^/]+)", ("GET", "PUT"), "Admin", _rule_group),
        (f"{_P}/contact-points", ("GET", "POST"), "Admin", _contact_points),
        (f"{_P}/contact-points/([^/]*)", ("PUT", "DELETE"), "Admin", _contact_point),
        (f"{_P}/policies", ("GET", "PUT"), "Admin", _policies),
        ("/api/annotations", ("GET",), "Viewer", _annotations),
        ("/api/annotations", ("POST",), "Editor", _annotations),
        ("/api/annotations/([0-9]+)", ("PATCH", "DELETE"), "Editor", _annotation),
    ]
]


def _server_of(grafana: Grafana) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes, and the second would wait 40 ms for the first

        def _do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            path = parts.path.removeprefix(grafana.prefix)
            fault = grafana.take_fault(self.command, path)
            try:
                if fault is not None and not fault.done:
                    self._spoil(fault, b'{"message": "half of an answer"}')
                    return
                if not path.startswith("/api/") or not parts.path.startswith(grafana.prefix):
                    self._send(302, b"", {"Location": f"{grafana.prefix}/login"})
                    return
                status, value = grafana.answer(
                    self.command, path, parse_qs(parts.query), json.loads(raw) if raw else None, dict(self.headers)
                )
                body = b"" if status == 204 else json.dumps(value).encode()
                if fault is not None:
                    self._spoil(fault, body)
                else:
                    self._send(status, body, {"Content-Type": "application/json"})
            except Hang:
                self._hang()
            except OSError:
                self.close_connection = True  # the client did not wait for all of it

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _hang(self) -> None:
            grafana.wait_for_the_end()
            self.close_connection = True

        def _spoil(self, fault: Fault, body: bytes) -> None:
            if fault.hang:
                self._hang()
            elif fault.reset:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) + 100))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                # Not a quiet end: the client's kernel says "connection reset by peer".
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)
                self.close_connection = True
            elif fault.trickle:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                while not grafana._closing.wait(0.02):
                    self.wfile.write(b" ")
            else:
                self._send(fault.status, body if fault.body is None else fault.body, fault.headers)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            grafana.defects.append(traceback.format_exc())

    return Server(("127.0.0.1", 0), Handler)
