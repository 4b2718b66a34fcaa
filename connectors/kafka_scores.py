"""Writes the scores of every record to a topic: one message for each record, keyed by its position.

The messages of a checkpoint are acknowledged by all in-sync replicas before its transaction, so none is ever missing.
After a crash in between, the same records give the same messages again, under the same keys: on a topic with
``cleanup.policy=compact`` that is an upsert. docs/scores.md describes the message.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, Field

from connectors.kafka import KafkaSettings
from connectors.kafka_probe import Brokers, KafkaSecurity, TopicName, broker_addresses
from connectors.kafka_producer import WrittenTopic
from connectors.scores import FraudColumns, ScoredRecords, SpaceScores, Vectors, cleaned
from detectors.errors import SinkError

SCHEMA = b"driftd-scores-1"
_IN_FLIGHT = 5000  # messages sent before waiting: the client's own buffer has no bound
_SLOWEST = 2000.0  # messages a second; a checkpoint of many gets so much longer than the time-out


class KafkaScoresSettings(BaseModel, frozen=True, extra="forbid"):
    """A topic of Apache Kafka that gets a message for each record, keyed by its position."""

    kind: Literal["kafka"] = "kafka"
    topic: TopicName = Field(description="name of the topic, which must exist")
    brokers: Brokers | None = Field(
        None, description='addresses to start from, "host:port,host:port" or a list; default: those of the source'
    )
    security: KafkaSecurity | None = Field(
        None, description="how to connect to these brokers; default: with the source's, where brokers is not set"
    )
    vectors: Vectors = Field(False, description="false, float16 or float32: the prepared vectors, in base64")
    required: bool = Field(
        True, description="wait where the brokers do not take them; false: count them as dropped and go on"
    )

    def beside(self, source: KafkaSettings) -> KafkaScoresSettings:
        """On the cluster of the source, and with its rights, where these settings name no brokers."""
        if self.brokers is not None:
            return self
        return self.model_copy(
            update={"brokers": source.addresses, "security": self.security if self.security else source.security}
        )

    def build(self, *, model: str, client_id: str) -> KafkaScores:
        """The writer. Connects with the first `check` or `write`."""
        return KafkaScores(
            broker_addresses(self.brokers) if self.brokers else [],
            self.topic,
            model=model,
            client_id=client_id,
            security=self.security,
        )


class KafkaScores:
    """A `ScoresWriter` of a topic. Its receipts are empty: what was sent twice has the same key and the same bytes.

    Args:
        brokers: addresses to start from, as "host:port".
        timeout_s: until when the messages of one `write` must be acknowledged, and half a millisecond for each.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        topic: str,
        *,
        model: str,
        client_id: str,
        security: KafkaSecurity | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._topic = topic
        self._model = model
        self._timeout_s = timeout_s
        self._written = WrittenTopic(
            brokers,
            topic,
            what=f"The scores of model {model}",
            place=f"models.{model}.scores",
            client_id=client_id,
            security=security,
            timeout_s=timeout_s,
            connect_timeout_s=min(timeout_s, 5.0),
            compression_type="lz4",
            batch_size=1 << 18,
            linger_ms=5,
        )

    def check(self) -> str:
        """Connect once; one line on where the scores will go.

        Raises:
            SinkError: the topic cannot be found or reached.
        """
        return self._written.check()

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        """Send, and wait for the acknowledgement of all in-sync replicas.

        Raises:
            SinkError: some were not acknowledged in time; all may be sent again.
        """
        n = sum(map(len, records))
        deadline = time.monotonic() + self._timeout_s + n / _SLOWEST
        for each in records:
            for first in range(0, len(each), _IN_FLIGHT):
                self._send(each, first, min(first + _IN_FLIGHT, len(each)), now_ms=now_ms, deadline=deadline)
        return ""

    def publish(self, receipt: str) -> None:
        """What was sent is seen already."""

    def discard(self, receipt: str) -> None:
        """What was sent comes again, under the same keys."""

    def sweep(self, committed: Collection[str], now_ms: int) -> None:
        """Nothing is left behind."""

    def close(self) -> None:
        """Leave within 5 seconds, whatever the broker does. Nothing is waiting: `write` has waited for all."""
        self._written.close()

    def _send(self, records: ScoredRecords, first: int, after: int, *, now_ms: int, deadline: float) -> None:
        producer = self._written.producer()
        # A partition of the source keeps its order and its place: beside topics that are partitioned alike, too.
        partition = records.partition.number % self._written.partitions
        headers = [("schema", SCHEMA)]
        # Brokers refuse times in the future, and a record's own clock may run ahead.
        times = np.clip(records.time_ms[first:after], 0, max(now_ms, 0)).tolist()
        try:
            sent = [
                producer.send(
                    self._topic, key=key, value=value, headers=headers, partition=partition, timestamp_ms=time_ms
                )
                for (key, value), time_ms in zip(
                    messages(records, self._model, first=first, after=after), times, strict=True
                )
            ]
            producer.flush(timeout=max(0.001, deadline - time.monotonic()))
            for future in sent:
                future.get(0)
        except Exception as error:
            self._written.close()
            self.check()  # says it better, where it can
            raise SinkError(
                f"Topic {self._topic} did not take the scores of model {self._model} in time: "
                f"{type(error).__name__}: {error}.",
                retryable=True,
                hint="Check the rights on the topic, its max.message.bytes and its min.insync.replicas.",
            ) from error


