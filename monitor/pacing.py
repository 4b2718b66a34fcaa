"""When a sink that people read gets a message, and about what.

For each model, counted from the notifications that wait for the sink:

* News of a page (a page opened or came back, a warning became a page) is due ``group_wait`` after it was stored, but
  not before ``group_interval`` after the last message with a page about the model.
* Anything else is due ``group_wait`` after the oldest of it was stored, but not before ``group_interval`` after the
  last message about the model.
* When either is due, everything that waits about the model goes out as one message.
* No more than ``most_per_minute`` messages go to a sink within a minute. Where more models are due than there is room
  for, or more than five at once, all that is due goes out as one message.

All of it by the wall clock and by what the outbox says was sent, so that it holds over restarts and for all processes
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.database.rows import Waiting, WaitingModel

MOST_APART = 5  # more models than this at once share a message
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often people are told; see the settings ``notify``."""

    group_wait_ms: int = 10_000
    group_interval_ms: int = 60_000
    most_per_minute: int = 10

    @property
    def memory_ms(self) -> int:
        """Messages that are older than this make no difference."""
        return max(self.group_interval_ms, MINUTE_MS)


def due_models(waiting: Waiting, pace: Pace, now_ms: int) -> Sequence[str]:
    """The models that the next message is about: one, or several that share it; none if nothing is due yet.

    A model of which something is on its way, or waits for another attempt, waits for that.
    """
    due = sorted(
        (at_ms, one.model)
        for one in waiting.models
        if not one.sending and (at_ms := due_ms(one, pace, now_ms)) <= now_ms
    )
    room = pace.most_per_minute - waiting.messages
    if not due or room <= 0:
        return ()
    shared = len(due) > min(MOST_APART, room)
    return [model for _, model in (due if shared else due[:1])]


def due_ms(one: WaitingModel, pace: Pace, now_ms: int) -> int:
    """When a message about a model is due, in milliseconds since 1970."""
    kinds = ((one.page_ms, one.told_page_ms), (one.other_ms, one.told_ms))
    return min(_due_ms(stored_ms, told_ms, pace, now_ms) for stored_ms, told_ms in kinds if stored_ms is not None)


def _due_ms(stored_ms: int, told_ms: int | None, pace: Pace, now_ms: int) -> int:
    # Stored in a time to come, by a clock that ran ahead: it has waited for long enough.
    due = 0 if stored_ms > now_ms else stored_ms + pace.group_wait_ms
    return due if told_ms is None else max(due, told_ms + pace.group_interval_ms)
