"""Schemas by number: from a Confluent-compatible registry over HTTP, or from a folder of files.

Schemas never change under their number, so each is asked for once. A number that is unknown is asked for again after
half a minute. At most `MAX_SCHEMAS` are remembered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from detectors.errors import AccessRefused, InvalidSettings, SourceError, SourceUnreachable

MAX_SCHEMAS: Final = 1000
UNKNOWN_FOR_S: Final = 30.0
MAX_ANSWER: Final = 4 << 20  # bytes of one schema
MAX_REFERENCES: Final = 100  # schemas that one schema is made of


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as it is registered.

    Attributes:
        kind: "AVRO", "JSON" or another of the registry's names.
        text: the schema itself.
        references: the texts of the schemas that it names, those that others need first.
    """

    kind: str
    text: str
    references: tuple[str, ...] = ()


class Schemas(Protocol):
    """Where schemas are looked up."""

    def find(self, number: str) -> Schema | None:
        """The schema of a number ("7") or a GUID; None if there is none.

        Raises:
            SourceError: the registry cannot be asked now.
        """

    def check(self) -> str:
        """Look once, and say what is there. Raises SourceError, InvalidSettings."""


class SchemaSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the schemas of Confluent-framed records are: a registry, or a folder of files."""

    url: str | None = Field(None, description="http:// or https:// address of the schema registry")
    directory: Path | None = Field(
        None, description="a folder with NUMBER.avsc for each Avro schema and NUMBER.json for each JSON schema"
    )
    username: str | None = Field(None, description="for basic authentication")
    password: SecretStr | None = Field(None, description="for basic authentication")
    password_file: Path | None = Field(None, description="file that holds the password, instead of password")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")
    timeout_s: float = Field(5.0, gt=0, le=20, description="seconds to wait for the connection, and for an answer")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("expected an address such as https://registry:8081")
        if "@" in urlsplit(value).netloc:
            raise ValueError("a name and a password do not belong into the address: set username and password")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _is_one_place(self) -> SchemaSettings:
        if (self.url is None) == (self.directory is None):
            raise ValueError("expected either url or directory")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file are both set; keep one")
        if (self.username is None) != (self.password is None and self.password_file is None):
            raise ValueError("username needs password or password_file, and they need username")
        return self

    def build(self) -> Schemas:
        """Reads ``password_file``; asks nobody yet.

        Raises:
            InvalidSettings: a file or folder that is named cannot be read.
        """
        if self.directory is not None:
            if not self.directory.is_dir():
                raise InvalidSettings(
                    f"The folder of schemas {self.directory} does not exist.", hint="Set record.schemas.directory"
                )
            return SchemaFolder(self.directory)
        password = "" if self.password is None else self.password.get_secret_value()
        if self.password_file is not None:
            try:
                password = self.password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidSettings(
                    f"The registry's password_file {self.password_file} cannot be read.",
                    hint="Put the password there, or name another file: record.schemas.password_file",
                ) from error
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidSettings(
                f"The registry's ca_file {self.ca_file} does not exist.", hint="Name a PEM file: record.schemas.ca_file"
            )
        return SchemaRegistry(
            str(self.url),
            login=None if self.username is None else (self.username, password),
            timeout_s=self.timeout_s,
            ca_file=self.ca_file,
        )


class SchemaFolder:
    """Schemas in files: NUMBER.avsc (Avro) and NUMBER.json (JSON), or the GUID in place of the number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, number: str) -> Schema | None:
        for kind, suffix in (("AVRO", ".avsc"), ("JSON", ".json")):
            path = self._directory / f"{number}{suffix}"
            try:
                return Schema(kind, path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"The schema {path} cannot be read: {error}.") from error
        return None

    def check(self) -> str:
        files = [path for path in self._directory.glob("*") if path.suffix in (".avsc", ".json")]
        return f"{len(files)} schemas in {self._directory}"


