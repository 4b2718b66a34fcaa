"""A real Apache Kafka for the tests: one KRaft node, started from jars in the user's cache.

    from tests.servers.kafka import KafkaServer, missing_kafka

    reason = missing_kafka()            # "" where everything is there, else what is missing and what to type
    server = KafkaServer(directory)     # an empty directory: settings, log and data go there
    server.start()                      # returns once the broker answers with its own cluster id
    server.brokers                      # "127.0.0.1:21934", plain text
    server.sasl_brokers                 # SASL_PLAINTEXT: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; USER and PASSWORD below
    server.tls_brokers                  # SSL, certificate signed by server.ca_file; "" where openssl is missing
    server.sasl_tls_brokers             # SASL_SSL
    server.kill(); server.start()       # SIGKILL, and again on the same ports with the same data
    server.stop()                       # SIGTERM
    KafkaServer(other, joins=server)    # a second broker of the same cluster: node 2, without a controller

Tests that only need a broker take the fixtures of tests/conftest.py: `kafka` (one broker for the whole run; leave it
running), `topic` (makes topics with names of their own), `own_kafka` (a broker of the test's own, to be killed).

Ports lie outside the kernel's outgoing range, so that no client's connection can sit on one between a kill and a start.
Records are kept for ever, however old their time stamps are, unless a topic's own retention.ms says otherwise.
Authorisation is on: everybody may do everything, until a test adds an ACL that says otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kafka.admin import KafkaAdminClient

KAFKA_VERSION = "4.1.1"
USER, PASSWORD = "driftd", "right-password"
START_DEADLINE_S = 60.0  # 3 s on a quiet machine; a test machine is not quiet


def cache_directory() -> Path:
    """Where the jars are kept, outside the checkout: $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "driftd-test" / f"kafka-{KAFKA_VERSION}"


def java_problem() -> str:
    """ "" where a Java of at least 17 is on the path, else what was found."""
    java = shutil.which("java")
    if java is None:
        return "Java is not installed"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None:
        return f"{java} does not say its version"
    if int(found.group(1)) < 17:
        return f"Java {found.group(1)} is too old, Kafka {KAFKA_VERSION} needs 17"
    return ""


def missing_kafka() -> str:
    """ "" where a broker can be started, else one sentence with what is missing and what to type."""
    problem = java_problem()
    if not problem and not any(cache_directory().glob("kafka_2.13-*.jar")):
        problem = f"the jars of Kafka {KAFKA_VERSION} are not in {cache_directory()}"
    return f"no Kafka for tests: {problem}; type: make servers" if problem else ""


def free_port() -> int:
    """A port of 127.0.0.1 below the range that the kernel gives to outgoing connections, free at this moment."""
    for _ in range(200):
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000 after 200 tries")


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """Make a certificate authority and a broker's certificate for 127.0.0.1 and localhost, valid for two days.

    Returns:
        The authority's certificate, and a PEM file with the broker's key and certificate chain.

    Raises:
        FileNotFoundError: openssl is not installed.
        subprocess.CalledProcessError: openssl failed.
    """
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    key, request, certificate = directory / "broker.key", directory / "broker.csr", directory / "broker.crt"
    extensions = directory / "broker.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)

    openssl(
        *("req", "-x509", *curve, "-keyout", str(ca_key), "-out", str(ca), "-days", "2", "-subj", "/CN=driftd test CA"),
        *("-addext", "keyUsage=critical,keyCertSign"),
    )
    openssl("req", *curve, "-keyout", str(key), "-out", str(request), "-subj", "/CN=localhost")
    openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial"),
        *("-out", str(certificate), "-days", "2", "-extfile", str(extensions)),
    )
    both = directory / "broker.pem"
    both.write_text(key.read_text() + certificate.read_text() + ca.read_text())
    return ca, both


