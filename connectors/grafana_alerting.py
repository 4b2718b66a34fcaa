"""Alerting in Grafana: groups of rules, contact points, and who gets what.

One way for every version. What only some of them need is said where it is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from connectors.grafana import PROVISIONING, GrafanaClient, Json, checked_uid, quoted
from detectors.errors import InvalidInput

OWN_RECEIVER_FROM = 11  # the first version whose rules name their own contact point without a feature flag
# Every rule of ours has this label; before 11, our route in the policy tree is known by it.
ROUTE_LABEL = ("source", "driftd")
_REFERRED = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_EXPRESSIONS = ("__expr__", "-100")  # what stands for "no data source, but an expression"
_LENGTH = re.compile(r"(\d+)(ms|s|m|h|d|w|y)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}


class GrafanaAlerting:
    """Rules, contact points and routes of one organisation. Raises GrafanaError as its client does."""

    def __init__(self, client: GrafanaClient) -> None:
        self._client = client

    @property
    def rules_name_receivers(self) -> bool:
        """Whether a rule can name its contact point. A server that hides its version is treated as an old one."""
        return (self._client.major or 0) >= OWN_RECEIVER_FROM

    # Alert rules

    def rule_group(self, folder_uid: str, name: str) -> Json | None:
        """The group with its rules; None if there is none, or an empty one."""
        group = self._client.get(_group_path(folder_uid, name))
        return group if group is not None and group.get("rules") else None

    def rule(self, uid: str) -> Json | None:
        """One rule; None if there is none. 9.2 answers 500 then."""
        return self._client.get(f"{PROVISIONING}/alert-rules/{quoted(uid)}", missing=(404, 500))

    def _has_rule(self, uid: str) -> bool:
        return self.rule(uid) is not None

    def save_rule_group(self, group: Mapping[str, Any]) -> None:
        """Make the group what it should be: missing rules made, all replaced, those that are left out deleted.

        One way for every version, though only 9.2 needs all of it: there, a PUT of the group fails over a rule that it
        does not know, is not repeatable without uids, goes into folders that do not exist, and gives every rule the
        group's interval as its ``for``.

        Args:
            group: title, folderUid, interval in seconds, rules, each with its uid.

        Raises:
            InvalidInput: the group cannot work: see `check_rule_group`.
        """
        self.check_rule_group(group)
        folder_uid, name = str(group["folderUid"]), str(group["title"])
        # Without these three a single rule is refused.
        place = {"orgID": self._client.organisation.get("id", 1), "folderUID": folder_uid, "ruleGroup": name}
        rules = [{**rule, **place} for rule in group["rules"]]
        present = self.rule_group(folder_uid, name) or {"rules": []}
        there = {rule.get("uid") for rule in present["rules"]}
        for rule in rules:
            uid = rule["uid"]
            if uid in there:
                continue
            if (stored := self.rule(uid)) is not None:  # in another group or folder: somebody has moved it
                self._client.call("PUT", f"{PROVISIONING}/alert-rules/{quoted(uid)}", rule, locked=_is_locked(stored))
                continue
            self._client.create(f"{PROVISIONING}/alert-rules", rule, partial(self._has_rule, uid))
        self._client.call("PUT", _group_path(folder_uid, name), {**group, "rules": rules})
        ours = {rule["uid"]: rule for rule in rules}
        for found in (self.rule_group(folder_uid, name) or {"rules": []})["rules"]:
            uid, wanted = str(found.get("uid")), ours.get(found.get("uid"))
            if wanted is not None and _seconds(found.get("for")) == _seconds(wanted.get("for")):
                continue
            path, locked = f"{PROVISIONING}/alert-rules/{quoted(uid)}", _is_locked(self.rule(uid))
            if wanted is None:
                self._client.delete(path, locked=locked)
            else:
                self._client.call("PUT", path, wanted, locked=locked)

    def check_rule_group(self, group: Mapping[str, Any]) -> None:
        """What the server would accept without a word, and then fire on or never evaluate.

        Raises:
            InvalidInput: the folder or a data source does not exist, a condition or an expression names no query, an
                interval is no multiple of 10 s, or a uid or title is missing, too long, or there twice.
        """
        name, rules = group.get("title"), group["rules"]
        interval = group.get("interval")
        if not isinstance(interval, int) or interval <= 0 or interval % 10:
            raise InvalidInput(f"The rule group {name} has an interval of {interval}; it must be a multiple of 10 s.")
        if not rules:
            raise InvalidInput(f"The rule group {name} has no rules.")
        if self._client.folder(str(group["folderUid"])) is None:
            raise InvalidInput(f"The folder {group['folderUid']} of the rule group {name} does not exist.")
        for what in ("uid", "title"):
            values = [rule.get(what) for rule in rules]
            if len(set(values)) < len(values):
                raise InvalidInput(f"Two rules of the group {name} have the same {what}.")
        sources: set[str] = set()
        for rule in rules:
            checked_uid(str(rule.get("uid", "")))
            if not 0 < len(str(rule.get("title", ""))) <= 190:
                raise InvalidInput(f"The rule {rule['uid']} needs a title of at most 190 characters.")
            sources |= _checked_queries(rule)
        for uid in sorted(sources):
            if self._client.data_source(uid) is None:
                raise InvalidInput(
                    f"The rules query the data source {uid}, which Grafana at {self._client.place} does not have.",
                    hint="Let driftd make it: --prometheus URL",
                )

    # Contact points and who gets what

    def contact_points(self) -> list[Json]:
        """All contact points of the organisation; secrets are masked by the server."""
        found = self._client.call("GET", f"{PROVISIONING}/contact-points")
        if not isinstance(found, list):
            raise self._client.strange(f"{PROVISIONING}/contact-points")
        return [point for point in found if isinstance(point, dict)]

    def save_contact_point(self, body: Mapping[str, Any]) -> None:
        """Make a contact point, or replace the one with the same ``uid``: a second POST would be an error."""
        uid = checked_uid(str(body["uid"]))
        self._client.hide(value for value in body.get("settings", {}).values() if isinstance(value, str))

        def stored() -> Json | None:
            return next((point for point in self.contact_points() if point.get("uid") == uid), None)

        if stored() is None and self._client.create(
            f"{PROVISIONING}/contact-points", body, lambda: stored() is not None
        ):
            return
        self._client.call("PUT", f"{PROVISIONING}/contact-points/{quoted(uid)}", body, locked=_is_locked(stored()))

    def delete_contact_point(self, uid: str) -> None:
        """Delete a contact point. Our route to it goes first: one that is routed to cannot be deleted."""
        names = {point.get("name") for point in self.contact_points() if point.get("uid") == uid}
        if self.route() in names:
            self.remove_route()
        self._client.delete(f"{PROVISIONING}/contact-points/{quoted(uid)}")

    def policies(self) -> Json:
        """The organisation's whole tree of notification policies."""
        return self._client.object_of(self._client.call("GET", f"{PROVISIONING}/policies"), f"{PROVISIONING}/policies")

    def route(self) -> str | None:
        """The contact point that our route in the policy tree leads to; None if there is no such route."""
        for entry in self.policies().get("routes") or ():
            if _is_ours(entry):
                return str(entry.get("receiver"))
        return None

    def set_route(self, receiver: str) -> None:
        """Lead what has our label to a contact point, and touch nothing else of the tree.

        Our route comes first, since the first that matches takes it. The server knows no part of the tree, so all of it
        is read and written back.
        """
        tree = self.policies()
        routes = tree.get("routes") or []
        entry = {"receiver": receiver, "object_matchers": [[ROUTE_LABEL[0], "=", ROUTE_LABEL[1]]]}
        # Where somebody gave our route other timings, they stay.
        kept: Json = next((old for old in routes if _is_ours(old)), {})
        others = [old for old in routes if not _is_ours(old)]
        self._write_policies({**tree, "routes": [{**kept, **entry}, *others]})

    def remove_route(self) -> None:
        """Take our route out of the policy tree; nothing happens if there is none."""
        tree = self.policies()
        routes = tree.get("routes") or []
        others = [entry for entry in routes if not _is_ours(entry)]
        if len(others) < len(routes):
            self._write_policies({**tree, "routes": others})

    def _write_policies(self, tree: Json) -> None:
        body = {name: part for name, part in tree.items() if name != "provenance"}
        self._client.call("PUT", f"{PROVISIONING}/policies", body, locked=_is_locked(tree))


