"""One conversation with a mail server (RFC 5321): each step has its time limit, and so has all of it.

Errors are raised outside of the except clauses, without what the library raised: that quotes what was said, which may
be a secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from connectors.console import printable
from connectors.http_sink import TLS_HINT
from connectors.message import shortened
from detectors.errors import SinkError

if TYPE_CHECKING:
    import smtplib
    import ssl

# All steps together stay below the time after which another process sends the message (monitor/outbox.py).
LONGEST_S = 45.0


class Conversation:
    """One connection to one server. Leaving the block closes it.

    Args:
        timeout_s: for the connection, and for each answer.
        place: the server in errors.
    """

    def __init__(self, host: str, port: int, timeout_s: float, place: str) -> None:
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self._place = place
        self._deadline = time.monotonic() + LONGEST_S
        self._smtp: smtplib.SMTP | None = None

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        import smtplib

        if self._smtp is not None:
            try:
                self._smtp.quit()
            except (OSError, smtplib.SMTPException):  # the message was taken or refused before; nothing hangs on it
                self._smtp.close()

    def connect(self, context: ssl.SSLContext | None) -> None:
        import smtplib

        def connected() -> tuple[int, bytes]:
            if context is None:
                self._smtp = smtplib.SMTP(self._host, self._port, timeout=self._timeout_s)
            else:
                self._smtp = smtplib.SMTP_SSL(self._host, self._port, timeout=self._timeout_s, context=context)
            return 220, b""

        self._judge("connection", *self._guarded(connected))

    def start_tls(self, context: ssl.SSLContext) -> None:
        smtp = self._open()
        if not smtp.has_extn("starttls"):
            raise SinkError(
                f"The mail server {self._place} does not offer STARTTLS.",
                retryable=False,
                hint="Set security to tls, with port 465, or to none inside a network of your own.",
            )
        self.step("STARTTLS", lambda smtp: smtp.starttls(context=context))
        self.step("greeting", lambda smtp: smtp.ehlo())

    def log_in(self, user: str, password: str) -> None:
        import smtplib

        def logged_in(smtp: smtplib.SMTP) -> tuple[int, bytes]:
            try:
                return smtp.login(user, password)
            except smtplib.SMTPAuthenticationError as error:
                return error.smtp_code, b""  # its text is not shown: nobody knows what is in it
            except smtplib.SMTPServerDisconnected:
                raise
            except smtplib.SMTPException:
                return 504, b"no way of logging in that both sides know"

        try:
            self.step("log-in", logged_in)
            return
        except SinkError as error:
            problem, retryable = error.message, error.retryable
        raise SinkError(problem, retryable=retryable, hint="Check user and password.")

    def ask(self, command: Callable[[smtplib.SMTP], tuple[int, bytes]]) -> tuple[int, str]:
        """One command: the answer's code and text."""
        smtp = self._open()
        remaining = self._deadline - time.monotonic()
        if smtp.sock is not None:
            smtp.sock.settimeout(max(0.001, min(self._timeout_s, remaining)))
        return self._guarded(lambda: command(smtp))

    def step(self, what: str, command: Callable[[smtplib.SMTP], tuple[int, bytes]]) -> None:
        """One command, whose answer must be yes."""
        self._judge(what, *self.ask(command))

    def _open(self) -> smtplib.SMTP:
        if self._smtp is None:
            raise SinkError(f"The mail server {self._place} is not connected.", retryable=True)
        return self._smtp

    def _judge(self, what: str, code: int, said: str) -> None:
        if code >= 400 or code < 0:
            text = f": {said}" if said else ""
            raise SinkError(
                f"The mail server {self._place} answers {code} to our {what}{text}.", retryable=not 500 <= code < 600
            )

    def _guarded(self, command: Callable[[], tuple[int, bytes]]) -> tuple[int, str]:
        import smtplib
        import ssl

        hint, retryable = "", True
        try:
            code, said = command()
            return code, shortened(printable(said.decode(errors="replace").strip()), 200)
        except smtplib.SMTPResponseException as error:
            text = error.smtp_error
            said = text if isinstance(text, bytes) else str(text).encode()
            return error.smtp_code, shortened(printable(said.decode(errors="replace").strip()), 200)
        except smtplib.SMTPServerDisconnected as error:
            timed_out = isinstance(error.__context__, TimeoutError)
            problem = f"no answer within {self._timeout_s:g} s" if timed_out else "it ends the connection"
        except ssl.SSLCertVerificationError as error:
            problem, hint = f"its certificate is refused: {error.verify_message}", TLS_HINT
        except ssl.SSLError as error:
            problem = f"TLS fails: {(error.reason or type(error).__name__).replace('_', ' ').lower()}"
            hint = "Do security and port belong together? starttls has 587, tls has 465."
        except TimeoutError:
            problem = f"no answer within {self._timeout_s:g} s"
        except (OSError, UnicodeError) as error:
            problem = (getattr(error, "strerror", None) or type(error).__name__).lower()
        except (smtplib.SMTPException, ValueError) as error:
            problem, retryable = f"it does not speak SMTP as expected ({type(error).__name__})", False
        if self._smtp is not None:
            self._smtp.close()
        raise SinkError(f"The mail server {self._place} cannot be used: {problem}.", retryable=retryable, hint=hint)
