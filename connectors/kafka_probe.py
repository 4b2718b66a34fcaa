"""One plain conversation with a Kafka broker, to say what is wrong when the client cannot.

The client library tells nothing listening, an unknown certificate authority and a wrong password apart in its log only:
all three are the same time-out to the caller. So the stops are walked one after the other, and the first that fails
names itself: address → TCP → TLS → "do you speak Kafka?" → SASL → metadata of the topic → the brokers' own addresses.

The bytes are those of the Kafka protocol guide (ApiVersions v0, SaslHandshake v1, SaslAuthenticate v0, Metadata v4) and
of RFC 5802 and 7677 for SCRAM. Nothing is created on the broker.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator

from detectors.errors import AccessRefused, SourceError, SourceUnreachable, UnknownTopic

_API_VERSIONS, _SASL_HANDSHAKE, _METADATA, _SASL_AUTHENTICATE = 18, 17, 3, 36
_UNKNOWN_TOPIC, _TOPIC_REFUSED, _UNSUPPORTED_MECHANISM = 3, 29, 33
_LARGEST_ANSWER = 64 << 20  # metadata of every topic of a very large cluster


class KafkaSecurity(BaseModel, frozen=True, extra="forbid"):
    """How to connect and who we are."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="as the broker's listener says; SSL means TLS"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism, for SASL_PLAINTEXT and SASL_SSL"
    )
    username: str | None = Field(None, description="SASL user name")
    password: SecretStr | None = Field(None, description="SASL password; better in the environment or password_file")
    password_file: Path | None = Field(None, description="file that holds the SASL password, read at each connect")
    ca_file: Path | None = Field(None, description="PEM file of the certificate authority; default: the system's")
    cert_file: Path | None = Field(None, description="PEM file of our certificate chain, where the broker asks for one")
    key_file: Path | None = Field(None, description="PEM file of our key; default: it stands in cert_file")
    check_hostname: bool = Field(True, description="the broker's certificate must carry its host name")

    @model_validator(mode="after")
    def _belong_together(self) -> KafkaSecurity:
        if self.uses_sasl:
            if not self.username:
                raise ValueError(f"{self.protocol} needs username")
            if (self.password is None) == (self.password_file is None):
                raise ValueError(f"{self.protocol} needs one of password and password_file")
        elif self.username or self.password is not None or self.password_file is not None:
            raise ValueError(
                f"username and password are only used with SASL_SSL or SASL_PLAINTEXT, not {self.protocol}"
            )
        if not self.uses_tls and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError(f"ca_file, cert_file and key_file are only used with SSL or SASL_SSL, not {self.protocol}")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        return self

    @property
    def uses_tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def read_password(self) -> str:
        """The password, from the file where one is set.

        Raises:
            AccessRefused: the file cannot be read.
        """
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_file is None:
            return ""
        try:
            return self.password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise AccessRefused(
                f"The Kafka password file {self.password_file} cannot be read: {_why(error)}.",
                hint="Set source.security.password_file to a file that driftd's user may read.",
            ) from error

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS connections are made with; None without TLS.

        Raises:
            AccessRefused: one of the files cannot be read or holds no certificate or key.
        """
        if not self.uses_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
            if self.cert_file:
                context.load_cert_chain(str(self.cert_file), str(self.key_file) if self.key_file else None)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise AccessRefused(
                f"The TLS files of the Kafka source ({files}) cannot be used: {_why(error)}.",
                hint="Expected PEM files: ca_file with CERTIFICATE, key_file with an unencrypted PRIVATE KEY.",
            ) from error
        context.check_hostname = self.check_hostname
        return context

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for the client library.

        Raises:
            AccessRefused: a file cannot be used.
        """
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.uses_tls:
            options["ssl_context"] = self.tls_context()
        if self.uses_sasl:
            options["sasl_mechanism"] = self.mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.read_password()
        return options


