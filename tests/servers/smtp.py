"""A real mail server for the tests: aiosmtpd on a free port, which keeps what it got and refuses what it is told to.

with MailServer() as server:                                   # plain text
with MailServer(tls=context, users={"anna": "secret"}) as server:   # STARTTLS, and log-in after it
with MailServer(tls=context, from_the_start=True) as server:

server.answers["bob@example.org"] = "550 no such user"         # to RCPT; to "DATA" and "MAIL" as well
server.mails                                                   # what was taken: .to, .message
"""

from __future__ import annotations

import asyncio
import email.policy
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesParser
from types import TracebackType
from typing import Any, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


@dataclass(frozen=True)
class Mail:
    """One message that was taken: for whom in this attempt, and the message."""

    sender: str
    to: tuple[str, ...]
    raw: bytes
    message: EmailMessage


class MailServer:
    """See the top of this file.

    Attributes:
        mails: what was taken, oldest first.
        answers: to RCPT by address, to "MAIL" and "DATA".
        logged_in: the users who did.
        delay_s: how long each answer to RCPT takes.
    """

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, from_the_start: bool = False, users: Mapping[str, str] | None = None
    ) -> None:
        self.mails: list[Mail] = []
        self.answers: dict[str, str] = {}
        self.logged_in: list[str] = []
        self.delay_s = 0.0
        self._changed = threading.Condition()
        self._users = users

        def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            known = (
                isinstance(data, LoginPassword)
                and self._users is not None
                and self._users.get(data.login.decode()) == data.password.decode()
            )
            if known:
                self.logged_in.append(data.login.decode())
            return AuthResult(success=known, handled=False)

        options: dict[str, Any] = {"hostname": "127.0.0.1", "port": 0, "ident": "tests"}
        if tls is not None:
            options["ssl_context" if from_the_start else "tls_context"] = tls
            if not from_the_start:
                options["require_starttls"] = True
        if users is not None:
            # aiosmtpd takes TLS from the start for none, and then warns of a log-in that is required.
            required = not from_the_start
            options |= {"authenticator": authenticate, "auth_required": required, "auth_require_tls": required}
        self._controller = _OnAFreePort(self, **options)

    @property
    def port(self) -> int:
        return self._controller.bound_port

    def __enter__(self) -> MailServer:
        self._controller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.stop()

    # --- what aiosmtpd calls ---

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        await asyncio.sleep(self.delay_s)
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("2"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        answer = self.answers.get("DATA", "250 OK")
        if answer.startswith("2"):
            parsed = cast(EmailMessage, BytesParser(policy=email.policy.default).parsebytes(envelope.content))
            self.mails.append(Mail(envelope.mail_from, tuple(envelope.rcpt_tos), envelope.content, parsed))
        return answer


class _OnAFreePort(Controller):
    """aiosmtpd's controller knocks at the port that it was given, which may not be 0."""

    bound_port = 0

    def _trigger_server(self) -> None:
        self.bound_port = self.server.sockets[0].getsockname()[1]
        self.port = self.bound_port
        super()._trigger_server()
