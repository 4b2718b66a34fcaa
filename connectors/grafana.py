"""Grafana's HTTP API, from 9.2 to 12: the calls, and folders, dashboards, data sources, annotations.

Rules, contact points and routes stand in connectors/grafana_alerting.py.

The session and its authentication are grafana-api's (`GrafanaFace`), whose source is archived: everything that it does
not do stands here, behind one class, and no other file imports it. A hook on its session reads every answer before the
library does, so that its verbs and wrappers never see an error, an empty body or a page of HTML.

* Each part of a path and each query parameter is quoted here.
* A call is repeated only after 429, 502, 503, 504 or where there was no answer. A POST is repeated only after a look
  whether the one before has made its object, which has a uid of ours.
* Objects are named by uid, never by Grafana's numbers; only annotations have nothing else.
* Errors hold the status and Grafana's words; never a token, a password or an URL with one. The HTTP library's
  exceptions, which may quote them, are not kept as causes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from connectors.http_sink import connection_problem, retry_after_s
from detectors.errors import GrafanaError, InvalidInput, InvalidSettings

if TYPE_CHECKING:
    import requests
    from grafana_api.grafana_face import GrafanaFace

RETRYABLE = frozenset({429, 502, 503, 504})
_UNSEEN = (403, 404)  # of what is not there, all but an Admin are told that they may not see it
LONGEST_WAIT_S = 30.0  # a server that asks for more is left to the next run
MOST_BYTES = 32 << 20  # of an answer; a dashboard has some 100 kB
MOST_ANNOTATIONS = 1000  # asked for by one tag; the server's own limit is 100, which would hide the one looked for
POSTGRES_TYPES = ("grafana-postgresql-datasource", "postgres")  # the newer id first
PROVISIONING = "/v1/provisioning"
_UID = re.compile(r"[A-Za-z0-9_-]{1,40}")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SavedDashboard:
    """A dashboard as Grafana has it.

    Attributes:
        content: its JSON.
        folder_uid: "" for the general folder.
        version: Grafana counts it up at each save.
        provisioned: it comes from a file on Grafana's machine, and cannot be saved by a call.
    """

    content: Json
    folder_uid: str
    version: int
    provisioned: bool


@dataclass(frozen=True, slots=True)
class Annotation:
    """A mark or a region on a dashboard. Times in milliseconds since 1970."""

    id: int
    text: str
    tags: tuple[str, ...]
    time_ms: int
    end_ms: int
    dashboard_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where Grafana is, and how to get in.

    Attributes:
        url: with a path where Grafana is served below one; a user name and a password in it are used without a token.
        token: of a service account.
        org_id: of several organisations, which one; a token knows its own.
        timeout_s: for the connection, for each wait for bytes, and twice that for the whole answer.
        verify: check the certificate; or a file of certificate authorities.
        retries: how often a call is repeated that failed for a reason that passes.
    """

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    org_id: int | None = None
    timeout_s: float = 10.0
    verify: bool | str = True
    retries: int = 3


def token_of(token: str | None, token_file: Path | None, *, where: str) -> str | None:
    """The token, from the file where one is named. ``where`` names the setting in errors.

    Raises:
        InvalidSettings: both are given, the file cannot be read, or the token is empty or has a space or line break.
    """
    if token is not None and token_file is not None:
        raise InvalidSettings(f"{where}: token and token_file are both set.", hint="Keep one.")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InvalidSettings(
                f"{where}: token_file {token_file} cannot be read: {reason}.",
                hint="Put the token of a service account there; docs/grafana.md says how to make one.",
            ) from error
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise InvalidSettings(
            f"{where}: the token is empty or has characters that no token has.",
            hint="It is one line, such as glsa_...; docs/grafana.md says how to make one.",
        )
    return token


