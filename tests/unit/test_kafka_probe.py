"""What the probe says of things that are no healthy Kafka, each played by a small real server on a port of its own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from connectors.kafka_probe import KafkaSecurity, find_topic, scram_log_in
from detectors.errors import AccessRefused, SourceUnreachable, UnknownTopic

PLAIN = KafkaSecurity.model_validate({})
Talk = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], str]]:
    """``serve(talk)`` starts a server that gives each connection to ``talk``; its address."""
    listeners: list[socket.socket] = []

    def start(talk: Talk) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        talk(connection)
                    except OSError:
                        pass

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def kafka(*answers: bytes) -> Talk:
    """Answers the requests of a connection with these bodies, one after the other."""

    def talk(connection: socket.socket) -> None:
        for answer in answers:
            (size,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
            request = connection.recv(size, socket.MSG_WAITALL)
            body = request[4:8] + answer  # the correlation id
            connection.sendall(struct.pack(">i", len(body)) + body)
        connection.recv(1)

    return talk


VERSIONS = struct.pack(">hi", 0, 0)


def metadata(*topics: tuple[int, str, int], advertised: tuple[str, int]) -> bytes:
    """Metadata v4: one broker; for each topic its error code, name and number of partitions."""
    host, port = advertised
    body = struct.pack(">iii", 0, 1, 1) + text(host) + struct.pack(">ih", port, -1) + text("cluster")
    body += struct.pack(">ii", 1, len(topics))
    for error, name, partitions in topics:
        body += struct.pack(">h", error) + text(name) + b"\0" + struct.pack(">i", partitions)
        for number in range(partitions):
            body += struct.pack(">hiiiiii", 0, number, 1, 1, 1, 1, 1)
    return body


def find(address: str, topic: str = "requests", timeout_s: float = 2.0) -> object:
    return find_topic([address], topic, security=PLAIN, timeout_s=timeout_s)


def test_a_web_server_is_not_taken_for_a_broker(serve) -> None:
    address = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(SourceUnreachable, match="does not answer as a Kafka broker"):
        find(address)


def test_a_server_that_hangs_up_is_not_taken_for_a_broker(serve) -> None:
    with pytest.raises(SourceUnreachable, match="does not answer as a Kafka broker"):
        find(serve(lambda connection: None))


def test_a_silent_server_is_left_after_the_time_out(serve) -> None:
    with pytest.raises(SourceUnreachable, match=r"does not answer within 0.2 s"):
        find(serve(lambda connection: connection.recv(1000) and connection.recv(1)), timeout_s=0.2)


def test_an_answer_that_is_cut_short_is_no_crash(serve) -> None:
    with pytest.raises((SourceUnreachable, AccessRefused)):
        find(serve(kafka(VERSIONS, b"\0\0")))


def test_addresses_that_lead_nowhere_are_named(serve) -> None:
    answer = metadata((0, "requests", 3), advertised=("kafka-internal.invalid", 29092))
    address = serve(kafka(VERSIONS, answer))
    with pytest.raises(
        SourceUnreachable, match=r"kafka-internal.invalid:29092 \(the host name is not known\)"
    ) as caught:
        find(address)
    assert "advertised.listeners" in caught.value.hint


@pytest.fixture
def elsewhere(serve) -> tuple[str, int]:
    """An address that takes connections, for a broker to advertise."""
    host, _, port = serve(lambda connection: None).partition(":")
    return host, int(port)


def test_a_topic_is_found_with_its_partitions(serve, elsewhere) -> None:
    address = serve(kafka(VERSIONS, metadata((0, "requests", 3), advertised=elsewhere)))
    found = find(address)
    assert found == type(found)(address, "cluster", 3)


def test_an_unknown_topic_comes_with_the_nearest_names(serve, elsewhere) -> None:
    several = metadata((0, "request", 1), (0, "__consumer_offsets", 1), (0, "clicks", 1), advertised=elsewhere)
    address = serve(kafka(VERSIONS, metadata((3, "requests", 0), advertised=elsewhere), several))
    with pytest.raises(UnknownTopic, match='no topic "requests"') as caught:
        find(address)
    assert caught.value.hint == 'Did you mean "request"?'


def test_an_unknown_topic_like_no_other_comes_with_some_names(serve, elsewhere) -> None:
    several = metadata(*((0, f"x{i}", 1) for i in range(9)), advertised=elsewhere)
    address = serve(kafka(VERSIONS, metadata((3, "requests", 0), advertised=elsewhere), several))
    with pytest.raises(UnknownTopic) as caught:
        find(address)
    assert caught.value.hint == "It has 9 topics: x0, x1, x2, x3, x4, ..."


def test_a_topic_without_a_leader_is_worth_another_try(serve, elsewhere) -> None:
    address = serve(kafka(VERSIONS, metadata((5, "requests", 1), advertised=elsewhere)))
    with pytest.raises(SourceUnreachable, match="Kafka error 5") as caught:
        find(address)
    assert caught.value.retryable


def test_a_broker_that_refuses_says_more_than_one_that_is_down(serve, elsewhere) -> None:
    refuses = serve(kafka(VERSIONS, metadata((29, "requests", 0), advertised=elsewhere)))
    with pytest.raises(AccessRefused, match="does not let anonymous clients"):
        find_topic(["127.0.0.1:1", refuses], "requests", security=PLAIN, timeout_s=2)


def test_scram_gives_the_published_example() -> None:
    """RFC 7677 section 3, with its client nonce."""
    said: list[bytes] = []

    def server(message: bytes) -> bytes:
        said.append(message)
        if len(said) == 1:
            return b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        return b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

    scram_log_in("SCRAM-SHA-256", "user", "pencil", server, nonce="rOprNGfwEbeRWgbNEkqO")
    assert said == [
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    ]


@pytest.mark.parametrize(
    "first",
    [
        b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",  # not our nonce
        b"r=mineX,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",  # weak
        b"r=mineX,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=100000000",  # would take minutes
        b"nothing",
    ],
)
def test_scram_answers_that_do_not_fit_are_refused(first: bytes) -> None:
    with pytest.raises(AccessRefused, match="does not fit"):
        scram_log_in("SCRAM-SHA-256", "user", "pencil", lambda _: first, nonce="mine")


def test_a_broker_that_cannot_prove_the_password_is_refused() -> None:
    answers = [b"r=mineX,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", b"v=AAAA"]
    with pytest.raises(AccessRefused, match="does not know the password"):
        scram_log_in("SCRAM-SHA-512", "user", "pencil", lambda _: answers.pop(0), nonce="mine")