@dataclass(frozen=True, slots=True)
class TopicFound:
    """What the cluster says of a topic.

    Attributes:
        broker: the address that answered.
        cluster_id: the cluster's own id.
        partitions: how many partitions the topic has.
    """

    broker: str
    cluster_id: str
    partitions: int


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port", "[::1]:port" or "host" (then port 9092).

    Raises:
        ValueError: it is none of these.
    """
    text = address.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or "9092"
        valid = bool(bracket) and (not rest or rest.startswith(":"))
    else:
        host, _, port = text.partition(":")
        port = port or "9092"
        valid = "/" not in host
    if not (host and valid and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f'expected host:port, such as "localhost:9092", not "{address}"')
    return host, int(port)


def broker_addresses(brokers: str | list[str]) -> list[str]:
    """The addresses of "host:port,host:port" or of a list.

    Raises:
        ValueError: there is none, or one of them is no address.
    """
    parts = brokers.split(",") if isinstance(brokers, str) else brokers
    addresses = [part.strip() for part in parts if part.strip()]
    for address in addresses:
        split_address(address)
    if not addresses:
        raise ValueError('expected at least one address, such as "localhost:9092"')
    return addresses


def _are_addresses(brokers: str | list[str]) -> str | list[str]:
    broker_addresses(brokers)
    return brokers


Brokers = Annotated[str | list[str], AfterValidator(_are_addresses)]
TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]


def find_topic(
    brokers: Sequence[str], topic: str, *, security: KafkaSecurity, timeout_s: float, client_id: str = "driftd"
) -> TopicFound:
    """Ask the first broker that answers about ``topic``.

    Args:
        brokers: addresses as "host:port"; tried in this order.
        timeout_s: for each stop of each address.

    Raises:
        SourceUnreachable: no address leads to a broker that answers.
        AccessRefused: certificate, password, or rights are refused by one side.
        UnknownTopic: there is no such topic; the hint holds the nearest names.
    """
    failures: list[SourceError] = []
    for address in brokers:
        try:
            with _Conversation(address, security, timeout_s=timeout_s, client_id=client_id) as conversation:
                return conversation.find(topic)
        except UnknownTopic:
            raise
        except SourceError as error:
            failures.append(error)
    # A broker that refuses us says more than one that is merely down.
    told = next((error for error in failures if isinstance(error, AccessRefused)), failures[0])
    if len(failures) > 1 and isinstance(told, SourceUnreachable):
        reasons = " ".join(error.message for error in failures)
        raise SourceUnreachable(
            f"None of {len(failures)} Kafka brokers can be used. {reasons}", hint=told.hint
        ) from told
    raise told


class _Conversation:
    """A connection to one address; leaving the block closes it."""

    def __init__(self, address: str, security: KafkaSecurity, *, timeout_s: float, client_id: str) -> None:
        self._address = address
        self._security = security
        self._timeout_s = timeout_s
        self._client_id = client_id.encode()
        self._correlation = 0
        self._socket: socket.socket | None = None

    def __enter__(self) -> _Conversation:
        host, port = split_address(self._address)
        try:
            self._socket = _connect(host, port, self._timeout_s)
        except OSError as error:
            raise SourceUnreachable(
                f"No Kafka broker at {self._address}: {_why(error)}.",
                hint="Check source.brokers, that the broker runs, and that no firewall is between.",
            ) from error
        try:
            self._start_tls(host)
            self._ask_versions()
            if self._security.uses_sasl:
                self._log_in()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def find(self, topic: str) -> TopicFound:
        answer = self._metadata([topic])
        self._reach_advertised(answer.brokers)
        error, partitions = answer.topics.get(topic, (_UNKNOWN_TOPIC, 0))
        if error == _TOPIC_REFUSED:
            raise AccessRefused(
                f'The Kafka broker {self._address} does not let {self._who()} see topic "{topic}".',
                hint=f"Grant it: kafka-acls.sh --add --allow-principal User:NAME --operation Read --topic {topic}",
            )
        if error == _UNKNOWN_TOPIC:
            names = [name for name in self._metadata(None).topics if not name.startswith("__")]
            raise UnknownTopic(
                f'The Kafka cluster at {self._address} has no topic "{topic}".', hint=_nearest(topic, names)
            )
        if error or not partitions:
            raise SourceUnreachable(
                f'Topic "{topic}" at {self._address} cannot be read now: Kafka error {error}, {partitions} partitions.',
                hint="It may still be in the making, or its leader is down. driftd tries again.",
            )
        return TopicFound(self._address, answer.cluster_id, partitions)

    def _who(self) -> str:
        return f'user "{self._security.username}"' if self._security.uses_sasl else "anonymous clients"

    def _start_tls(self, host: str) -> None:
        context = self._security.tls_context()
        if context is None:
            return
        assert self._socket is not None
        try:
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise AccessRefused(
                f"The certificate of the Kafka broker {self._address} is not accepted: {error.verify_message}.",
                hint="Set source.security.ca_file to the PEM file of the authority that signed it"
                + (", and use the host name that the certificate carries." if "match" in error.verify_message else "."),
            ) from error
        except OSError as error:
            raise SourceUnreachable(
                f"The Kafka broker {self._address} does not speak TLS: {_why(error)}.",
                hint=f"security.protocol is {self._security.protocol}: is this the broker's TLS port?",
            ) from error

    def _ask_versions(self) -> None:
        try:
            answer = self._ask(_API_VERSIONS, 0, b"")
            answer.int16()
        except TimeoutError as error:
            raise SourceUnreachable(
                f"{self._address} takes connections but does not answer within {self._timeout_s:g} s.",
                hint="The broker is stopped, overloaded or still starting.",
            ) from error
        except ssl.SSLError as error:
            # TLS 1.3 refuses a missing client certificate only after the handshake.
            raise AccessRefused(
                f"The Kafka broker {self._address} ends the TLS connection: {_why(error)}.",
                hint="It may ask for a client certificate: set source.security.cert_file and key_file.",
            ) from error
        except (OSError, _NotKafka) as error:
            other = "SSL or SASL_SSL" if not self._security.uses_tls else "another port"
            raise SourceUnreachable(
                f"{self._address} takes connections but does not answer as a Kafka broker: {_why(error)}.",
                hint=f"security.protocol is {self._security.protocol}; its listener may want {other}.",
            ) from error

    def _log_in(self) -> None:
        security = self._security
        try:
            answer = self._ask(_SASL_HANDSHAKE, 1, _text(security.mechanism))
            error = answer.int16()
            offered = [answer.text() or "" for _ in range(answer.int32())]
            if error == _UNSUPPORTED_MECHANISM or (not error and security.mechanism not in offered):
                raise AccessRefused(
                    f"The Kafka broker {self._address} does not offer {security.mechanism}.",
                    hint=f"Set source.security.mechanism to one of: {', '.join(offered)}.",
                )
            if error:
                raise AccessRefused(
                    f"The Kafka broker {self._address} takes no SASL log-in here (Kafka error {error}).",
                    hint=f"security.protocol is {security.protocol}; its listener may want one without SASL.",
                )
            password = security.read_password()
            if security.mechanism == "PLAIN":
                self._authenticate(f"\0{security.username}\0{password}".encode())
            else:
                nonce = secrets.token_urlsafe(24)
                scram_log_in(security.mechanism, security.username or "", password, self._authenticate, nonce=nonce)
        except (OSError, _NotKafka) as error:
            raise SourceUnreachable(
                f"The Kafka broker {self._address} ended the connection during the log-in: {_why(error)}.",
                hint="Check source.security.protocol and mechanism against the broker's listener.",
            ) from error

    def _authenticate(self, token: bytes) -> bytes:
        answer = self._ask(_SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        error, message = answer.int16(), answer.text()
        if error:
            raise AccessRefused(
                f'The Kafka broker {self._address} refuses user "{self._security.username}": '
                f"{message or f'Kafka error {error}'}.",
                hint="Check source.security.username, password and mechanism.",
            )
        return answer.raw()

    def _metadata(self, topics: list[str] | None) -> _Metadata:
        wanted = struct.pack(">i", -1) if topics is None else struct.pack(">i", len(topics))
        wanted += b"".join(_text(topic) for topic in topics or [])
        try:
            answer = self._ask(_METADATA, 4, wanted + b"\0")  # 0: do not make the topic
            return _Metadata.read(answer)
        except (OSError, _NotKafka) as error:
            if not self._security.uses_sasl and not isinstance(error, TimeoutError):
                raise AccessRefused(
                    f"The Kafka broker {self._address} ends connections that have not logged in.",
                    hint="Set source.security.protocol to SASL_PLAINTEXT or SASL_SSL, with username and password.",
                ) from error
            raise SourceUnreachable(
                f"The Kafka broker {self._address} does not answer the question for its topics: {_why(error)}.",
                hint="It may be overloaded or still starting.",
            ) from error

    def _reach_advertised(self, brokers: list[tuple[str, int]]) -> None:
        """The client leaves the first address for those that the brokers give for themselves: one must be reachable."""
        reasons = []
        for host, port in brokers:
            if (host, port) == split_address(self._address):
                return
            try:
                _connect(host, port, self._timeout_s).close()
                return
            except OSError as error:
                reasons.append(f"{host}:{port} ({_why(error)})")
        raise SourceUnreachable(
            f"The Kafka broker {self._address} answers, but none of the addresses that it gives for its cluster does: "
            f"{', '.join(reasons) or 'it gives none'}.",
            hint="Set advertised.listeners on the broker to names that this machine can reach.",
        )

    def _ask(self, api: int, version: int, body: bytes) -> _Answer:
        assert self._socket is not None
        self._correlation += 1
        header = struct.pack(">hhih", api, version, self._correlation, len(self._client_id)) + self._client_id
        deadline = time.monotonic() + self._timeout_s
        self._socket.settimeout(self._timeout_s)
        self._socket.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        (size,) = struct.unpack(">i", self._receive(4, deadline))
        if not 4 <= size <= _LARGEST_ANSWER:
            raise _NotKafka("it sent something else")
        answer = _Answer(self._receive(size, deadline))
        if answer.int32() != self._correlation:
            raise _NotKafka("it sent something else")
        return answer

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._socket is not None
        parts = bytearray()
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
            part = self._socket.recv(min(size - len(parts), 1 << 16))
            if not part:
                raise _NotKafka("it closed the connection")
            parts += part
        return bytes(parts)


class _NotKafka(Exception):
    """The other side broke off, or sent what no broker sends."""


class _Answer:
    """Reads the parts of an answer in their order."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _take(self, size: int) -> bytes:
        part = self._body[self._at : self._at + size]
        if size < 0 or len(part) != size:
            raise _NotKafka("its answer is cut short")
        self._at += size
        return part

    def boolean(self) -> bool:
        return self._take(1) != b"\0"

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def text(self) -> str | None:
        size = self.int16()
        return None if size < 0 else self._take(size).decode("utf-8", "replace")

    def raw(self) -> bytes:
        size = self.int32()
        return b"" if size < 0 else self._take(size)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Addresses of the brokers, and for each topic its error code and number of partitions."""

    brokers: list[tuple[str, int]]
    cluster_id: str
    topics: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, answer: _Answer) -> _Metadata:
        answer.int32()  # throttle time
        brokers = []
        for _ in range(answer.int32()):
            answer.int32()  # node id
            host, port = answer.text() or "", answer.int32()
            answer.text()  # rack
            brokers.append((host, port))
        cluster_id = answer.text() or ""
        answer.int32()  # controller
        topics = {}
        for _ in range(answer.int32()):
            error, name = answer.int16(), answer.text() or ""
            answer.boolean()  # internal
            partitions = answer.int32()
            for _ in range(partitions):
                answer.int16(), answer.int32(), answer.int32()  # error, number, leader
                for _ in range(2):  # replicas, in-sync replicas
                    for _ in range(answer.int32()):
                        answer.int32()
            topics[name] = (error, partitions)
        return cls(brokers, cluster_id, topics)


def scram_log_in(
    mechanism: str, username: str, password: str, authenticate: Callable[[bytes], bytes], *, nonce: str
) -> None:
    """Log in by SCRAM (RFC 5802 with SHA-256 or SHA-512, RFC 7677), without channel binding, as Kafka uses it.

    Args:
        authenticate: sends one message and gives the answer; raises where the server refuses.
        nonce: random text without commas, used once.

    Raises:
        AccessRefused: the server's answers do not fit, or it cannot prove that it knows the password.
    """
    algorithm = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}[mechanism]
    bare = f"n={username.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
    first = authenticate(b"n,," + bare.encode()).decode("utf-8", "replace")
    try:
        parts = dict(part.split("=", 1) for part in first.split(","))
        salt, rounds = base64.b64decode(parts["s"], validate=True), int(parts["i"])
        if not parts["r"].startswith(nonce) or not 4096 <= rounds <= 1_000_000:
            raise ValueError
    except (KeyError, ValueError, binascii.Error) as error:
        raise AccessRefused(
            "The Kafka broker's SCRAM answer does not fit.", hint="Check security.mechanism."
        ) from error

    def sign(key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, algorithm)

    salted = hashlib.pbkdf2_hmac(algorithm, password.encode(), salt, rounds)
    last = f"c=biws,r={parts['r']}"
    signed = f"{bare},{first},{last}".encode()
    client_key = sign(salted, b"Client Key")
    signature = sign(hashlib.new(algorithm, client_key).digest(), signed)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    final = authenticate(f"{last},p={base64.b64encode(proof).decode()}".encode()).decode("utf-8", "replace")
    expected = base64.b64encode(sign(sign(salted, b"Server Key"), signed)).decode()
    if not hmac.compare_digest(final.removeprefix("v="), expected):
        raise AccessRefused(
            "The Kafka broker does not know the password that it let through.", hint="Is this the right broker?"
        )


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((host, port), timeout=timeout_s)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _nearest(topic: str, names: list[str]) -> str:
    """A hint with the names that are most like ``topic``; not the whole list, which may be long."""
    near = difflib.get_close_matches(topic, names, n=3, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
    if not names:
        return "The cluster shows us no topics at all: create it, or check our rights."
    shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    return f"It has {len(names)} topics: {shown}"


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__
