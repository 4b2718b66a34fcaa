"""Sink `email`: one message for what is new of a model, over SMTP (RFC 5321), as plain text and as HTML.

Its Message-ID comes from the ids of the notifications, so that what is sent again after a crash is the same message,
and all messages about a model refer to one that was never sent, which makes mail programs show them as one thread.

Where a server takes the message for some recipients and puts others off, the next attempt goes to those only.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from connectors.console import printable
from connectors.http_sink import http_address, read_secret
from connectors.message import Entry, Message, Urgency, group_id, message_of, shortened
from connectors.notification import Group, Notification
from connectors.smtp import Conversation
from detectors.errors import InvalidSettings, SinkError

if TYPE_CHECKING:
    import ssl

_log = logging.getLogger(__name__)

Security = Literal["starttls", "tls", "none"]

_PORTS: dict[Security, int] = {"starttls": 587, "tls": 465, "none": 25}
_SUBJECT = 200  # characters
# RFC 5321, without quoted local parts and addresses of numbers, which nobody's alerts go to.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_COLOURS: dict[Urgency, str] = {"PAGE": "#c4162a", "WARN": "#b36b00", "RESOLVED": "#37872d"}


class EmailSettings(BaseModel, frozen=True, extra="forbid"):
    """E-mail over SMTP: one message for what is new of a model, as text and as HTML."""

    kind: Literal["email"] = "email"
    host: str = Field(min_length=1, description="name or address of the mail server")
    security: Security = Field(
        "starttls", description="starttls: begin in plain text, then TLS; tls: TLS from the start; none: neither"
    )
    port: int | None = Field(None, ge=1, le=65535, description="default: 587, with tls 465, with none 25")
    user: str | None = Field(None, pattern=r"^[!-~]+$", description="user name; without it, driftd does not log in")
    password: SecretStr | None = Field(None, description="password; better in the environment or password_file")
    password_file: Path | None = Field(None, description="file that holds the password")
    sender: str = Field(description="the address that messages come from")
    to: list[str] = Field(min_length=1, description="addresses that get them")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")
    timeout_s: float = Field(5.0, gt=0, le=25, description="seconds to wait for the connection, and for each answer")
    external_url: str = Field("", description="address of driftd's status page, for the link in the message")

    @field_validator("sender")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not _ADDRESS.fullmatch(value):
            raise ValueError("expected an address such as driftd@example.org, without a name")
        return value

    @field_validator("to")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        return [cls._is_an_address(address) for address in dict.fromkeys(value)]

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", value):
            raise ValueError("expected the name of a mail server such as smtp.example.org")
        return value

    @field_validator("external_url")
    @classmethod
    def _is_a_link(cls, value: str) -> str:
        return value and http_address(SecretStr(value)).get_secret_value()

    @model_validator(mode="after")
    def _belong_together(self) -> EmailSettings:
        given = sum(secret is not None for secret in (self.password, self.password_file))
        if given != (self.user is not None):
            raise ValueError("user needs one of password and password_file, and neither is used without user")
        if self.user is not None and self.security == "none":
            raise ValueError("security none would send the password in plain text; use starttls or tls")
        return self

    def build(self) -> EmailSink:
        """The sink. Reads ``password_file`` and ``ca_file``; connects with the first message.

        Raises:
            InvalidSettings: one of them cannot be read, or the password is empty.
        """
        password = read_secret(self.password, self.password_file, what="mail server", key="password")
        context = None if self.security == "none" else _tls_context(self.ca_file)
        if password is not None and not password.isascii():
            raise InvalidSettings(
                "The mail server's password has characters beyond ASCII, which cannot be sent.",
                hint="Set another one at the mail server, and here: sinks.NAME.password",
            )
        login = None if self.user is None or password is None else (self.user, password.decode())
        return EmailSink(
            self.host,
            _PORTS[self.security] if self.port is None else self.port,
            sender=self.sender,
            to=self.to,
            context=context,
            begins_with_tls=self.security == "tls",
            login=login,
            timeout_s=self.timeout_s,
            external_url=self.external_url,
        )


def message_for(group: Group, *, sender: str, to: Sequence[str], now_s: float, external_url: str = "") -> EmailMessage:
    """The message about a group.

    Args:
        now_s: seconds since 1970, for the header Date.
    """
    words = message_of(group)
    domain = sender.rpartition("@")[2]
    thread = f"<driftd.{hashlib.sha256(group.key.encode(errors='replace')).hexdigest()[:32]}@{domain}>"
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))  # every server takes that
    message["From"] = sender
    message["To"] = ", ".join(to)
    message["Subject"] = shortened(f"[driftd] {words.subject}", _SUBJECT)
    message["Date"] = format_datetime(datetime.fromtimestamp(now_s, UTC))
    digest = hashlib.sha256(group_id(group).encode(errors="replace")).hexdigest()[:32]
    message["Message-ID"] = f"<driftd.{digest}@{domain}>"
    message["In-Reply-To"] = thread
    message["References"] = thread
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies, please
    message["X-Driftd-Model"] = shortened(printable(group.key), _SUBJECT)
    message["X-Driftd-Severity"] = group.severity
    message.set_content(_text(words, external_url))
    message.add_alternative(_html(words, external_url), subtype="html")
    return message


class EmailSink:
    """Delivers over SMTP, with a connection for each message. Called from one thread.

    Args:
        host, port: of the mail server.
        sender, to: addresses.
        context: for TLS; None for none.
        begins_with_tls: TLS from the start, not by STARTTLS.
        login: user name and password.
        timeout_s: for the connection, and for each answer.
        external_url: goes into the message.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        sender: str,
        to: Sequence[str],
        context: ssl.SSLContext | None = None,
        begins_with_tls: bool = False,
        login: tuple[str, str] | None = None,
        timeout_s: float = 5.0,
        external_url: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host, self._port = host, port
        self._sender = sender
        self._to = tuple(to)
        self._context = context
        self._begins_with_tls = begins_with_tls
        self._login = login
        self._timeout_s = timeout_s
        self._external_url = external_url
        self._clock = clock
        self._taken: tuple[str, frozenset[str]] = ("", frozenset())  # a message, and who has it already

    def __repr__(self) -> str:
        return f"EmailSink({self.place})"

    @property
    def place(self) -> str:
        """Host and port."""
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    def send(self, notification: Notification) -> None:
        """Send one; see `send_group`."""
        self.send_group(Group.of(notification))

    def send_group(self, group: Group) -> None:
        """Send one message. Whoever is refused for good is named in the log, where others took it.

        Raises:
            SinkError: retryable for answers of 4xx, and when there is no connection or no answer.
        """
        message = message_for(
            group, sender=self._sender, to=self._to, now_s=self._clock(), external_url=self._external_url
        )
        identity, had = str(message["Message-ID"]), frozenset[str]()
        if self._taken[0] == identity:
            had = self._taken[1]
        put_off, refused = self._deliver(message.as_bytes(), [one for one in self._to if one not in had])
        took = had | set(self._to) - put_off.keys() - refused.keys()
        self._taken = (identity, frozenset(took)) if put_off else ("", frozenset())
        if put_off:
            raise SinkError(
                f"The mail server {self.place} puts off {_people(put_off)}.",
                retryable=True,
                hint="The others have it." if took else "",
            )
        if not took:
            raise SinkError(
                f"The mail server {self.place} refuses {_people(refused)}.",
                retryable=False,
                hint="Check to and sender.",
            )
        if refused:
            _log.warning("mail server refuses some recipients: server=%s recipients=%s", self.place, _people(refused))

    def check(self) -> str:
        """Connect, greet and log in, but send nothing.

        Raises:
            SinkError: one of these fails.
        """
        with Conversation(self._host, self._port, self._timeout_s, self.place) as conversation:
            self._begin(conversation)
        how = "no TLS" if self._context is None else "TLS" if self._begins_with_tls else "STARTTLS"
        who = f"logged in as {self._login[0]}" if self._login else "without log-in"
        return f"email {self.place}, {how}, {who}, to {len(self._to)} address{'es' * (len(self._to) > 1)}"

    def close(self) -> None:
        """Nothing to release: each message has a connection of its own."""

    def _deliver(self, data: bytes, to: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Who was put off (4xx), and who was refused (5xx), with what the server said."""
        put_off: dict[str, str] = {}
        refused: dict[str, str] = {}
        with Conversation(self._host, self._port, self._timeout_s, self.place) as conversation:
            self._begin(conversation)
            conversation.step("sender", lambda smtp: smtp.mail(self._sender))
            for address in to:
                code, said = conversation.ask(methodcaller("rcpt", address))
                if code >= 400:
                    (put_off if code < 500 else refused)[address] = f"{code} {said}"
            if len(put_off) + len(refused) < len(to):
                conversation.step("message", lambda smtp: smtp.data(data))
        return put_off, refused

    def _begin(self, conversation: Conversation) -> None:
        conversation.connect(self._context if self._begins_with_tls else None)
        conversation.step("greeting", lambda smtp: smtp.ehlo())
        if self._context is not None and not self._begins_with_tls:
            conversation.start_tls(self._context)
        if self._login is not None:
            conversation.log_in(*self._login)


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or type(error).__name__
        raise InvalidSettings(
            f"The mail server's ca_file {ca_file} cannot be used: {reason}.", hint="Name a PEM file: sinks.NAME.ca_file"
        ) from error


def _people(answers: dict[str, str]) -> str:
    shown = "; ".join(f"{address} ({said})" for address, said in list(answers.items())[:3])
    return shown if len(answers) <= 3 else f"{shown}; and {len(answers) - 3} more"


def _text(words: Message, external_url: str) -> str:
    parts = []
    for entry in words.entries:
        lines = [entry.headline, entry.facts, "", entry.text]
        parts.append("\n".join([*lines, *(["", f"Next: {entry.next}"] if entry.next else [])]))
    ends = "\n".join(part for part in (words.more, words.state, external_url) if part)
    return "\n\n----\n\n".join(parts) + (f"\n\n----\n\n{ends}\n" if ends else "\n")


def _html(words: Message, external_url: str) -> str:
    ends = [html.escape(part) for part in (words.more, words.state) if part]
    if external_url:
        ends.append(f'<a href="{html.escape(external_url)}">driftd</a>')
    return (
        '<!DOCTYPE html>\n<html><body style="font-family: sans-serif; max-width: 44em">\n'
        + "\n".join(_section(entry) for entry in words.entries)
        + f'\n<p style="color: #666">{" · ".join(ends)}</p>\n</body></html>\n'
    )


def _section(entry: Entry) -> str:
    colour = _COLOURS[entry.urgency]
    title = entry.headline.removeprefix(entry.urgency)
    following = f"<p>Next: <code>{html.escape(entry.next)}</code></p>" if entry.next else ""
    return (
        f'<div style="border-left: 4px solid {colour}; padding-left: 1em; margin-bottom: 1.5em">'
        f'<p><b><span style="color: {colour}">{entry.urgency}</span>{html.escape(title)}</b><br>'
        f'<span style="color: #666">{html.escape(entry.facts)}</span></p>'
        f"<p>{html.escape(entry.text)}</p>{following}</div>"
    )