class _Space(msgspec.Struct, frozen=True):
    reference: int
    score: float
    p_value: float
    candidate: bool
    nearest: int
    vector: str | msgspec.UnsetType = msgspec.UNSET


class _Fraud(msgspec.Struct, frozen=True):
    probability: float
    p_value: float
    labels: int
    flood: int


class _Message(msgspec.Struct, frozen=True):
    topic: str
    partition: int
    offset: int
    row: int
    time_ms: int
    id: str
    model: str
    late: bool
    thinned: bool
    prediction: str | None
    confidence: float | None
    segments: dict[str, str]
    spaces: dict[str, _Space]
    fraud: _Fraud | msgspec.UnsetType = msgspec.UNSET


def messages(
    records: ScoredRecords, model: str, *, first: int = 0, after: int | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of the message of each record first <= row < after; the same for the same record, always."""
    cut = slice(first, len(records) if after is None else after)
    try:
        return _encoded(records, model, cut)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON has not
        segments: dict[str, Sequence[str]] = {name: cleaned(values) for name, values in records.segments.items()}
        predictions = None if records.predictions is None else cleaned(records.predictions)
        clean = replace(records, ids=cleaned(records.ids), segments=segments, predictions=predictions)
        return _encoded(clean, model, cut)


def _encoded(records: ScoredRecords, model: str, cut: slice) -> Iterator[tuple[bytes, bytes]]:
    topic, number = records.partition
    offsets, rows = records.offsets[cut].tolist(), records.rows[cut].tolist()
    columns: list[Iterable[Any]] = [
        repeat(topic),
        repeat(number),
        offsets,
        rows,
        records.time_ms[cut].tolist(),
        records.ids[cut],
        repeat(model),
        records.late[cut].tolist(),
        records.thinned[cut].tolist(),
        repeat(None) if records.predictions is None else records.predictions[cut],
        repeat(None)
        if records.confidence is None
        else [None if math.isnan(value) else value for value in records.confidence[cut].tolist()],
        _dicts({name: values[cut] for name, values in records.segments.items()}, len(offsets)),
        _dicts({each.space: list(_spaces(each, cut)) for each in records.spaces}, len(offsets)),
    ]
    if records.fraud is not None:
        columns.append(_fraud(records.fraud, cut))
    encoder = msgspec.json.Encoder()
    keys = (f"{topic}/{number}/{offset}/{row}".encode() for offset, row in zip(offsets, rows, strict=True))
    return zip(keys, list(map(encoder.encode, map(_Message, *columns))), strict=True)


def _spaces(scores: SpaceScores, cut: slice) -> Iterator[_Space]:
    # Scores are multiples of 1e-5, as well as float32 can say it; in decimals they are, and short.
    score = np.round(scores.score[cut].astype(np.float64), 5).tolist()
    columns: list[Iterable[Any]] = [
        repeat(scores.reference),
        score,
        scores.p_value[cut].tolist(),
        scores.candidate[cut].tolist(),
        scores.nearest[cut].tolist(),
    ]
    if scores.vectors is not None:
        little = scores.vectors[cut].astype(scores.vectors.dtype.newbyteorder("<"), copy=False)
        columns.append([base64.b64encode(row.tobytes()).decode() for row in little])
    return map(_Space, *columns)


def _fraud(fraud: FraudColumns, cut: slice) -> Iterator[_Fraud]:
    columns = fraud.probability, fraud.p_value, fraud.version, fraud.flood
    return map(_Fraud, *(column[cut].tolist() for column in columns))


def _dicts(columns: dict[str, Sequence[Any]], n: int) -> list[dict[str, Any]]:
    """n dicts with an entry of each column."""
    if not columns:
        return [{}] * n
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