class KafkaServer:
    """One broker with its own directory, ports and cluster id; see the top of this file."""

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] | None = None, joins: KafkaServer | None = None
    ) -> None:
        self.directory = directory
        self._settings = dict(settings or {})  # lines of server.properties that replace ours
        self.cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        self._ports = {name: free_port() for name in ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL", "CONTROLLER")}
        if joins is not None:
            self.cluster_id = joins.cluster_id
            self._ports["CONTROLLER"] = joins._ports["CONTROLLER"]
            self._settings = {"process.roles": "broker", "node.id": "2", **self._settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.ca_file: Path | None = None
        self._formatted = False

    @property
    def brokers(self) -> str:
        return f"127.0.0.1:{self._ports['PLAINTEXT']}"

    @property
    def sasl_brokers(self) -> str:
        return f"127.0.0.1:{self._ports['SASL_PLAINTEXT']}"

    @property
    def tls_brokers(self) -> str:
        return f"127.0.0.1:{self._ports['SSL']}" if self.ca_file else ""

    @property
    def sasl_tls_brokers(self) -> str:
        return f"127.0.0.1:{self._ports['SASL_SSL']}" if self.ca_file else ""

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`; returns once the broker answers with its own cluster id.

        Raises:
            RuntimeError: the broker died or did not answer in time; holds the end of its log.
        """
        if not self._formatted:
            self._format()
        with (self.directory / "server.log").open("ab") as log:
            # SerialGC: 170-200 MiB and a fast start. The second compiler stays on, or TLS is five times slower.
            self._process = subprocess.Popen(
                ["java", "-Xmx512m", "-Xshare:auto", "-XX:+UseSerialGC", *self._java("kafka.Kafka")],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the tests must not end it before the fixture does
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"Kafka ended with code {self._process.returncode}:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Kafka did not answer within {START_DEADLINE_S:g} s:\n{self._log_tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power would look to its clients."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; SIGKILL where the broker is still there after 15 s."""
        self._end(signal.SIGTERM)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The broker holds its connections and answers nothing (SIGSTOP) until the block ends."""
        assert self._process is not None, "start the broker first"
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """A client for topics, records and rights."""
        from kafka.admin import KafkaAdminClient

        client = KafkaAdminClient(bootstrap_servers=self.brokers, reconnect_backoff_max_ms=200)
        try:
            yield client
        finally:
            client.close()

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        config: dict[str, str] | None = None,
        replicas: Mapping[int, Sequence[int]] | None = None,
    ) -> str:
        """Make a topic and return its name once it has leaders. ``replicas``: partition to nodes, the leader first."""
        from kafka.admin import NewTopic

        with self.admin() as admin:
            new = NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=config or {})
            if replicas is not None:
                new = NewTopic(name, replica_assignments=replicas, topic_configs=config or {})
            admin.create_topics([new])
            admin.wait_for_topics([name])
        return name

    def topic_id(self, name: str) -> str:
        """The id that the broker gave a topic."""
        with self.admin() as admin:
            (found,) = admin.describe_topics([name])
        return str(found["topic_id"])

    def _java(self, main: str) -> Sequence[str]:
        logging_settings = [
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
        ]
        return [*logging_settings, "-cp", f"{cache_directory()}/*", main, str(self.directory / "server.properties")]

    def _format(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        names = ["PLAINTEXT", "SASL_PLAINTEXT"]
        tls = ""
        with contextlib.suppress(FileNotFoundError):
            self.ca_file, store = make_certificates(self.directory)
            names += ["SSL", "SASL_SSL"]
            tls = f"ssl.keystore.type=PEM\nssl.keystore.location={store}\n"
        advertised = ",".join(f"{name}://127.0.0.1:{self._ports[name]}" for name in names)
        listeners = advertised
        if "process.roles" not in self._settings:
            listeners += f",CONTROLLER://127.0.0.1:{self._ports['CONTROLLER']}"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        plain = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
        )
        sasl = "".join(
            f"listener.name.{name.lower()}.plain.sasl.jaas.config={plain}\n"
            f"listener.name.{name.lower()}.scram-sha-256.sasl.jaas.config={scram}\n"
            f"listener.name.{name.lower()}.scram-sha-512.sasl.jaas.config={scram}\n"
            for name in names
            if name.startswith("SASL")
        )
        (self.directory / "server.properties").write_text(
            f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{self._ports["CONTROLLER"]}
controller.listener.names=CONTROLLER
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
{sasl}{tls}authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
super.users=User:ANONYMOUS
log.dirs={self.directory / "data"}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.coordinator.append.linger.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.retention.ms=-1
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
"""
            + "".join(f"{name}={value}\n" for name, value in self._settings.items())
        )
        done = subprocess.run(
            [
                *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{cache_directory()}/*"),
                *("kafka.tools.StorageTool", "format", f"--cluster-id={self.cluster_id}"),
                *("-c", str(self.directory / "server.properties")),
                *("--add-scram", f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"),
                *("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"formatting Kafka's storage failed:\n{done.stdout}{done.stderr}")
        self._formatted = True

    def _answers(self) -> bool:
        """The broker on our port says our cluster id, and it is not fenced: metadata lists it."""
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", self._ports["PLAINTEXT"])) != 0:
                return False
        quiet = logging.getLogger("kafka")
        before = quiet.level
        quiet.setLevel(logging.CRITICAL)
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self.brokers, bootstrap_timeout_ms=2000, request_timeout_ms=2000, retry_backoff_ms=50
            )
        except KafkaError:
            return False
        finally:
            quiet.setLevel(before)
        try:
            answer = admin.describe_cluster()
        except KafkaError:
            return False
        finally:
            admin.close()
        ports = {broker["port"] for broker in answer["brokers"]}
        return answer["cluster_id"] == self.cluster_id and self._ports["PLAINTEXT"] in ports

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(15)
        self._process = None

    def _log_tail(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")[-3000:]