def _group_path(folder_uid: str, name: str) -> str:
    return f"{PROVISIONING}/folder/{quoted(folder_uid)}/rule-groups/{quoted(name)}"


def _checked_queries(rule: Mapping[str, Any]) -> set[str]:
    """The data sources that a rule asks.

    Raises:
        InvalidInput: its condition or one of its expressions names a query that the rule does not have.
    """
    names = {str(query.get("refId")) for query in rule["data"]}
    if rule.get("condition") not in names:
        raise InvalidInput(f"The rule {rule['uid']} has the condition {rule.get('condition')}, which names no query.")
    sources: set[str] = set()
    for query in rule["data"]:
        if query.get("datasourceUid") not in _EXPRESSIONS:
            sources.add(str(query.get("datasourceUid")))
            continue
        model = query.get("model", {})
        text = str(model.get("expression", ""))
        named = set(_REFERRED.findall(text)) if model.get("type") == "math" else {text.removeprefix("$")}
        if unknown := named - names:
            raise InvalidInput(
                f"Expression {query.get('refId')} of the rule {rule['uid']} names {', '.join(sorted(unknown))}, "
                "which is no query of the rule."
            )
    return sources


def _is_locked(stored: Mapping[str, Any] | None) -> bool:
    """Whether it was provisioned by a call, and so cannot be edited in the browser."""
    return stored is not None and stored.get("provenance") == "api"


def _seconds(length: object) -> float:
    """A duration in Prometheus's words; Grafana writes 600s as 10m, and 86400s as 1d."""
    return sum(int(number) * _SECONDS[unit] for number, unit in _LENGTH.findall(str(length or "")))


def _is_ours(route: Mapping[str, Any]) -> bool:
    return route.get("object_matchers") == [[ROUTE_LABEL[0], "=", ROUTE_LABEL[1]]]