class GrafanaClient:
    """One organisation of one Grafana. Called from one thread.

    Every method raises GrafanaError where Grafana refuses or does not answer.

    Args:
        access: address and credentials.
        sleep: waits between repeated calls.
        clock: seconds since 1970, for dates in Retry-After.
        timer: seconds of a clock that never jumps, for the length of an answer.
    """

    def __init__(
        self,
        access: Access,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._sleep = sleep
        self._clock = clock
        self._timer = timer
        try:
            parts = urlsplit(access.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment:
            raise InvalidInput("Grafana's address cannot be used.", hint="Expected: http://localhost:3000")
        self._parts = parts
        login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        if access.token is None and login is None:
            raise InvalidInput(
                f"Nothing says who we are to Grafana at {self.place}.",
                hint="Give the token of a service account; docs/grafana.md says how to make one.",
            )
        self._auth: str | tuple[str, str] = access.token if access.token is not None else login or ""
        # What must never be in a message, in case that Grafana quotes it.
        self._secrets = {secret for secret in (access.token, login[1] if login else None) if secret}
        self._session: requests.Session | None = None

    def __repr__(self) -> str:
        return f"GrafanaClient({self.place})"

    @property
    def place(self) -> str:
        """The address without user name and password."""
        host = self._parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = "" if self._parts.port is None else f":{self._parts.port}"
        return f"{self._parts.scheme}://{host}{port}{self._parts.path.rstrip('/')}"

    def close(self) -> None:
        """Release the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None
            self.__dict__.pop("_face", None)

    def __enter__(self) -> GrafanaClient:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # Who is there, and who are we?

    @cached_property
    def version(self) -> str:
        """Such as "10.4.2"; "" where Grafana hides it. Asked once.

        Raises:
            GrafanaError: nothing answers, its database fails, or what answers is no Grafana.
        """
        health = self.call("GET", "/health")
        if not isinstance(health, dict) or "database" not in health:
            raise GrafanaError(
                f"What answers at {self.place} is no Grafana.", status=200, retryable=False, hint="Check the address."
            )
        version = health.get("version")
        if not version:
            # Hidden from strangers only: who is known may see it here.
            try:
                settings = self.call("GET", "/frontend/settings")
            except GrafanaError:
                return ""
            build = settings.get("buildInfo") if isinstance(settings, dict) else None
            version = build.get("version") if isinstance(build, dict) else ""
        return str(version or "")

    @property
    def major(self) -> int | None:
        """The first number of the version; None where it is hidden."""
        found = re.match(r"\d+", self.version)
        return int(found.group()) if found else None

    @cached_property
    def organisation(self) -> Json:
        """``id`` and ``name`` of the organisation that we work in. Asked once; refused without valid credentials."""
        return self.object_of(self.call("GET", "/org"), "/org")

    def actions(self) -> frozenset[str] | None:
        """What we may do, such as "dashboards:create"; None where Grafana does not tell."""
        try:
            found = self.call("GET", "/access-control/user/permissions")
        except GrafanaError as error:
            if error.status in (403, 404, 500):
                return None
            raise
        return frozenset(found) if isinstance(found, dict) else None

    # Folders and dashboards

    def folder(self, uid: str) -> Json | None:
        """A folder; None if there is none with that uid, or none that we may see."""
        return self.get(f"/folders/{quoted(uid)}", missing=_UNSEEN)

    def create_folder(self, uid: str, title: str) -> None:
        """Make a folder. It is fine if it is there by now: 9.2 says so by 412, later versions by 409."""
        checked_uid(uid)
        self.create("/folders", {"uid": uid, "title": title}, lambda: self.folder(uid) is not None)

    def dashboard(self, uid: str) -> SavedDashboard | None:
        """A dashboard; None if there is none with that uid, or none that we may see."""
        found = self.get(f"/dashboards/uid/{quoted(uid)}", missing=_UNSEEN)
        if found is None:
            return None
        content, meta = found.get("dashboard"), found.get("meta")
        if not isinstance(content, dict) or not isinstance(meta, dict):
            raise self.strange(f"/dashboards/uid/{uid}")
        return SavedDashboard(
            content, str(meta.get("folderUid") or ""), int(content.get("version") or 0), bool(meta.get("provisioned"))
        )

    def save_dashboard(
        self, content: Mapping[str, Any], *, folder_uid: str, version: int | None, message: str = ""
    ) -> None:
        """Save a dashboard over the version that was looked at; None says that there is none yet.

        Nothing is ever overwritten that was not looked at: what somebody saves in between is refused by the server, and
        so is another dashboard of the same title, over which versions before 11.3 would write.

        Raises:
            GrafanaError: 412 for a version in between or a title that is taken; 400 or 404 for an unknown folder.
        """
        uid = checked_uid(str(content["uid"]))
        if not content.get("title"):
            raise InvalidInput(f"The dashboard {uid} has no title.")
        dashboard = {name: value for name, value in content.items() if name not in ("id", "version")}
        dashboard |= {"id": None} if version is None else {"id": None, "version": version}
        body = {"dashboard": dashboard, "folderUid": folder_uid, "message": message, "overwrite": False}

        def saved_after_all() -> bool:
            found = self.dashboard(uid)
            return found is not None and found.version != version

        self.create("/dashboards/db", body, saved_after_all, exists=())

    # Data sources

    def data_source_types(self) -> frozenset[str]:
        """Ids of the types that are installed. The server accepts a data source of any other, too."""
        plugins = self.call("GET", "/plugins")
        if not isinstance(plugins, list):
            raise self.strange("/plugins")
        return frozenset(str(plugin["id"]) for plugin in plugins if isinstance(plugin, dict) and "id" in plugin)

    def postgres_type(self) -> str:
        """The id under which this Grafana knows PostgreSQL.

        Raises:
            InvalidInput: it does not know it.
        """
        types = self.data_source_types()
        for name in POSTGRES_TYPES:
            if name in types:
                return name
        raise InvalidInput(
            f"Grafana at {self.place} has no data source type for PostgreSQL.",
            hint=f"Install its plugin {POSTGRES_TYPES[0]}.",
        )

    def data_source(self, uid: str) -> Json | None:
        """A data source; None if there is none with that uid. Its secrets are left out by the server."""
        return self.get(f"/datasources/uid/{quoted(uid)}")

    def save_data_source(self, body: Mapping[str, Any]) -> None:
        """Make a data source, or replace the one with the same ``uid``. ``secureJsonData`` holds its secrets."""
        uid = checked_uid(str(body["uid"]))
        self.hide(map(str, body.get("secureJsonData", {}).values()))
        if self.data_source(uid) is None and self.create(
            "/datasources", body, lambda: self.data_source(uid) is not None
        ):
            return
        self.call("PUT", f"/datasources/uid/{quoted(uid)}", body)

    def ask_data_source(self, uid: str, kind: str) -> None:
        """Run the smallest query, as a panel would: at 9.2 no data source of ours has a health check.

        Raises:
            GrafanaError: the data source does not answer, or refuses Grafana.
        """
        query: Json = {"refId": "A", "datasource": {"uid": uid, "type": kind}, "intervalMs": 1000, "maxDataPoints": 1}
        if kind in POSTGRES_TYPES:
            query |= {"rawSql": "SELECT 1 AS one", "format": "table"}
        else:
            query |= {"expr": "vector(1)", "instant": True}
        found = self.call("POST", "/ds/query", {"queries": [query], "from": "now-5m", "to": "now"})
        results = self.object_of(found, "/ds/query").get("results")
        result = results.get("A") if isinstance(results, dict) else None
        if not isinstance(result, dict):
            raise self.strange("/ds/query")
        if result.get("error"):
            raise GrafanaError(
                f"The data source {uid} does not answer: {self._clean(str(result['error']))}.",
                status=400,
                retryable=False,
                hint="Look at its address and its credentials in Grafana, under Connections, Data sources.",
            )

    # Annotations

    def annotations(self, tag: str) -> list[Annotation]:
        """All annotations with a tag, the oldest first."""
        query = urlencode({"tags": tag, "limit": MOST_ANNOTATIONS}, quote_via=quote)
        found = self.call("GET", f"/annotations?{query}")
        if not isinstance(found, list):
            raise self.strange("/annotations")
        annotations = [
            Annotation(
                int(entry["id"]),
                str(entry.get("text", "")),
                tuple(map(str, entry.get("tags") or ())),
                int(entry.get("time") or 0),
                int(entry.get("timeEnd") or 0),
                str(entry.get("dashboardUID") or ""),
            )
            for entry in found
            if isinstance(entry, dict) and isinstance(entry.get("id"), int)
        ]
        return sorted((one for one in annotations if tag in one.tags), key=lambda one: one.id)

    def add_annotation(
        self, *, time_ms: int, end_ms: int | None, tags: Sequence[str], text: str, dashboard_uid: str
    ) -> None:
        """Put a mark, or a region where ``end_ms`` is given, onto a dashboard, or onto the organisation with "".

        Never repeated here: nothing but a tag of the caller's own tells whether it is there already.
        """
        body: Json = {"time": time_ms, "tags": list(tags), "text": text}
        body |= {"timeEnd": end_ms} if end_ms is not None else {}
        body |= {"dashboardUID": dashboard_uid} if dashboard_uid else {}
        self.call("POST", "/annotations", body)

    def change_annotation(self, annotation: int, *, text: str, end_ms: int | None) -> bool:
        """Give it another text, and an end if there is one. Never its tags: 9.2 on SQLite hangs over those.

        Returns False if somebody has deleted it.
        """
        body: Json = {"text": text} | ({"timeEnd": end_ms} if end_ms is not None else {})
        try:
            self.call("PATCH", f"/annotations/{annotation}", body)
        except GrafanaError as error:
            if error.status == 404:
                return False
            raise
        return True

    def delete_annotation(self, annotation: int) -> None:
        """Delete it; one that is gone is fine."""
        self.delete(f"/annotations/{annotation}")

    # The calls themselves

    def get(self, path: str, *, missing: Collection[int] = (404,)) -> Json | None:
        """GET an object; None where the status is one of ``missing``."""
        try:
            return self.object_of(self.call("GET", path), path)
        except GrafanaError as error:
            if error.status in missing:
                return None
            raise

    def delete(self, path: str, *, locked: bool = False) -> None:
        """DELETE; what is gone already is fine."""
        try:
            self.call("DELETE", path, locked=locked)
        except GrafanaError as error:
            if error.status != 404:
                raise

    def create(
        self,
        path: str,
        body: Mapping[str, Any],
        is_there: Callable[[], bool],
        *,
        exists: Collection[int] = (400, 409, 412, 500),
    ) -> bool:
        """POST once, and again only if the object is not there: an answer that is lost proves nothing.

        Returns whether this made it; False if it is there, whoever made it. The versions say that it is there by one of
        the statuses in ``exists``, as they say that the request is wrong.
        """
        for attempt in range(self._access.retries + 1):
            try:
                self._once("POST", path, body)
                return True
            except GrafanaError as error:
                passing = error.retryable and attempt < self._access.retries
                if error.status in exists and is_there():
                    return False
                wait_s = self._wait_s(error, attempt)
                if not passing or wait_s is None:
                    raise
            self._sleep(wait_s)
            if is_there():
                return False
        raise AssertionError("unreachable: the last attempt returns or raises")

    def call(self, verb: str, path: str, body: Mapping[str, Any] | None = None, *, locked: bool = False) -> Any:
        """One call, repeated where that is harmless: always, but for POSTs that make something.

        What we provision stays editable in the browser, but for what is ``locked`` already: by a Grafana before 9.5, or
        by another program. That must stay so, or Grafana refuses the call.
        """
        repeatable = verb != "POST" or path == "/ds/query"
        for attempt in range(self._access.retries + 1):
            try:
                return self._once(verb, path, body, locked=locked)
            except GrafanaError as error:
                wait_s = self._wait_s(error, attempt)
                if not repeatable or not error.retryable or wait_s is None or attempt == self._access.retries:
                    raise
            self._sleep(wait_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _wait_s(self, error: GrafanaError, attempt: int) -> float | None:
        """Seconds until the next attempt: what Grafana asks for, else 0.5, 1, 2, ...; None if that is too long."""
        wait_s = 0.5 * 2**attempt if error.retry_after_s is None else error.retry_after_s
        return wait_s if wait_s <= LONGEST_WAIT_S else None

    def _once(self, verb: str, path: str, body: Mapping[str, Any] | None, *, locked: bool = False) -> Any:
        """One call. Our errors are raised outside of the except clauses, whose errors hold what must not show."""
        import requests
        import urllib3

        retryable, hint = True, ""
        headers = {"X-Disable-Provenance": "true"} if path.startswith(PROVISIONING) and not locked else None
        refused: GrafanaError | None = None
        try:
            return getattr(self._face.api, verb)(path, json=body, headers=headers)
        except GrafanaError as error:
            refused = error
        except requests.exceptions.SSLError:
            problem, retryable = "its certificate or TLS version is refused", False
            hint = "Name its certificate authority: ca_file, or --ca-file"
        except requests.exceptions.ProxyError:
            problem, hint = "the proxy does not let us through", "See HTTPS_PROXY and NO_PROXY in the environment."
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            problem = f"no answer within {self._access.timeout_s:g} s"
        except (requests.exceptions.ConnectionError, urllib3.exceptions.HTTPError) as error:
            problem = connection_problem(error)
        except requests.exceptions.ChunkedEncodingError:
            problem = "the connection was lost"
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            problem, retryable = f"the request cannot be made ({type(error).__name__})", False
            hint = "Check the address and the certificate authorities."
        if refused is not None:
            raise GrafanaError(
                f"{verb} /api{path.partition('?')[0]}: {refused.message}",
                status=refused.status,
                retryable=refused.retryable,
                retry_after_s=refused.retry_after_s,
                hint=refused.hint,
            )
        self.close()  # the next attempt starts with a new connection
        raise GrafanaError(
            f"Grafana at {self.place} does not answer: {problem}.", status=None, retryable=retryable, hint=hint
        )

    @cached_property
    def _face(self) -> GrafanaFace:
        import urllib3
        from grafana_api.grafana_face import GrafanaFace

        path = self._parts.path.strip("/")
        host = self._parts.hostname or ""
        face = GrafanaFace(
            auth=self._auth,
            host=f"[{host}]" if ":" in host else host,
            port=self._parts.port,
            protocol=self._parts.scheme,
            url_path_prefix=f"{path}/" if path else "",
            verify=self._access.verify,
            timeout=self._access.timeout_s,
        )
        if self._access.verify is False:
            import warnings

            # `driftd check` says so once; the library would say it at every request.
            warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)
        session: requests.Session = face.api.s
        session.headers.update({"User-Agent": "driftd", "Accept": "application/json"})
        if self._access.org_id is not None:
            session.headers["X-Grafana-Org-Id"] = str(self._access.org_id)
        session.hooks["response"].append(self._read)
        self._session = session
        return face

    def _read(self, response: requests.Response, **_options: object) -> None:
        """Read an answer whole, within its time and size, before the library looks at it; raise what it says."""
        status = response.status_code
        try:
            body = self._body_of(response)
        except BaseException:
            response.close()
            raise
        response._content = body or b"null"  # DELETE answers 204 and nothing
        response._content_consumed = True  # type: ignore[attr-defined]
        retry_s = retry_after_s(response.headers.get("Retry-After"), self._clock()) if status in RETRYABLE else None
        if 300 <= status < 400:
            login = "/login" in response.headers.get("Location", "")
            problem = "to its login page" if login else "to another address"
            raise GrafanaError(
                f"Grafana at {self.place} redirects {problem} ({status}), which driftd does not follow.",
                status=status,
                retryable=False,
                hint="Check the address: its scheme, and the path that Grafana is served below.",
            )
        value, words, page = None, "", False
        try:
            value = json.loads(body) if body else None
            words = _words(value)
        except (ValueError, RecursionError):
            page = True
        if status >= 400:
            what = f"{status}: {self._clean(words)}" if words else f"{status}, without a reason that could be read"
            raise GrafanaError(
                f"Grafana at {self.place} answers {what}.",
                status=status,
                retryable=status in RETRYABLE,
                retry_after_s=retry_s,
                hint=_hint(status, value, page=page),
            )
        if page:
            raise GrafanaError(
                f"What answers at {self.place} sends {status} and a page instead of JSON.",
                status=status,
                retryable=False,
                hint="A proxy or a login page may stand in between: check the address.",
            )

    def _body_of(self, response: requests.Response) -> bytes:
        """The body, within twice the time-out: each wait has one of its own, and a trickle would go on for ever."""
        import requests

        deadline = self._timer() + 2 * self._access.timeout_s
        parts, size = [], 0
        while part := response.raw.read1(1 << 16, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise GrafanaError(
                    f"Grafana at {self.place} answers with more than {MOST_BYTES >> 20} MiB.",
                    status=response.status_code,
                    retryable=False,
                )
            if self._timer() > deadline:
                raise requests.exceptions.ReadTimeout
        return b"".join(parts)

    def hide(self, secrets: Iterable[str]) -> None:
        """Keep these out of every message, should Grafana quote them."""
        self._secrets |= {secret for secret in secrets if secret}

    def object_of(self, value: Any, path: str) -> Json:
        """The answer to ``path``, which must be a JSON object."""
        if not isinstance(value, dict):
            raise self.strange(path)
        return value

    def strange(self, path: str) -> GrafanaError:
        """The error for an answer to ``path`` of an unexpected shape."""
        return GrafanaError(
            f"Grafana at {self.place} answers /api{path} with JSON of another shape than expected.",
            status=200,
            retryable=False,
            hint="Check the address; driftd knows Grafana 9.2 to 12.",
        )

    def _clean(self, words: str) -> str:
        """Grafana's words on one line, without our secrets."""
        for secret in self._secrets:
            words = words.replace(secret, "***")
        words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return (words if len(words) <= 300 else words[:299] + "…").rstrip(".")


def quoted(part: str) -> str:
    """A part of a path."""
    return quote(part, safe="")


def checked_uid(uid: str) -> str:
    """The uid, if Grafana takes it.

    Raises:
        InvalidInput: it is empty, longer than 40 characters, or has others than letters, digits, - and _.
    """
    if not _UID.fullmatch(uid):
        raise InvalidInput(f'"{uid}" is no uid: Grafana takes up to 40 letters, digits, - and _.')
    return uid


def _words(value: Any) -> str:
    """What an answer says in words. The key differs, and some answers are lists, or nothing."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_words, value[:3])))
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    results = value.get("results")
    if isinstance(results, dict):  # of a query
        return "; ".join(filter(None, map(_words, results.values())))
    said = [str(value[key]) for key in ("message", "msg", "error") if isinstance(value.get(key), str) and value[key]]
    return ": ".join(dict.fromkeys(said))


_CONFLICTS = {
    "version-mismatch": "Somebody has saved it in the meantime. Look at the difference, and publish again.",
    "name-exists": "Another dashboard of that folder has the same title. Rename it or delete it.",
    "plugin-dashboard": "A plugin owns it. Delete it, or the plugin.",
}


def _hint(status: int, value: Any, *, page: bool) -> str:
    if page:
        return "The answer is a page, not JSON: a proxy may stand in between."
    if status == 412 and isinstance(value, dict) and value.get("status") in _CONFLICTS:
        return _CONFLICTS[value["status"]]
    return {
        401: "The token is wrong, has expired, or was deleted. Make another: docs/grafana.md",
        403: "The token needs the role Editor for dashboards and annotations, Admin for data sources and rules.",
        409: "An object of that name or title is there already: rename it or delete it in Grafana.",
        429: "Grafana asks for less. Try again later.",
    }.get(status, "")