class SchemaRegistry:
    """A registry with Confluent's REST interface (Confluent, Karapace, Apicurio's compatible one, Redpanda).

    Args:
        url: without a slash at its end.
        login: name and password for basic authentication.
        clock: seconds; says when an unknown number is asked for again.
    """

    def __init__(
        self,
        url: str,
        *,
        login: tuple[str, str] | None = None,
        timeout_s: float = 5.0,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._login = login
        self._timeout_s = timeout_s
        self._verify: str | bool = True if ca_file is None else str(ca_file)
        self._clock = clock
        self._known: dict[str, Schema] = {}
        self._unknown_until: dict[str, float] = {}

    def find(self, number: str) -> Schema | None:
        schema = self._known.get(number)
        if schema is not None:
            return schema
        if self._clock() < self._unknown_until.get(number, float("-inf")):
            return None
        answer = self._get(f"/schemas/{'guids' if '-' in number else 'ids'}/{number}")
        if answer is None:
            _remember(self._unknown_until, number, self._clock() + UNKNOWN_FOR_S)
            return None
        text = _text_of(answer)
        schema = Schema(str(answer.get("schemaType", "AVRO")), text, self._references(answer))
        _remember(self._known, number, schema)
        return schema

    def check(self) -> str:
        self._get("/subjects")
        return f"schema registry {self._url} answers"

    def _references(self, answer: dict[str, Any]) -> tuple[str, ...]:
        """The schemas that a schema names, each once, after those that it names itself."""
        texts: dict[tuple[str, int], str] = {}
        under_way: set[tuple[str, int]] = set()

        def collect(of: dict[str, Any]) -> None:
            for reference in of.get("references") or ():
                key = (str(reference["subject"]), int(reference["version"]))
                if key in texts or key in under_way:
                    continue
                under_way.add(key)
                if len(under_way) > MAX_REFERENCES:
                    raise SourceError(f"A schema of the registry {self._url} names more than {MAX_REFERENCES} others.")
                found = self._get(f"/subjects/{quote(key[0], safe='')}/versions/{key[1]}")
                if found is None:
                    raise SourceError(f"The registry {self._url} has no version {key[1]} of {key[0]}, which is named.")
                collect(found)
                texts[key] = _text_of(found)

        try:
            collect(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(f"The registry {self._url} answers with references that cannot be read.") from error
        return tuple(texts.values())

    def _get(self, path: str) -> Any:
        """What the registry answers; None where it knows no such thing."""
        import requests

        # A session for each question: few are asked, and none leaves a connection open.
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy, no password that happens to be in the environment
                response = session.get(
                    self._url + path,
                    auth=self._login,
                    timeout=self._timeout_s,
                    verify=self._verify,
                    stream=True,
                    headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
                )
                with response:
                    body = response.raw.read(MAX_ANSWER + 1, decode_content=True)
                    status = response.status_code
        except (requests.RequestException, OSError) as error:
            raise SourceUnreachable(
                f"The schema registry {self._url} does not answer: {type(error).__name__}.",
                hint="Records wait until it does. Check record.schemas.url",
            ) from error
        except Exception as error:  # urllib3's own, while the body is read
            raise SourceUnreachable(f"The schema registry {self._url} broke off: {type(error).__name__}.") from error
        if status == 404:
            return None
        if status in (401, 403):
            raise AccessRefused(
                f"The schema registry {self._url} refuses us ({status}).",
                hint="Set record.schemas.username and password_file.",
            )
        if status != 200:
            raise SourceUnreachable(f"The schema registry {self._url} answers {status}.")
        try:
            answer = json.loads(body) if len(body) <= MAX_ANSWER else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict | list):
            raise SourceUnreachable(
                f"{self._url} does not answer like a schema registry.", hint="Check record.schemas.url"
            )
        return answer


def _text_of(answer: Any) -> str:
    text = answer.get("schema") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise SourceUnreachable("The schema registry answers without a schema.", hint="Check record.schemas.url")
    return text


def _remember(cache: dict[str, Any], key: str, value: Any) -> None:
    """Room is made by forgetting the oldest."""
    if len(cache) >= MAX_SCHEMAS:
        del cache[next(iter(cache))]
    cache[key] = value
